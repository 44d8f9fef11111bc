"""The site's pages that are made from the program itself: settings, commands, reason codes, views, metrics."""

import re
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import sqlalchemy
import typer.main

from config.reasons import ReasonCode
from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.runtime.metrics import WORDS, registry_of
from storage.database import Database
from storage.files import FileStore
from storage.folder import FolderStore
from storage.identity import open_store

ROOT = Path(__file__).resolve().parents[2]
SETTING = ("setting", "default or example", "what it does")
KINDS = {"str": "text", "int": "number", "float": "number", "Path": "path"}


def pages() -> dict[str, str]:
    """Markdown by file name."""
    with tempfile.TemporaryDirectory() as folder:
        files = FolderStore(Path(folder) / "files")
        database = open_store(f"sqlite:///{folder}/node.db", files)
        try:
            return {
                "settings.md": _document("Settings", _settings()),
                "commands.md": _document("Commands", _commands()),
                "reason-codes.md": _document("Reason codes", _reasons()),
                "views.md": _document("Views of the index", _views(database)),
                "metrics.md": _document("Metrics and words of health", _metrics(database, files)),
            }
        finally:
            database.close()


def _document(title: str, lines: Iterator[str]) -> str:
    return "\n".join([f"# {title}", "", "Made from the program; do not edit.", "", *lines, ""])


def _table(*columns: str) -> Iterator[str]:
    yield _row(*columns)
    yield "|" + "---|" * len(columns)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _settings() -> Iterator[str]:
    """From config/node.toml, in which every setting stands with its default and what it does."""
    yield "In the order of [config/node.toml](../project/config/node.toml), with defaults. An environment variable wins"
    yield "over the file: `DICOM_NODE_RECEIVER__PORT=104` sets `port` in `[receiver]`."
    yield ""
    said: list[str] = []
    yield from ("## Of the whole node", "", *_table(*SETTING))
    for line in (ROOT / "config" / "node.toml").read_text().splitlines():
        section = re.fullmatch(r"(?:# )?(\[\[?[\w.]+\]\]?)", line)
        setting = re.fullmatch(r"(?:# )?([\w-]+) = (.*)", line)
        if line.startswith("##"):
            said.append(line.lstrip("# ").rstrip())
        elif section:
            yield from (
                "",
                f"## {section[1]}",
                "",
                " ".join(said),
                "",
                *_table("setting", "default or example", "what it does"),
            )
            said = []
        elif setting:
            yield _row(f"`{setting[1]}`", f"`{setting[2]}`", " ".join(said))
            said = []


def _commands() -> Iterator[str]:
    yield from _command("dicom-node", typer.main.get_command(app))


def _command(path: str, command: Any) -> Iterator[str]:
    if command.hidden:
        return
    yield from (f"## {path}", "", (command.help or "").strip(), "")
    known = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    if known:
        yield from _table("parameter", "value", "what it is")
        yield from map(_parameter, known)
        yield ""
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", below)


def _parameter(one: Any) -> str:
    names = one.opts if one.param_type_name == "option" else [one.name.upper()]
    said = " ".join((getattr(one, "help", "") or "").split())
    return _row(", ".join(f"`{name}`" for name in names), "" if getattr(one, "is_flag", False) else _kind(one), said)


def _kind(one: Any) -> str:
    annotation = one.type_descriptor.annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{choice.value}`" for choice in annotation)
    return KINDS.get(getattr(annotation, "__name__", ""), "")


def _reasons() -> Iterator[str]:
    yield "Why a series was not analysed. [safety.md](../safety.md) has them in the order of the rules."
    yield ""
    yield from _table("code", "what was found", "what the site can do")
    yield from (_row(f"`{code}`", code.meaning, code.advice) for code in sorted(ReasonCode))


def _views(database: Database) -> Iterator[str]:
    yield "Columns as SQLite has them. What each view answers is in [views.md](../views.md)."
    with database.read() as tx:
        inspector = sqlalchemy.inspect(tx)
        for name in sorted(inspector.get_view_names()):
            columns = ", ".join(f"`{column['name']}`" for column in inspector.get_columns(name))
            yield from ("", f"## {name}", "", columns)


def _metrics(database: Database, files: FileStore) -> Iterator[str]:
    yield "Of a node without anything in it; labels' values depend on what a node does."
    yield ""
    yield from _table("metric", "kind", "labels", "what it is")
    registry = registry_of(Settings(), database, files)
    for family in sorted([*registry.collect(), *_meters()], key=lambda one: one.name):
        labels = sorted({label for sample in family.samples for label in sample.labels})
        name = family.name + ("_total" if family.type == "counter" else "")
        yield _row(f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation)
    yield from (
        "",
        "## Words of health",
        "",
        "What `/health` says with status 503, and what to do about each:",
        "",
    )
    yield from (f"- [`{word}`](../runbook.md#{word.replace('-', '')})" for word in WORDS)


def _meters() -> Iterator[Any]:
    """What only the receivers know."""
    from dicom_node.receiver import meters

    for meter in (value for name, value in vars(meters).items() if name.isupper()):
        yield from meter.collect()
