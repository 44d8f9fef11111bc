"""What every group of commands shares: options, output, and opening the node's parts."""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from config.load import load_settings
from config.settings import Settings
from dicom_node import logs
from storage.database import Database, open_database
from storage.files import FileStore

PEER_UNREACHABLE = 3

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="DICOM_NODE_CONFIG", help="The node's TOML file; without one, defaults."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for machines instead of a table.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def settings_from(config: Path | None) -> Settings:
    """Settings from the file and the environment, with logs set up by them."""
    settings = load_settings(config)
    logs.configure(settings.logging)
    return settings


def database_of(settings: Settings) -> Database:
    """The migrated index of this node."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return open_database(settings.database_url)


def files_of(settings: Settings) -> FileStore:
    """The stored files of this node."""
    settings.files_dir.mkdir(parents=True, exist_ok=True)
    return FileStore(settings.files_dir)


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output; control characters from the network cannot reach the terminal."""
    table = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        table.add_row(*(printable(value) for value in row))
    # A table that is piped into a file keeps its columns whole.
    (out if out.is_terminal else Console(width=250, highlight=False)).print(table)


def printable(value: object) -> str:
    """Text for a table cell: no markup, no control characters."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text).replace("[", "\\[")


def utc_text(seconds: float | None) -> str:
    """Unix seconds as UTC text."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds_of(text: str | None) -> float | None:
    """Unix seconds of an ISO date or time; without a zone it is UTC.

    Raises typer.BadParameter when the text is no ISO time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no ISO date or time, such as 2026-03-01 or 2026-03-01T08:30") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
