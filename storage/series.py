"""Series: closing them, with what follows, and reading them. Recording is in recording.py, waiting in quiet_time.py."""

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Select, exists, func, select, text, true

from config.reasons import Refusal
from storage import canaries, jobs, refused, rejections, workitems
from storage.coded import positive_column
from storage.errors import NotDueYet, NotFound
from storage.job_state import JobState
from storage.jobs import ModelRef, refusal_columns
from storage.models import codes, findings, instances, patients, results, series, studies
from storage.models import jobs as job_table
from storage.moves import in_state, move
from storage.series_state import SERIES, Selection, SeriesState

QUIET_TIME = "quiet-time"
NOT_IMPORTED = text("NOT series.imported")
"""As the indexes have it: series that are here for live work."""


@dataclass(frozen=True)
class StoredInstance:
    """One instance of a series. path: in the file store. gone: why there is no longer a good file, or None."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    instance_number: str
    path: str
    sha256: str
    size: int
    received_at: float
    gone: str | None


@dataclass(frozen=True)
class SeriesRecord:
    """A series as a person wants to see it, with its latest job and its current result."""

    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    patient_name: str
    study_date: str
    modality: str
    description: str
    body_part: str
    calling_ae: str
    state: str
    revision: int
    instance_count: int
    first_instance_at: float
    last_instance_at: float
    due_at: float
    closed_at: float | None
    completeness: str | None
    expected_count: int | None
    refusal_code: str | None
    refusal_text: str | None
    selection: str | None
    canary: bool
    job_id: int | None
    job_state: str | None
    failure_reason: str | None
    result_id: int | None
    outcome: str | None
    reason_code: str | None
    reason_text: str | None
    probability: float | None
    threshold: float | None
    positive: bool | None


def next_series(tx: Connection, but: int | None, stay: int | None = None) -> int | None:
    """The series that will be analysed next: that of the untried job that has waited longest, or else the open series
    that is due first. None if there is none.

    but: a series to leave out, which is in hand already.
    stay: the one that was found before. It is found again as long as it is open, to be chosen or queued, unless another
        one is queued while one is in hand: of several series that arrive together, each is due first in turn.
    """
    queued = (
        select(job_table.c.series_pk)
        .where(in_state(job_table, JobState.QUEUED), job_table.c.attempts == 0, job_table.c.refusal_code.is_(None))
        .where(job_table.c.series_pk != (but or 0), job_table.c.batch_id.is_(None))
        .order_by(job_table.c.shadow, job_table.c.priority.desc(), job_table.c.due_at, job_table.c.id)
        .limit(1)
    )
    waiting = (
        select(series.c.id)
        .where(in_state(series, SeriesState.OPEN), series.c.id != (but or 0), series.c.modality == "CT")
        .order_by(series.c.due_at, series.c.id)
        .limit(1)
    )
    found: int | None = tx.scalar(queued)
    if stay is not None and stay != but and (found is None or but is None) and _is_awaited(tx, stay):
        return stay
    if found is None:
        found = tx.scalar(waiting)
    return found


def _is_awaited(tx: Connection, series_pk: int) -> bool:
    """Whether a series is open, waits to be chosen among its study's, or for its first analysis."""
    may_come = in_state(series, SeriesState.OPEN) | (series.c.selection == Selection.WAITING.value)
    undecided = select(series.c.id).where(series.c.id == series_pk, may_come)
    return tx.scalar(undecided) is not None or is_queued(tx, series_pk)


def is_queued(tx: Connection, series_pk: int) -> bool:
    """Whether a series waits for its first analysis."""
    job = select(job_table.c.id).where(
        job_table.c.series_pk == series_pk, in_state(job_table, JobState.QUEUED), job_table.c.attempts == 0
    )
    return tx.scalar(job.limit(1)) is not None


def first_sender(tx: Connection, series_pk: int) -> str:
    """AE title that sent a series' first instance: the rules of that source apply to it."""
    return str(tx.scalar(select(series.c.calling_ae).where(series.c.id == series_pk)))


def instance_count(tx: Connection, series_pk: int) -> int:
    """How many instances a series has."""
    return int(tx.scalar(select(series.c.instance_count).where(series.c.id == series_pk)) or 0)


@dataclass(frozen=True)
class Closing:
    """How a series is closed, and what for.

    model: None for a series that is kept and not analysed; say why in `refusal`.
    completeness: how it was found complete: "quiet-time", "pacs-count", ... expected: the count asked for.
    refusal: why it is not to be analysed; with a model, the worker reports just that.
    if_count: the number of instances that the decision was about. If deciding took long (a query to a PACS), another
        may have come since.
    shadow: a second model that analyses it too, without being reported.
    beside: further models that analyse and report it.
    priority: of its jobs.
    to_choose: queue nothing yet: the study's best series is chosen later (see selection.py).
    """

    model: ModelRef | None
    completeness: str = QUIET_TIME
    expected: int | None = None
    refusal: Refusal | None = None
    if_count: int | None = None
    shadow: ModelRef | None = None
    beside: tuple[ModelRef, ...] = ()
    priority: int = 0
    to_choose: bool = False


def close_series(tx: Connection, series_pk: int, now: float, closing: Closing) -> int | None:
    """Close a series and queue its job in the same transaction. Returns the job's id, None if there is none yet.

    A closed series may be closed again for another model; an input that has a job for the model gets no other.
    A series of which this node refused instances that did not come again is refused as incomplete, and so is one of
    which a worklist's step names instances that did not come, or a canary that arrived in part. One whose images were
    rejected is refused for that.
    Raises NotDueYet if an instance has come since the decision, or is being fetched for a worklist; NotFound.
    """
    found = SERIES.row(tx, series_pk)
    refusal = closing.refusal
    if closing.model is not None:
        refusal = (
            rejections.why_withdrawn(tx, found["series_uid"])
            or refusal
            or refused.why_incomplete(tx, found["series_uid"])
            or workitems.why_incomplete(tx, found["series_uid"])
            or canaries.why_incomplete(tx, found["series_uid"])
        )
    if found["state"] == SeriesState.OPEN:
        _refuse_early_close(tx, series_pk, now, closing)
        if workitems.is_being_fetched(tx, found["series_uid"]):
            raise NotDueYet(f"series {series_pk}: its images are being fetched for a worklist")
        values = {
            "closed_at": now,
            "set_at": now,
            "instances_digest": instances_digest(series_instances(tx, series_pk)),
            "completeness": closing.completeness,
            "expected_count": closing.expected,
            **refusal_columns(refusal),
            "selection": Selection.WAITING.value if closing.to_choose and closing.model else None,
        }
        code = str(refusal.code) if refusal else None
        detail = {"completeness": closing.completeness, "expected": closing.expected, "refusal": code}
        move(tx, SERIES, series_pk, SeriesState.OPEN, SeriesState.CLOSED, now, values=values, detail=detail)
    if closing.model is None or closing.to_choose:
        return None
    digest = str(tx.scalar(select(series.c.instances_digest).where(series.c.id == series_pk)))
    job_id = jobs.enqueue(tx, series_pk, now, digest, closing.model, refusal, closing.priority)
    for model in closing.beside:
        jobs.enqueue(tx, series_pk, now, digest, model, refusal, closing.priority)
    if closing.shadow is not None and refusal is None:
        jobs.enqueue(tx, series_pk, now, digest, closing.shadow, priority=closing.priority, shadow=True)
    return job_id


def _refuse_early_close(tx: Connection, series_pk: int, now: float, closing: Closing) -> None:
    """A decision holds for the series as it was then: raise NotDueYet if an instance has come since."""
    row = tx.execute(select(series.c.due_at, series.c.instance_count).where(series.c.id == series_pk)).one()
    if closing.completeness == QUIET_TIME and row.due_at > now:
        raise NotDueYet(f"series {series_pk}: its quiet time is not over")
    if closing.if_count is not None and row.instance_count != closing.if_count:
        raise NotDueYet(f"series {series_pk}: {row.instance_count} instances now, decided about {closing.if_count}")


def instances_digest(held: Iterable[StoredInstance]) -> str:
    """SHA-256 hex over the sorted "SOP Instance UID, file SHA-256" lines: which input a job is about."""
    lines = sorted(f"{item.sop_instance_uid} {item.sha256}\n" for item in held)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def series_instances(tx: Connection, series_pk: int, senders: Collection[str] | None = None) -> list[StoredInstance]:
    """The instances of a series, by SOP Instance UID. senders: only those that came from these AE titles."""
    columns = [instances.c[name] for name in StoredInstance.__dataclass_fields__ if name != "gone"]
    rows = tx.execute(
        select(*columns, instances.c.gone_reason.label("gone"))
        .where(instances.c.series_pk == series_pk)
        .where(true() if senders is None else instances.c.calling_ae.in_(sorted(senders)))
        .order_by(instances.c.sop_instance_uid)
    ).mappings()
    return [StoredInstance(**row) for row in rows]


def number_of(tx: Connection, series_uid: str) -> int | None:
    """The number of a series in the index; None if it has none of it."""
    found: int | None = tx.scalar(select(series.c.id).where(series.c.series_instance_uid == series_uid))
    return found


def refusal_of_series(tx: Connection, series_pk: int) -> Refusal | None:
    """Why a closed series is not to be analysed, as decided when it closed; None if it is."""
    row = tx.execute(select(series.c.refusal_code, series.c.refusal_text).where(series.c.id == series_pk)).one()
    return jobs.refusal_of(row.refusal_code, row.refusal_text)


def sop_classes(tx: Connection, series_pk: int) -> set[str]:
    """The SOP Class UIDs of a series' instances."""
    return set(tx.scalars(select(instances.c.sop_class_uid).where(instances.c.series_pk == series_pk).distinct()))


def _records() -> Select[tuple[object, ...]]:
    latest_job = (
        select(func.max(job_table.c.id))
        .where(job_table.c.series_pk == series.c.id, job_table.c.shadow.is_(False))
        .correlate(series)
        .scalar_subquery()
    )
    standing = (results.c.series_pk == series.c.id) & results.c.superseded_at.is_(None) & results.c.shadow.is_(False)
    # Of several models' results one with a finding, if there is one.
    has_finding = exists().where(findings.c.result_id == results.c.id)
    current = func.coalesce(
        select(func.max(results.c.id)).where(standing, has_finding).correlate(series).scalar_subquery(),
        select(func.max(results.c.id)).where(standing).correlate(series).scalar_subquery(),
    )
    first = select(func.min(findings.c.id)).where(findings.c.result_id == results.c.id).correlate(results)
    own = set(SeriesRecord.__dataclass_fields__) & set(series.c.keys())
    return (
        select(
            series.c.id.label("series_pk"),
            *(series.c[name] for name in sorted(own)),
            studies.c.study_instance_uid,
            studies.c.study_date,
            patients.c.patient_id,
            patients.c.name.label("patient_name"),
            job_table.c.id.label("job_id"),
            job_table.c.state.label("job_state"),
            job_table.c.failure_reason,
            results.c.id.label("result_id"),
            results.c.outcome,
            results.c.reason_code,
            results.c.reason_text,
            results.c.threshold,
            findings.c.certainty.label("probability"),
            positive_column(codes).label("positive"),
        )
        .select_from(series.join(studies).join(patients))
        .outerjoin(job_table, job_table.c.id == latest_job)
        .outerjoin(results, results.c.id == current)
        .outerjoin(findings, findings.c.id == first.scalar_subquery())
        .outerjoin(codes, codes.c.id == findings.c.interpretation_id)
    )


def list_series(
    tx: Connection, *, state: str | None = None, study_uid: str | None = None, limit: int | None = None
) -> list[SeriesRecord]:
    """Series, with the latest instance first."""
    found = [one for name in SeriesState if state in (None, name) for one in _latest(tx, name, study_uid, limit)]
    found.sort(key=lambda one: (one.last_instance_at, one.series_pk), reverse=True)
    return found[:limit]


def _latest(tx: Connection, state: str, study_uid: str | None, limit: int | None) -> Iterator[SeriesRecord]:
    """Series in one state: an index has these in their order."""
    query = _records().where(series.c.state == state, NOT_IMPORTED)
    query = query.order_by(series.c.last_instance_at.desc(), series.c.id.desc())
    if study_uid is not None:
        of_study = select(series.c.id).join(studies).where(studies.c.study_instance_uid == study_uid)
        query = query.where(series.c.id.in_(list(tx.scalars(of_study))))
    if limit is not None:
        query = query.limit(limit)
    for row in tx.execute(query).mappings():
        yield SeriesRecord(**row)


def get_series(tx: Connection, series_: int | str) -> SeriesRecord:
    """One series by its number or its Series Instance UID. Raises NotFound."""
    column = series.c.id if isinstance(series_, int) else series.c.series_instance_uid
    row = tx.execute(_records().where(column == series_)).mappings().first()
    if row is None:
        raise NotFound("no such series")
    return SeriesRecord(**row)
