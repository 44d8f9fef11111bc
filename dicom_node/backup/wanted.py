"""Which stored files an index names, and why one that it names is not there."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Select, or_, select

from storage.copies import SAME
from storage.database import Database
from storage.files import StoredFile
from storage.models import conflicts, instances, result_objects
from storage.orphans import RETIRED, rows_of

AT_ONCE = 2000


def wanted(tx: Connection) -> Iterator[StoredFile]:
    """Every file that a row names and that should be there, always in the same order."""
    for table, condition in (
        (instances, instances.c.gone_at.is_(None)),
        (conflicts, or_(conflicts.c.verdict.is_(None), conflicts.c.verdict != SAME)),
        (result_objects, result_objects.c.id.is_not(None)),
    ):
        columns = select(table.c.id, table.c.path, table.c.sha256, table.c.size)
        yield from _rows(tx, columns.where(condition).order_by(table.c.id))


def _rows(tx: Connection, query: Select[tuple[int, str, str, int]]) -> Iterator[StoredFile]:
    number, last = query.selected_columns[0], -1
    while rows := tx.execute(query.where(number > last).limit(AT_ONCE)).all():
        yield from (StoredFile(row.path, row.sha256, row.size) for row in rows)
        last = rows[-1].id


def deleted_since(database: Database, paths: Sequence[str]) -> set[str]:
    """Of files that are not there: those that retention or the comparison of second copies has deleted."""
    found: set[str] = set()
    for start in range(0, len(paths), AT_ONCE // 4):
        with database.read() as tx:
            rows = rows_of(tx, paths[start : start + AT_ONCE // 4])
        found |= {path for path, reason in rows.items() if reason == RETIRED}
    return found
