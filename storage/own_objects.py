"""The node's own objects by study: what it serves by DICOMweb. Only results that stand, of series that somebody sent.

A search goes by an index, or along the newest results, a limited number of them: however long the history, it takes the
same work. `Found.is_cut_off` says if there may be more.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Select, select

from storage.models import patients, result_objects, results, series, studies
from storage.object_kinds import ObjectKind
from storage.rejections import STANDING

WALKED = 5000
"""The newest results, or a patient's studies, among which is searched."""
SERVED = tuple(kind for kind in ObjectKind if kind.is_sent and (kind is ObjectKind.REPORT or not kind.is_report))
"""The report once, in the class in which it is sent first, and nothing that is for the node's own pages."""


@dataclass(frozen=True)
class Wanted:
    """What a study must match; None: anything. patient_id, accession_number: as the index keeps them.

    since, until: the Study Date, YYYYMMDD, both included.
    """

    study_uids: tuple[str, ...] | None = None
    patient_id: str | None = None
    accession_number: str | None = None
    since: str | None = None
    until: str | None = None

    @property
    def is_named(self) -> bool:
        """Whether an index leads to the few studies that can match."""
        return not (self.study_uids is None and self.patient_id is None and self.accession_number is None)


@dataclass(frozen=True)
class OwnStudy:
    """A study with results. study_pk: its number in the index. patient_id: as the index keeps it."""

    study_pk: int
    study_instance_uid: str
    patient_id: str
    study_date: str


@dataclass(frozen=True)
class Found:
    """Studies, those with the newest results first. is_cut_off: not all that may match were looked at."""

    studies: list[OwnStudy]
    is_cut_off: bool


@dataclass(frozen=True)
class OwnObject:
    """One object of a standing result, as stored. size: bytes. model_name, model_digest: of the result."""

    kind: ObjectKind
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: str
    sha256: str
    size: int
    model_name: str
    model_digest: str


def find_studies(tx: Connection, wanted: Wanted, reported_since: float | None = None, most: int = WALKED) -> Found:
    """The studies that match. reported_since: Unix seconds; no older result can be of a study that matches."""
    query = _named(wanted) if wanted.is_named else _newest(reported_since)
    rows = tx.execute(query.limit(most + 1)).all()
    found: dict[int, OwnStudy] = {}
    for row in rows[:most]:
        found.setdefault(row.id, OwnStudy(row.id, row.study_instance_uid, row.patient_id, row.study_date))
    return Found([one for one in found.values() if _is_between(one, wanted)], len(rows) > most)


def _is_between(study: OwnStudy, wanted: Wanted) -> bool:
    if wanted.since is None and wanted.until is None:
        return True
    day = study.study_date
    return len(day) == 8 and (wanted.since or "") <= day <= (wanted.until or "99999999")


_STUDY = (studies.c.id, studies.c.study_instance_uid, patients.c.patient_id, studies.c.study_date)


def _newest(reported_since: float | None) -> Select[tuple[int, str, str, str]]:
    joined = results.join(series, series.c.id == results.c.series_pk).join(studies).join(patients)
    query = select(*_STUDY).select_from(joined).where(STANDING, series.c.canary.is_(False))
    if reported_since is not None:
        query = query.where(results.c.created_at >= reported_since)
    return query.order_by(results.c.created_at.desc(), results.c.id.desc())


def _named(wanted: Wanted) -> Select[tuple[int, str, str, str]]:
    query = select(*_STUDY).select_from(studies.join(patients))
    if wanted.study_uids is not None:
        query = query.where(studies.c.study_instance_uid.in_(wanted.study_uids))
    if wanted.patient_id is not None:
        query = query.where(patients.c.patient_id == wanted.patient_id)
    if wanted.accession_number is not None:
        # Once more as the index has it: it holds those that are not empty.
        number = studies.c.accession_number
        query = query.where(number == wanted.accession_number, number != "")
    return query.order_by(studies.c.id.desc())


def objects_of_study(tx: Connection, study_pk: int, most: int) -> list[OwnObject]:
    """The objects of a study's standing results, in the order in which they were recorded; at most so many."""
    names = [name for name in OwnObject.__dataclass_fields__ if not name.startswith("model_")]
    query = (
        select(*(result_objects.c[name] for name in names), results.c.model_name, results.c.model_digest)
        .select_from(series.join(results, results.c.series_pk == series.c.id).join(result_objects))
        .where(
            series.c.study_pk == study_pk,
            series.c.canary.is_(False),
            STANDING,
            result_objects.c.kind.in_([str(kind) for kind in SERVED]),
        )
        .order_by(result_objects.c.id)
        .limit(most)
    )
    return [OwnObject(**{**row, "kind": ObjectKind(row["kind"])}) for row in tx.execute(query).mappings()]
