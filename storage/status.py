"""How the node is doing, in numbers, for `dicom-node status` and the dashboard."""

from collections import Counter
from typing import Any

from sqlalchemy import Column, Connection, func, select

from storage import forwarding, pauses, suspensions, tallies, watch_alarms, withdrawals
from storage.copies import CONTRADICTS, SAME
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.models import deliveries, jobs, results, series
from storage.moves import in_state
from storage.results import ResultOutcome
from storage.series_state import SeriesState
from storage.workitems import StepState


def status(tx: Connection, now: float) -> dict[str, Any]:
    """Counts by state and how long the oldest of each queue has waited (seconds, None if nothing waits)."""
    counts = tallies.read(tx)
    return {
        **_by_state(counts),
        "destinations": _destinations(tx, counts, now),
        "instances": counts.rows("instances"),
        "instances_lost": counts.rows("instances", "missing") + counts.rows("instances", "corrupt"),
        "instances_removed_by_retention": counts.rows("instances", "retention"),
        "bytes_stored": counts.size("instances", tallies.HELD),
        "conflicts": counts.rows("conflicts", CONTRADICTS),
        "second_copies": counts.rows("conflicts", SAME),
        "second_copies_to_compare": counts.rows("conflicts", tallies.UNDECIDED),
        "results": {
            **{str(one): counts.rows("results", one, part=False) for one in ResultOutcome},
            "SHADOW": counts.rows("results", part=True),
        },
        "audit_messages": forwarding.lag(tx, now),
        "worklist_steps": _worklist_steps(counts),
        "batches_running": counts.rows("batches", "RUNNING"),
        "oldest_queued_s": _age(now, tx.scalar(OLDEST_QUEUED)),
        "oldest_pending_s": _age(now, _oldest_pending(tx, counts)),
        "paused": [vars(one) for one in pauses.all_of(tx)],
        "suspended": [vars(one) for one in suspensions.all_of(tx)],
        "withdrawn": [vars(one) for one in withdrawals.latest(tx, now)],
        "drift_alarms": [vars(one) for one in watch_alarms.standing(tx)],
        "failed_jobs": _failed_jobs(tx),
        "failed_deliveries": _failed_deliveries(tx),
        "unconfirmed": int(tx.scalar(UNCONFIRMED) or 0),
        "unconfirmed_deliveries": _unconfirmed_deliveries(tx),
    }


def queues(tx: Connection, now: float) -> dict[str, Any]:
    """What a monitor often asks for: counts by state, and how long the first of each queue has waited (seconds)."""
    counts = tallies.read(tx)
    return {
        "states": _by_state(counts),
        "worklist_steps": _worklist_steps(counts),
        "results": {str(one): counts.rows("results", one, part="") for one in ResultOutcome},
        "instances_gone": {why: counts.rows("instances", why) for why in ("missing", "corrupt", "retention")},
        "conflicts": counts.rows("conflicts", CONTRADICTS),
        "paused": _paused(tx),
        "destinations": _waiting(tx, counts, now),
        "oldest_s": {
            "jobs": _age(now, tx.scalar(OLDEST_QUEUED)),
            "deliveries": _age(now, _oldest_pending(tx, counts)),
        },
    }


def lateness(tx: Connection, now: float) -> dict[str, float | None]:
    """How long overdue work has been waiting, in seconds: closing series, taking leases back, sending results."""
    due = deliveries.c.due_at
    waiting = tallies.read(tx).parts("deliveries", DeliveryState.PENDING)
    # What waits for a paused destination is to wait.
    sent_to = [name for name in waiting if not pauses.is_paused(tx, pauses.Pausable.DESTINATION, name)]
    return {
        "closing": _age(now, tx.scalar(select(func.min(series.c.due_at)).where(in_state(series, SeriesState.OPEN)))),
        "leases": _age(now, tx.scalar(select(func.min(jobs.c.due_at)).where(in_state(jobs, JobState.RUNNING)))),
        "sending": _age(now, _first_pending(tx, due, sent_to)),
    }


# Not a join: SQLite would sort all failed deliveries for it.
SERIES_OF_DELIVERY = select(results.c.series_pk).where(results.c.id == deliveries.c.result_id).scalar_subquery()
OLDEST_QUEUED = select(func.min(jobs.c.queued_at)).where(in_state(jobs, JobState.QUEUED), jobs.c.batch_id.is_(None))
UNCONFIRMED = select(func.count()).select_from(deliveries).where(deliveries.c.unconfirmed_at.is_not(None))


def _by_state(counts: tallies.Counts) -> dict[str, dict[str, int]]:
    states = {"series": SeriesState, "jobs": JobState, "deliveries": DeliveryState}
    return {table: {str(state): counts.live(table, state) for state in names} for table, names in states.items()}


def _worklist_steps(counts: tallies.Counts) -> dict[str, int]:
    """The steps of worklists by state; empty if there never was one."""
    by_state = {str(state): counts.rows("workitems", state) for state in StepState}
    return {state: rows for state, rows in by_state.items() if rows}


def _paused(tx: Connection) -> dict[str, int]:
    kinds = Counter(str(one.kind) for one in pauses.all_of(tx))
    return {**{str(kind): kinds[str(kind)] for kind in pauses.Pausable}, "model": len(suspensions.all_of(tx))}


def _waiting(tx: Connection, counts: tallies.Counts, now: float) -> dict[str, dict[str, float]]:
    """By destination: what failed, what waits, and how long the first of it has waited (seconds; 0 if none does)."""
    names = counts.parts("deliveries")
    first = {name: _first_pending(tx, deliveries.c.created_at, [name]) for name in names}
    return {
        "failed": {name: counts.rows("deliveries", DeliveryState.FAILED, name) for name in names},
        "waiting": {name: counts.rows("deliveries", DeliveryState.PENDING, name) for name in names},
        "oldest_seconds": {name: _age(now, since) or 0 for name, since in first.items()},
    }


def _oldest_pending(tx: Connection, counts: tallies.Counts) -> float | None:
    return _first_pending(tx, deliveries.c.created_at, counts.parts("deliveries", DeliveryState.PENDING))


def _first_pending(tx: Connection, column: Column[Any], destinations: list[str]) -> float | None:
    """The least value of a column among what waits to be sent: one seek for each destination."""
    pending = select(func.min(column)).where(in_state(deliveries, DeliveryState.PENDING))
    firsts = [tx.scalar(pending.where(deliveries.c.destination == name)) for name in destinations]
    return min((first for first in firsts if first is not None), default=None)


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, now - since)


def _destinations(tx: Connection, counts: tallies.Counts, now: float) -> dict[str, dict[str, Any]]:
    """For each destination: counts by state, and the last error of what still waits or failed."""
    found: dict[str, dict[str, Any]] = {}
    for destination in counts.parts("deliveries"):
        by_state = {str(state): counts.rows("deliveries", state, destination) for state in DeliveryState}
        last_error = tx.scalar(
            select(deliveries.c.error)
            .where(deliveries.c.destination == destination, deliveries.c.error.is_not(None))
            .where(in_state(deliveries, DeliveryState.PENDING, DeliveryState.FAILED))
            .order_by(deliveries.c.set_at.desc())
            .limit(1)
        )
        oldest = _first_pending(tx, deliveries.c.created_at, [destination])
        found[destination] = {
            **{state: count for state, count in by_state.items() if count},
            "last_error": last_error,
            "oldest_pending_s": _age(now, oldest),
        }
    return found


def _failed_jobs(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    rows = tx.execute(
        select(
            jobs.c.id.label("job_id"),
            jobs.c.series_pk,
            series.c.series_instance_uid,
            jobs.c.model_name,
            jobs.c.model_version,
            jobs.c.shadow,
            jobs.c.failure_reason,
            jobs.c.finished_at,
        )
        .select_from(jobs.join(series))
        .where(in_state(jobs, JobState.FAILED), jobs.c.batch_id.is_(None))
        .order_by(jobs.c.finished_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


def _failed_deliveries(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    rows = tx.execute(
        select(
            deliveries.c.id.label("delivery_id"),
            deliveries.c.destination,
            deliveries.c.error,
            deliveries.c.attempts,
            SERIES_OF_DELIVERY.label("series_pk"),
        )
        .where(in_state(deliveries, DeliveryState.FAILED))
        .order_by(deliveries.c.set_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


def _unconfirmed_deliveries(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    """SENT, and the destination never said that it keeps them, however often it was asked."""
    rows = tx.execute(
        select(
            deliveries.c.id.label("delivery_id"),
            deliveries.c.destination,
            deliveries.c.error,
            deliveries.c.sent_at,
            SERIES_OF_DELIVERY.label("series_pk"),
        )
        .where(deliveries.c.unconfirmed_at.is_not(None))
        .order_by(deliveries.c.unconfirmed_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]
