"""The configuration in a backup: the site's file and the settings in force, without secrets."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr

from config.settings import Settings
from config.values import DatabaseUrl

LEFT_OUT = "<left out of the backup: fill it in>"
"""Stands where a secret stood, without quotes: so nobody starts a node with a secret that all the world knows."""

COMMENT_LEFT_OUT = "# <a comment that names a secret was left out of the backup>"
_COMMENTS = re.compile(  # or text, in which a "#" begins none
    r'"""(?:\\[\s\S]|[^\\])*?"{3,5}|\'\'\'[\s\S]*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\''
    r"|(?P<comment>#[^\n]*(?:\n[ \t]*#[^\n]*)*)"
)

Secret = tuple[str, str]
"""What is secret, and what stands in its place."""


def secrets_of(settings: BaseModel) -> dict[str, Secret]:
    """The secrets in the settings by their keys, such as "storage.pseudonym_key"."""
    return dict(_secrets(settings, ""))


def _secrets(value: object, key: str) -> Iterator[tuple[str, Secret]]:
    if isinstance(value, SecretStr) and value.get_secret_value():
        yield key, (value.get_secret_value(), LEFT_OUT)
    elif isinstance(value, DatabaseUrl) and str(value) != value.get_secret_value():
        yield key, (value.get_secret_value(), str(value))
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, f"{key}.{name}")
    elif isinstance(value, tuple):
        for number, inner in enumerate(value):
            yield from _secrets(inner, f"{key}[{number}]")


@cache
def _secret_keys() -> dict[str, type]:
    """The names of the settings that are secret, such as "pseudonym_key", each with its type."""
    return dict(_keys_of(Settings, ""))


def _keys_of(kind: Any, name: str) -> Iterator[tuple[str, type]]:
    if isinstance(kind, type) and issubclass(kind, SecretStr | DatabaseUrl):
        yield name, kind
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for field, info in kind.model_fields.items():
            yield from _keys_of(info.annotation, field)
    for inner in get_args(kind):
        yield from _keys_of(inner, name)


def secrets_in(text: str) -> dict[str, Secret]:
    """The secrets that a TOML file holds, by their keys, whether they are in force or a variable overrides them."""
    try:
        return dict(_secrets_in_file(tomllib.loads(text), "", None))
    except tomllib.TOMLDecodeError:
        return {}


def _secrets_in_file(value: object, key: str, kind: type | None) -> Iterator[tuple[str, Secret]]:
    """kind: of the secret setting that the value belongs to, if it does."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _secrets_in_file(inner, f"{key}.{name}" if key else name, kind or _secret_keys().get(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _secrets_in_file(inner, f"{key}[{number}]", kind)
    elif isinstance(value, str) and kind is not None:
        yield from _secrets(kind(value), key)


def files_named(settings: BaseModel) -> tuple[str, ...]:
    """The files that the settings name, such as certificates, keys and credentials: none of them is in a backup."""
    return tuple(sorted(set(_files(settings))))


def _files(value: object) -> Iterator[str]:
    if isinstance(value, Path):
        yield str(value)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            if name != "data_dir":
                yield from _files(getattr(value, name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _files(inner)


def settings_text(settings: Settings) -> str:
    """Every setting in force as JSON, secrets hidden, those that environment variables gave among them."""
    return json.dumps(settings.model_dump(mode="json"), indent=1, ensure_ascii=False, default=str) + "\n"


def without_secrets(text: str, secrets: Mapping[str, Secret]) -> str | None:
    """The text of a TOML file with LEFT_OUT for each secret, which a node refuses with the line; None if that cannot be
    done with certainty. A database URL only loses its password. Comments with a secret or its key are left out.

    secrets: those in force; those that the file holds besides are found.
    """
    known = [*secrets.values(), *secrets_in(text).values()]
    replaced = _without_comments(text, [secret for secret, _ in known])
    for secret, shown in known:
        for written in (json.dumps(secret, ensure_ascii=False), f'"{secret}"', f"'{secret}'"):
            replaced = replaced.replace(written, json.dumps(shown))
    try:
        before, after = tomllib.loads(text), tomllib.loads(replaced)
    except tomllib.TOMLDecodeError:
        return None
    allowed = dict(known)
    return replaced.replace(json.dumps(LEFT_OUT), LEFT_OUT) if _differs_only_in(allowed, before, after) else None


def _without_comments(text: str, secrets: list[str]) -> str:
    """Without the comments, of one line or of several in a row, that hold a secret or the key of one."""
    keys = re.compile(rf"\b({'|'.join(_secret_keys())})\b")

    def kept(found: re.Match[str]) -> str:
        comment = found["comment"] or ""
        is_secret = keys.search(comment) or any(secret in comment for secret in secrets)
        return COMMENT_LEFT_OUT if comment and is_secret else found[0]

    return _COMMENTS.sub(kept, text)


def _differs_only_in(secrets: Mapping[str, str], before: Any, after: Any) -> bool:
    """Whether every secret was replaced by what stands for it, and nothing else."""
    if isinstance(before, dict) and isinstance(after, dict):
        same_keys = before.keys() == after.keys()
        return same_keys and all(_differs_only_in(secrets, before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        pairs = zip(before, after, strict=False)
        return len(before) == len(after) and all(_differs_only_in(secrets, *pair) for pair in pairs)
    return bool(after == secrets.get(before, before)) if isinstance(before, str) else bool(before == after)
