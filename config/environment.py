"""The environment variables that set something, and which of them set what."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_settings import EnvSettingsSource, SettingsError

from config.rules import Location
from config.settings import ENV_DELIMITER, ENV_PREFIX, Settings

# Variables with our prefix that are not settings.
OTHER_VARIABLES = {
    "DICOM_NODE_CONFIG",
    "DICOM_NODE_LOG_KEY",
    "DICOM_NODE_PARENT_PID",
    "DICOM_NODE_PARTS",
    "DICOM_NODE_READY_FD",
    "DICOM_NODE_SHARED",
    "DICOM_NODE_STATEFUL_STEPS",
    "DICOM_NODE_TEST_DATABASE",
}


@dataclass(frozen=True)
class Variables:
    """The usable variables. values: nested as in the TOML file. names: as they are spelt in the environment."""

    values: Mapping[str, Any]
    names: tuple[str, ...]

    @classmethod
    def read(cls) -> tuple["Variables", list[tuple[str, str]]]:
        """All variables that can be used, and (name, what is wrong) for each of the others."""
        unusable: list[tuple[str, str]] = []
        usable: dict[str, str] = {}
        for name, value in sorted(os.environ.items()):
            if not name.upper().startswith(ENV_PREFIX) or name.upper() in OTHER_VARIABLES:
                continue
            wrong = _what_is_wrong(name, value)
            if wrong:
                unusable.append((name, wrong))
            else:
                usable[name] = value
        return cls(_parsed(usable), tuple(usable)), unusable

    def that_set(self, location: Location) -> str | None:
        """The variable that set this value or should have set it; None if there is none."""
        # A key that is missing from a table of a variable is the variable's mistake as well.
        inside = location[:-1] if any(isinstance(part, int) for part in location[:-1]) else location
        if not _holds(self.values, inside):
            return None
        paths = [(len(path), name) for name in self.names if _on_one_way(path := path_of(name), location)]
        return max(paths)[1] if paths else None


def path_of(name: str) -> tuple[str, ...]:
    """The keys that a variable sets: ("receiver", "port") of DICOM_NODE_RECEIVER__PORT."""
    return tuple(name[len(ENV_PREFIX) :].lower().split(ENV_DELIMITER))


def _on_one_way(path: Sequence[str], location: Location) -> bool:
    shorter = min(len(path), len(location))
    return tuple(path[:shorter]) == tuple(str(part).lower() for part in location[:shorter])


def _holds(values: Any, location: Location) -> bool:
    for part in location:
        keys = range(len(values)) if isinstance(values, list) else values if isinstance(values, Mapping) else ()
        if part not in keys:
            return False
        values = values[part]
    return True


def _what_is_wrong(name: str, value: str) -> str:
    section = path_of(name)[0]
    if section not in Settings.model_fields:
        return f"is not a setting; sections are {', '.join(Settings.model_fields)}"
    try:
        parsed = _parsed({name: value})
    except SettingsError:
        return 'must be JSON, such as ["auto"] for a list and {"PACS": ["pacs.example"]} for a table'
    return "" if parsed else "is not a setting"


def _parsed(variables: Mapping[str, str]) -> dict[str, Any]:
    """The nested values of these variables. Raises SettingsError if one that must be JSON is not."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in variables.items()}
    return source()
