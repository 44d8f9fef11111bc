"""At start, before anything else runs: make files and rows agree, and release what was held when the node stopped."""

from collections.abc import Sequence
from typing import Any

import structlog
from sqlalchemy import Connection, Row, select

from storage import audit, deliveries, job_takeover, tallies
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.lost import mark_lost
from storage.models import audit as audit_rows
from storage.models import instances, result_objects, results, series
from storage.orphans import sweep
from storage.quiet_time import restart_quiet_times

log = structlog.get_logger()

ORPHAN_AGE_S = 60.0  # a file younger than this may belong to a transaction that is still to come
VERIFY_LAST_S = 600.0  # the last arrivals before a stop may be torn: their digests are checked, not only their sizes
AT_ONCE = 1000
DAY_S = 86_400.0


def reconcile(
    database: Database, files: FileStore, now: float, *, release: bool = True, orphan_age_s: float = ORPHAN_AGE_S
) -> dict[str, int]:
    """Make index and file store agree after a stop of any kind. Run it while no other process of the node runs.

    Open series wait their full quiet time again. An instance whose file is missing or torn is marked and audited;
    when its sender sends it again, it is taken. Files that no row names are set aside (see orphans.py). Leases of
    workers and senders are given back; `release=False` leaves them to their owners, if other machines share the index.

    Returns counts: series_waiting_again, files_missing, files_corrupt, reports_lost, orphans_swept, orphans_left,
    jobs_released, deliveries_released.
    """
    with database.transaction() as tx:
        found = {
            "series_waiting_again": restart_quiet_times(tx, now),
            "jobs_released": job_takeover.release_all(tx, now) if release else 0,
            "deliveries_released": deliveries.release_all(tx, now) if release else 0,
        }
    _correct_tallies(database)
    missing, corrupt, reports_lost = 0, 0, 0
    if files.row_may_come_first:  # elsewhere no crash leaves a row without its file
        missing, corrupt = _check_instances(database, files, now)
    swept = sweep(database, files, now, orphan_age_s, since=_day_before_the_last_row(database))
    if files.row_may_come_first:
        reports_lost = _check_reports(database, files, now)
    return {
        **found,
        "files_missing": missing,
        "files_corrupt": corrupt,
        "reports_lost": reports_lost,
        "orphans_swept": len(swept.taken),
        "orphans_left": swept.held_back,
    }


def _day_before_the_last_row(database: Database) -> float:
    """What a crash left without a row was written later than this, Unix seconds."""
    with database.read() as tx:
        last = tx.scalar(select(audit_rows.c.at).order_by(audit_rows.c.id.desc()).limit(1))
    return (last or 0.0) - DAY_S


def _correct_tallies(database: Database) -> None:
    """An earlier version that still runs elsewhere, or a person with a database editor, does not count."""
    with database.read() as tx:
        lacking = tallies.differences(tx)
    if not lacking:
        return
    log.warning("counts of the index are corrected", counts=["/".join(key) for key in lacking])
    with database.transaction() as tx:
        for (subject, state, part), tally in lacking.items():
            tallies.add(tx, subject, state, tally.rows, part=part, size=tally.size)


def _check_instances(database: Database, files: FileStore, now: float) -> tuple[int, int]:
    """Mark the instances whose file is missing or corrupt. Returns how many of each."""
    lost = {"missing": 0, "corrupt": 0}
    with database.read() as tx:
        latest = select(instances.c.received_at).order_by(instances.c.id.desc()).limit(1)
        verify_from = (tx.scalar(latest) or 0.0) - VERIFY_LAST_S
    last_id = 0
    while True:
        with database.read() as tx:
            rows = next_instances(tx, last_id)
        if not rows:
            return lost["missing"], lost["corrupt"]
        last_id = rows[-1].id
        for row in rows:
            reason = _why_lost(files, row.path, row.size, row.sha256 if row.received_at >= verify_from else None)
            if reason is not None:
                lost[reason] += 1
                with database.transaction() as tx:
                    mark_lost(tx, instances.c.id == row.id, reason, now)


def _why_lost(files: FileStore, path: str, size: int, sha256: str | None) -> str | None:
    """ "missing", "corrupt", or None for a file that is there as recorded; its bytes are read only with `sha256`."""
    found = files.size_of(path)
    if found != size:
        return "missing" if found is None else "corrupt"
    try:
        if sha256 is not None:
            files.read_verified(path, sha256)
    except CorruptFile:
        return "corrupt"
    return None


def next_instances(tx: Connection, after: int) -> Sequence[Row[Any]]:
    """The next instances by number that should have a file."""
    return tx.execute(
        select(*(instances.c[name] for name in ("id", "path", "size", "sha256", "received_at")))
        .where(instances.c.id > after, instances.c.gone_at.is_(None))
        .order_by(instances.c.id)
        .limit(AT_ONCE)
    ).all()


def next_objects(tx: Connection, after: int) -> Sequence[Row[Any]]:
    """The next result objects by number, with the UID of the series that they are about."""
    return tx.execute(
        select(result_objects, series.c.series_instance_uid)
        .select_from(result_objects.join(results).join(series))
        .where(result_objects.c.id > after)
        .order_by(result_objects.c.id)
        .limit(AT_ONCE)
    ).all()


def _check_reports(database: Database, files: FileStore, now: float) -> int:
    """Audit the result objects whose file is not what was stored: they cannot be sent. Returns how many."""
    lost: list[Row[Any]] = []
    last_id = 0
    while True:
        with database.read() as tx:
            rows = next_objects(tx, last_id)
        if not rows:
            break
        lost += [row for row in rows if _why_lost(files, row.path, row.size, None) is not None]
        last_id = rows[-1].id
    for row in lost:
        with database.transaction() as tx:
            audit.append(
                tx,
                now,
                "result.lost",
                audit.Subject(
                    sop_uid=row.sop_instance_uid, series_uid=row.series_instance_uid, result_id=row.result_id
                ),
                outcome="LOST",
                detail={"path": row.path, "kind": row.kind},
            )
    return len(lost)
