"""Moving an index from one database to another, with its audit trail: SQLite to PostgreSQL, or back.

Rows go over in the order of their keys, some in each transaction. How far a move has come is what the new index holds,
so one that was killed goes on there. Then every row of both is read and compared. The identity, without which no node
works on an index, goes over last, after the old index was marked as moved: at no moment may a node use both.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sqlalchemy import Connection, Integer, Table, delete, func, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError

from storage import audit
from storage.database import Database
from storage.errors import MoveFailed, StoreMismatch
from storage.facts import get_fact, has_facts, set_fact
from storage.files import FileStore
from storage.identity import identity_of, is_missing, look
from storage.models import Base, properties
from storage.moved import MOVED, MOVING, moved_to

AT_ONCE = 2000
Report = Callable[[str, int], None]
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Moved:
    """A move that is done. rows: how many rows each table has. digests: SHA-256 over them, the same in both.

    head: number and hash of the last audit row. broken: where the audit trail does not hold, in both; empty if it does.
    """

    rows: dict[str, int]
    digests: dict[str, str]
    head: tuple[int, str]
    broken: str


def open_to_move(url: str, files: FileStore) -> Database:
    """The index that is to be moved to another database, also if an earlier move of it was not finished.

    Raises StoreMismatch if it is not that of these files; DatabaseOutdated, DatabaseTooNew, MoveFailed.
    """
    _, _, reason = look(url, files)
    if reason is None and is_missing(url):
        raise MoveFailed("there is no index to move yet: the node has not run with this configuration")
    database = Database(url)
    with database.read() as tx:
        is_half_moved = moved_to(tx) is not None
    if reason is not None and not is_half_moved:
        raise StoreMismatch(reason)
    database.refuse_other_schema()
    return database


class Mover:
    """Moves the index `old` to `new`. report: gets a table and how many more of its rows are copied or compared."""

    def __init__(self, old: Database, new: Database, report: Report = lambda table, rows: None) -> None:
        self._old, self._new, self._report = old, new, report
        self._tables = [table for table in Base.metadata.sorted_tables if table is not properties]

    def begin(self) -> None:
        """Make the new index, or go on with one that an earlier move of the same index has begun.

        Raises MoveFailed if it is another's, or if one of the two has been moved elsewhere.
        """
        with self._old.read() as tx:
            identity, elsewhere = identity_of(tx), moved_to(tx)
        if identity is None:
            raise MoveFailed(f"the index {self._old.where} has no identity yet: start the node once")
        held, needed = self._old.schema()
        if held != needed:
            raise MoveFailed(f"the index {self._old.where} has schema {held}, and this program would make {needed}")
        if elsewhere is not None and elsewhere != self._new.where:
            raise MoveFailed(f"the index {self._old.where} was moved to {elsewhere}")
        with self._new.read() as tx:
            is_empty = not inspect(tx).get_table_names()
            begun = get_fact(tx, MOVING) if has_facts(tx) else None
            there = identity_of(tx)
        if elsewhere is not None and begun is None and there is not None and there.store == identity.store:
            raise MoveFailed(f"the index was moved to {self._new.where} already: name it in [storage] database_url")
        if not is_empty and begun != identity.store:
            raise MoveFailed(
                f"the index {self._new.where} is not empty, and no move of this index has begun there: name a new one"
            )
        self._new.migrate()
        with self._new.transaction() as tx:
            set_fact(tx, MOVING, identity.store)

    def rows(self) -> int:
        """How many rows there are to move."""
        with self._old.read() as tx:
            return sum(tx.scalar(select(func.count()).select_from(table)) or 0 for table in self._tables)

    def copy(self) -> None:
        """Copy what the new index lacks. Raises MoveFailed if a row cannot be taken over."""
        for table in self._tables:
            key = _number_of(table)
            if key is None:
                self._copy_whole(table)
            else:
                self._copy_on(table, key)

    def _copy_on(self, table: Table, key: Any) -> None:
        with self._new.read() as tx:
            last = tx.scalar(select(func.max(key)))
            count = tx.scalar(select(func.count()).select_from(table)) or 0
        self._report(table.name, count)
        while True:
            with self._old.read() as tx:
                query = select(table).order_by(key).limit(AT_ONCE)
                rows = tx.execute(query if last is None else query.where(key > last)).mappings().all()
            if not rows:
                return
            with self._new.transaction() as tx, _named(table):
                tx.execute(insert(table), [dict(row) for row in rows])
            last = rows[-1][key.name]
            self._report(table.name, len(rows))

    def _copy_whole(self, table: Table) -> None:
        """A small table, whose keys two databases may order in two ways."""
        with self._old.read() as tx:
            rows = [dict(row) for row in tx.execute(select(table)).mappings()]
        with self._new.transaction() as tx, _named(table):
            tx.execute(delete(table))
            if rows:
                tx.execute(insert(table), rows)
        self._report(table.name, len(rows))

    def compare(self) -> Moved:
        """Read both, compare them row by row, and follow the hashes of the audit trail. Raises MoveFailed."""
        rows, digests = {}, {}
        for table in self._tables:
            rows[table.name], digests[table.name] = self._compared(table)
        with self._new.read() as tx:
            broken = audit.verify(tx)
            head = audit.head(tx)
        return Moved(rows, digests, head, f"row {broken.audit_id}: {broken.reason}" if broken else "")

    def _compared(self, table: Table) -> tuple[int, str]:
        digest, count = hashlib.sha256(), 0
        with self._old.read() as there, self._new.read() as here:
            for old, new in zip_longest(_rows(there, table), _rows(here, table)):
                if old != new:
                    raise MoveFailed(
                        f"row {count + 1} of table {table.name} is not the same in both: {_key(old, new)}. One "
                        f"was changed after that row was copied: empty {self._new.where}, and begin the move anew"
                    )
                count += 1
                digest.update(repr(old).encode())
                if count % AT_ONCE == 0:
                    self._report(table.name, AT_ONCE)
        self._report(table.name, count % AT_ONCE)
        return count, digest.hexdigest()

    def finish(self, moved: Moved, now: float, user: str) -> None:
        """From now on the new index is the index: the old one is refused, whatever happens next.

        Raises MoveFailed if the old index was written to after it was compared; it stays in use.
        """
        self._number_on()
        with self._old.transaction() as tx:
            self._refuse_later(tx, moved)
            set_fact(tx, MOVED, json.dumps({"to": self._new.where, "at": now}))
        with self._old.read() as tx:
            facts = [dict(row) for row in tx.execute(select(properties).where(properties.c.name != MOVED)).mappings()]
        detail = {
            "user": user, "from": self._old.where, "to": self._new.where, "head": f"{moved.head[0]}:{moved.head[1]}",
            "rows": sum(moved.rows.values()),
        }  # fmt: skip
        with self._new.transaction() as tx:
            tx.execute(delete(properties))
            tx.execute(insert(properties), facts)
            audit.append(tx, now, "index.moved", outcome="MOVED", detail=detail)

    def _refuse_later(self, tx: Connection, moved: Moved) -> None:
        """Commands work on an index without a node, and each of their writes has its audit row."""
        if self._old.is_server:  # SQLite has one writer anyway
            tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": audit.CHAIN_LOCK})
        head = audit.head(tx)
        if head != moved.head:
            raise MoveFailed(
                f"the index {self._old.where} was written to while it was moved: its audit trail is at row {head[0]}, "
                f"and {moved.head[0]} were copied. Let no other command write, and run 'dicom-node index move' again"
            )

    def _number_on(self) -> None:
        """PostgreSQL numbers new rows after the copied ones; SQLite does so by itself."""
        if not self._new.is_server:
            return
        with self._new.transaction() as tx:
            for table in self._tables:
                for column in table.primary_key.columns:
                    sequence = text("SELECT pg_get_serial_sequence(:table, :column)")
                    name = tx.scalar(sequence, {"table": table.name, "column": column.name})
                    last = tx.scalar(select(func.max(column))) if name else None
                    if last is not None:
                        tx.execute(text("SELECT setval(:name, :last)"), {"name": name, "last": last})


@contextlib.contextmanager
def _named(table: Table) -> Iterator[None]:
    """Name the table whose rows another database does not take; never their values."""
    try:
        yield
    except (DataError, IntegrityError, ValueError) as error:
        raise MoveFailed(f"rows of table {table.name} cannot be taken over: {type(error).__name__}") from error


def _number_of(table: Table) -> Any:
    """The whole number by which a table's rows are ordered; None if its key is another."""
    columns = list(table.primary_key.columns)
    return columns[0] if len(columns) == 1 and isinstance(columns[0].type, Integer) else None


def _rows(tx: Connection, table: Table) -> Iterator[Row]:
    """All rows of a table; of a small one with another key, in Python's order."""
    key = _number_of(table)
    if key is None:
        yield from sorted((tuple(row) for row in tx.execute(select(table))), key=repr)
        return
    last: Any = None
    while True:
        query = select(table).order_by(key).limit(AT_ONCE)
        rows: Sequence[Any] = tx.execute(query if last is None else query.where(key > last)).all()
        if not rows:
            return
        yield from (tuple(row) for row in rows)
        last = getattr(rows[-1], key.name)


def _key(*rows: Row | None) -> str:
    """The number of a row that differs. Its values may name a patient."""
    return " and ".join("none" if row is None else f"number {row[0]}" for row in rows)
