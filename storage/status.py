"""How the node is doing, in numbers, for `dicom-node status` and the dashboard."""

from typing import Any

from sqlalchemy import Connection, Table, func, select

from storage.copies import CONTRADICTS, SAME
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.models import conflicts, deliveries, instances, jobs, results, series
from storage.results import ResultOutcome
from storage.series_state import SeriesState


def status(tx: Connection, now: float) -> dict[str, Any]:
    """Counts by state and how long the oldest of each queue has waited (seconds, None if nothing waits)."""
    return {
        "series": _by_state(tx, series, SeriesState),
        "jobs": _by_state(tx, jobs, JobState),
        "deliveries": _by_state(tx, deliveries, DeliveryState),
        "destinations": _destinations(tx, now),
        "instances": _count(tx, instances),
        "instances_lost": _count(tx, instances, instances.c.gone_reason.in_(["missing", "corrupt"])),
        "instances_removed_by_retention": _count(tx, instances, instances.c.gone_reason == "retention"),
        "bytes_stored": int(
            tx.scalar(select(func.coalesce(func.sum(instances.c.size), 0)).where(instances.c.gone_at.is_(None))) or 0
        ),
        "conflicts": _count(tx, conflicts, conflicts.c.verdict == CONTRADICTS),
        "second_copies": _count(tx, conflicts, conflicts.c.verdict == SAME),
        "second_copies_to_compare": _count(tx, conflicts, conflicts.c.verdict.is_(None)),
        "results": {
            **{str(one): _count(tx, results, (results.c.outcome == one) & ~results.c.shadow) for one in ResultOutcome},
            "SHADOW": _count(tx, results, results.c.shadow.is_(True)),
        },
        "oldest_queued_s": _age(now, tx.scalar(_oldest(jobs, jobs.c.queued_at, JobState.QUEUED))),
        "oldest_pending_s": _age(now, tx.scalar(_oldest(deliveries, deliveries.c.created_at, DeliveryState.PENDING))),
        "failed_jobs": _failed_jobs(tx),
        "failed_deliveries": _failed_deliveries(tx),
        "unconfirmed": _count(tx, deliveries, deliveries.c.unconfirmed_at.is_not(None)),
        "unconfirmed_deliveries": _unconfirmed_deliveries(tx),
    }


def queues(tx: Connection, now: float) -> dict[str, dict[str, Any]]:
    """What a monitor often asks for: counts by state, and how long the first of each queue has waited (seconds)."""
    return {
        "states": {
            "series": _by_state(tx, series, SeriesState),
            "jobs": _by_state(tx, jobs, JobState),
            "deliveries": _by_state(tx, deliveries, DeliveryState),
        },
        "oldest_s": {
            "jobs": _age(now, tx.scalar(_oldest(jobs, jobs.c.queued_at, JobState.QUEUED))),
            "deliveries": _age(now, tx.scalar(_oldest(deliveries, deliveries.c.created_at, DeliveryState.PENDING))),
        },
    }


def lateness(tx: Connection, now: float) -> dict[str, float | None]:
    """How long overdue work has been waiting, in seconds: closing series, taking leases back, sending results."""
    return {
        "closing": _age(now, tx.scalar(_oldest(series, series.c.due_at, SeriesState.OPEN))),
        "leases": _age(now, tx.scalar(_oldest(jobs, jobs.c.due_at, JobState.RUNNING))),
        "sending": _age(now, tx.scalar(_oldest(deliveries, deliveries.c.due_at, DeliveryState.PENDING))),
    }


def _by_state(tx: Connection, table: Table, states: Any) -> dict[str, int]:
    rows = tx.execute(select(table.c.state, func.count()).group_by(table.c.state))
    counted = {row[0]: row[1] for row in rows}
    return {str(state): int(counted.get(str(state), 0)) for state in states}


def _count(tx: Connection, table: Table, condition: Any = None) -> int:
    query = select(func.count()).select_from(table)
    return int(tx.scalar(query if condition is None else query.where(condition)) or 0)


def _oldest(table: Table, column: Any, state: str) -> Any:
    return select(func.min(column)).where(table.c.state == str(state))


def _age(now: float, since: float | None) -> float | None:
    return None if since is None else max(0.0, now - since)


def _destinations(tx: Connection, now: float) -> dict[str, dict[str, Any]]:
    """For each destination: counts by state, and the last error of what still waits or failed."""
    rows = tx.execute(
        select(deliveries.c.destination, deliveries.c.state, func.count()).group_by(
            deliveries.c.destination, deliveries.c.state
        )
    )
    found: dict[str, dict[str, Any]] = {}
    for destination, state, count in rows:
        found.setdefault(destination, {})[state] = count
    for destination, counts in found.items():
        counts["last_error"] = tx.scalar(
            select(deliveries.c.error)
            .where(deliveries.c.destination == destination, deliveries.c.error.is_not(None))
            .where(deliveries.c.state.in_([DeliveryState.PENDING.value, DeliveryState.FAILED.value]))
            .order_by(deliveries.c.set_at.desc())
            .limit(1)
        )
        oldest = _oldest(deliveries, deliveries.c.created_at, DeliveryState.PENDING).where(
            deliveries.c.destination == destination
        )
        counts["oldest_pending_s"] = _age(now, tx.scalar(oldest))
    return found


def _failed_jobs(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    rows = tx.execute(
        select(
            jobs.c.id.label("job_id"),
            jobs.c.series_pk,
            series.c.series_instance_uid,
            jobs.c.shadow,
            jobs.c.failure_reason,
            jobs.c.finished_at,
        )
        .select_from(jobs.join(series))
        .where(jobs.c.state == JobState.FAILED.value)
        .order_by(jobs.c.finished_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


def _failed_deliveries(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    rows = tx.execute(
        select(
            deliveries.c.id.label("delivery_id"), deliveries.c.destination, deliveries.c.error, deliveries.c.attempts
        )
        .where(deliveries.c.state == DeliveryState.FAILED.value)
        .order_by(deliveries.c.set_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]


def _unconfirmed_deliveries(tx: Connection, limit: int = 20) -> list[dict[str, Any]]:
    """SENT, and the destination never said that it keeps them, however often it was asked."""
    rows = tx.execute(
        select(deliveries.c.id.label("delivery_id"), deliveries.c.destination, deliveries.c.error, deliveries.c.sent_at)
        .where(deliveries.c.unconfirmed_at.is_not(None))
        .order_by(deliveries.c.unconfirmed_at.desc())
        .limit(limit)
    )
    return [dict(row) for row in rows.mappings()]
