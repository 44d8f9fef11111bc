"""At start, before anything else runs: make files and rows agree, and release what was held when the node stopped."""

from sqlalchemy import func, select

from storage import audit, deliveries, job_takeover
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore
from storage.lost import mark_lost
from storage.models import instances, result_objects, results, series
from storage.orphans import sweep
from storage.quiet_time import restart_quiet_times

ORPHAN_AGE_S = 60.0  # a file younger than this may belong to a transaction that is still to come
VERIFY_LAST_S = 600.0  # the last arrivals before a stop may be torn: their digests are checked, not only their sizes
AT_ONCE = 1000


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
    missing, corrupt = _check_instances(database, files, now)
    swept = sweep(database, files, now, orphan_age_s)
    return {
        **found,
        "files_missing": missing,
        "files_corrupt": corrupt,
        "reports_lost": _check_reports(database, files, now),
        "orphans_swept": len(swept.taken),
        "orphans_left": swept.held_back,
    }


def _check_instances(database: Database, files: FileStore, now: float) -> tuple[int, int]:
    """Mark the instances whose file is missing or corrupt. Returns how many of each."""
    lost = {"missing": 0, "corrupt": 0}
    with database.read() as tx:
        verify_from = (tx.scalar(select(func.max(instances.c.received_at))) or 0.0) - VERIFY_LAST_S
    last_id = 0
    while True:
        with database.read() as tx:
            rows = tx.execute(
                select(instances)
                .where(instances.c.id > last_id, instances.c.gone_at.is_(None))
                .order_by(instances.c.id)
                .limit(AT_ONCE)
            ).all()
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
    try:
        if files.absolute(path).stat().st_size != size:
            return "corrupt"
        if sha256 is not None:
            files.read_verified(path, sha256)
    except FileNotFoundError:
        return "missing"
    except CorruptFile:
        return "corrupt"
    return None


def _check_reports(database: Database, files: FileStore, now: float) -> int:
    """Audit the result objects whose file is not what was stored: they cannot be sent. Returns how many."""
    with database.read() as tx:
        rows = tx.execute(
            select(result_objects, series.c.series_instance_uid)
            .select_from(result_objects.join(results).join(series))
            .order_by(result_objects.c.id)
        ).all()
    lost = [row for row in rows if _why_lost(files, row.path, row.size, None) is not None]
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
