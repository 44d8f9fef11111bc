"""Images that were rejected after they had been stored (IHE IOCM), and taking back what was said of them.

A rejection is remembered for each instance that it names, whether the node holds it or not: a series is asked about
when it closes, so a rejection that comes before its images holds too. What was reported already is replaced by a new
result that says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, exists, insert, or_, select, text, tuple_, update

from config.reasons import ReasonCode, Refusal
from storage import audit, jobs, listings
from storage.jobs import ModelRef, refusal_columns
from storage.models import instances, patients, rejections, results, series, studies
from storage.models import jobs as job_table
from storage.moves import move
from storage.reopening import reopen
from storage.series_state import SERIES, Selection, SeriesState

WHOLE = ""
STANDING = text("results.superseded_at IS NULL AND NOT results.shadow AND results.batch_id IS NULL")
"""As the index of results has it."""


@dataclass(frozen=True)
class Rejected:
    """What was rejected: one instance, all of a series, or all of a study. What is not named is empty (`WHOLE`).

    why: without patient data.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    why: str


def reject(tx: Connection, rejected: Iterable[Rejected], note_uid: str, now: float) -> list[int]:
    """Remember rejections, and withdraw what was reported on the series. Returns the series that were withdrawn.

    note_uid: SOP Instance UID of what says so. The caller has locked recording (`recording.lock_recording`).
    """
    series_uids = [_remember(tx, one, note_uid, now) for each in rejected for one in _by_series(tx, each)]
    found = [_series_of(tx, uid) for uid in sorted(set(filter(None, series_uids)))]
    return [pk for pk in found if pk is not None and withdraw(tx, pk, now)]


def why_withdrawn(tx: Connection, series_uid: str) -> Refusal | None:
    """Why a series may not be reported on: instances that it consists of were rejected. None if none was."""
    held = exists().where(
        instances.c.sop_instance_uid == rejections.c.sop_instance_uid,
        instances.c.series_pk
        == select(series.c.id).where(series.c.series_instance_uid == series_uid).scalar_subquery(),
    )
    stands = (rejections.c.series_instance_uid == series_uid, rejections.c.standing == "STANDS")
    query = select(rejections.c.why).where(*stands, or_(rejections.c.sop_instance_uid == WHOLE, held))
    why = tx.scalar(query.order_by(rejections.c.id).limit(1))
    if why is None:
        return None
    return Refusal(ReasonCode.WITHDRAWN, f"Images of the series were rejected after they had been stored: {why}.")


def withdraw(tx: Connection, series_pk: int, now: float) -> bool:
    """Take back what was said of a closed series, if images of it were rejected and that has not been done.

    Its results are replaced by new ones that say so, one for each model that reported or was to report. A series that
    still waits for images, or was imported for a batch, is left alone. Returns True if it was withdrawn.
    """
    row = SERIES.row(tx, series_pk)
    refusal = why_withdrawn(tx, row["series_uid"])
    former = tx.execute(select(series).where(series.c.id == series_pk)).one()
    if refusal is None or row["state"] != SeriesState.CLOSED or former.imported:
        return False
    if former.refusal_code == ReasonCode.WITHDRAWN:
        return False
    models = models_of(tx, series_pk, former.revision)
    if not models and former.selection is None:
        return False  # kept without being analysed: there is nothing to take back, nor will there be
    if models:
        _close_again(tx, series_pk, now, refusal, former.completeness)
        for model in models:
            jobs.enqueue(tx, series_pk, now, former.instances_digest, model, refusal)
    selection = Selection.CHOSEN.value if models and former.selection is not None else former.selection
    tx.execute(update(series).where(series.c.id == series_pk).values(selection=selection, **refusal_columns(refusal)))
    listings.touch(tx, series_pk)
    about = audit.Subject(series_uid=row["series_uid"], study_uid=row["study_uid"], patient_id=row["patient_id"])
    audit.append(tx, now, "series.withdrawn", about, outcome="WITHDRAWN", detail={"reason": refusal.sentence})
    return True


def _close_again(tx: Connection, series_pk: int, now: float, refusal: Refusal, completeness: str | None) -> None:
    """As the next revision, whose jobs say only why there is no result."""
    reopen(tx, series_pk, now, "a rejection")
    values = {"closed_at": now, "set_at": now, **refusal_columns(refusal)}
    detail = {"completeness": completeness, "refusal": str(refusal.code)}
    move(tx, SERIES, series_pk, SeriesState.OPEN, SeriesState.CLOSED, now, values=values, detail=detail)


def models_of(tx: Connection, series_pk: int, revision: int) -> list[ModelRef]:
    """The models that reported on a revision of a series, or were to."""
    columns = (job_table.c.model_name, job_table.c.model_version, job_table.c.model_digest)
    mine = (job_table.c.series_pk == series_pk, job_table.c.revision == revision)
    live = (job_table.c.shadow.is_(False), job_table.c.batch_id.is_(None))
    rows = tx.execute(select(*columns).where(*mine, *live).order_by(job_table.c.id))
    return list(dict.fromkeys(ModelRef(*row) for row in rows))


@dataclass(frozen=True)
class Reported:
    """A result that stands, on a series that is still as it was. instances: paths by SOP Instance UID."""

    result_id: int
    created_at: float
    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    instances: Mapping[str, str]


def reported_since(tx: Connection, after: float, after_id: int, limit: int) -> list[Reported]:
    """Results with a finding that stand, the oldest first, after a moment and a result's number; none of a canary, of
    which no PACS knows."""
    later = tuple_(results.c.created_at, results.c.id) > tuple_(after, after_id)
    columns = (results.c.id, results.c.created_at, results.c.series_pk, series.c.series_instance_uid)
    rows = tx.execute(
        select(*columns, studies.c.study_instance_uid, patients.c.patient_id)
        .select_from(results.join(series).join(studies).join(patients))
        .where(STANDING, later, results.c.outcome == "ANALYSED", series.c.canary.is_(False))
        .order_by(results.c.created_at, results.c.id)
        .limit(limit)
    ).all()
    return [Reported(*row, _instances(tx, row.series_pk)) for row in rows]


def _instances(tx: Connection, series_pk: int) -> dict[str, str]:
    columns = (instances.c.sop_instance_uid, instances.c.path)
    return {row[0]: row[1] for row in tx.execute(select(*columns).where(instances.c.series_pk == series_pk))}


def _by_series(tx: Connection, one: Rejected) -> list[Rejected]:
    """The same by series: of a whole study, those that the node knows."""
    if one.series_instance_uid != WHOLE:
        return [one]
    of_study = select(series.c.series_instance_uid).select_from(series.join(studies))
    uids = tx.scalars(of_study.where(studies.c.study_instance_uid == one.study_instance_uid)).all()
    return [Rejected(one.study_instance_uid, uid, WHOLE, one.why) for uid in uids]


def _remember(tx: Connection, one: Rejected, note_uid: str, now: float) -> str | None:
    """Returns the series' UID, or None if the series is of another study than the rejection says."""
    study_uid = tx.scalar(
        select(studies.c.study_instance_uid)
        .select_from(series.join(studies))
        .where(series.c.series_instance_uid == one.series_instance_uid)
    )
    if study_uid is not None and study_uid != one.study_instance_uid:
        return None
    same = (rejections.c.series_instance_uid == one.series_instance_uid) & (
        rejections.c.sop_instance_uid == one.sop_instance_uid
    )
    values = {"why": one.why, "note_uid": note_uid, "standing": "STANDS", "noted_at": now}
    known = tx.scalar(select(rejections.c.note_uid).where(same))
    if known is None:
        identity = {name: getattr(one, name) for name in ("series_instance_uid", "sop_instance_uid")}
        tx.execute(insert(rejections).values(**identity, **values))
    elif known != note_uid:  # said anew: what a person decided was about the former note
        tx.execute(update(rejections).where(same).values(**values))
    return one.series_instance_uid


def _series_of(tx: Connection, series_uid: str) -> int | None:
    found: int | None = tx.scalar(select(series.c.id).where(series.c.series_instance_uid == series_uid))
    return found
