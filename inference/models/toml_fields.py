"""Converts TOML tables to frozen dataclasses and back, with errors that name the key and the file."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from inference.errors import ModelError

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises ModelError if the file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not a TOML file: {error}") from error


def build(kind: type[T], table: object, where: str) -> T:
    """A dataclass of `kind` from a TOML table.

    where: file and key of the table, for messages.
    Raises ModelError for a missing or unknown key, or a value of the wrong type.
    """
    if not isinstance(table, Mapping):
        raise ModelError(f"{where}: expected a table")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ModelError(f"{where}.{key}: unknown key; known are {', '.join(sorted(known))}")
    values = {}
    for name, field in known.items():
        if name in table:
            values[name] = convert(hints[name], table[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ModelError(f"{where}.{name}: missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ModelError(f"{where}: {error}") from error


def convert(hint: Any, value: object, where: str) -> Any:
    """Check one TOML value against a type annotation and give it that type.

    Raises ModelError if they differ; an int is accepted as a float, nothing else is coerced.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return convert(inner, value, where)
    if origin is typing.Literal:
        return _one_of(arguments, value, where)
    if origin is tuple:
        return _sequence(arguments, value, where)
    if origin is Mapping or hint is Mapping:
        return _mapping(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    return _scalar(hint, value, where)


def _one_of(choices: tuple[Any, ...], value: object, where: str) -> object:
    if value not in choices:
        raise ModelError(f"{where}: {value!r} is not one of {', '.join(map(repr, choices))}")
    return value


def _sequence(items: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ModelError(f"{where}: expected a list")
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise ModelError(f"{where}: expected {len(items)} values, found {len(value)}")
    return tuple(
        convert(item, entry, f"{where}[{i}]") for i, (item, entry) in enumerate(zip(items, value, strict=True))
    )


def _mapping(arguments: tuple[Any, ...], value: object, where: str) -> Mapping[str, object]:
    """arguments: types of key and value; values of type object are taken as they are."""
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: expected a table")
    if not arguments or arguments[1] is object:
        return types.MappingProxyType(dict(value))
    return types.MappingProxyType({key: convert(arguments[1], one, f"{where}.{key}") for key, one in value.items()})


def _scalar(hint: type, value: object, where: str) -> object:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to Python, but never to a reader of the card.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ModelError(f"{where}: expected {hint.__name__}, found {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{where}: must be a finite number")
    return value


def plain(value: object) -> Any:
    """A dataclass as dicts, lists and scalars; None is left out, because TOML cannot express it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value) if field.init)
        return {name: plain(entry) for name, entry in fields if entry is not None}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def write_toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """TOML text of nested plain dicts in the given order, scalars before tables."""
    lines = [f"{_key(key)} = {_value(value)}" for key, value in tables.items() if not _is_table(value)]
    for key, value in tables.items():
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            lines += ["", f"[{name}]", write_toml(value, f"{name}.").strip("\n")]
        elif _is_table(value):
            for entry in value:
                lines += ["", f"[[{name}]]", write_toml(entry, f"{name}.").strip("\n")]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else _text(key)


def _value(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    raise ModelError(f"a model card cannot hold {type(value).__name__}")


def _text(value: str) -> str:
    # JSON's escapes are the same as TOML's, except that only TOML forbids an unescaped DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
