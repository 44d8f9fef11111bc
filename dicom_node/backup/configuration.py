"""The configuration in a backup: the site's file and the settings in force, without secrets."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from config.settings import Settings
from config.values import DatabaseUrl

LEFT_OUT = "<left out of the backup: fill it in>"
"""Stands where a secret stood, without quotes: so nobody starts a node with a secret that all the world knows."""


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
    done with certainty. A database URL only loses its password."""
    replaced = text
    for secret, shown in secrets.values():
        for written in (json.dumps(secret, ensure_ascii=False), f'"{secret}"', f"'{secret}'"):
            replaced = replaced.replace(written, json.dumps(shown))
    try:
        before, after = tomllib.loads(text), tomllib.loads(replaced)
    except tomllib.TOMLDecodeError:
        return None
    allowed = dict(secrets.values())
    return replaced.replace(json.dumps(LEFT_OUT), LEFT_OUT) if _differs_only_in(allowed, before, after) else None


def _differs_only_in(secrets: Mapping[str, str], before: Any, after: Any) -> bool:
    """Whether every secret was replaced by what stands for it, and nothing else."""
    if isinstance(before, dict) and isinstance(after, dict):
        same_keys = before.keys() == after.keys()
        return same_keys and all(_differs_only_in(secrets, before[key], after[key]) for key in before)
    if isinstance(before, list) and isinstance(after, list):
        pairs = zip(before, after, strict=False)
        return len(before) == len(after) and all(_differs_only_in(secrets, *pair) for pair in pairs)
    return bool(after == secrets.get(before, before)) if isinstance(before, str) else bool(before == after)
