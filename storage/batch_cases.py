"""The cases of a batch: each becomes a job once there is room, and has exactly one result, or a reason, in the end.

What a case becomes is read from its job, never written by a worker. So whoever is killed, the next `settle` goes on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, exists, func, select, update

from config.reasons import Refusal
from storage import audit, batches, imported, jobs, results
from storage.batches import BatchState, CaseState, count
from storage.job_state import JobState
from storage.job_takeover import end_failed
from storage.jobs import ModelRef, refusal_columns
from storage.models import batch_cases, instances, series
from storage.models import jobs as job_table
from storage.models import results as result_table
from storage.moves import in_state
from storage.selection import UNDECIDED
from storage.series_state import SeriesState

ENDED = (JobState.REPORTED.value, JobState.FAILED.value, JobState.SUPERSEDED.value)
LONGEST_WAIT_S = 3600.0
"""A wait that ends later than this was set by a clock that has gone back since."""
CANCELLED = "its batch was cancelled"


@dataclass(frozen=True)
class Case:
    """A case to take up. place: as in `batches.NewCase`. tries: how often it was taken up in vain."""

    id: int
    batch_id: int
    series_uid: str
    place: str
    tries: int
    series_pk: int | None


def waiting(tx: Connection, batch_id: int, now: float, limit: int) -> list[Case]:
    """Cases that wait and are due, those that were postponed last; locked until the transaction ends."""
    due = (batch_cases.c.due_at <= now) | (batch_cases.c.due_at > now + LONGEST_WAIT_S)
    columns = [batch_cases.c[name] for name in Case.__dataclass_fields__]
    query = select(*columns).where(in_state(batch_cases, CaseState.WAITING), batch_cases.c.batch_id == batch_id, due)
    query = query.order_by(batch_cases.c.due_at, batch_cases.c.id).limit(limit).with_for_update(skip_locked=True)
    return [Case(**row) for row in tx.execute(query).mappings()]


def postpone(tx: Connection, case_id: int, until: float, *, in_vain: bool = False) -> bool:
    """A waiting case is not taken up before then: somebody has it in hand, or it cannot be analysed yet.

    Returns False if it no longer waits.
    """
    waits = (batch_cases.c.id == case_id, in_state(batch_cases, CaseState.WAITING))
    values = {"due_at": until, "tries": batch_cases.c.tries + int(in_vain)}
    return tx.execute(update(batch_cases).where(*waits).values(values)).rowcount == 1


def input_of(tx: Connection, series_pk: int) -> tuple[bool, bool]:
    """Whether a series of the index is closed and decided, so that a batch may take it; and whether images are gone."""
    row = tx.execute(select(series.c.state, series.c.selection).where(series.c.id == series_pk)).one()
    gone = exists().where(instances.c.series_pk == series_pk, instances.c.gone_at.is_not(None))
    ready = row.state == SeriesState.CLOSED and row.selection not in UNDECIDED
    return ready, bool(tx.scalar(select(gone)))


def queue(
    tx: Connection, case: Case, series_pk: int, model: ModelRef, now: float, refusal: Refusal | None = None
) -> bool:
    """Give a waiting case its job: the one that this input has for this model already, or a new one.

    Returns False if the case no longer waits.
    """
    job_id = _held_job(tx, case.batch_id, series_pk, model, now)
    if job_id is None:
        digest = str(tx.scalar(select(series.c.instances_digest).where(series.c.id == series_pk)))
        job_id = jobs.enqueue(tx, series_pk, now, digest, model, refusal, shadow=True, batch_id=case.batch_id)
    values = {"state": CaseState.QUEUED.value, "job_id": job_id, "series_pk": series_pk}
    changed = _change(tx, case.id, CaseState.WAITING, values)
    count(tx, case.batch_id, queued=changed)
    return bool(changed)


def _held_job(tx: Connection, batch_id: int, series_pk: int, model: ModelRef, now: float) -> int | None:
    """The job that this revision of a series has for a model: reported, or in the lane of the batches."""
    same = (
        job_table.c.series_pk == series_pk,
        job_table.c.revision == series.c.revision,
        job_table.c.instances_digest == series.c.instances_digest,
        job_table.c.model_digest == model.digest,
    )
    rows = tx.execute(
        select(job_table.c.id, job_table.c.state, job_table.c.shadow, job_table.c.batch_id)
        .select_from(job_table.join(series))
        .where(*same)
        .order_by(job_table.c.id)
    ).all()
    reported = next((row.id for row in rows if row.state == JobState.REPORTED), None)
    if reported is not None:
        return int(reported)
    held = next((row for row in rows if row.shadow), None)
    if held is None:
        return None
    if held.batch_id is not None:
        tx.execute(update(job_table).where(job_table.c.id == held.id).values(batch_id=batch_id))
    if held.state == JobState.FAILED:
        jobs.retry(tx, held.id, now, f"batch {batch_id} asks for it")
    return int(held.id)


def leave_out(tx: Connection, case: Case, refusal: Refusal, now: float) -> None:
    """A waiting case cannot become a job: it ends without a result, with the reason."""
    _end(tx, case, CaseState.WAITING, now, refusal=refusal)


def settle(
    tx: Connection,
    batch_id: int,
    now: float,
    why_failed: Callable[[str | None], Refusal],
    limit: int = 100,
    *,
    keep_images: bool = False,
) -> list[str]:
    """End the cases whose jobs have ended. Returns the paths of imported images that nobody needs any longer.

    why_failed: makes a Refusal of the reason of a failed job. Those paths are to be deleted after the commit.
    """
    rows = tx.execute(
        select(*(batch_cases.c[name] for name in Case.__dataclass_fields__), job_table.c.id.label("job_id"))
        .add_columns(job_table.c.state, job_table.c.failure_reason)
        .select_from(batch_cases.join(job_table, job_table.c.id == batch_cases.c.job_id))
        .where(in_state(batch_cases, CaseState.QUEUED), batch_cases.c.batch_id == batch_id)
        .where(job_table.c.state.in_(ENDED))
        .order_by(batch_cases.c.id)
        .limit(limit)
    ).mappings()
    paths: list[str] = []
    for row in rows.all():
        case = Case(**{name: row[name] for name in Case.__dataclass_fields__})
        if row["state"] == JobState.SUPERSEDED or row["failure_reason"] == CANCELLED:
            # Its series got another slice, and the case waits until that is complete again; or its batch was cancelled.
            values = {"state": CaseState.WAITING.value, "job_id": None, "due_at": now + 30.0}
            count(tx, batch_id, queued=-_change(tx, case.id, CaseState.QUEUED, values))
        elif row["state"] == JobState.REPORTED:
            _end(tx, case, CaseState.QUEUED, now, result_id=results.of_job(tx, row["job_id"]))
        else:
            _end(tx, case, CaseState.QUEUED, now, refusal=why_failed(row["failure_reason"]))
        if case.series_pk is not None and not keep_images:
            paths += imported.release(tx, case.series_pk, now)
    return paths


def _end(
    tx: Connection,
    case: Case,
    leaving: CaseState,
    now: float,
    *,
    result_id: int | None = None,
    refusal: Refusal | None = None,
) -> None:
    to = CaseState.DONE if result_id is not None else CaseState.WITHOUT_RESULT
    columns = refusal_columns(refusal)
    reason = {"reason_code": columns["refusal_code"], "reason_text": columns["refusal_text"]}
    values = {"state": to.value, "result_id": result_id, **reason, "ended_at": now}
    if not _change(tx, case.id, leaving, values):
        return
    count(tx, case.batch_id, queued=-int(leaving == CaseState.QUEUED), **{to.value.lower(): 1})
    detail: dict[str, object] = {"batch": case.batch_id, "case": case.id}
    if refusal is not None:
        detail |= {"reason": str(refusal.code)}
    about = audit.Subject(series_uid=case.series_uid, result_id=result_id)
    audit.append(tx, now, "batch.case-ended", about, outcome=to, detail=detail)


def _change(tx: Connection, case_id: int, leaving: CaseState, values: Mapping[str, object]) -> int:
    which = (batch_cases.c.id == case_id, batch_cases.c.state == leaving.value)
    return tx.execute(update(batch_cases).where(*which).values(values)).rowcount


def end_if_done(tx: Connection, batch_id: int, now: float) -> bool:
    """RUNNING to DONE if every case has ended."""
    batch = batches.get(tx, batch_id)
    if batch.state != BatchState.RUNNING or batch.ended < batch.cases:
        return False
    batches.bring_to(tx, batch_id, BatchState.DONE, now)
    return True


def withdraw(tx: Connection, batch_id: int, now: float, limit: int = 500) -> bool:
    """Take back jobs of a cancelled batch that wait; those that another batch asked for are its jobs from now on.

    Returns False when there are none left.
    """
    queued = select(job_table.c.id).where(in_state(job_table, JobState.QUEUED), job_table.c.batch_id == batch_id)
    found = tx.scalars(queued.limit(limit).with_for_update(skip_locked=True)).all()
    for job_id in found:
        wanted = (batch_cases.c.job_id == job_id, in_state(batch_cases, CaseState.QUEUED))
        other = tx.scalar(select(batch_cases.c.batch_id).where(*wanted, batch_cases.c.batch_id != batch_id).limit(1))
        if other is None:
            end_failed(tx, job_id, JobState.QUEUED, now, CANCELLED)
        else:
            tx.execute(update(job_table).where(job_table.c.id == job_id).values(batch_id=other))
    return bool(found)


def outcomes(tx: Connection, batch_id: int) -> list[dict[str, Any]]:
    """The number of cases by what became of them: outcome and reason; of a cancelled batch, WAITING ones too."""
    outcome = func.coalesce(result_table.c.outcome, batch_cases.c.state)
    reason = func.coalesce(result_table.c.reason_code, batch_cases.c.reason_code)
    query = (
        select(outcome.label("outcome"), reason.label("reason"), func.count().label("cases"))
        .select_from(batch_cases.outerjoin(result_table, result_table.c.id == batch_cases.c.result_id))
        .where(batch_cases.c.batch_id == batch_id)
        .group_by(outcome, reason)
        .order_by(func.count().desc(), outcome, reason)
    )
    return [dict(row) for row in tx.execute(query).mappings()]
