"""The file of an instance that the index holds already: what a resend is acknowledged on the strength of."""

from sqlalchemy import ColumnElement, Connection, Table, select, update

from storage.arrival import Arrival, Outcome
from storage.database import Database
from storage.errors import CorruptFile, StaleLease, StorageError
from storage.files import FileStore
from storage.models import conflicts, instances
from storage.recording import note_arrival


def rely_on_held(database: Database, files: FileStore, arrival: Arrival, now: float) -> None:
    """Before an instance that the index holds already is acknowledged: make sure of the file that it names.

    That file may never have been made durable (a receiver that died between the row and the fsync), or be gone.
    The arrival's own file, which is durable, takes its place then; else it is removed. Raises StorageError.
    """
    with database.read() as tx:
        held = held_file(tx, arrival)
    if held is None:
        raise StorageError("the index does not hold this instance")
    if held == arrival.file.path:
        return
    try:
        files.make_durable(held, arrival.file.sha256)
    except CorruptFile:
        with database.transaction() as tx:
            replace_file(tx, arrival, held, now)
        return
    files.remove(arrival.file.path)


def held_file(tx: Connection, arrival: Arrival) -> str | None:
    """The path of the file that the index names for these very bytes, as an instance or set aside; or None."""
    for table in (instances, conflicts):
        found: str | None = tx.scalar(select(table.c.path).where(*_same_bytes(table, arrival)))
        if found is not None:
            return found
    return None


def replace_file(tx: Connection, arrival: Arrival, held: str, now: float) -> None:
    """Let the arrival's file take the place of one with the same bytes that is no longer good.

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
