"""Deleting old images if a site wants that: only of finished series, and only the images.

The index, results, reports and the audit trail stay, so every question about the past keeps its answer.
"""

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, tuple_, update

from storage import audit, tallies
from storage.database import Database
from storage.deliveries import DeliveryState
from storage.files import FileStore
from storage.job_state import JobState
from storage.models import deliveries, instances, jobs, patients, results, series, studies
from storage.series_state import SERIES, Selection, SeriesState

DAY_S = 86400.0
AT_ONCE = 100
Place = tuple[float, int]
"""When a series was closed, and its number."""
BEGINNING: Place = (-1e300, 0)
NOT_CHOSEN = (Selection.PASSED_OVER, Selection.UNSUITABLE)
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED)
UNDELIVERED = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.FAILED)


def delete_old_images(database: Database, files: FileStore, now: float, days: float) -> int:
    """Delete the images of the series that have been finished for this many days. Returns how many files.

    The rows are marked first and the files deleted after the commit: a crash in between leaves files that no row
    claims, which the sweep removes.
    """
    before = now - days * DAY_S
    deleted = 0
    place: Place | None = BEGINNING
    while place is not None:
        with database.read() as tx:
            finished, place = finished_series(tx, before, place)
        for series_pk in finished:
            with database.transaction() as tx:
                SERIES.row(tx, series_pk)  # locked: a slice that arrives now is recorded after this
                # Asked again under the lock: a late instance may have come, or a person may have retried a delivery.
                is_finished = tx.scalar(select(_finished(before)).where(series.c.id == series_pk))
                paths = remove_images(tx, series_pk, now, {"finished_for_days": days}) if is_finished else []
            deleted += files.remove_all(paths)
    return deleted


def finished_series(tx: Connection, before: float, place: Place = BEGINNING) -> tuple[list[int], Place | None]:
    """Of the next AT_ONCE series that were closed before this moment and may have images: those that are finished.

    place: where to go on, in the order in which they were closed. Returns the next place too, None at the end.

    Finished means: closed; its job reported, or the series kept on purpose without a job, as when another series of the
    study is analysed; every delivery sent, and committed if that is wanted. What failed is not finished: somebody may
    want to retry it. A batch keeps only the images of its jobs that wait or run.
    """
    closed_at, _ = place
    rows = tx.execute(
        select(series.c.id, series.c.closed_at)
        .where(series.c.closed_at.is_not(None), series.c.emptied_at.is_(None))
        .where(series.c.closed_at >= closed_at, series.c.closed_at <= before)
        .where(tuple_(series.c.closed_at, series.c.id) > tuple_(*place))
        .order_by(series.c.closed_at, series.c.id)
        .limit(AT_ONCE)
    ).all()
    end = (rows[-1].closed_at, rows[-1].id) if len(rows) == AT_ONCE else None
    # A query of their own: PostgreSQL would prepare for all series, and not for these few.
    asked = select(series.c.id).where(series.c.id.in_([row.id for row in rows]), _finished(before))
    finished = set(tx.scalars(asked))
    return [row.id for row in rows if row.id in finished], end


def _finished(before: float) -> ColumnElement[bool]:
    """Whether everything about a series was done before this moment. Each part is a seek by its number."""
    return and_(
        # An expression, so that no database begins with all closed series instead of with the given ones.
        series.c.state + "" == SeriesState.CLOSED.value,
        series.c.closed_at <= before,
        ~exists().where(instances.c.series_pk == series.c.id, instances.c.received_at > before),
        or_(_reported(), _kept_without_a_job(), series.c.selection.in_(NOT_CHOSEN)),
        ~exists().where(jobs.c.series_pk == series.c.id, jobs.c.state.in_(UNFINISHED), ~_failed_of_batch()),
        ~_results_where((results.c.created_at > before) & results.c.batch_id.is_(None)),
        ~_results_where(exists().where(deliveries.c.result_id == results.c.id, or_(*_undelivered(before)))),
    )


def _failed_of_batch() -> ColumnElement[bool]:
    """Nobody retries it: a batch that is made again gets its images again, if they are still here."""
    return and_(jobs.c.batch_id.is_not(None), jobs.c.state == JobState.FAILED.value)


def _reported() -> ColumnElement[bool]:
    return exists().where(
        jobs.c.series_pk == series.c.id,
        jobs.c.revision == series.c.revision,
        jobs.c.state == JobState.REPORTED.value,
        jobs.c.shadow.is_(False),
    )


def _kept_without_a_job() -> ColumnElement[bool]:
    return and_(series.c.refusal_code.is_not(None), ~exists().where(jobs.c.series_pk == series.c.id))


def _results_where(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(results.c.series_pk == series.c.id, condition)


def _undelivered(before: float) -> list[ColumnElement[bool]]:
    """What keeps a series' images: still to be sent, failed, waiting for a commitment, or delivered too recently."""
    return [
        deliveries.c.state.in_(UNDELIVERED),
        and_(deliveries.c.state == DeliveryState.SENT.value, deliveries.c.due_at.is_not(None)),
        deliveries.c.sent_at > before,
        deliveries.c.committed_at > before,
    ]


def remove_images(tx: Connection, series_pk: int, now: float, why: Mapping[str, object]) -> list[str]:
    """Mark the images of a series as removed, with one audit row. Returns the paths to delete after the commit."""
    kept = and_(instances.c.series_pk == series_pk, instances.c.gone_at.is_(None))
    rows = tx.execute(select(instances.c.path, instances.c.size).where(kept)).all()
    tx.execute(update(series).where(series.c.id == series_pk).values(emptied_at=now))
    if not rows:
        return []
    tx.execute(update(instances).where(kept).values(gone_at=now, gone_reason="retention"))
    tallies.add(tx, "instances", tallies.HELD, -len(rows), size=-sum(row.size for row in rows))
    tallies.add(tx, "instances", "retention", len(rows))
    named = tx.execute(
        select(series.c.series_instance_uid, studies.c.study_instance_uid, patients.c.patient_id)
        .select_from(series.join(studies).join(patients))
        .where(series.c.id == series_pk)
    ).one()
    audit.append(
        tx,
        now,
        "series.images-deleted",
        audit.Subject(
            series_uid=named.series_instance_uid, study_uid=named.study_instance_uid, patient_id=named.patient_id
        ),
        outcome="DELETED",
        detail={"files": len(rows), "bytes": sum(row.size for row in rows), **why},
    )
    return [row.path for row in rows]
