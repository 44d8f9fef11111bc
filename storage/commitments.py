"""Does a destination keep what it took? The questions about SENT deliveries, counted, and what the answers do.

A question is counted before it goes out, together with the end of its wait. So it counts even if the process dies
while asking, and no other process asks in the meantime.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, select, update

from storage import clock
from storage.deliveries import DELIVERY, DeliveryState, not_stored, note
from storage.errors import NotFound, StaleLease
from storage.models import deliveries, patients, results, series, studies
from storage.moves import move
from storage.results import StoredObject, objects_of


@dataclass(frozen=True)
class Commitment:
    """A SENT delivery whose destination is asked whether it keeps it.

    questions: how many were not answered since it was sent. resends: how often it was sent again as it was not kept.
    transaction_uid: of the last storage commitment request, None before the first.
    objects: those that the destination took; a class that it does not know was left out.
    """

    delivery_id: int
    destination: str
    questions: int
    resends: int
    transaction_uid: str | None
    patient_id: str
    study_instance_uid: str
    objects: tuple[StoredObject, ...]


def due(tx: Connection, destination: str, now: float, limit: int = 10) -> list[Commitment]:
    """SENT deliveries to ask about now: never asked about, or not answered in time."""
    clock.start_waits_again(tx, deliveries, (DeliveryState.SENT,), now, few_in_state=False)
    rows = tx.execute(
        _commitments()
        .where(deliveries.c.destination == destination, deliveries.c.state == DeliveryState.SENT.value)
        .where(deliveries.c.due_at <= now)
        .order_by(deliveries.c.due_at)
        .limit(limit)
    ).mappings()
    return [_commitment(tx, row) for row in rows.all()]


def find(tx: Connection, transaction_uid: str) -> Commitment:
    """The delivery that a storage commitment answer is about. Raises NotFound."""
    row = tx.execute(_commitments().where(deliveries.c.commitment_uid == transaction_uid)).mappings().first()
    if row is None:
        raise NotFound("no delivery waits for this storage commitment transaction")
    return _commitment(tx, row)


def _commitments() -> Select[Any]:
    """Deliveries as the columns of Commitment, except the objects."""
    return select(
        deliveries.c.id.label("delivery_id"),
        deliveries.c.destination,
        deliveries.c.commitment_attempts.label("questions"),
        deliveries.c.resends,
        deliveries.c.commitment_uid.label("transaction_uid"),
        patients.c.patient_id,
        studies.c.study_instance_uid,
        deliveries.c.result_id,
        deliveries.c.object_status,
    ).select_from(deliveries.join(results).join(series).join(studies).join(patients))


def _commitment(tx: Connection, row: RowMapping) -> Commitment:
    found = dict(row)
    objects = [item for item in objects_of(tx, found.pop("result_id")) if item.kind.is_sent]
    taken = json.loads(found.pop("object_status") or "{}")
    # Without statuses nothing says that an object was left out.
    return Commitment(**found, objects=tuple(o for o in objects if o.sop_instance_uid in taken or not taken))


def ask(tx: Connection, delivery_id: int, now: float, again_at: float, transaction_uid: str | None = None) -> None:
    """Count a question that goes out now. again_at: when the next one is due if it has no answer.

    transaction_uid: of a storage commitment request; None for a query. It is noted before the request goes out, because
    the answer may come on another association before our next line runs.
    Raises StaleLease if the delivery is not SENT.
    """
    request = {} if transaction_uid is None else {"commitment_uid": transaction_uid}
    asked = deliveries.c.commitment_attempts + 1
    _while_sent(tx, delivery_id, commitment_attempts=asked, set_at=now, due_at=again_at, **request)
    if transaction_uid is not None:
        note(tx, delivery_id, now, "delivery.commitment-requested", None, {"transaction_uid": transaction_uid})


def not_answered(tx: Connection, delivery_id: int, now: float, reason: str) -> None:
    """Audit that a question had no answer; the next one is due already."""
    note(tx, delivery_id, now, "delivery.commitment-not-answered", None, {"reason": reason})


def give_up(tx: Connection, delivery_id: int, now: float, reason: str) -> None:
    """Stop asking. The delivery stays SENT and counts as unconfirmed in `status`. Raises StaleLease."""
    _while_sent(tx, delivery_id, set_at=now, due_at=None, unconfirmed_at=now, error=f"unconfirmed: {reason}")
    note(tx, delivery_id, now, "delivery.unconfirmed", "UNCONFIRMED", {"reason": reason})


def _while_sent(tx: Connection, delivery_id: int, **values: object) -> None:
    sent = (deliveries.c.id == delivery_id) & (deliveries.c.state == DeliveryState.SENT.value)
    if tx.execute(update(deliveries).where(sent).values(**values)).rowcount != 1:
        raise StaleLease(f"delivery {delivery_id} does not wait for a commitment")


def mark_committed(tx: Connection, delivery_id: int, now: float, how: str = "storage-commitment") -> None:
    """The destination keeps every object. how: "storage-commitment" or "c-find".

    Harmless when repeated. Raises IllegalMove if the delivery was not SENT.
    """
    if DELIVERY.row(tx, delivery_id)["state"] == DeliveryState.COMMITTED:
        return
    values = {"committed_at": now, "set_at": now, "due_at": None, "unconfirmed_at": None, "error": None}
    move(
        tx, DELIVERY, delivery_id, DeliveryState.SENT, DeliveryState.COMMITTED, now, values=values, detail={"how": how}
    )


def send_again(tx: Connection, delivery_id: int, now: float, retry_at: float, error: str) -> DeliveryState:
    """The destination does not keep what it took: SENT to PENDING until `retry_at`.

    Returns SUPERSEDED if a later report replaces this one, else PENDING. Raises IllegalMove.
    """
    counted = {**NO_QUESTION, "resends": deliveries.c.resends + 1}
    return not_stored(tx, delivery_id, DeliveryState.SENT, DeliveryState.PENDING, now, retry_at, error, counted=counted)


def fail(tx: Connection, delivery_id: int, now: float, error: str) -> DeliveryState:
    """The destination never keeps it, however often it took it: SENT to FAILED, shown in `status` until `retry`.

    Returns SUPERSEDED if a later report replaces this one, else FAILED. Raises IllegalMove.
    """
    return not_stored(tx, delivery_id, DeliveryState.SENT, DeliveryState.FAILED, now, None, error, counted=NO_QUESTION)


# An answer to the request that is out does not answer what is sent next.
NO_QUESTION = {"commitment_uid": None, "unconfirmed_at": None}
