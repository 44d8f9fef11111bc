"""Read the settings once, and name every mistake with its key and line."""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict, SettingsError

from config.errors import ConfigError
from config.settings import Settings

ENV_PREFIX = "DICOM_NODE_"
# Variables with our prefix that are not settings.
OTHER_VARIABLES = {
    "DICOM_NODE_CONFIG",
    "DICOM_NODE_LOG_KEY",
    "DICOM_NODE_PARENT_PID",
    "DICOM_NODE_SHARED",
    "DICOM_NODE_STATEFUL_STEPS",
    "DICOM_NODE_TEST_DATABASE",
}


@dataclass(frozen=True)
class Mistake:
    """One mistake in the configuration. line is 1-based, None where it is not in the file."""

    key: str
    line: int | None
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.key}: {self.message}"


def load_settings(path: Path | None = None) -> Settings:
    """Settings from the TOML file at `path` (None: defaults) and the environment.

    Raises ConfigError that lists every mistake.
    """
    settings, mistakes = read(path)
    if settings is None or mistakes:
        lines = "\n".join(f"  {mistake}" for mistake in mistakes)
        raise ConfigError(f"the configuration {path or '(environment)'} has mistakes:\n{lines}")
    return settings


def read(path: Path | None) -> tuple[Settings | None, list[Mistake]]:
    """The settings, or None, and all mistakes found."""
    text = ""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
            tomllib.loads(text)
        except (OSError, UnicodeDecodeError) as error:
            return None, [Mistake(str(path), None, f"cannot be read: {getattr(error, 'strerror', error)}")]
        except tomllib.TOMLDecodeError as error:
            return None, [Mistake(str(path), None, f"is not valid TOML: {error}")]
    mistakes = _unknown_variables()
    try:
        settings = _build(path)
    except ValidationError as error:
        return None, mistakes + [_mistake(item, text) for item in error.errors()]
    except SettingsError as error:
        return None, [*mistakes, Mistake("environment", None, str(error.__cause__ or error))]
    return settings, mistakes


def _build(path: Path | None) -> Settings:
    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    return FromFile()


def _unknown_variables() -> list[Mistake]:
    mistakes = []
    for name in sorted(os.environ):
        if name.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES:
            section = name.removeprefix(ENV_PREFIX).split("__")[0].lower()
            if section not in Settings.model_fields:
                mistakes.append(Mistake(name, None, f"is no setting; sections are {', '.join(Settings.model_fields)}"))
    return mistakes


def _mistake(error: object, text: str) -> Mistake:
    item = dict(error)  # type: ignore[call-overload]
    location = tuple(item["loc"])
    message = str(item["msg"])
    if item["type"] == "extra_forbidden":
        message = "is not a known key"
    return Mistake(_dotted(location), line_of(location, text), message)


def _dotted(location: tuple[str | int, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key or "settings"


def line_of(location: tuple[str | int, ...], text: str) -> int | None:
    """1-based line of a key in TOML text: its own line, else its table's header, else None.

    location: path of keys, with indices for arrays of tables, as pydantic reports it.
    """
    table: tuple[str | int, ...] = ()
    counts: dict[str, int] = {}
    best: int | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split("#")[0].strip()
        if line.startswith("[["):
            name = line.strip("[] ")
            table = (name, counts.setdefault(name, 0))
            counts[name] += 1
        elif line.startswith("["):
            table = tuple(part.strip() for part in line.strip("[] ").split("."))
        else:
            key = line.split("=")[0].strip().strip("\"'")
            if "=" in line and location and (*table, *key.split(".")) == location[: len(table) + len(key.split("."))]:
                return number
            continue
        if table == location[: len(table)]:
            best = number
    return best
