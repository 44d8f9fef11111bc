"""The index in a backup: a copy that is exactly one point, made while others write, and reading it."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import make_url

from dicom_node.backup import postgresql
from dicom_node.backup.manifest import DUMP, INDEX, POSTGRESQL, SQLITE
from dicom_node.errors import NodeError
from storage import audit
from storage.backup import back_up
from storage.database import Database
from storage.identity import identity_of
from storage.mark import Identity


@dataclass(frozen=True)
class Point:
    """One state of an index. tx: reads exactly this state. head: its last audit row. pg_schema: see `Manifest`."""

    tx: Connection
    engine: str
    identity: Identity
    head: tuple[int, str]
    schema: str
    pg_schema: str = ""


@contextlib.contextmanager
def taken(database: Database, folder: Path) -> Iterator[Point]:
    """Copy the index into a backup's folder; the point is that of the copy.

    Raises NodeError if it cannot be copied; sqlite3.Error, OSError, StorageError.
    """
    schema, _ = database.schema()
    if database.is_server:
        with postgresql.dumped(database, folder / DUMP) as (tx, pg_schema):
            yield _point(tx, POSTGRESQL, str(schema), pg_schema)
        return
    back_up(Path(str(database.url.database)), folder / INDEX)
    with opened(folder / INDEX) as tx:
        yield _point(tx, SQLITE, str(schema))


def _point(tx: Connection, engine: str, schema: str, pg_schema: str = "") -> Point:
    identity = identity_of(tx)
    if identity is None:
        raise NodeError("the index has no identity yet: start the node once (`dicom-node run`)")
    return Point(tx, engine, identity, audit.head(tx), schema, pg_schema)


@contextlib.contextmanager
def opened(index: Path) -> Iterator[Connection]:
    """Read a SQLite index that nobody writes, without a trace beside it."""
    engine = create_engine(make_url(f"sqlite:///file:{index}").update_query_dict(
        {"mode": "ro", "immutable": "1", "uri": "true"}
    ))  # fmt: skip
    try:
        with engine.connect() as tx:
            yield tx
    finally:
        engine.dispose()
