"""The results that stand in a study: what a later report of another series must name, so that none contradicts another
silently."""

from dataclasses import dataclass

from sqlalchemy import Connection, select

from config.coding import Code
from storage import results
from storage.coded import content_of
from storage.models import results as result_table
from storage.models import series, studies
from storage.object_kinds import ObjectKind
from storage.results import StoredObject


@dataclass(frozen=True)
class StandingResult:
    """The probability that stands for a series: its current one, or the last that a destination may hold.

    concept: what the probability is of.
    series_number, description: as the series' first instance had them, perhaps empty.
    report: None if the result has none.
    """

    result_id: int
    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    series_number: str
    description: str
    model_name: str
    model_version: str
    model_digest: str
    concept: Code
    probability: float
    threshold: float
    created_at: float
    report: StoredObject | None

    @property
    def positive(self) -> bool:
        """True at or above the threshold."""
        return self.probability >= self.threshold


def others(tx: Connection, series_pk: int) -> tuple[StandingResult, ...]:
    """The results that stand for the other series of a study, the oldest first."""
    study = select(series.c.study_pk).where(series.c.id == series_pk).scalar_subquery()
    ids = tx.scalars(select(series.c.id).where(series.c.study_pk == study, series.c.id != series_pk))
    found = (_standing(tx, other) for other in ids.all())
    return tuple(sorted((one for one in found if one is not None), key=lambda one: one.result_id))


def lock_study(tx: Connection, series_pk: int) -> None:
    """Until the transaction ends, no other worker records a result in this series' study."""
    study = select(series.c.study_pk).where(series.c.id == series_pk).scalar_subquery()
    # Not a full lock: new series refer to the row meanwhile.
    tx.execute(select(studies.c.id).where(studies.c.id == study).with_for_update(key_share=True))


def _standing(tx: Connection, series_pk: int) -> StandingResult | None:
    ids = results.all_current_of(tx, series_pk)
    if not ids:
        # Open again, or being analysed again: its last report stands until the next one replaces it.
        previous = results.previous_result(tx, series_pk)
        ids = [previous.result_id] if previous else []
    found = (_as_standing(tx, series_pk, result_id) for result_id in ids)
    return next((one for one in found if one is not None), None)


def _as_standing(tx: Connection, series_pk: int, result_id: int) -> StandingResult | None:
    """The result if it has a probability."""
    row = tx.execute(
        select(
            result_table.c.model_name,
            result_table.c.model_version,
            result_table.c.model_digest,
            result_table.c.threshold,
            result_table.c.created_at,
            series.c.series_instance_uid,
            series.c.number,
            series.c.description,
            studies.c.study_instance_uid,
        )
        .select_from(result_table.join(series, series.c.id == result_table.c.series_pk).join(studies))
        .where(result_table.c.id == result_id)
    ).one()
    finding = next(iter(content_of(tx, result_id).findings), None)
    if finding is None or finding.certainty is None or row.threshold is None:
        return None
    objects = results.objects_of(tx, result_id)
    return StandingResult(
        result_id=result_id,
        series_pk=series_pk,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        series_number=row.number,
        description=row.description,
        model_name=row.model_name,
        model_version=row.model_version,
        model_digest=row.model_digest,
        concept=finding.concept,
        probability=finding.certainty,
        threshold=row.threshold,
        created_at=row.created_at,
        report=next((item for item in objects if item.kind == ObjectKind.REPORT), None),
    )
