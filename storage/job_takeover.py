"""Leases of jobs: what happens to a job whose worker is gone, and to one that is out of attempts."""

from collections.abc import Mapping

from sqlalchemy import Connection, select

from storage import clock
from storage.job_state import JOB, JobState
from storage.models import jobs
from storage.moves import in_state, move

MAX_INTERRUPTIONS = 20


def release_expired(tx: Connection, now: float, max_attempts: int) -> int:
    """Queue again the jobs whose lease is over, or end them FAILED if they are out of attempts.

    Returns how many were RUNNING without a worker.
    """
    clock.start_waits_again(tx, jobs, (JobState.QUEUED, JobState.RUNNING), now)
    running = select(jobs.c.id, jobs.c.attempts).where(in_state(jobs, JobState.RUNNING), jobs.c.due_at <= now)
    released = tx.execute(running.with_for_update(skip_locked=True)).all()
    for row in released:
        if row.attempts >= max_attempts:
            end_out_of_attempts(tx, row.id, JobState.RUNNING, row.attempts, now)
        else:
            _queue_again(tx, row.id, now, "the worker's lease was over")
    return len(released)


def release_all(tx: Connection, now: float) -> int:
    """When the whole node starts: queue again what was RUNNING when it stopped. Returns how many.

    The job rarely caused that stop, so it costs no attempt. But a job may bring the whole machine down, so these
    stops are counted for each job, and only MAX_INTERRUPTIONS of them are excused.
    """
    running = select(jobs.c.id, jobs.c.attempts, jobs.c.interruptions).where(in_state(jobs, JobState.RUNNING))
    released = tx.execute(running.with_for_update(skip_locked=True)).all()
    for row in released:
        interruptions = row.interruptions + 1
        if interruptions > MAX_INTERRUPTIONS:
            end_failed(tx, row.id, JobState.RUNNING, now, f"the node stopped {interruptions} times while it ran")
            continue
        values = {"attempts": max(row.attempts - 1, 0), "interruptions": interruptions}
        _queue_again(tx, row.id, now, "the node stopped while it ran", values)
    return len(released)


def _queue_again(
    tx: Connection, job_id: int, now: float, reason: str, more: Mapping[str, object] | None = None
) -> None:
    # Due now, so it goes behind everything that waits already: a series that kills workers delays nobody.
    values = {"worker": None, "set_at": now, "due_at": now, **(more or {})}
    move(tx, JOB, job_id, JobState.RUNNING, JobState.QUEUED, now, values=values, detail={"reason": reason})


def end_out_of_attempts(tx: Connection, job_id: int, leaving: JobState, attempts: int, now: float) -> None:
    """Give up a job that is out of attempts; the reason of its last attempt is kept."""
    last = tx.scalar(select(jobs.c.failure_reason).where(jobs.c.id == job_id))
    reason = f"out of attempts after {attempts}: {last or 'its worker died or stopped answering'}"
    end_failed(tx, job_id, leaving, now, reason)


def end_failed(
    tx: Connection, job_id: int, leaving: JobState, now: float, reason: str, fence: int | None = None
) -> None:
    """Give a job up, with the reason: RUNNING or QUEUED to FAILED. fence: its holder's, if that gives it up."""
    values = {"failure_reason": reason, "finished_at": now, "worker": None, "set_at": now}
    move(tx, JOB, job_id, leaving, JobState.FAILED, now, fence=fence, values=values, detail={"reason": reason})
