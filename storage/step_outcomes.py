"""What has become of the images that a worklist's step names: the results that the step ends with, or a reason.

All of it is what live work does anyway; nothing here hurries or changes it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, exists, select

from config.reasons import ReasonCode, Refusal
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.jobs import refusal_of
from storage.models import deliveries, jobs, result_objects, results, series, studies
from storage.results import ResultOutcome
from storage.selection import UNDECIDED
from storage.series_state import Selection, SeriesState
from storage.workitems import InputSeries, lacking, missing_of

HERE = (DeliveryState.SENT.value, DeliveryState.COMMITTED.value)
UNDER_WAY = (DeliveryState.PENDING.value, DeliveryState.SENDING.value)


@dataclass(frozen=True)
class SeriesOutcome:
    """results: the current ones of a series, all delivered as far as they can be. refusal: why there is no finding."""

    results: tuple[int, ...] = ()
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Output:
    """An object of a result that a destination has."""

    destination: str
    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


def outcome_of(tx: Connection, wanted: InputSeries) -> SeriesOutcome | None:
    """What has become of one series of a step; None while that is open."""
    missing = missing_of(tx, wanted, deleted_is_here=True)
    row = _series(tx, wanted.series_uid)
    if row is None or (missing and row["state"] == SeriesState.CLOSED):
        return SeriesOutcome(refusal=lacking(len(missing), len(wanted.instances)))
    if row["study_instance_uid"] != wanted.study_uid:
        sentence = "The worklist's step names another study than the one that the series belongs to."
        return SeriesOutcome(refusal=Refusal(ReasonCode.MIXED_SERIES, sentence))
    if row["state"] != SeriesState.CLOSED or row["selection"] in UNDECIDED or _has_work(tx, row):
        return None
    return _outcome(tx, row)


def is_reported(tx: Connection, wanted: InputSeries) -> bool:
    """Whether the series has a current result, made of all these images: there is nothing left to fetch."""
    row = _series(tx, wanted.series_uid)
    if row is None or row["state"] != SeriesState.CLOSED:
        return False
    return bool(_current(tx, row["id"])) and not missing_of(tx, wanted, deleted_is_here=True)


def outputs(tx: Connection, result_ids: Iterable[int]) -> list[Output]:
    """The objects of these results that destinations took, in the order in which they were made."""
    query = (
        select(result_objects, deliveries.c.destination, deliveries.c.object_status, studies.c.study_instance_uid)
        .select_from(result_objects.join(results).join(series).join(studies))
        .join(deliveries, deliveries.c.result_id == results.c.id)
        .where(results.c.id.in_(list(result_ids)), deliveries.c.state.in_(HERE))
        .order_by(deliveries.c.id, result_objects.c.id)
    )
    return [
        Output(
            row["destination"],
            row["study_instance_uid"],
            row["series_instance_uid"],
            row["sop_class_uid"],
            row["sop_instance_uid"],
        )
        for row in tx.execute(query).mappings()
        if _is_stored(json.loads(row["object_status"] or "{}").get(row["sop_instance_uid"]))
    ]


def _is_stored(status: int | None) -> bool:
    return status is not None and (status == 0x0000 or 0xB000 <= status <= 0xBFFF)


def _series(tx: Connection, series_uid: str) -> RowMapping | None:
    names = ("id", "state", "revision", "selection", "refusal_code", "refusal_text")
    query = select(*(series.c[name] for name in names), studies.c.study_instance_uid).select_from(series.join(studies))
    return tx.execute(query.where(series.c.series_instance_uid == series_uid)).mappings().first()


def _current(tx: Connection, series_pk: int) -> list[RowMapping]:
    """Results that stand, of models that report."""
    columns = [results.c[name] for name in ("id", "outcome", "reason_code", "reason_text")]
    stands = (results.c.superseded_at.is_(None), results.c.shadow.is_(False), results.c.batch_id.is_(None))
    query = select(*columns).where(results.c.series_pk == series_pk, *stands).order_by(results.c.id)
    return list(tx.execute(query).mappings())


def _has_work(tx: Connection, row: RowMapping) -> bool:
    """Whether a job of the series as it is now waits or runs, or a result of it waits to be sent."""
    live = (jobs.c.shadow.is_(False), jobs.c.batch_id.is_(None))
    job = exists().where(jobs.c.series_pk == row["id"], jobs.c.revision == row["revision"], *live)
    if tx.scalar(select(job.where(jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value])))):
        return True
    ids = [one["id"] for one in _current(tx, row["id"])]
    sent = exists().where(deliveries.c.result_id.in_(ids), deliveries.c.state.in_(UNDER_WAY))
    return bool(tx.scalar(select(sent)))


def _outcome(tx: Connection, row: RowMapping) -> SeriesOutcome:
    found = _current(tx, row["id"])
    ids = tuple(one["id"] for one in found)
    if any(one["outcome"] == ResultOutcome.ANALYSED for one in found):
        return SeriesOutcome(ids)
    if found:
        return SeriesOutcome(ids, refusal_of(found[0]["reason_code"], found[0]["reason_text"]))
    return SeriesOutcome(refusal=_failure(tx, row) or _left_out(row))


def _failure(tx: Connection, row: RowMapping) -> Refusal | None:
    failed = (jobs.c.series_pk == row["id"], jobs.c.state == JobState.FAILED.value, jobs.c.batch_id.is_(None))
    query = select(jobs.c.failure_reason).where(*failed, jobs.c.shadow.is_(False), jobs.c.revision == row["revision"])
    found = tx.execute(query.order_by(jobs.c.id.desc()).limit(1)).first()
    if found is None:
        return None
    return Refusal(ReasonCode.ANALYSIS_FAILED, f"The analysis failed: {found.failure_reason or 'unknown'}.")


def _left_out(row: RowMapping) -> Refusal:
    """Why a closed series has neither a job nor a result."""
    decided = refusal_of(row["refusal_code"], row["refusal_text"])
    if decided is not None:
        return decided
    if row["selection"] == Selection.PASSED_OVER:
        return Refusal(ReasonCode.PASSED_OVER, "Another series of the study was chosen to be analysed.")
    return Refusal(ReasonCode.NOT_WANTED, "No model of this node analyses the series.")
