"""The steps of worklists that this node claimed: each has one end that is told to its worklist, whatever is killed.

The Transaction UID is here before the worklist hears of it. So whoever finds a step in any state can go on with it: it
alone is what lets this node, and nobody else, change the step there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, RowMapping, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from config.reasons import ReasonCode, Refusal
from storage import audit, tallies
from storage.models import instances, workitem_series, workitems
from storage.moves import Machine, by_id, move

LONGEST_WAIT_S = 3600.0
"""A wait that ends later than this was set by a clock that has gone back since."""


class StepState(StrEnum):
    """How far a step has come here. COMPLETED and CANCELED are the worklist's own words."""

    CLAIMING = "CLAIMING"
    CLAIMED = "CLAIMED"
    FETCHING = "FETCHING"
    ANALYSING = "ANALYSING"
    ENDING = "ENDING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    TAKEN = "TAKEN"
    LOST = "LOST"


UNDECIDED = (StepState.CLAIMED, StepState.FETCHING, StepState.ANALYSING)
# Each state, and the states from which it may be entered. Rows are born CLAIMING.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    StepState.CLAIMED: frozenset({StepState.CLAIMING}),  # the worklist says that it is ours
    StepState.FETCHING: frozenset({StepState.CLAIMED}),  # it has told which images
    StepState.ANALYSING: frozenset({StepState.FETCHING}),  # they are here, or do not come
    StepState.ENDING: frozenset(UNDECIDED),  # how it ends is decided, and is not decided again
    StepState.COMPLETED: frozenset({StepState.ENDING}),  # the worklist knows
    StepState.CANCELED: frozenset({StepState.ENDING}),
    StepState.TAKEN: frozenset({StepState.CLAIMING}),  # somebody else has it
    # The worklist no longer takes anything about it from us.
    StepState.LOST: frozenset({StepState.CLAIMING, *UNDECIDED, StepState.ENDING}),
}
WORKITEM = Machine(
    "workitem",
    workitems,
    TRANSITIONS,
    select(workitems.c.state, workitems.c.worklist, workitems.c.workitem_uid).where(by_id(workitems)),
)


@dataclass(frozen=True)
class Step:
    """One claimed step. Times are Unix seconds.

    tries: how often its present state was taken up in vain. cancel_reason: what the requester said who wants it
    cancelled; None if nobody does. reason_code, reason_text: why it ends CANCELED. results: those it ends with.
    """

    id: int
    worklist: str
    workitem_uid: str
    transaction_uid: str
    state: StepState
    tries: int
    due_at: float
    created_at: float
    claimed_at: float | None
    decided_at: float | None
    ended_at: float | None
    cancel_reason: str | None
    reason_code: str | None
    reason_text: str | None
    results: tuple[int, ...]
    error: str | None

    @property
    def refusal(self) -> Refusal | None:
        """Why it ends CANCELED; None if it does not. code: empty if it is not about the images."""
        return None if self.reason_text is None else Refusal(self.reason_code or "", self.reason_text)


@dataclass(frozen=True)
class InputSeries:
    """Images of one series that a step names. instances: SOP Instance UIDs. source: who has them, as the step says."""

    study_uid: str
    series_uid: str
    instances: frozenset[str]
    source: str = ""


def begin(
    tx: Connection, worklist: str, workitem_uid: str, transaction_uid: str, now: float, until: float
) -> int | None:
    """Write down that a step will be claimed, and with which Transaction UID. None if it was claimed here before.

    until: in hand so long.
    """
    dialect = postgresql if tx.dialect.name == "postgresql" else sqlite
    values = {"worklist": worklist, "workitem_uid": workitem_uid, "transaction_uid": transaction_uid}
    more = {"state": StepState.CLAIMING.value, "tries": 0, "due_at": until, "created_at": now, "results": "[]"}
    statement = dialect.insert(workitems).values(**values, **more).on_conflict_do_nothing()
    step_id: int | None = tx.scalar(statement.returning(workitems.c.id))
    if step_id is not None:
        tallies.add(tx, "workitems", StepState.CLAIMING, 1)
        audit.append(tx, now, "workitem.claiming", outcome=StepState.CLAIMING, detail=values)
    return step_id


def known(tx: Connection, worklist: str, uids: Iterable[str]) -> set[str]:
    """Which of these steps of a worklist this node has claimed already, or tried to."""
    of_list = select(workitems.c.workitem_uid).where(workitems.c.worklist == worklist)
    return set(tx.scalars(of_list.where(workitems.c.workitem_uid.in_(list(uids)))))


def count_open(tx: Connection, worklist: str) -> int:
    """How many steps of a worklist have not ended."""
    query = select(func.count()).select_from(workitems)
    return int(tx.scalar(query.where(workitems.c.worklist == worklist, workitems.c.ended_at.is_(None))) or 0)


def take(tx: Connection, worklist: str, now: float, lease_s: float) -> Step | None:
    """The step that has been due longest, taken in hand: nobody else takes it up for so long. None if none is due."""
    due = (workitems.c.due_at <= now) | (workitems.c.due_at > now + LONGEST_WAIT_S)
    query = select(workitems).where(workitems.c.worklist == worklist, workitems.c.ended_at.is_(None), due)
    query = query.order_by(workitems.c.due_at, workitems.c.id).limit(1).with_for_update(skip_locked=True)
    row = tx.execute(query).mappings().first()
    if row is None:
        return None
    postpone(tx, row["id"], now + lease_s)
    return _step(row)


def take_up_again(tx: Connection, worklist: str, now: float) -> None:
    """At start: whoever had steps of a worklist in hand is gone, and what waited need not wait on."""
    is_open = (workitems.c.worklist == worklist, workitems.c.ended_at.is_(None))
    tx.execute(update(workitems).where(*is_open).values(due_at=now))


def get(tx: Connection, step_id: int) -> Step:
    """One step."""
    return _step(tx.execute(select(workitems).where(workitems.c.id == step_id)).mappings().one())


def latest(tx: Connection, limit: int) -> list[Step]:
    """The steps that have not ended, the oldest first, and then those that ended, the latest first."""
    waiting = select(workitems).where(workitems.c.ended_at.is_(None))
    ended = select(workitems).where(workitems.c.ended_at.is_not(None))
    queries = (
        waiting.order_by(workitems.c.worklist, workitems.c.due_at).limit(limit),
        ended.order_by(workitems.c.ended_at.desc()).limit(limit),
    )
    return [_step(row) for query in queries for row in tx.execute(query).mappings()][:limit]


def postpone(tx: Connection, step_id: int, until: float, *, in_vain: bool = False, error: str | None = None) -> bool:
    """A step is not taken up before then. Returns False if it has ended.

    in_vain: it was taken up and got no further. error: why.
    """
    values: dict[str, object] = {"due_at": until, "tries": workitems.c.tries + int(in_vain)}
    if error is not None:
        values["error"] = error
    waits = (workitems.c.id == step_id, workitems.c.ended_at.is_(None))
    return tx.execute(update(workitems).where(*waits).values(values)).rowcount == 1


def advance(tx: Connection, step: Step, to: StepState, now: float, **values: object) -> None:
    """Bring a step into another state, due at once, or ended. Raises IllegalMove, if it has moved on meanwhile."""
    ended = to in (StepState.COMPLETED, StepState.CANCELED, StepState.TAKEN, StepState.LOST)
    times: dict[str, object] = {"due_at": now, "ended_at": now if ended else None}
    anew: dict[str, object] = {"tries": 0, "error": None}
    why = {"reason": values.get("error") or values.get("reason_text")}
    detail = {name: value for name, value in why.items() if value}
    move(tx, WORKITEM, step.id, step.state, to, now, values={**times, **anew, **values}, detail=detail)


def set_input(tx: Connection, step: Step, inputs: Sequence[InputSeries], now: float) -> None:
    """CLAIMED to FETCHING: the images that the step is about."""
    rows = [
        {
            "workitem_id": step.id,
            "study_uid": one.study_uid,
            "series_uid": one.series_uid,
            "instances": json.dumps(sorted(one.instances)),
            "source": one.source,
        }
        for one in inputs
    ]
    tx.execute(insert(workitem_series), rows)
    for one in inputs:
        audit.append(tx, now, "workitem.input", _about(one), outcome=StepState.FETCHING, detail=_named(step))
    advance(tx, step, StepState.FETCHING, now)


def decide(tx: Connection, step: Step, now: float, results: Sequence[int], refusal: Refusal | None = None) -> None:
    """How a step ends: COMPLETED with results, or CANCELED for a reason. It is not decided again."""
    reason = {"reason_code": refusal.code or None, "reason_text": refusal.sentence} if refusal else {}
    values = {"results": json.dumps(list(results)), "decided_at": now, **reason}
    outcome = StepState.CANCELED if refusal else StepState.COMPLETED
    for one in inputs_of(tx, step.id):
        audit.append(tx, now, "workitem.decided", _about(one), outcome=outcome, detail={**_named(step), **reason})
    advance(tx, step, StepState.ENDING, now, **values)


def _about(one: InputSeries) -> audit.Subject:
    """So that whoever looks for a series or a study in the trail finds its step."""
    return audit.Subject(series_uid=one.series_uid, study_uid=one.study_uid)


def _named(step: Step) -> dict[str, object]:
    return {"worklist": step.worklist, "workitem_uid": step.workitem_uid}


def ask_to_cancel(tx: Connection, worklist: str, workitem_uid: str, reason: str, now: float) -> bool:
    """The requester wants a step cancelled. False if there is none whose end is open."""
    mine = (workitems.c.worklist == worklist, workitems.c.workitem_uid == workitem_uid)
    is_open = workitems.c.state.in_([StepState.CLAIMING.value, *(state.value for state in UNDECIDED)])
    asked = {"cancel_reason": reason, "due_at": now}
    changed = tx.execute(update(workitems).where(*mine, is_open).values(asked)).rowcount
    if changed:
        detail = {"worklist": worklist, "workitem_uid": workitem_uid, "reason": reason}
        audit.append(tx, now, "workitem.cancel-requested", outcome="ASKED", detail=detail)
    return bool(changed)


def inputs_of(tx: Connection, step_id: int) -> list[InputSeries]:
    """The images that a step is about."""
    query = select(workitem_series).where(workitem_series.c.workitem_id == step_id).order_by(workitem_series.c.id)
    return [
        InputSeries(row["study_uid"], row["series_uid"], frozenset(json.loads(row["instances"])), row["source"])
        for row in tx.execute(query).mappings()
    ]


def missing_of(tx: Connection, wanted: InputSeries, *, deleted_is_here: bool) -> frozenset[str]:
    """Which of these images the node does not have. deleted_is_here: those that retention deleted count as had."""
    held = select(instances.c.sop_instance_uid, instances.c.gone_reason)
    had = {None, "retention"} if deleted_is_here else {None}
    uids, found = sorted(wanted.instances), set()
    for start in range(0, len(uids), 500):
        some = instances.c.sop_instance_uid.in_(uids[start : start + 500])
        found |= {row.sop_instance_uid for row in tx.execute(held.where(some)) if row.gone_reason in had}
    return wanted.instances - found


def is_being_fetched(tx: Connection, series_uid: str) -> bool:
    """Whether images of a series are being fetched for a step, so that it must not close yet."""
    return any(state == StepState.FETCHING for state, _ in _open_steps_about(tx, series_uid))


def why_incomplete(tx: Connection, series_uid: str) -> Refusal | None:
    """Why a series may not be analysed: a step under way names images of it that did not come. None if all are here."""
    for _, wanted in _open_steps_about(tx, series_uid):
        missing = missing_of(tx, wanted, deleted_is_here=True)
        if missing:
            return lacking(len(missing), len(wanted.instances))
    return None


def lacking(missing: int, named: int) -> Refusal:
    """The reason of a step whose images did not come."""
    return Refusal(
        ReasonCode.MISSING_SLICES,
        f"The worklist's step names {named} instances of the series; {missing} of them did not come.",
    )


def _open_steps_about(tx: Connection, series_uid: str) -> list[tuple[str, InputSeries]]:
    query = (
        select(workitems.c.state, workitem_series)
        .select_from(workitem_series.join(workitems))
        .where(workitem_series.c.series_uid == series_uid, workitems.c.ended_at.is_(None))
    )
    return [
        (row["state"], InputSeries(row["study_uid"], series_uid, frozenset(json.loads(row["instances"]))))
        for row in tx.execute(query).mappings()
    ]


def _step(row: RowMapping) -> Step:
    values = {name: row[name] for name in Step.__dataclass_fields__}
    return Step(**{**values, "state": StepState(row["state"]), "results": tuple(json.loads(row["results"]))})
