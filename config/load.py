"""Read the settings once, and name every mistake with its key and its line or its environment variable."""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from config.environment import Variables, path_of
from config.errors import ConfigError
from config.rules import Broken, Location, Rule, broken_rules
from config.settings import DESTINATION_KINDS, Settings
from config.toml_lines import line_of


@dataclass(frozen=True)
class Mistake:
    """One mistake in the configuration.

    key: the setting, or the environment variable that gave it. line: 1-based; None if it is not in the file.
    """

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


def read(path: Path | None, rules: Sequence[Rule] = ()) -> tuple[Settings | None, list[Mistake]]:
    """The settings, or None, and all mistakes found, in order of their lines; those of variables come last.

    rules: checked in addition to those of `config.rules`.
    """
    try:
        text, in_file = _file(path)
    except ConfigError as error:
        return None, [Mistake(str(path), None, str(error))]
    variables, unusable = Variables.read()
    found = Given(text, in_file, variables)
    settings, broken = _validated(found.values)
    broken += [one for rule in rules for one in rule(found.values)]
    mistakes = {found.mistake(one.location, one.message) for one in broken}
    mistakes |= {Mistake(name, None, message) for name, message in unusable}
    return settings, sorted(mistakes, key=lambda m: (m.line is None, m.line or 0, m.key, m.message))


def given(path: Path | None) -> "Given":
    """What the file and the environment say. Raises ConfigError if the file cannot be read."""
    text, in_file = _file(path)
    variables, _ = Variables.read()
    return Given(text, in_file, variables)


class _FromValues(Settings):
    """Settings from these values, which already include those of the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The arguments alone."""
        return (init_settings,)


def _file(path: Path | None) -> tuple[str, dict[str, object]]:
    """Text and values of the file. Raises ConfigError if it is not a readable TOML file."""
    if path is None:
        return "", {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("cannot be read: it is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not valid TOML: {error}") from None


def _validated(values: Mapping[str, Any]) -> tuple[Settings | None, list[Broken]]:
    broken = broken_rules(values)
    try:
        return _FromValues(**values), broken
    except ValidationError as error:
        # A mistake without a location is one of a rule; `broken_rules` names those one by one.
        items = [item for item in error.errors(include_input=False, include_url=False) if item["loc"]]
        return None, broken + [_mistaken(item["loc"], item["type"], item["msg"]) for item in items]


def _mistaken(location: Location, kind: str, message: str) -> Broken:
    """One mistake that pydantic found. In a destination, it puts the kind between index and key."""
    table = _table_at(location[:-1])
    if kind == "union_tag_invalid":
        message = f"is none of the kinds of destinations: {', '.join(DESTINATION_KINDS)}"
        return Broken((*location, "kind"), message)
    if location[0] == "destinations" and len(location) > 2:
        location = location[:2] + location[3:]
    return Broken(location, _sentence(location, kind, message, table))


_SENTENCES = {
    "missing": "is missing",
    "string_type": "must be text in quotes",
    "tuple_type": 'must be a list, such as ["a", "b"]; tables of their own begin with [[ ]]',
    "dict_type": 'must be a table, such as { PACS = ["pacs.example"] }',
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}


def _sentence(location: Location, kind: str, message: str, table: type[BaseModel] | None) -> str:
    """What is wrong. If pydantic's message speaks of Python, ours replaces it. table: what the key is in."""
    if kind != "extra_forbidden":
        return _SENTENCES.get(kind, message.removeprefix("Value error, "))
    near = difflib.get_close_matches(str(location[-1]), table.model_fields if table else (), n=1)
    return f"is not a known key; did you mean {near[0]}?" if near else "is not a known key"


def _table_at(location: Location) -> type[BaseModel] | None:
    """The table at this place, in which pydantic names the kind of a destination after its index."""
    table: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, str) and part in table.model_fields:
            kind = table.model_fields[part].annotation
            inner = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
            if part == "destinations":
                inner = [DESTINATION_KINDS[str(location[2])]] if len(location) > 2 else []
            if not inner:
                return None
            table = inner[0]
    return table


@dataclass(frozen=True)
class Given:
    """What was given, and by what."""

    text: str
    in_file: Mapping[str, object]
    variables: Variables

    @property
    def values(self) -> dict[str, Any]:
        """The variables' values over the file's."""
        return _merged(self.in_file, self.variables.values)

    def origin(self, location: Location) -> str | None:
        """What gave this value: a variable's name or "line 12"; None if nothing did."""
        variable = self.variables.that_set(location)
        if variable:
            return variable
        inner: object = self.in_file
        for part in location:
            if not isinstance(inner, Mapping) or part not in inner:
                return None
            inner = inner[part]
        return f"line {line_of(location, self.text)}"

    def mistake(self, location: Location, message: str) -> Mistake:
        """The mistake at this setting, named by the variable that set it, or else by its line."""
        variable = self.variables.that_set(location)
        if variable:
            rest = location[len(path_of(variable)) :]
            return Mistake(variable, None, f"{_dotted(location)}: {message}" if rest else message)
        return Mistake(_dotted(location), line_of(location, self.text), message)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, table by table; an array replaces an array."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = _merged(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return result


def _dotted(location: Location) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key or "settings"
