"""Which series of a study is analysed if a site wants only the best one: what is known, and recording the choice.

A series closes WAITING. Once its study is quiet, one series becomes CHOSEN and gets a job; the others become
PASSED_OVER or UNSUITABLE. When the job is done, the chosen series becomes ANALYSED, which settles the study until a
late instance reopens it; or it becomes UNSUITABLE, and the next one is chosen. A reopened series leaves the choice,
because its instances are not all here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, exists, func, select, update

from config.reasons import Refusal
from storage import audit, jobs, listings
from storage.errors import NotDueYet
from storage.job_state import JobState
from storage.jobs import Models, refusal_columns, refusal_of
from storage.models import jobs as job_table
from storage.models import patients, results, series, studies
from storage.results import ResultOutcome, previous_result
from storage.series_state import SERIES, Selection, SeriesState

UNDECIDED = (Selection.WAITING.value, Selection.CHOSEN.value)


@dataclass(frozen=True)
class Member:
    """A closed series of a study that takes part.

    refusal: decided when it closed, for example because the PACS could not give all slices.
    outcome: of its current result, or None.  reason: of a NOT_ANALYSED result.
    reported: a report on it may be at a destination already.
    """

    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    patient_id: str
    calling_ae: str
    selection: Selection
    instances_digest: str
    instance_count: int
    refusal: Refusal | None
    outcome: str | None
    reason: Refusal | None
    reported: bool


@dataclass(frozen=True)
class Choice:
    """What to record about a study.

    members: as they were when this was decided.  chosen: the series to queue, or None if none is to be analysed.
    refusal: set if the chosen one is only to be reported as not analysed.
    others: what the other series become, each with the reason; those left out stay as they are.
    detail: for the audit row; JSON types only.
    """

    members: Sequence[Member]
    chosen: int | None
    refusal: Refusal | None
    others: Mapping[int, tuple[Selection, Refusal | None]]
    detail: Mapping[str, object]


def undecided_studies(tx: Connection, now: float) -> list[int]:
    """Quiet studies whose series are all closed, and which wait for a choice or for its outcome."""
    other = series.alias()
    unfinished = [JobState.QUEUED, JobState.RUNNING, JobState.FAILED]
    busy = exists().where(
        job_table.c.series_pk == other.c.id, job_table.c.shadow.is_(False), job_table.c.state.in_(unfinished)
    )
    unready = (other.c.state == SeriesState.OPEN.value) | (other.c.due_at > now) | busy
    ready = ~exists().where(other.c.study_pk == series.c.study_pk, other.c.canary.is_(False), unready)
    undecided = select(series.c.study_pk).where(series.c.selection.in_(UNDECIDED), ready)
    return list(tx.scalars(undecided.distinct().order_by(series.c.study_pk)))


def members(tx: Connection, study_pk: int) -> list[Member]:
    """The series of a study that take part in the choice, by Series Instance UID; no canary does.

    A series that has a finding from a time when every series was analysed counts as ANALYSED.
    """
    latest = (
        select(func.max(results.c.id))
        .where(results.c.series_pk == series.c.id, results.c.superseded_at.is_(None), results.c.shadow.is_(False))
        .correlate(series)
        .scalar_subquery()
    )
    reported_before = results.c.outcome == ResultOutcome.ANALYSED.value
    rows = tx.execute(
        select(
            series,
            studies.c.study_instance_uid,
            patients.c.patient_id,
            results.c.outcome,
            results.c.reason_code,
            results.c.reason_text,
        )
        .select_from(series.join(studies).join(patients).outerjoin(results, results.c.id == latest))
        .where(series.c.study_pk == study_pk, series.c.canary.is_(False))
        .where(series.c.selection.is_not(None) | reported_before)
        .order_by(series.c.series_instance_uid)
    ).all()
    return [
        Member(
            row.id,
            row.series_instance_uid,
            row.study_instance_uid,
            row.patient_id,
            row.calling_ae,
            Selection(row.selection or Selection.ANALYSED),
            row.instances_digest,
            row.instance_count,
            refusal_of(row.refusal_code, row.refusal_text),
            row.outcome,
            refusal_of(row.reason_code, row.reason_text),
            previous_result(tx, row.id) is not None,
        )
        for row in rows
    ]


def record_choice(tx: Connection, choice: Choice, now: float, models: Models, priority: int = 0) -> int | None:
    """Queue the chosen series and record what the others become, with one audit row. Returns the job's id, or None.

    Raises NotDueYet if a series of the study has changed since the choice was made.
    """
    first = choice.members[0]
    for member in sorted(choice.members, key=lambda one: one.series_instance_uid):
        SERIES.row(tx, member.series_pk)  # locked: a slice that arrives now finds the job and supersedes it
    study_pk = tx.scalar(select(series.c.study_pk).where(series.c.id == first.series_pk))
    of_study = (series.c.study_pk == study_pk, series.c.canary.is_(False))
    is_open = exists().where(*of_study, series.c.state == SeriesState.OPEN.value)
    if tx.scalar(select(is_open)) or members(tx, int(study_pk or 0)) != list(choice.members):
        raise NotDueYet("the study changed while its best series was chosen")
    for pk, (selection, refusal) in choice.others.items():
        _set(tx, pk, selection, refusal)
    audit.append(
        tx,
        now,
        "study.decided" if choice.chosen is None else "study.series-chosen",
        audit.Subject(
            series_uid=next((m.series_instance_uid for m in choice.members if m.series_pk == choice.chosen), None),
            study_uid=first.study_instance_uid,
            patient_id=first.patient_id,
        ),
        outcome="NONE" if choice.chosen is None else str(Selection.CHOSEN),
        detail=dict(choice.detail),
    )
    if choice.chosen is None:
        return None
    _set(tx, choice.chosen, Selection.CHOSEN, choice.refusal)
    digest = next(m.instances_digest for m in choice.members if m.series_pk == choice.chosen)
    job_id = jobs.enqueue(tx, choice.chosen, now, digest, models.reporting, choice.refusal, priority)
    for model in models.beside:
        jobs.enqueue(tx, choice.chosen, now, digest, model, choice.refusal, priority)
    if models.shadow is not None and choice.refusal is None:
        jobs.enqueue(tx, choice.chosen, now, digest, models.shadow, priority=priority, shadow=True)
    return job_id


def _set(tx: Connection, series_pk: int, selection: Selection, refusal: Refusal | None) -> None:
    values = {"selection": selection.value, **refusal_columns(refusal)}
    tx.execute(update(series).where(series.c.id == series_pk).values(**values))
    listings.touch(tx, series_pk)
