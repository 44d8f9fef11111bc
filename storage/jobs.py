"""The queue of analyses: fencing numbers, attempts, and the one transaction that ends a job.

The states are in job_state.py; what happens to a job whose worker is gone is in job_takeover.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, bindparam, select, update

from config.reasons import Refusal
from storage import audit, deliveries, listings, results, tallies, turnarounds
from storage.errors import StaleLease
from storage.job_state import JOB, JobState
from storage.job_takeover import end_failed, end_out_of_attempts, release_expired
from storage.models import batches as batch_table
from storage.models import jobs, series, studies
from storage.moves import in_state, insert_row, move
from storage.results import ALL_BEFORE, NewObject, NewResult, Replaces


@dataclass(frozen=True)
class ModelRef:
    """Which model a job is for. digest: changes when weights or preprocessing do."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Models:
    """The models that completed series are queued for.

    shadow: analyses them too, without being reported; or None.
    beside: further ones that report too.
    sources: AE titles of the sources whose series a model analyses, by its digest; all of them if it has no entry.
    """

    reporting: ModelRef
    shadow: ModelRef | None = None
    beside: tuple[ModelRef, ...] = ()
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def all(self) -> tuple[ModelRef, ...]:
        """All of them, the shadow last."""
        return (self.reporting, *self.beside, *([self.shadow] if self.shadow else []))

    def of(self, calling_ae: str) -> "Models | None":
        """Those that analyse series of one source; None if none of them reports."""
        reporting = [model for model in (self.reporting, *self.beside) if self._takes(model, calling_ae)]
        if not reporting:
            return None
        shadow = self.shadow if self.shadow and self._takes(self.shadow, calling_ae) else None
        return Models(reporting[0], shadow, tuple(reporting[1:]), self.sources)

    def _takes(self, model: ModelRef, calling_ae: str) -> bool:
        return calling_ae in self.sources.get(model.digest, (calling_ae,))


@dataclass(frozen=True)
class ClaimedJob:
    """A job to run now; its holder sends heartbeats and ends it with `finish`, `fail` or `hand_back`.

    attempt: this one's number, from 1. instances_digest: SHA-256 over the series' instances when it closed.
    refusal: why the job is to be reported as not analysed, without analysing; None for all others.
    shadow: the result is kept beside the one that is reported, and never sent.
    batch_id: the batch that it runs for, or None.
    calling_ae: which source the series came from.
    canary: the node made the series itself (see canaries.py); its result goes nowhere else than canaries do.
    """

    job_id: int
    fence: int
    attempt: int
    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    calling_ae: str
    revision: int
    instances_digest: str
    instance_count: int
    model: ModelRef
    refusal: Refusal | None
    lease_until: float
    shadow: bool = False
    batch_id: int | None = None
    canary: bool = False


def refusal_columns(refusal: Refusal | None) -> dict[str, str | None]:
    """A refusal as the columns of a row."""
    if refusal is None:
        return {"refusal_code": None, "refusal_text": None}
    return {"refusal_code": str(refusal.code), "refusal_text": refusal.sentence}


def refusal_of(code: str | None, sentence: str | None) -> Refusal | None:
    """The refusal that a row's columns hold."""
    return Refusal(code, sentence or "") if code else None


def enqueue(
    tx: Connection,
    series_pk: int,
    now: float,
    instances_digest: str,
    model: ModelRef,
    refusal: Refusal | None = None,
    priority: int = 0,
    *,
    shadow: bool = False,
    batch_id: int | None = None,
) -> int:
    """Queue the analysis of a closed series, unless this input has a job for this model already. Returns its id.

    A job of an earlier revision does not count, even of the same input: its result was superseded when the series
    was opened again.
    priority: among the jobs that wait, those with the highest are claimed first.
    shadow: the model runs beside the one that reports. A shadow job does not count as a reporting one, nor the reverse.
    batch_id: the batch that it is for. It is claimed only by a worker that has no live job to do.
    """
    closed = tx.execute(
        select(series.c.revision, series.c.instance_count, series.c.last_instance_at).where(series.c.id == series_pk)
    ).one()
    same = select(jobs.c.id).where(
        jobs.c.series_pk == series_pk,
        jobs.c.revision == closed.revision,
        jobs.c.instances_digest == instances_digest,
        jobs.c.model_digest == model.digest,
        jobs.c.shadow.is_(shadow),
    )
    held = tx.scalar(same)
    if held is not None:
        return int(held)
    values = {
        "series_pk": series_pk,
        "revision": closed.revision,
        "instances_digest": instances_digest,
        "model_name": model.name,
        "model_version": model.version,
        "model_digest": model.digest,
        "shadow": shadow,
        "batch_id": batch_id,
        "state": JobState.QUEUED.value,
        "priority": priority,
        "attempts": 0,
        "interruptions": 0,
        "fence": 0,
        "set_at": now,
        "due_at": now,
        "instance_count": closed.instance_count,
        "last_instance_at": closed.last_instance_at,
        **refusal_columns(refusal),
        "queued_at": now,
    }
    job_id = insert_row(tx, jobs, values)
    if batch_id is None:
        listings.touch(tx, series_pk)
    _note_queued(tx, job_id, now, values)
    return job_id


def _note_queued(tx: Connection, job_id: int, now: float, values: Mapping[str, Any]) -> None:
    row = JOB.row(tx, job_id)
    audit.append(
        tx,
        now,
        "job.queued",
        audit.Subject(
            series_uid=row["series_uid"], study_uid=row["study_uid"], patient_id=row["patient_id"], job_id=job_id
        ),
        outcome=JobState.QUEUED,
        detail={
            "instances_digest": values["instances_digest"],
            "model": f"{values['model_name']} {values['model_version']}",
            "model_digest": values["model_digest"],
            "shadow": values["shadow"],
            "priority": values["priority"],
            **({} if values["batch_id"] is None else {"batch": values["batch_id"]}),
        },
    )


def count_queued(tx: Connection) -> int:
    """How many analyses that are to be reported wait for a worker."""
    return tallies.read(tx).rows("jobs", JobState.QUEUED, part=False)


def claim(
    tx: Connection, worker: str, now: float, lease_s: float, max_attempts: int, *, batches: bool = False
) -> ClaimedJob | None:
    """Claim the job that has waited longest among those of the highest priority: QUEUED to RUNNING, with the attempt
    counted now and a new fencing number.

    Shadow jobs come after all others: nobody waits for them. batches: if no live job waits, take one of a batch.
    Jobs whose worker is gone (lease over) are queued again first. A job out of attempts ends FAILED and stops
    nothing else. Returns None if nothing waits.
    """
    release_expired(tx, now, max_attempts)
    job_id = _take(tx, _LIVE, worker, now, lease_s, max_attempts)
    if job_id is None and batches:
        job_id = take_of_batch(tx, worker, now, lease_s, max_attempts)
    return None if job_id is None else _claimed(tx, job_id)


def _waiting(*lane: ColumnElement[bool]) -> Select[Any]:
    waits = (in_state(jobs, JobState.QUEUED), *lane, jobs.c.due_at <= bindparam("now"))
    found = select(jobs.c.id, jobs.c.fence, jobs.c.attempts).where(*waits)
    return found.limit(1).with_for_update(skip_locked=True)


_LIVE = _waiting(jobs.c.batch_id.is_(None)).order_by(jobs.c.shadow, jobs.c.priority.desc(), jobs.c.due_at, jobs.c.id)
_OF_BATCH = _waiting(jobs.c.batch_id == bindparam("batch")).order_by(jobs.c.due_at, jobs.c.id)


def take_of_batch(tx: Connection, worker: str, now: float, lease_s: float, max_attempts: int) -> int | None:
    """Claim a job of the first batch that runs and has one waiting: a seek for each, however many jobs they have.

    Returns its id.
    """
    for batch_id in tx.scalars(select(batch_table.c.id).where(in_state(batch_table, "RUNNING")).order_by("id")).all():
        job_id = _take(tx, _OF_BATCH, worker, now, lease_s, max_attempts, batch=batch_id)
        if job_id is not None:
            return job_id
    return None


def _take(
    tx: Connection, waiting: Select[Any], worker: str, now: float, lease_s: float, max_attempts: int, **lane: int
) -> int | None:
    while (row := tx.execute(waiting, {"now": now, **lane}).first()) is not None:
        if row.attempts >= max_attempts:
            end_out_of_attempts(tx, row.id, JobState.QUEUED, row.attempts, now)
            continue
        values = {
            "worker": worker,
            "attempts": row.attempts + 1,
            "fence": row.fence + 1,
            "started_at": now,
            "set_at": now,
            "due_at": now + lease_s,
        }
        detail = {"worker": worker, "attempt": row.attempts + 1, "fence": row.fence + 1}
        move(tx, JOB, row.id, JobState.QUEUED, JobState.RUNNING, now, values=values, detail=detail)
        return int(row.id)
    return None


_OF_SERIES = (series.c.series_instance_uid, series.c.calling_ae, series.c.canary)


def _claimed(tx: Connection, job_id: int) -> ClaimedJob:
    row = tx.execute(
        select(jobs, *_OF_SERIES, studies.c.study_instance_uid)
        .select_from(jobs.join(series).join(studies))
        .where(jobs.c.id == job_id)
    ).one()
    return ClaimedJob(
        job_id=row.id,
        fence=row.fence,
        attempt=row.attempts,
        series_pk=row.series_pk,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        calling_ae=row.calling_ae,
        revision=row.revision,
        instances_digest=row.instances_digest,
        instance_count=row.instance_count,
        model=ModelRef(row.model_name, row.model_version, row.model_digest),
        refusal=refusal_of(row.refusal_code, row.refusal_text),
        lease_until=row.due_at,
        shadow=row.shadow,
        batch_id=row.batch_id,
        canary=row.canary,
    )


def heartbeat(tx: Connection, job_id: int, fence: int, now: float, lease_s: float) -> bool:
    """Extend the lease. False: the job is somebody else's now, or superseded; drop the work."""
    changed = tx.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == JobState.RUNNING.value)
        .values(set_at=now, due_at=now + lease_s)
    )
    return changed.rowcount == 1


def finish(
    tx: Connection,
    job_id: int,
    fence: int,
    now: float,
    result: NewResult,
    objects: Sequence[NewObject],
    destinations: Sequence[str],
    replaces: Replaces = ALL_BEFORE,
) -> int:
    """End a job: result, objects, outbox rows, REPORTED and the audit rows in one transaction. Returns the result's id.

    The objects' files are durable before this. A job that was superseded while it ran keeps its result for the
    audit, gets no deliveries and stays SUPERSEDED.
    replaces: which results of the series it supersedes; those of models that report beside it stand.
    A shadow job has only a result: whatever it is handed, it makes no delivery and leaves those of others as they are.
    Raises StaleLease: the fence is not current or the job was finished already; nothing was written.
    """
    job = JOB.row(tx, job_id)
    if job["fence"] != fence or job["state"] not in (JobState.RUNNING, JobState.SUPERSEDED):
        raise StaleLease(f"job {job_id}: fence {fence} is not current")
    if job["state"] == JobState.SUPERSEDED:
        if results.of_job(tx, job_id) is not None:
            raise StaleLease(f"job {job_id}: handed in already")
        return results.record(tx, job_id, now, result, objects, stale=True)
    values = {"finished_at": now, "set_at": now, "worker": None, "failure_reason": None}
    move(
        tx,
        JOB,
        job_id,
        JobState.RUNNING,
        JobState.REPORTED,
        now,
        fence=fence,
        values=values,
        detail={"outcome": str(result.outcome)},
    )
    of_job = (jobs.c.series_pk, jobs.c.shadow, jobs.c.last_instance_at, series.c.canary)
    ended = tx.execute(select(*of_job).select_from(jobs.join(series)).where(jobs.c.id == job_id)).one()
    if ended.shadow:
        return results.record(tx, job_id, now, result, (), stale=False)
    deliveries.supersede_unsent(tx, ended.series_pk, now, "a later report of the series replaces it", replaces)
    result_id = results.record(tx, job_id, now, result, objects, stale=False, replaces=replaces)
    if not ended.canary:
        turnarounds.add_result(tx, result_id, ended.last_instance_at, now)
    deliveries.create(tx, result_id, destinations, now)
    return result_id


def note_refusal(tx: Connection, job_id: int, refusal: Refusal) -> None:
    """Note that a job is reported without analysing, as if it had been queued so."""
    tx.execute(update(jobs).where(jobs.c.id == job_id).values(**refusal_columns(refusal)))


def hand_back(tx: Connection, job_id: int, fence: int, now: float) -> None:
    """A worker that shuts down gives its job back: QUEUED, the attempt not counted. Raises StaleLease."""
    values = {"worker": None, "attempts": jobs.c.attempts - 1, "set_at": now, "due_at": now}
    move(
        tx,
        JOB,
        job_id,
        JobState.RUNNING,
        JobState.QUEUED,
        now,
        fence=fence,
        values=values,
        detail={"reason": "handed back"},
    )


def fail(tx: Connection, job_id: int, fence: int, now: float, reason: str, retry_at: float | None) -> None:
    """The attempt failed: QUEUED until `retry_at`, or FAILED if that is None. Raises StaleLease.

    reason: one sentence without patient data.
    """
    if retry_at is None:
        end_failed(tx, job_id, JobState.RUNNING, now, reason, fence)
        return
    values = {"worker": None, "failure_reason": reason, "set_at": now, "due_at": retry_at}
    move(tx, JOB, job_id, JobState.RUNNING, JobState.QUEUED, now, fence=fence, values=values, detail={"reason": reason})


def batch_of(tx: Connection, job_id: int) -> int | None:
    """The batch that a job is for; None for a live one, or if there is no such job."""
    found: int | None = tx.scalar(select(jobs.c.batch_id).where(jobs.c.id == job_id))
    return found


def retry(tx: Connection, job_id: int, now: float, why: str = "retried by an operator") -> None:
    """Bring a FAILED job back with all its attempts. Raises NotFound or IllegalMove."""
    values = {
        "attempts": 0,
        "interruptions": 0,
        "failure_reason": None,
        "finished_at": None,
        "set_at": now,
        "due_at": now,
    }
    move(tx, JOB, job_id, JobState.FAILED, JobState.QUEUED, now, values=values, detail={"reason": why})


def supersede_unfinished(tx: Connection, series_pk: int, now: float, reason: str) -> None:
    """End the jobs of a series that have not reported: their input is no longer the whole series."""
    unfinished = [JobState.QUEUED.value, JobState.RUNNING.value, JobState.FAILED.value]
    found = select(jobs.c.id, jobs.c.state).where(jobs.c.series_pk == series_pk, jobs.c.state.in_(unfinished))
    for row in tx.execute(found.with_for_update()).all():
        # The fence stays: a worker that still runs may hand in its result, for the audit.
        values = {"finished_at": now, "set_at": now, "worker": None}
        move(tx, JOB, row.id, row.state, JobState.SUPERSEDED, now, values=values, detail={"reason": reason})
