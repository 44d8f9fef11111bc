"""The file of an instance that the index holds already: the reason why a resend may be acknowledged."""

from sqlalchemy import ColumnElement, Connection, Table, select, update

from storage.arrival import Arrival, Outcome
from storage.copies import SAME
from storage.database import Database
from storage.errors import CorruptFile, StaleLease, StorageError
from storage.files import FileStore
from storage.lost import mark_lost
from storage.models import conflicts, instances
from storage.recording import note_arrival


def rely_on_held(database: Database, files: FileStore, arrival: Arrival, now: float) -> None:
    """Before an instance that the index holds already is acknowledged: make sure of the file that it names.

    That file may be gone, or may never have been made durable (if a receiver died between the row and the fsync).
    Then the arrival's own file, which is durable, takes its place; otherwise that one is removed. Raises StorageError.
    """
    with database.read() as tx:
        held = held_file(tx, arrival)
    if held is None:
        raise StorageError("the index does not hold this instance")
    path, sha256 = held
    if path == arrival.file.path:
        return
    try:
        files.make_durable(path, sha256)
    except CorruptFile:
        with database.transaction() as tx:
            if sha256 != arrival.file.sha256:
                # The same image in other bytes: when it is sent once more, it takes the place of the lost file.
                mark_lost(tx, instances.c.path == path, "corrupt", now)
            else:
                replace_file(tx, arrival, path, now)
                return
        raise
    files.remove(arrival.file.path)


def held_file(tx: Connection, arrival: Arrival) -> tuple[str, str] | None:
    """Path and SHA-256 of the file that the index names for these bytes, or None.

    The file is that of the instance or of what was set aside; for a second copy of an image, that of the instance.
    """
    for table in (instances, conflicts):
        found = tx.execute(select(table).where(*_same_bytes(table, arrival))).mappings().first()
        if found is not None and found.get("verdict") == SAME:
            return _first_copy(tx, arrival)
        if found is not None:
            return found["path"], found["sha256"]
    return None


def _first_copy(tx: Connection, arrival: Arrival) -> tuple[str, str] | None:
    first = (instances.c.sop_instance_uid == arrival.sop_instance_uid) & instances.c.gone_at.is_(None)
    row = tx.execute(select(instances.c.path, instances.c.sha256).where(first)).first()
    return (row.path, row.sha256) if row else None


def replace_file(tx: Connection, arrival: Arrival, held: str, now: float) -> None:
    """Let the arrival's file replace one with the same bytes that is no longer good.

    Raises StaleLease if the index names another file.
    """
    changed = 0
    for table in (instances, conflicts):
        same = [*_same_bytes(table, arrival), table.c.path == held]
        changed += tx.execute(update(table).where(*same).values(path=arrival.file.path)).rowcount
    if changed != 1:
        raise StaleLease("the instance's file was replaced meanwhile")
    note_arrival(tx, arrival, now, "instance.restored", Outcome.NEW, {"was": "missing"})


def _same_bytes(table: Table, arrival: Arrival) -> list[ColumnElement[bool]]:
    same = [table.c.sop_instance_uid == arrival.sop_instance_uid, table.c.sha256 == arrival.file.sha256]
    if table is instances:
        return [*same, instances.c.gone_at.is_(None)]
    return [*same, conflicts.c.series_instance_uid == arrival.series_instance_uid]
