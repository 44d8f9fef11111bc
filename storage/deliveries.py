"""The outbox: one delivery per result and destination, each with its own schedule."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Exists, exists, or_, select, update

from storage import audit, clock, turnarounds
from storage.errors import IllegalMove, NotFound
from storage.models import deliveries, patients, results, series, studies
from storage.moves import Machine, by_id, insert_row, move
from storage.replaces import ALL_BEFORE, Replaces
from storage.results import StoredObject, objects_of
from storage.series_state import SERIES


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    COMMITTED = "COMMITTED"
    FAILED = "FAILED"
    SUPERSEDED = "SUPERSEDED"


# Each state, and the states from which it may be entered. Rows are born PENDING, with their result.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    # An attempt failed; the destination did not keep it; an operator wants it sent again.
    DeliveryState.PENDING: frozenset(
        {DeliveryState.SENDING, DeliveryState.SENT, DeliveryState.FAILED, DeliveryState.COMMITTED}
    ),
    DeliveryState.SENDING: frozenset({DeliveryState.PENDING}),  # from here on the destination may have it
    DeliveryState.SENT: frozenset({DeliveryState.SENDING}),  # the destination answered success
    DeliveryState.COMMITTED: frozenset({DeliveryState.SENT}),  # the destination promised to keep it
    # Trying again will not help: the destination refuses the objects, or never keeps them.
    DeliveryState.FAILED: frozenset({DeliveryState.SENDING, DeliveryState.SENT}),
    # A later report replaces it. A SENT one gets here only if the destination turns out not to have kept it.
    DeliveryState.SUPERSEDED: frozenset(
        {DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.SENT, DeliveryState.FAILED}
    ),
}

DELIVERY = Machine(
    "delivery",
    deliveries,
    TRANSITIONS,
    select(
        deliveries.c.state,
        deliveries.c.fence,
        deliveries.c.destination,
        results.c.id.label("result_id"),
        results.c.job_id,
        series.c.series_instance_uid.label("series_uid"),
        studies.c.study_instance_uid.label("study_uid"),
        patients.c.patient_id,
    )
    .select_from(deliveries.join(results).join(series).join(studies).join(patients))
    .where(by_id(deliveries)),
)


WAITING = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.SENT)
# The counters of a delivery that starts over.
ANEW: Mapping[str, int] = {"attempts": 0, "refusals": 0, "commitment_attempts": 0, "resends": 0}


@dataclass(frozen=True)
class ClaimedDelivery:
    """A delivery to send now. Its holder ends it with `mark_sent`, `retry_later` or `fail` before the lease is over.

    refusals: final failures of earlier attempts.
    """

    delivery_id: int
    fence: int
    attempt: int
    refusals: int
    destination: str
    result_id: int
    model_name: str
    model_digest: str
    series_pk: int
    series_instance_uid: str
    study_instance_uid: str
    objects: tuple[StoredObject, ...]


def create(tx: Connection, result_id: int, destinations: Sequence[str], now: float) -> None:
    """Put a result into the outbox, once per destination."""
    for destination in dict.fromkeys(destinations):
        values = {
            "result_id": result_id,
            "destination": destination,
            "state": DeliveryState.PENDING.value,
            "fence": 0,
            "set_at": now,
            "due_at": now,
            "created_at": now,
            **ANEW,
        }
        delivery_id = insert_row(tx, deliveries, values)
        note(tx, delivery_id, now, "delivery.pending", DeliveryState.PENDING)


def claim(
    tx: Connection, destination: str, now: float, lease_s: float, limit: int = 1, host: str = ""
) -> list[ClaimedDelivery]:
    """Claim what is to be sent to a destination now, the longest waiting first: PENDING to SENDING, with a lease.

    host: the machine that sends, for the audit trail, if several may.

    Deliveries of a sender that died are given back here, once its lease is over. One whose series has another delivery
    under way to the same destination waits for it: a result must not arrive before the one that it replaces.
    """
    clock.start_waits_again(tx, deliveries, WAITING, now, few_in_state=False)
    _release_expired(tx, now, destination)
    waiting = (
        select(deliveries.c.id, deliveries.c.fence, deliveries.c.attempts)
        .where(deliveries.c.destination == destination, deliveries.c.state == DeliveryState.PENDING.value)
        .where(deliveries.c.due_at <= now, ~_series_under_way(destination))
        .order_by(deliveries.c.due_at, deliveries.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = []
    for row in tx.execute(waiting).all():
        values = {"fence": row.fence + 1, "attempts": row.attempts + 1, "set_at": now, "due_at": now + lease_s}
        move(
            tx,
            DELIVERY,
            row.id,
            DeliveryState.PENDING,
            DeliveryState.SENDING,
            now,
            values=values,
            detail={"attempt": row.attempts + 1, **({"host": host} if host else {})},
        )
        claimed.append(_claimed(tx, row.id))
    return claimed


def _series_under_way(destination: str) -> Exists:
    """Whether another delivery of the same series is being sent there: one for each sender at most, so few to look at.

    Deliveries of one series wait together only if they are of several models; a later result of the same model takes
    the earlier one out of the outbox. So two senders that claim at the same moment never hold a result and its former.
    """
    other, its_result, mine = deliveries.alias("other"), results.alias("its_result"), results.alias("mine")
    return exists().where(
        other.c.state == DeliveryState.SENDING.value,
        other.c.destination == destination,
        its_result.c.id == other.c.result_id,
        mine.c.id == deliveries.c.result_id,
        its_result.c.series_pk == mine.c.series_pk,
    )


def _claimed(tx: Connection, delivery_id: int) -> ClaimedDelivery:
    row = tx.execute(
        select(
            deliveries.c.id.label("delivery_id"),
            deliveries.c.fence,
            deliveries.c.attempts.label("attempt"),
            deliveries.c.refusals,
            deliveries.c.destination,
            deliveries.c.result_id,
            results.c.model_name,
            results.c.model_digest,
            results.c.series_pk,
            series.c.series_instance_uid,
            studies.c.study_instance_uid,
        )
        .select_from(deliveries.join(results).join(series).join(studies))
        .where(deliveries.c.id == delivery_id)
    ).mappings()
    found = dict(row.one())
    objects = tuple(item for item in objects_of(tx, found["result_id"]) if item.kind.is_sent)
    return ClaimedDelivery(**found, objects=objects)


def _release_expired(tx: Connection, now: float, destination: str | None, *, whatever_lease: bool = False) -> int:
    over = select(deliveries.c.id).where(deliveries.c.state == DeliveryState.SENDING.value)
    if destination is not None:
        over = over.where(deliveries.c.destination == destination)
    if not whatever_lease:
        over = over.where(deliveries.c.due_at <= now)
    released = tx.scalars(over.with_for_update(skip_locked=True)).all()
    for delivery_id in released:
        not_stored(
            tx, delivery_id, DeliveryState.SENDING, DeliveryState.PENDING, now, now, "the sender's lease was over"
        )
    return len(released)


def release_all(tx: Connection, now: float) -> int:
    """At start: give back what senders held when the node stopped, without waiting for their leases."""
    return _release_expired(tx, now, None, whatever_lease=True)


def heartbeat(tx: Connection, delivery_id: int, fence: int, now: float, lease_s: float) -> bool:
    """Extend the lease while a long sending runs. False: the lease is somebody else's now."""
    changed = tx.execute(
        update(deliveries)
        .where(deliveries.c.id == delivery_id, deliveries.c.fence == fence)
        .where(deliveries.c.state == DeliveryState.SENDING.value)
        .values(set_at=now, due_at=now + lease_s)
    )
    return changed.rowcount == 1


def is_held(tx: Connection, delivery_id: int, fence: int, now: float) -> bool:
    """Whether a sender still has a delivery and its lease is not over: to be asked right before anything is sent."""
    mine = (deliveries.c.id == delivery_id, deliveries.c.fence == fence)
    held = (deliveries.c.state == DeliveryState.SENDING.value, deliveries.c.due_at > now)
    return bool(tx.scalar(select(exists().where(*mine, *held))))


def mark_sent(
    tx: Connection,
    delivery_id: int,
    fence: int,
    now: float,
    status_by_object: Mapping[str, int] | None = None,
    warning: str | None = None,
    commitment_at: float | None = None,
) -> None:
    """The destination stored every object.

    status_by_object: DIMSE status by SOP Instance UID. warning: what a Bxxx status said.
    commitment_at: when to ask whether it keeps them (`commitments.due`); None: it is not asked.
    Raises StaleLease: another sender has it, and will send the same bytes.
    """
    values = {
        "sent_at": now,
        "set_at": now,
        "due_at": commitment_at,
        "commitment_attempts": 0,
        "error": None,
        "warning": warning,
        "object_status": json.dumps(dict(status_by_object or {}), sort_keys=True),
    }
    detail = {"statuses": {uid: f"0x{status:04X}" for uid, status in (status_by_object or {}).items()}}
    if warning:
        detail["warning"] = {"text": warning}
    result_id = DELIVERY.row(tx, delivery_id)["result_id"]
    move(
        tx,
        DELIVERY,
        delivery_id,
        DeliveryState.SENDING,
        DeliveryState.SENT,
        now,
        fence=fence,
        values=values,
        detail=detail,
    )
    turnarounds.add_delivery(tx, result_id, now)


def retry_later(
    tx: Connection, delivery_id: int, fence: int, now: float, retry_at: float, error: str, *, refused: bool = False
) -> DeliveryState:
    """The attempt failed and another may succeed: PENDING until `retry_at`.

    refused: with a final failure. It is counted in the row, so a restart does not allow more of them.
    Returns SUPERSEDED if a later report replaces this one, else PENDING. Raises StaleLease.
    """
    counted = {"refusals": deliveries.c.refusals + 1} if refused else {}
    return not_stored(
        tx, delivery_id, DeliveryState.SENDING, DeliveryState.PENDING, now, retry_at, error, fence, counted
    )


def fail(tx: Connection, delivery_id: int, fence: int, now: float, error: str) -> DeliveryState:
    """The destination refuses for good. Shown in `status` until `retry`.

    Returns SUPERSEDED if a later report replaces this one, else FAILED. Raises StaleLease.
    """
    return not_stored(tx, delivery_id, DeliveryState.SENDING, DeliveryState.FAILED, now, None, error, fence)


def not_stored(
    tx: Connection,
    delivery_id: int,
    leaving: DeliveryState,
    to: DeliveryState,
    now: float,
    due_at: float | None,
    error: str,
    fence: int | None = None,
    counted: Mapping[str, object] = MappingProxyType({}),
) -> DeliveryState:
    """The destination does not have it: move to `to`, or to SUPERSEDED if a later report replaces it."""
    outdated = tx.scalar(
        select(results.c.superseded_at).select_from(deliveries.join(results)).where(deliveries.c.id == delivery_id)
    )
    if outdated is not None:
        to = DeliveryState.SUPERSEDED
    values = {"set_at": now, "due_at": due_at, "error": error, **counted}
    move(tx, DELIVERY, delivery_id, leaving, to, now, fence=fence, values=values, detail={"reason": error})
    return to


def retry(tx: Connection, delivery_id: int, now: float) -> None:
    """An operator brings a FAILED delivery back. Raises NotFound or IllegalMove."""
    revive(tx, delivery_id, DeliveryState.FAILED, now, "retried by an operator")


def hurry(tx: Connection, delivery_id: int, now: float) -> None:
    """An operator makes a delivery go on now, with its counters at zero, instead of at the end of its wait.

    If the destination was away just before, "now" is within a minute.

    A PENDING one is sent; one that is SENT and waits for confirmation, or got none, is asked about.
    Raises NotFound, or IllegalMove when there is nothing to hurry.
    """
    state = DELIVERY.row(tx, delivery_id)["state"]
    mine = deliveries.c.id == delivery_id
    waits = tx.scalar(
        select(or_(deliveries.c.due_at.is_not(None), deliveries.c.unconfirmed_at.is_not(None))).where(mine)
    )
    if state not in (DeliveryState.PENDING, DeliveryState.SENT) or not waits:
        raise IllegalMove(f"delivery {delivery_id} is {state} and waits for nothing that could be hurried")
    again = {"error": None} if state == DeliveryState.SENT else {}
    tx.execute(update(deliveries).where(mine).values(set_at=now, due_at=now, unconfirmed_at=None, **ANEW, **again))
    note(tx, delivery_id, now, "delivery.hurried", state, {"reason": "hurried by an operator"})


def resend(tx: Connection, result_id: int, destinations: Sequence[str], now: float) -> list[int]:
    """An operator sends the objects of a result again, byte for byte, or to a destination that does not have them.

    A delivery that waits already is hurried; one that is being sent is left alone. Returns the deliveries' ids, one per
    destination. Raises NotFound, or IllegalMove when the result has no objects or a later one replaces it.
    """
    _may_be_sent_again(tx, result_id)
    rows = tx.execute(select(deliveries.c.destination, deliveries.c.id).where(deliveries.c.result_id == result_id))
    existing = {row.destination: row.id for row in rows}
    create(tx, result_id, [name for name in destinations if name not in existing], now)
    for name in dict.fromkeys(destinations):
        if name in existing:
            _send_again(tx, existing[name], now)
    rows = tx.execute(
        select(deliveries.c.id)
        .where(deliveries.c.result_id == result_id, deliveries.c.destination.in_(destinations))
        .order_by(deliveries.c.id)
    )
    return [row.id for row in rows]


def _may_be_sent_again(tx: Connection, result_id: int) -> None:
    series_pk = tx.scalar(select(results.c.series_pk).where(results.c.id == result_id))
    if series_pk is None:
        raise NotFound(f"no result {result_id}")
    SERIES.row(tx, series_pk)  # locked: a replacement of the result is either seen here, or finds these deliveries
    found = tx.execute(select(results.c.superseded_at, results.c.shadow).where(results.c.id == result_id)).one()
    if found.superseded_at is not None:
        raise IllegalMove(f"result {result_id} was replaced by a later one of its series; resend that one")
    if found.shadow or not objects_of(tx, result_id):
        raise IllegalMove(f"result {result_id} has no objects that could be sent")


def _send_again(tx: Connection, delivery_id: int, now: float) -> None:
    state = DeliveryState(DELIVERY.row(tx, delivery_id)["state"])
    if state == DeliveryState.PENDING:
        hurry(tx, delivery_id, now)
    elif state != DeliveryState.SENDING:
        revive(tx, delivery_id, state, now, "sent again by an operator")


def revive(tx: Connection, delivery_id: int, leaving: DeliveryState, now: float, reason: str) -> None:
    """Start a delivery over: PENDING, its counters at zero. The fence stays: the destination may have it."""
    ended = dict.fromkeys(("committed_at", "commitment_uid", "unconfirmed_at", "error"))
    values = {"set_at": now, "due_at": now, **ended, **ANEW}
    move(
        tx,
        DELIVERY,
        delivery_id,
        leaving,
        DeliveryState.PENDING,
        now,
        values=values,
        detail={"reason": reason},
    )


def supersede_unsent(tx: Connection, series_pk: int, now: float, reason: str, replaces: Replaces = ALL_BEFORE) -> None:
    """Take those reports of a series out of the outbox that no destination has yet.

    One that is SENDING may be at the destination already, so its attempt goes on; `retry_later` does the rest.
    """
    # An expression, so that no database begins with all that ever failed instead of with the series.
    state = deliveries.c.state + ""
    unsent = (
        select(deliveries.c.id, deliveries.c.state)
        .select_from(deliveries.join(results))
        .where(results.c.series_pk == series_pk, replaces.condition())
        .where(state.in_([DeliveryState.PENDING.value, DeliveryState.FAILED.value]))
        .with_for_update(of=deliveries)
    )
    for row in tx.execute(unsent).all():
        move(
            tx,
            DELIVERY,
            row.id,
            row.state,
            DeliveryState.SUPERSEDED,
            now,
            values={"set_at": now, "due_at": None},
            detail={"reason": reason},
        )


def of_result(tx: Connection, result_id: int) -> list[dict[str, Any]]:
    """The deliveries of a result as a person wants to see them: destination, state, times, what went wrong."""
    names = ("id", "destination", "state", "attempts", "created_at", "sent_at", "due_at", "error")
    columns = [deliveries.c[name] for name in names]
    rows = tx.execute(select(*columns).where(deliveries.c.result_id == result_id).order_by(deliveries.c.id))
    return [dict(row) for row in rows.mappings()]


def left_for(tx: Connection, result_id: int) -> set[str]:
    """Names of the destinations that a result was sent to at least once: they may have it."""
    mine = (deliveries.c.result_id == result_id, deliveries.c.fence > 0)
    return set(tx.scalars(select(deliveries.c.destination).where(*mine)))


def has_work(tx: Connection, destination: str, now: float) -> bool:
    """Whether `claim` or `commitments.due` may have something for a destination. Every part of it is one seek."""
    due = [
        exists().where(
            deliveries.c.destination == destination, deliveries.c.state == state.value, deliveries.c.due_at <= now
        )
        for state in WAITING
    ]
    clock_went_back = exists().where(clock.set_in_the_future(deliveries, now))
    return bool(tx.scalar(select(or_(*due, clock_went_back))))


def note(
    tx: Connection,
    delivery_id: int,
    now: float,
    event: str,
    outcome: str | None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """An audit row about a delivery that is not a move."""
    row = DELIVERY.row(tx, delivery_id)
    audit.append(
        tx,
        now,
        event,
        audit.Subject(
            series_uid=row["series_uid"],
            study_uid=row["study_uid"],
            patient_id=row["patient_id"],
            job_id=row["job_id"],
            result_id=row["result_id"],
        ),
        outcome=outcome,
        detail={"destination": row["destination"], **(detail or {})},
    )
