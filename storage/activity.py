"""What happened between two moments, counted from what indexes hold by time: flat, however long the history is.

Canaries are left out, but for the deliveries of their reports.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from sqlalchemy import Connection, func, select

from storage import audit as trail
from storage import canaries
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.models import audit, jobs, results, series
from storage.moves import in_state
from storage.results import ResultOutcome
from storage.series import NOT_IMPORTED
from storage.series_state import SeriesState

RECORDED = "result.recorded"


@dataclass(frozen=True)
class Activity:
    """received: series whose last instance came then. analysed, not_analysed: results, but of no shadow model or batch.

    failed: analyses that were given up. sent: how often a destination took a delivery; one that is sent again counts
    again. committed: deliveries that it said it keeps.
    """

    received: int = 0
    analysed: int = 0
    not_analysed: int = 0
    failed: int = 0
    sent: int = 0
    committed: int = 0

    @classmethod
    def total(cls, several: Iterable["Activity"]) -> "Activity":
        """The sum."""
        return cls(*(sum(values) for values in zip(*(astuple(one) for one in (cls(), *several)), strict=True)))


def between(tx: Connection, since: float, until: float) -> Activity:
    """since, until: Unix seconds; the first is included, the second is not."""
    outcomes = _results(tx, since, until)
    return Activity(
        received=_received(tx, since, until),
        analysed=outcomes.get(str(ResultOutcome.ANALYSED), 0),
        not_analysed=outcomes.get(str(ResultOutcome.NOT_ANALYSED), 0),
        failed=_failed(tx, since, until),
        sent=_moved(tx, DeliveryState.SENT, since, until),
        committed=_moved(tx, DeliveryState.COMMITTED, since, until),
    )


def _received(tx: Connection, since: float, until: float) -> int:
    last, found = series.c.last_instance_at, 0
    for state in SeriesState:  # one piece of the index for each
        counted = (
            select(func.count())
            .select_from(series)
            .where(in_state(series, state), NOT_IMPORTED, last >= since, last < until)
        )
        found += tx.scalar(counted) or 0
    of_canary = series.c.id.in_(canaries.series_since(since))
    canary = select(func.count()).select_from(series).where(of_canary, last >= since, last < until)
    return found - (tx.scalar(canary) or 0)


def _failed(tx: Connection, since: float, until: float) -> int:
    when = jobs.c.finished_at
    live = [in_state(jobs, JobState.FAILED), jobs.c.batch_id.is_(None)]
    live.append(jobs.c.series_pk.not_in(canaries.series_since(since)))
    counted = select(func.count()).select_from(jobs).where(*live, when >= since, when < until)
    return tx.scalar(counted) or 0


def _results(tx: Connection, since: float, until: float) -> dict[str, int]:
    """By outcome. Results have no index by time, but their numbers grow with it; the audit trail knows the first."""
    first = _first_result(tx, since)
    if first is None:
        return {}
    when = results.c.created_at
    counted = (
        select(results.c.outcome, func.count())
        .where(results.c.id >= first, when >= since, when < until, ~results.c.shadow)
        .where(results.c.series_pk.not_in(canaries.series_since(since)))
        .group_by(results.c.outcome)
    )
    return {row[0]: row[1] for row in tx.execute(counted)}


def _first_result(tx: Connection, since: float) -> int | None:
    firsts = [
        tx.scalar(
            select(audit.c.result_id)
            .where(trail.RARE, audit.c.event == RECORDED, audit.c.outcome == str(outcome), audit.c.at >= since)
            .order_by(audit.c.at)
            .limit(1)
        )
        for outcome in ResultOutcome
    ]
    return min((first for first in firsts if first is not None), default=None)


def _moved(tx: Connection, state: DeliveryState, since: float, until: float) -> int:
    event = f"delivery.{state.lower()}"
    moved = (trail.RARE, audit.c.event == event, audit.c.outcome == str(state), audit.c.at >= since, audit.c.at < until)
    return tx.scalar(select(func.count()).select_from(audit).where(*moved)) or 0
