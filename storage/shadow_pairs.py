"""The shadow model beside the reporting one: the last series on which both say something."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from storage.coded import positive_column
from storage.models import codes, findings, results

LATEST = 500
SPAN = 20_000
"""Results that are gone through: a shadow that has not worked for so long is not shown."""


@dataclass(frozen=True)
class Pair:
    """Two results on one series. certainties: 0 to 1, None if the model gives none; positive: as it says."""

    series_pk: int
    model: str
    shadow: str
    certainty: float | None
    shadow_certainty: float | None
    positive: bool
    shadow_positive: bool

    @property
    def differ(self) -> bool:
        """One says positive, the other negative."""
        return self.positive is not self.shadow_positive


def latest_pairs(tx: Connection, shadow_digest: str, digest: str, most: int = LATEST, since: float = 0.0) -> list[Pair]:
    """The latest series that both models have a current finding on, newest first.

    shadow_digest, digest: of the shadow model and of the model that reports.  since: when the shadow's result was made.
    A shadow model is not asked about canaries.
    """
    last = int(tx.scalar(select(func.max(results.c.id))) or 0)
    of_shadow = (results.c.id > last - SPAN) & results.c.shadow & results.c.batch_id.is_(None)
    found = tx.execute(
        select(results.c.id, results.c.series_pk)
        .where(of_shadow, results.c.model_digest == shadow_digest, results.c.superseded_at.is_(None))
        .where(results.c.created_at >= since)
        .order_by(results.c.id.desc())
        .limit(most)
    ).all()
    pks = [row.series_pk for row in found]
    live = select(results.c.id).where(
        results.c.series_pk.in_(pks),
        results.c.model_digest == digest,
        results.c.superseded_at.is_(None),
        results.c.shadow.is_(False),
    )
    said = _said(tx, [row.id for row in found])
    beside = _said(tx, list(tx.scalars(live)) if pks else [])
    both = [(pk, beside[pk], said[pk]) for pk in dict.fromkeys(pks) if pk in said and pk in beside]
    return [Pair(pk, a[0], b[0], a[1], b[1], a[2], b[2]) for pk, a, b in both]


def _said(tx: Connection, ids: Sequence[int]) -> dict[int, tuple[str, float | None, bool]]:
    """By series: model, certainty and sign of the first finding of these results."""
    if not ids:
        return {}
    first = select(func.min(findings.c.id)).where(findings.c.result_id == results.c.id).correlate(results)
    rows = tx.execute(
        select(
            results.c.series_pk,
            (results.c.model_name + " " + results.c.model_version).label("model"),
            findings.c.certainty,
            positive_column(codes).label("positive"),
        )
        .select_from(
            results.join(findings, findings.c.id == first.scalar_subquery()).join(
                codes, codes.c.id == findings.c.interpretation_id
            )
        )
        .where(results.c.id.in_(ids))
    )
    return {row.series_pk: (row.model, row.certainty, row.positive) for row in rows if row.positive is not None}
