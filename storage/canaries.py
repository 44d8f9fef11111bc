"""Canaries: studies with a known result that the node sends to itself, from one end to the other.

A series is a canary because the node itself made up its UIDs and wrote them down here before it sent the first image:
what a header says makes none. And a canary's series takes no other image than those of its list.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from config.reasons import ReasonCode, Refusal
from storage import audit
from storage.job_state import JobState
from storage.models import canary_expectations, canary_runs, instances, jobs, series
from storage.moves import Machine, by_id, in_state, insert_row, move
from storage.prepared import Prepared

PATIENT_ID, PATIENT_NAME = "NODE-CANARY", "CANARY^NODE"
"""By which a person recognises one."""
UID_ROOT = "2.25."
"""Of the UIDs that the node makes up: PS3.5 B.2."""
STALE = "stale"
UNFINISHED = (JobState.QUEUED.value, JobState.RUNNING.value)
RECENT_S = 2 * 86_400.0
"""A canary's series is over long before that."""


class CanaryState(StrEnum):
    """Where a canary is. ABANDONED: the node stopped while it was being sent."""

    ASKED = "ASKED"
    SENDING = "SENDING"
    WAITING = "WAITING"
    PASSED = "PASSED"
    DIFFERS = "DIFFERS"
    FAILED = "FAILED"
    ABANDONED = "ABANDONED"


TRANSITIONS: Mapping[str, frozenset[str]] = {
    CanaryState.ASKED: frozenset(),
    CanaryState.SENDING: frozenset({CanaryState.ASKED}),
    CanaryState.WAITING: frozenset({CanaryState.SENDING}),  # the receiver has acknowledged all of it
    CanaryState.PASSED: frozenset({CanaryState.WAITING}),
    CanaryState.DIFFERS: frozenset({CanaryState.WAITING}),
    CanaryState.FAILED: frozenset({CanaryState.ASKED, CanaryState.SENDING, CanaryState.WAITING}),
    CanaryState.ABANDONED: frozenset({CanaryState.SENDING}),
}
ENDED = (CanaryState.PASSED, CanaryState.DIFFERS, CanaryState.FAILED)
"""How a canary ends that says something about the node."""
CANARY = Machine(
    "canary",
    canary_runs,
    TRANSITIONS,
    select(
        canary_runs.c.state,
        canary_runs.c.series_instance_uid.label("series_uid"),
        canary_runs.c.study_instance_uid.label("study_uid"),
    ).where(by_id(canary_runs)),
)


@dataclass(frozen=True)
class Run:
    """One canary. Times are Unix seconds. due_at: when it has failed if it is not there.

    source: digest of the study that it was made of. said: what became of it, in a sentence.
    """

    id: int
    state: str
    asked_at: float
    asked_by: str
    due_at: float
    study_instance_uid: str
    series_instance_uid: str
    instance_count: int
    source: str
    series_pk: int | None
    ended_at: float | None
    said: str
    stale_at: float | None


class Kin(StrEnum):
    """What an image that arrives is to the canaries."""

    NONE = "none"
    OWN = "own"
    STRANGER = "stranger"
    """It names a canary's series, and is not an image that the node made for it."""


_LISTED = Prepared(
    select(canary_runs.c.study_instance_uid, canary_runs.c.instance_uids).where(
        canary_runs.c.series_instance_uid == bindparam("uid")
    )
)
_NAMES = Run.__dataclass_fields__
_COLUMNS = [canary_runs.c[name] for name in _NAMES]


def ask(tx: Connection, study_uid: str, series_uid: str, by: str, now: float, within_s: float) -> int:
    """A canary is to be sent. The UIDs are new; by: who wants it. Returns its number."""
    values = {
        "state": CanaryState.ASKED.value,
        "asked_at": now,
        "asked_by": by,
        "due_at": now + within_s,
        "study_instance_uid": study_uid,
        "series_instance_uid": series_uid,
        "instance_uids": "[]",
        "instance_count": 0,
        "source": "",
        "said": "",
    }
    run = insert_row(tx, canary_runs, values)
    audit.append(tx, now, "canary.asked", _subject(study_uid, series_uid), outcome="ASKED", detail={"by": by})
    return run


def begin(tx: Connection, run: int, instance_uids: Sequence[str], source: str, now: float) -> None:
    """It is sent from now on: only these instances belong to it."""
    values = {"instance_uids": json.dumps(list(instance_uids)), "instance_count": len(instance_uids), "source": source}
    detail = {"instances": len(instance_uids), "source": source}
    move(tx, CANARY, run, CanaryState.ASKED, CanaryState.SENDING, now, values=values, detail=detail)


def sent(tx: Connection, run: int, now: float) -> None:
    """All of it was acknowledged."""
    move(tx, CANARY, run, CanaryState.SENDING, CanaryState.WAITING, now)


def end(tx: Connection, run: Run, state: CanaryState, said: str, now: float) -> None:
    """It is over; from now on no image belongs to it. said: a sentence without patient data."""
    values = {"ended_at": now, "said": said, "instance_uids": "[]"}
    move(tx, CANARY, run.id, run.state, state, now, values=values, detail={"said": said})


def kin_of(tx: Connection, series_uid: str, study_uid: str, sop_uid: str) -> Kin:
    """What an image is to the canaries, by its UIDs alone."""
    found = _LISTED.execute(tx, {"uid": series_uid})
    if not found:
        return Kin.NONE
    study, listed = found[0]
    return Kin.OWN if study == study_uid and sop_uid in json.loads(listed) else Kin.STRANGER


def why_incomplete(tx: Connection, series_uid: str) -> Refusal | None:
    """Why a canary's series is not complete: the node knows how many images it has sent. None for any other series."""
    made = tx.scalar(select(canary_runs.c.instance_count).where(canary_runs.c.series_instance_uid == series_uid))
    if made is None:
        return None
    of_series = select(series.c.id).where(series.c.series_instance_uid == series_uid).scalar_subquery()
    here = tx.scalar(select(func.count()).select_from(instances).where(instances.c.series_pk == of_series)) or 0
    if here >= made:
        return None
    return Refusal(ReasonCode.MISSING_SLICES, f"The canary was made of {made} slices, and {here} arrived.")


def is_canary(tx: Connection, series_uid: str) -> bool:
    """Whether this index knows a series as a canary, over or not."""
    return bool(_LISTED.execute(tx, {"uid": series_uid}))


def is_in_hand(tx: Connection, series_pk: int) -> bool:
    """Whether a series still waits to be analysed, or is being analysed."""
    mine = select(jobs.c.id).where(jobs.c.series_pk == series_pk, jobs.c.state.in_(UNFINISHED))
    return tx.scalar(mine.limit(1)) is not None


def series_since(since: float) -> Select[Any]:
    """The numbers of the series of late canaries, for a count that leaves them out. since: of what is counted."""
    held = canary_runs.c.series_pk.is_not(None)
    return select(canary_runs.c.series_pk).where(canary_runs.c.asked_at >= since - RECENT_S, held)


def note_series(tx: Connection, series_uid: str, series_pk: int) -> None:
    """The first image of a canary has arrived: the series that it is, in the index."""
    of_series = canary_runs.c.series_instance_uid == series_uid
    tx.execute(update(canary_runs).where(of_series).values(series_pk=series_pk))


def open_runs(tx: Connection) -> list[Run]:
    """Those that are not over, the oldest first."""
    waits = in_state(canary_runs, CanaryState.ASKED, CanaryState.SENDING, CanaryState.WAITING)
    return [Run(**row) for row in tx.execute(select(*_COLUMNS).where(waits).order_by(canary_runs.c.id)).mappings()]


def latest(tx: Connection, limit: int = 1) -> list[Run]:
    """The last so many, the newest first."""
    rows = tx.execute(select(*_COLUMNS).order_by(canary_runs.c.id.desc()).limit(limit)).mappings()
    return [Run(**row) for row in rows]


def last_in(tx: Connection, *states: str) -> Run | None:
    """The newest canary that is in one of these states: one seek for each."""
    found = []
    for state in states:
        newest = select(*_COLUMNS).where(canary_runs.c.state == state).order_by(canary_runs.c.id.desc()).limit(1)
        found += [Run(**row) for row in tx.execute(newest).mappings()]
    return max(found, key=lambda run: run.id, default=None)


def alarm(tx: Connection, now: float, patience_s: float) -> str | None:
    """What is wrong by the canaries: "failed", "differs" or "stale"; None if all is well.

    patience_s: for which none need pass, from the last that did, or from the first that was to be sent.
    """
    passed, ended = last_in(tx, CanaryState.PASSED), last_in(tx, *ENDED)
    if ended is not None and ended.state != CanaryState.PASSED:
        return str(ended.state).lower()
    since = passed.ended_at if passed else _first_asked(tx)
    return STALE if since is not None and now - since > patience_s else None


def _first_asked(tx: Connection) -> float | None:
    found: float | None = tx.scalar(select(canary_runs.c.asked_at).order_by(canary_runs.c.id).limit(1))
    return found


def note_stale(tx: Connection, newest: Run, now: float) -> None:
    """Audit that no canary has passed for too long: once for each that was asked for since."""
    tx.execute(update(canary_runs).where(canary_runs.c.id == newest.id).values(stale_at=now))
    audit.append(tx, now, "canary.stale", outcome="STALE")


def to_clear(tx: Connection, keep: int) -> list[Run]:
    """Those that are over and whose images are still here, but for the last so many."""
    held = canary_runs.c.ended_at.is_not(None) & canary_runs.c.cleared_at.is_(None)
    newest = select(*_COLUMNS).where(held).order_by(canary_runs.c.id.desc())
    return [Run(**row) for row in tx.execute(newest).mappings()][keep:]


def note_cleared(tx: Connection, run: Run, now: float) -> None:
    """Its images are gone."""
    tx.execute(update(canary_runs).where(canary_runs.c.id == run.id).values(cleared_at=now))


@dataclass(frozen=True)
class Expectation:
    """What a model is to say of a canary made of a study. said: as `replay.values_of`, JSON types only."""

    source: str
    model_name: str
    model_digest: str
    said: Mapping[str, Any]
    noted_at: float
    noted_by: str


def expectation(tx: Connection, source: str, model_name: str, model_digest: str) -> Expectation | None:
    """What this model is to say; None if nobody knows yet."""
    key = (canary_expectations.c.source == source, canary_expectations.c.model_name == model_name)
    query = select(canary_expectations).where(*key, canary_expectations.c.model_digest == model_digest)
    row = tx.execute(query).mappings().first()
    return None if row is None else Expectation(**{**row, "said": json.loads(row["said"])})


def expect(tx: Connection, wanted: Expectation) -> None:
    """From now on the model is to say this, in place of what it was."""
    known = expectation(tx, wanted.source, wanted.model_name, wanted.model_digest)
    values = {**vars(wanted), "said": json.dumps(wanted.said)}
    if known is None:
        tx.execute(insert(canary_expectations).values(values))
    else:
        key = [canary_expectations.c[name] == values[name] for name in ("source", "model_name", "model_digest")]
        tx.execute(update(canary_expectations).where(*key).values(values))
    detail = {"model": wanted.model_name, "model_digest": wanted.model_digest, "by": wanted.noted_by}
    audit.append(tx, wanted.noted_at, "canary.expected", outcome="EXPECTED", detail=detail)


def _subject(study_uid: str, series_uid: str) -> audit.Subject:
    return audit.Subject(series_uid=series_uid, study_uid=study_uid)
