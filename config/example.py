"""The annotated example, `config/node.toml`, written from the settings' own descriptions and defaults.

python -m config.example > config/node.toml
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Secret, SecretStr
from pydantic.fields import FieldInfo

from config.settings import DESTINATION_KINDS, AnyDestination, Settings

HEAD = """\
# The node's configuration. A setting that is commented out shows its default, unless "for example" stands above it.
# Check a file with `dicom-node config check --config node.toml`, start with `dicom-node run --config node.toml`.
# An environment variable wins over the file: DICOM_NODE_RECEIVER__PORT=104 sets `port` in [receiver].
"""
WIDTH = 118
NO_DEFAULT = "For example:"


def example() -> str:
    """The text of the annotated example."""
    lines = [HEAD]
    for key, field in Settings.model_fields.items():
        entries, section = _entry_types(field), _section_type(field.annotation)
        for entry in entries:
            lines += ["", *_section(f"# [[{key}]]", entry), *_fields(entry)]
        if section:
            lines += ["", *_table(key, section)]
        elif not entries:
            lines += [*_setting(key, field)]
    return "\n".join(lines) + "\n"


def _table(name: str, section: type[BaseModel]) -> Iterator[str]:
    """A section, then the sections in it."""
    yield from _section(f"[{name}]", section)
    yield from _fields(section, tables=False)
    for key, field in section.model_fields.items():
        inner = _section_type(field.annotation)
        if inner:
            yield ""
            yield from _table(f"{name}.{key}", inner)


def _section(header: str, section: type[BaseModel]) -> Iterator[str]:
    """The header of a section with what its docstring says."""
    said = (section.__doc__ or "").split(": ", 1)[-1]
    yield from _comment(said[:1].upper() + said[1:])
    yield header


def _fields(section: type[BaseModel], prefix: str = "", tables: bool = True) -> Iterator[str]:
    """The settings of a section. tables: sections in it as dotted keys."""
    for key, field in section.model_fields.items():
        inner = _section_type(field.annotation)
        if inner is None:
            yield from _setting(prefix + key, field)
        elif tables:
            yield ""
            yield from _comment(inner.__doc__ or "")
            yield from _fields(inner, f"{prefix}{key}.")


def _setting(key: str, field: FieldInfo) -> Iterator[str]:
    """One setting: what it is, and its default or an example."""
    has_default = not field.is_required() and field.default is not None
    yield ""
    yield from _comment(field.description or "", "" if has_default else NO_DEFAULT)
    if has_default:
        yield f"# {key} = {_toml(field.default)}"
    elif field.examples:
        yield f"# {key} = {_toml(field.examples[0])}"
    else:
        raise ValueError(f"{key} has neither a default nor an example")


def _comment(text: str, after: str = "") -> Iterator[str]:
    """Text as comment lines, with two marks so that no line looks like a setting."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    if after:
        paragraphs[-1] = f"{paragraphs[-1]} {after}"
    for paragraph in filter(None, paragraphs):
        yield from textwrap.wrap(paragraph, WIDTH, initial_indent="## ", subsequent_indent="## ")


def _toml(value: Any) -> str:
    """A default as TOML."""
    if isinstance(value, Secret | SecretStr):
        return _toml(value.get_secret_value())
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that a type is, or None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _entry_types(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that an array of tables may be made of; none if it is no array of tables."""
    if get_origin(field.annotation) is not tuple:
        return []
    if field.annotation == tuple[AnyDestination, ...]:
        return list(DESTINATION_KINDS.values())
    found = _section_type(get_args(field.annotation)[0])
    return [] if found is None else [found]


if __name__ == "__main__":
    sys.stdout.write(example())
