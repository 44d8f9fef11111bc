"""What the watches ask of a model's live work that has no result yet, or is not delivered. Canaries are left out."""

from sqlalchemy import Connection, func, select

from storage import tallies
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.models import deliveries, jobs, results, series
from storage.moves import in_state

MOST_FAILED = 1000
"""Of all models: more of them change no answer, because a look takes in 10,000 studies at most by default."""
MOST_WAITING = 100
"""For one destination, the first ones: behind them none is older."""


def failed_jobs(tx: Connection, model_digest: str, since: float) -> int:
    """How many live analyses of a model were given up since a moment, and not tried again; among the latest 1000."""
    given_up = (
        select(jobs.c.series_pk, jobs.c.model_digest, jobs.c.shadow)
        .where(in_state(jobs, JobState.FAILED), jobs.c.batch_id.is_(None), jobs.c.finished_at >= since)
        .order_by(jobs.c.finished_at.desc())
        .limit(MOST_FAILED)
        .subquery()
    )
    of_model = (given_up.c.model_digest == model_digest, given_up.c.shadow.is_(False), series.c.canary.is_(False))
    of_series = given_up.join(series, series.c.id == given_up.c.series_pk)
    return tx.scalar(select(func.count()).select_from(of_series).where(*of_model)) or 0


def oldest_waiting(tx: Connection, model_digest: str) -> float | None:
    """Since when the first of a model's live results waits for a destination, Unix seconds; None if none does."""
    counted = tallies.read(tx)
    found = [
        _oldest(tx, model_digest, destination, state)
        for state in (DeliveryState.PENDING, DeliveryState.SENDING)
        for destination in counted.parts("deliveries", state)
    ]
    return min((one for one in found if one is not None), default=None)


def _oldest(tx: Connection, model_digest: str, destination: str, state: DeliveryState) -> float | None:
    waiting = (
        select(deliveries.c.result_id, deliveries.c.created_at)
        .where(in_state(deliveries, state), deliveries.c.destination == destination)
        .order_by(deliveries.c.created_at)
        .limit(MOST_WAITING)
        .subquery()
    )
    live = waiting.join(results, results.c.id == waiting.c.result_id).join(series)
    of_model = results.c.model_digest == model_digest, series.c.canary.is_(False)
    found: float | None = tx.scalar(select(func.min(waiting.c.created_at)).select_from(live).where(*of_model))
    return found
