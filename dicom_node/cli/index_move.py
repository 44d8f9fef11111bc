"""index move: the index to another database, SQLite to PostgreSQL or back, with its audit trail."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import NoSuchModuleError

from config.values import DatabaseUrl, IndexUrl
from dicom_node.cli import index
from dicom_node.cli.common import ConfigOption, JsonOption, err, files_of, out, print_json, settings_from
from dicom_node.errors import NodeError
from dicom_node.runtime.index import who
from storage.database import Database
from storage.identity import raise_epoch
from storage.moving import Moved, Mover, Report, open_to_move
from storage.private import make_folder


def register(app: typer.Typer) -> None:
    """Add the command to the group that `index` has registered."""
    index.group.command()(move)


def move(
    to: Annotated[
        str,
        typer.Option(
            envvar="DICOM_NODE_INDEX_MOVE_TO",
            help="URL of the new index, empty or begun by an earlier move: postgresql+psycopg://USER@HOST/NAME, "
            "sqlite:////PATH. Better in the variable if it holds a password.",
        ),
    ],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Move the index to another database, row by row, and compare; the node must be stopped. Run it again if it was
    interrupted: it goes on.

    The old index stays where it is, marked: no node works on it any longer.
    """
    settings = settings_from(config)
    url = _absolute(to)
    with index.stopped(settings):
        files = files_of(settings)
        old, new = open_to_move(settings.database_url, files), _opened(url)
        with _progress(quiet=json) as (begin, report):
            mover = Mover(old, new, report)
            mover.begin()
            begin(2 * mover.rows())
            mover.copy()
            moved = mover.compare()
        mover.finish(moved, time.time(), who())
        raise_epoch(new, files)
    if json:
        print_json({"to": new.where, **vars(moved)})
    else:
        _print_moved(moved, old, new)


def _absolute(text: str) -> str:
    """The URL, with the whole path of a SQLite index. Raises typer.BadParameter for one that cannot be used."""
    try:
        given = TypeAdapter(IndexUrl).validate_python(DatabaseUrl(text)).get_secret_value()
        url = make_url(given)
    except (ValidationError, ValueError):
        raise typer.BadParameter("is not a database URL that the node can use", param_hint="--to") from None
    if url.get_backend_name() != "sqlite":
        return given
    path = Path(str(url.database)).resolve()
    make_folder(path.parent)
    return url.set(database=str(path)).render_as_string(hide_password=False)


def _opened(url: str) -> Database:
    try:
        return Database(url)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise NodeError("PostgreSQL needs its driver: pip install 'dicom-node[postgresql]'") from error


def _print_moved(moved: Moved, old: Database, new: Database) -> None:
    rows = sum(moved.rows.values())
    out.print(f"{rows} rows of {len(moved.rows)} tables are in {new.where}, and the same as before.", soft_wrap=True)
    if moved.broken:
        out.print(f"The audit trail does not hold, in the old index as in the new: {moved.broken}", soft_wrap=True)
    else:
        out.print(f"The audit trail is whole: row {moved.head[0]} was its last.")
    out.print("Now name the new index in [storage] database_url, and start the node.")
    out.print(f"The old one, {old.where}, is kept; a node that is started on it refuses.", soft_wrap=True)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[tuple[Callable[[int], None], Report]]:
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as progress:
        task = progress.add_task("rows", total=None)

        def begin(total: int) -> None:
            progress.update(task, total=total)

        def report(table: str, rows: int) -> None:
            progress.update(task, description=table, advance=rows)

        yield begin, report
