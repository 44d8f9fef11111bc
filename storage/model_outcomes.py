"""What became of a series with each of the models that report on it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Select, func, select

from storage.coded import positive_column
from storage.job_state import JobState
from storage.models import codes, findings, jobs, results

AT_ONCE = 500
"""Series that one query asks for: a database takes so many parameters, and no more."""
UNFINISHED = (JobState.QUEUED, JobState.RUNNING, JobState.FAILED)


@dataclass(frozen=True)
class ModelOutcome:
    """What one model says of a series, or where its analysis stands.

    failure_reason: of the last attempt, if its job failed.
    result_id and what follows: of its current result; None while there is none.
    probability, positive: of the result's first finding.
    """

    series_pk: int
    model_name: str
    model_version: str
    job_id: int
    job_state: str
    failure_reason: str | None
    result_id: int | None
    outcome: str | None
    reason_code: str | None
    reason_text: str | None
    probability: float | None
    threshold: float | None
    positive: bool | None


def of_series(tx: Connection, series_pks: Sequence[int]) -> dict[int, list[ModelOutcome]]:
    """For each series one outcome of each model, in the order of their jobs; a shadow model's is not among them."""
    found: dict[int, list[ModelOutcome]] = {series_pk: [] for series_pk in series_pks}
    for start in range(0, len(series_pks), AT_ONCE):
        some = _outcomes().where(jobs.c.series_pk.in_(series_pks[start : start + AT_ONCE])).order_by(jobs.c.id)
        for row in tx.execute(some).mappings():
            found[row["series_pk"]].append(ModelOutcome(**row))
    return found


def failed_jobs_of(tx: Connection, series_pk: int) -> list[int]:
    """The failed jobs of a series whose results would be reported."""
    outcomes = of_series(tx, [series_pk])[series_pk]
    return [one.job_id for one in outcomes if one.job_state == JobState.FAILED]


def not_analysed(tx: Connection, model_name: str, reason: str) -> list[int]:
    """The series that a model's current result refuses for a reason, the oldest result first; none of a batch."""
    found = (
        select(results.c.series_pk)
        .where(results.c.reason_code == reason, results.c.outcome == "NOT_ANALYSED", results.c.shadow.is_(False))
        .where(results.c.model_name == model_name, results.c.superseded_at.is_(None), results.c.batch_id.is_(None))
        .order_by(results.c.created_at)
    )
    return list(tx.scalars(found))


def _outcomes() -> Select[tuple[object, ...]]:
    current = (results.c.job_id == jobs.c.id) & results.c.superseded_at.is_(None)
    first = select(func.min(findings.c.id)).where(findings.c.result_id == results.c.id).correlate(results)
    return (
        select(
            *(jobs.c[name] for name in ("series_pk", "model_name", "model_version", "failure_reason")),
            jobs.c.id.label("job_id"),
            jobs.c.state.label("job_state"),
            *(results.c[name] for name in ("outcome", "reason_code", "reason_text", "threshold")),
            results.c.id.label("result_id"),
            findings.c.certainty.label("probability"),
            positive_column(codes).label("positive"),
        )
        .select_from(jobs)
        .outerjoin(results, current)
        .outerjoin(findings, findings.c.id == first.scalar_subquery())
        .outerjoin(codes, codes.c.id == findings.c.interpretation_id)
        .where(jobs.c.shadow.is_(False), jobs.c.state.in_(UNFINISHED) | results.c.id.is_not(None))
    )
