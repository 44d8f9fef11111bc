"""Settings as text for a person, secrets hidden, and where each value comes from."""

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic_core import to_jsonable_python

from config.load import given
from config.settings import Settings
from config.values import DatabaseUrl

HIDDEN = "(hidden)"
DEFAULT = "default"


def flat(settings: Settings) -> Iterator[tuple[str, object]]:
    """Every setting as section.key; lists of tables, such as destinations, as a whole."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            for key in type(value).model_fields:
                inner = getattr(value, key)
                if isinstance(inner, BaseModel):
                    yield from ((f"{name}.{key}.{k}", getattr(inner, k)) for k in type(inner).model_fields)
                else:
                    yield f"{name}.{key}", inner
        else:
            yield name, value


def shown(value: object) -> str:
    """A value in words that a person would write; a secret only says that there is one."""
    if isinstance(value, SecretStr):
        return HIDDEN if value.get_secret_value() else ""
    if isinstance(value, DatabaseUrl):
        return str(value) if value.get_secret_value() else ""
    if isinstance(value, dict) and any(isinstance(inner, SecretStr) for inner in value.values()):
        return ", ".join(f"{key}: {HIDDEN}" for key in value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | str | Path):
        return str(value)
    if isinstance(value, tuple) and any(isinstance(inner, BaseModel) for inner in value):
        value = [inner.model_dump(mode="json", exclude_defaults=True) for inner in value]
    return json.dumps(to_jsonable_python(value), ensure_ascii=False) if value else ""


def all_shown(settings: Settings) -> dict[str, str]:
    """Every setting as text by its key."""
    return {key: shown(value) for key, value in flat(settings)}


def differences(before: dict[str, str], after: dict[str, str]) -> list[dict[str, str]]:
    """What has changed from one set of texts to another: setting, before, after."""
    keys = sorted(before.keys() | after.keys())
    return [
        {"setting": key, "before": before.get(key, ""), "after": after.get(key, "")}
        for key in keys
        if before.get(key, "") != after.get(key, "")
    ]


def origins(settings: Settings, path: Path | None) -> dict[str, str]:
    """Where each setting comes from: "default", "line 12" of the file, or the name of a variable.

    Raises ConfigError if the file cannot be read.
    """
    found = given(path)
    return {key: found.origin(tuple(key.split("."))) or DEFAULT for key, _ in flat(settings)}
