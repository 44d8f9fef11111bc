"""Results of one patient by one model over time: which earlier one a new result is compared with, and what was said.

Whose scan it is, the caller must be certain of: it gives a digest of all that identifies the patient, and nothing
else is asked. An earlier result counts while it stands: one that was replaced, one of a shadow model, and one of the
same study do not.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from storage import audit
from storage.coded import Content, content_of
from storage.models import examinations, patients, results, series, studies
from storage.object_kinds import ObjectKind
from storage.results import StoredObject, objects_of

COMPARED = "result.compared"
"""The audit event of a result that was compared with an earlier one."""
MOST_OF_A_DAY = 20
"""How many earlier results of one day are looked at."""


@dataclass(frozen=True)
class Examination:
    """What a result can be compared by.

    person: a digest of what identifies the patient.  day: of the scan, "2026-11-23".
    scan: how it was made; JSON types only.
    """

    person: str
    model_name: str
    day: str
    scan: Mapping[str, object]


@dataclass(frozen=True)
class EarlierResult:
    """A result that stands for an earlier scan of the same patient. report: None if it has none."""

    result_id: int
    day: str
    scan: Mapping[str, object]
    model_name: str
    model_version: str
    model_digest: str
    study_instance_uid: str
    content: Content
    report: StoredObject | None


@dataclass(frozen=True)
class RecordedChange:
    """What was said of the change since an earlier result. replaced: that result no longer stands."""

    examination: Examination
    earlier_id: int
    said: tuple[str, ...]
    replaced: bool

    @property
    def seal(self) -> dict[str, object]:
        """What the audit row holds of it."""
        return _seal(self.earlier_id, self.said)


def earlier_ids(tx: Connection, series_pk: int, examination: Examination, *, locked: bool = False) -> tuple[int, ...]:
    """Ids of the results that stand for the latest day before this examination, the latest of them first.

    series_pk: of the new result; results of its study do not count.
    locked: none of them is replaced before the transaction ends.
    """
    own_study = select(series.c.study_pk).where(series.c.id == series_pk).scalar_subquery()
    found = (
        select(results.c.id, examinations.c.day)
        .select_from(examinations.join(results, results.c.id == examinations.c.result_id).join(series))
        .where(
            examinations.c.person == examination.person,
            examinations.c.model_name == examination.model_name,
            examinations.c.day < examination.day,
            results.c.superseded_at.is_(None),
            results.c.shadow.is_(False),
            series.c.study_pk != own_study,
        )
        .order_by(examinations.c.day.desc(), examinations.c.result_id.desc())
        .limit(MOST_OF_A_DAY)
    )
    rows = tx.execute(found.with_for_update(read=True, of=results) if locked else found).all()
    return tuple(row.id for row in rows if row.day == rows[0].day)


def earlier_result(tx: Connection, result_id: int) -> EarlierResult:
    """One of `earlier_ids` with what it says."""
    row = tx.execute(
        select(
            examinations.c.day,
            examinations.c.scan,
            results.c.model_name,
            results.c.model_version,
            results.c.model_digest,
            studies.c.study_instance_uid,
        )
        .select_from(
            examinations.join(results, results.c.id == examinations.c.result_id)
            .join(series, series.c.id == results.c.series_pk)
            .join(studies)
        )
        .where(examinations.c.result_id == result_id)
    ).one()
    reports = [item for item in objects_of(tx, result_id) if item.kind == ObjectKind.REPORT]
    return EarlierResult(
        result_id=result_id,
        content=content_of(tx, result_id),
        report=reports[0] if reports else None,
        **{**row._mapping, "scan": json.loads(row.scan)},
    )


def record(
    tx: Connection, now: float, result_id: int, examination: Examination, earlier_id: int | None, said: tuple[str, ...]
) -> None:
    """Note what a result can be compared by and, if it was compared, with which one, and what its report says.

    The audit row seals the sentences: which earlier result was used can be shown years later.
    """
    values = {
        "result_id": result_id,
        "person": examination.person,
        "model_name": examination.model_name,
        "day": examination.day,
        "scan": json.dumps(examination.scan, sort_keys=True),
        "earlier_id": earlier_id,
        "said": json.dumps(said),
    }
    tx.execute(insert(examinations), values)
    if earlier_id is not None:
        audit.append(tx, now, COMPARED, _subject(tx, result_id), detail=_seal(earlier_id, said))


def _seal(earlier_id: int, said: tuple[str, ...]) -> dict[str, object]:
    return {"earlier_result": earlier_id, "said_sha256": hashlib.sha256(json.dumps(said).encode()).hexdigest()}


def change_of(tx: Connection, result_id: int) -> RecordedChange | None:
    """What a result's report says of the change since an earlier one; None if it was not compared."""
    row = tx.execute(
        select(examinations, results.c.superseded_at)
        .select_from(examinations.join(results, results.c.id == examinations.c.earlier_id))
        .where(examinations.c.result_id == result_id)
    ).first()
    if row is None:
        return None
    examination = Examination(row.person, row.model_name, row.day, json.loads(row.scan))
    return RecordedChange(examination, row.earlier_id, tuple(json.loads(row.said)), row.superseded_at is not None)


def _subject(tx: Connection, result_id: int) -> audit.Subject:
    named = tx.execute(
        select(results.c.job_id, series.c.series_instance_uid, studies.c.study_instance_uid, patients.c.patient_id)
        .select_from(results.join(series, series.c.id == results.c.series_pk).join(studies).join(patients))
        .where(results.c.id == result_id)
    ).one()
    return audit.Subject(
        series_uid=named.series_instance_uid,
        study_uid=named.study_instance_uid,
        patient_id=named.patient_id,
        job_id=named.job_id,
        result_id=result_id,
    )
