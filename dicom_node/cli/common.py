"""What every group of commands shares: options, output, and opening the node's parts."""

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection

from config.load import load_settings
from config.settings import Settings
from dicom_node import logs
from dicom_node.runtime.index import open_index, who
from storage import audit, stores
from storage.database import Database
from storage.errors import DatabaseBusy, DatabaseReadOnly, StorageFull
from storage.files import FileStore

PEER_UNREACHABLE = 3

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="DICOM_NODE_CONFIG", help="The node's TOML file; without one, defaults."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One line of JSON instead: an object, or an array of them.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def settings_from(config: Path | None) -> Settings:
    """Settings from the file and the environment, with logs set up by them."""
    settings = load_settings(config)
    logs.configure(settings.logging)
    return settings


def database_of(settings: Settings, *, create: bool = False) -> Database:
    """The index of this node. create: for a command that may be the first to write to it.

    Raises NodeError with what to do when there is none, or when this user may not open it.
    """
    return open_index(settings, create=create, upgrade=False)


def files_of(settings: Settings) -> FileStore:
    """The stored files of this node."""
    return stores.files_of(settings)


def note_operator(tx: Connection, action: str, about: audit.Subject = audit.NOTHING, **detail: object) -> None:
    """An audit row about what a person did at the command line, with the user of the operating system.

    action: what was done, such as "resend"; the event is "operator.resend".
    """
    given = {name: value for name, value in detail.items() if value is not None}
    audit.append(tx, time.time(), f"operator.{action}", about, outcome="DONE", detail={"user": who(), **given})


def note_reading(database: Database, command: str, about: audit.Subject = audit.NOTHING, **detail: object) -> None:
    """An audit row about a person who read patient data through the program; none if the index cannot be written."""
    try:
        with database.transaction() as tx:
            note_operator(tx, "read", about, command=command, **detail)
    except (DatabaseReadOnly, DatabaseBusy, StorageFull) as error:
        err.print(f"this reading is not in the audit trail: {error}", markup=False)


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, wide: bool = True) -> None:
    """A table on standard output; control characters from the network cannot reach the terminal.

    wide: columns are kept whole if the output is piped; else the rows fit into 80 columns by themselves.
    """
    table = Table(*columns, title=title or None, title_justify="left", header_style="bold")
    if not wide:
        table.box, table.padding, table.pad_edge = box.SIMPLE_HEAD, (0, 1, 0, 0), False
    for row in rows:
        table.add_row(*(printable(value) for value in row))
    # A table that is piped into a file keeps its columns whole.
    (out if out.is_terminal else Console(width=250 if wide else 80, highlight=False)).print(table)


def say(text: str = "") -> None:
    """Lines of plain text on standard output, never broken, without control characters."""
    for line in text.split("\n"):
        print("".join(c if c.isprintable() else " " for c in line))


def printable(value: object) -> str:
    """Text for a table cell: no markup, no control characters."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text).replace("[", "\\[")


def clipped(value: object, length: int) -> str:
    """Text cut to a length, with a sign that something is missing."""
    text = "" if value is None else str(value)
    return text if len(text) <= length else text[: length - 1] + "…"


def local_text(seconds: float | None) -> str:
    """Unix seconds in the time zone of this machine (TZ), without its name: see `zone`."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def zone(seconds: float | None = None) -> str:
    """The name of this machine's time zone at that moment, such as CET; now without one."""
    moment = datetime.now() if seconds is None else datetime.fromtimestamp(seconds)
    return moment.astimezone().strftime("%Z")


def duration_text(seconds: float) -> str:
    """A length of time, rounded for a person: "40 s", "12 min", "3 h", "5 days"."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def plural(count: int, what: str, several: str = "") -> str:
    """ "1 image", "2 images", "no images"."""
    return f"{count or 'no'} {what if count == 1 else several or what + 's'}"


def utc_text(seconds: float | None) -> str:
    """Unix seconds as UTC text."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def seconds_of(text: str | None) -> float | None:
    """Unix seconds of an ISO date or time; without a zone it is in that of this machine (TZ).

    Raises typer.BadParameter when the text is not an ISO time.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an ISO date or time such as 2026-03-01T08:30") from None
    return moment.timestamp()
