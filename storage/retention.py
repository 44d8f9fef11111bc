"""Deleting old images if a site wants that: only of finished series, and only the images.

The index, results, reports and the audit trail stay, so every question about the past keeps its answer.
"""

from sqlalchemy import ColumnElement, Connection, and_, exists, or_, select, update

from storage import audit
from storage.database import Database
from storage.deliveries import DeliveryState
from storage.files import FileStore
from storage.job_state import JobState
from storage.models import deliveries, instances, jobs, patients, results, series, studies
from storage.series_state import SERIES, Selection, SeriesState

DAY_S = 86400.0
NOT_CHOSEN = (Selection.PASSED_OVER, Selection.UNSUITABLE)
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED)
UNDELIVERED = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.FAILED)


def delete_old_images(database: Database, files: FileStore, now: float, days: float) -> int:
    """Delete the images of the series that have been finished for this many days. Returns how many files.

    The rows are marked first and the files deleted after the commit: a crash in between leaves files that no row
    claims, which the sweep removes.
    """
    with database.read() as tx:
        finished = finished_series(tx, now - days * DAY_S)
    deleted = 0
    for series_pk in finished:
        with database.transaction() as tx:
            SERIES.row(tx, series_pk)  # locked: a slice that arrives now is recorded after this
            # Checked again under the lock: a late instance may have come, or an operator may have retried a delivery.
            paths = _mark(tx, series_pk, now, days) if finished_series(tx, now - days * DAY_S, series_pk) else []
        deleted += sum(files.remove(path) for path in paths)
    return deleted


def finished_series(tx: Connection, before: float, series_pk: int | None = None) -> list[int]:
    """The series that still have images and for which everything was done before this moment.

    Done means: closed; its job reported, or the series kept on purpose without a job, as when another series of the
    study is analysed; every delivery sent, and committed if that is wanted. What failed is not done: somebody may want
    to retry it.
    """
    query = (
        select(series.c.id)
        .where(series.c.state == SeriesState.CLOSED.value, series.c.closed_at <= before)
        .where(exists().where(instances.c.series_pk == series.c.id, instances.c.gone_at.is_(None)))
        .where(~exists().where(instances.c.series_pk == series.c.id, instances.c.received_at > before))
        .where(
            or_(
                _reported(),
                _kept_without_a_job(),
                series.c.selection.in_(NOT_CHOSEN),
            )
        )
        .where(~exists().where(jobs.c.series_pk == series.c.id, jobs.c.state.in_(UNFINISHED)))
        .where(~_results_where(results.c.created_at > before))
        .where(~_deliveries_where(or_(*_undelivered(before))))
    )
    if series_pk is not None:
        query = query.where(series.c.id == series_pk)
    return list(tx.scalars(query.order_by(series.c.closed_at)).all())


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


def _deliveries_where(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(deliveries.c.result_id == results.c.id, results.c.series_pk == series.c.id, condition)


def _undelivered(before: float) -> list[ColumnElement[bool]]:
    """What keeps a series' images: still to be sent, failed, waiting for a commitment, or delivered too recently."""
    return [
        deliveries.c.state.in_(UNDELIVERED),
        and_(deliveries.c.state == DeliveryState.SENT.value, deliveries.c.due_at.is_not(None)),
        deliveries.c.sent_at > before,
        deliveries.c.committed_at > before,
    ]


def _mark(tx: Connection, series_pk: int, now: float, days: float) -> list[str]:
    """Mark the images of a series as removed, with one audit row. Returns the paths to delete."""
    kept = and_(instances.c.series_pk == series_pk, instances.c.gone_at.is_(None))
    rows = tx.execute(select(instances.c.path, instances.c.size).where(kept)).all()
    tx.execute(update(instances).where(kept).values(gone_at=now, gone_reason="retention"))
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
        detail={"files": len(rows), "bytes": sum(row.size for row in rows), "finished_for_days": days},
    )
    return [row.path for row in rows]
