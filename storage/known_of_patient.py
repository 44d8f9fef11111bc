"""What the index has of a patient, as a person is shown it before it is forgotten."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, func, or_, select

from storage import audit
from storage.arrival import patient_key
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.models import (
    deliveries,
    instances,
    jobs,
    patients,
    result_objects,
    results,
    series,
    studies,
    workitem_series,
    workitems,
)
from storage.series_state import SeriesState

UNDELIVERED = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.FAILED)


@dataclass(frozen=True)
class KnownSeries:
    """A series of a patient. files: received ones and the node's own objects. results: how many.

    open: what is not finished, in words. busy: what a process has in hand at this moment, in words.
    """

    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    modality: str
    description: str
    files: int
    results: int
    open: tuple[str, ...]
    busy: tuple[str, ...]


def known_series(tx: Connection, patient_id: str, now: float) -> list[KnownSeries]:
    """What the index has of a patient, the first series first. patient_id: as the index keeps it."""
    named = ("series_instance_uid", "modality", "description")
    rows = tx.execute(
        select(series.c.id, series.c.state, *(series.c[name] for name in named), studies.c.study_instance_uid)
        .select_from(series.join(studies).join(patients))
        .where(of_patient(patient_id))
        .order_by(series.c.id)
    ).mappings()
    return [_known(tx, dict(row), now) for row in rows.all()]


def of_patient(patient_id: str) -> ColumnElement[bool]:
    """Series of a patient, out of series joined with patients.

    A study is filed under the patient of its first series. A later one may be another's: its own key says whose it is.
    What was imported has a study and a patient of its own.
    """
    imported = series.c.imported & (patients.c.patient_id == patient_id)
    return or_(series.c.patient_key == patient_key(patient_id, ""), imported)


def _known(tx: Connection, row: Mapping[str, Any], now: float) -> KnownSeries:
    pk, uid = row["id"], row["series_instance_uid"]
    files = _count(tx, instances, (instances.c.series_pk == pk) & instances.c.gone_at.is_(None))
    files += _count(tx, result_objects, result_objects.c.result_id.in_(results_of(pk)))
    return KnownSeries(
        pk,
        uid,
        row["study_instance_uid"],
        row["modality"],
        row["description"],
        files,
        _count(tx, results, results.c.series_pk == pk),
        tuple(_open(tx, pk, row["state"])),
        tuple(_busy(tx, pk, uid, now)),
    )


def _open(tx: Connection, series_pk: int, state: str) -> Iterable[str]:
    if state == SeriesState.OPEN:
        yield "is still being received"
    if _count(tx, jobs, (jobs.c.series_pk == series_pk) & (jobs.c.state == JobState.QUEUED.value)):
        yield "waits to be analysed"
    undelivered = deliveries.c.result_id.in_(results_of(series_pk)) & deliveries.c.state.in_(UNDELIVERED)
    if count := _count(tx, deliveries, undelivered):
        yield f"{count} of its deliveries did not get through yet"


def _busy(tx: Connection, series_pk: int, uid: str, now: float) -> Iterable[str]:
    yield from in_hand(tx, series_pk, now)
    step = workitem_series.join(workitems, workitems.c.id == workitem_series.c.workitem_id)
    open_step = (workitem_series.c.series_uid == uid.partition(audit.IMPORTED)[0]) & workitems.c.ended_at.is_(None)
    if tx.scalar(select(func.count()).select_from(step).where(open_step)):
        yield "is needed by a step of a worklist"


def in_hand(tx: Connection, series_pk: int, now: float) -> Iterable[str]:
    """What a worker or a sender does with a series at this moment, in words."""
    running = (jobs.c.series_pk == series_pk) & (jobs.c.state == JobState.RUNNING.value) & (jobs.c.due_at > now)
    if _count(tx, jobs, running):
        yield "is being analysed"
    sending = (deliveries.c.state == DeliveryState.SENDING.value) & (deliveries.c.due_at > now)
    if _count(tx, deliveries, deliveries.c.result_id.in_(results_of(series_pk)) & sending):
        yield "is being sent"


def _count(tx: Connection, table: Table, which: ColumnElement[bool]) -> int:
    return int(tx.scalar(select(func.count()).select_from(table).where(which)) or 0)


def results_of(series_pk: int) -> Any:
    """A query of the numbers of a series' results."""
    return select(results.c.id).where(results.c.series_pk == series_pk)


def told(tx: Connection, found: Sequence[KnownSeries]) -> list[str]:
    """The destinations that got results of these series."""
    mine = results.c.series_pk.in_([one.series_pk for one in found])
    sent = deliveries.c.sent_at.is_not(None)
    asked = select(deliveries.c.destination).select_from(deliveries.join(results)).where(mine, sent)
    return sorted(set(tx.scalars(asked.distinct())))


def names(tx: Connection, patient_id: str) -> list[str]:
    """The patient's names, as the index has them."""
    return list(tx.scalars(select(patients.c.name).where(patients.c.patient_id == patient_id)))


def file_of_each(tx: Connection, found: Sequence[KnownSeries]) -> dict[int, str | None]:
    """A stored file of each series, by the series' number: an image, or else an object; None if none is left."""
    return {one.series_pk: _a_file(tx, one.series_pk) for one in found}


def _a_file(tx: Connection, series_pk: int) -> str | None:
    kept = (instances.c.series_pk == series_pk) & instances.c.gone_at.is_(None)
    own = result_objects.c.result_id.in_(results_of(series_pk))
    for table, which in ((instances, kept), (result_objects, own)):
        path: str | None = tx.scalar(select(table.c.path).where(which).order_by(table.c.id).limit(1))
        if path is not None:
            return path
    return None
