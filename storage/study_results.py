"""The results that stand in a study: what a later report of another series must name, so that none contradicts another
silently."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from config.coding import Code
from storage import results
from storage.coded import CodedFinding, content_of
from storage.models import results as result_table
from storage.models import series, studies
from storage.object_kinds import ObjectKind
from storage.replaces import Replaces
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
    """The results that stand for the other series of a study, the oldest first; of several models each has its own.

    A canary's is no patient's, whatever study a series names: none of them counts, and for a canary no other does.
    """
    own = series.alias("own")
    study = select(own.c.study_pk).where(own.c.id == series_pk, own.c.canary.is_(False)).scalar_subquery()
    beside = (series.c.study_pk == study, series.c.id != series_pk, series.c.canary.is_(False))
    ids = tx.scalars(select(series.c.id).where(*beside)).all()
    return tuple(sorted((one for other in ids for one in _standing(tx, other)), key=lambda one: one.result_id))


def on_the_same(findings: Sequence[CodedFinding], found: Sequence[StandingResult]) -> list[StandingResult]:
    """Those results that are on what one of these findings is on; all of them if there are no findings."""
    return [one for one in found if not findings or any(one.concept.is_same(own.concept) for own in findings)]


def differ(findings: Sequence[CodedFinding], found: Sequence[StandingResult]) -> bool:
    """Whether one of the results is positive and a finding on the same concept negative, or the other way round."""
    return any(
        own.positive is not None and own.positive != one.positive
        for own in findings
        for one in on_the_same([own], found)
    )


def lock_study(tx: Connection, series_pk: int) -> None:
    """Until the transaction ends, no other worker records a result in this series' study."""
    study = select(series.c.study_pk).where(series.c.id == series_pk).scalar_subquery()
    # Not a full lock: new series refer to the row meanwhile.
    tx.execute(select(studies.c.id).where(studies.c.id == study).with_for_update(key_share=True))


def _standing(tx: Connection, series_pk: int) -> list[StandingResult]:
    # Open again, or being analysed again: the last report of each model stands until the next one replaces it.
    ids = results.all_current_of(tx, series_pk) or _last_reported(tx, series_pk)
    found = (_as_standing(tx, series_pk, result_id) for result_id in ids)
    return [one for one in found if one is not None]


def _last_reported(tx: Connection, series_pk: int) -> list[int]:
    """The results that a destination may hold last of a series: one of each model of the latest revision."""
    reported = (result_table.c.series_pk == series_pk) & result_table.c.shadow.is_(False)
    names = tx.scalars(select(result_table.c.model_name).where(reported).distinct()).all()
    last = [results.previous_result(tx, series_pk, Replaces(only=name)) for name in names]
    latest = max((one.revision for one in last if one is not None), default=0)
    return sorted(one.result_id for one in last if one is not None and one.revision == latest)


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
