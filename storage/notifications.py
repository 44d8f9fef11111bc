"""Notifications on their way: what the outbox does for results, for messages that are about no result.

A row is one message to one rule's mail addresses or webhook. It is made in the transaction that moves the rule's place
in the audit trail, so that each event makes it once; it is claimed with a lease and a fence, and sent again as it was
until it is there or given up. Its text goes once it was sent.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, func, insert, select, update

from storage import audit, pauses, tallies
from storage.coded import positive_column
from storage.deliveries import DeliveryState
from storage.errors import StaleLease
from storage.facts import get_fact
from storage.models import codes, findings, notifications, patients, properties, results, series, studies
from storage.models import deliveries as outbox
from storage.moves import in_state

STATE = "notifications"
CLOCK_S = 60.0
KEEP_S = 30 * 86400.0
"""For which a message that was sent or given up stays listed."""


class NotificationState(StrEnum):
    """Where a message is, as a delivery."""

    PENDING = "PENDING"
    SENDING = "SENDING"
    SENT = "SENT"
    FAILED = "FAILED"


@dataclass(frozen=True)
class Notification:
    """A claimed message. uid: by which a receiver tells a repeated one. content: JSON. attempts: this one included."""

    id: int
    uid: str
    rule: str
    channel: str
    kind: str
    content: str
    created_at: float
    attempts: int
    refusals: int


@dataclass(frozen=True)
class ToldResult:
    """What a notification may say of a result."""

    series_pk: int
    outcome: str
    reason_code: str | None
    positive: bool
    is_live: bool
    model_name: str
    model_digest: str
    patient_id: str
    accession_number: str
    study_date: str


def read_state(tx: Connection) -> str | None:
    """What the last look at the trail left, as JSON; None before the first."""
    return get_fact(tx, STATE)


def keep_state(tx: Connection, former: str | None, state: Mapping[str, Any]) -> None:
    """Keep it, in the transaction of the messages that were made. Raises StaleLease if it is no longer `former`."""
    value = json.dumps(state, sort_keys=True)
    if former is None:
        if get_fact(tx, STATE) is not None:
            raise StaleLease("another process has begun to notify")
        tx.execute(insert(properties).values(name=STATE, value=value))
        return
    unchanged = (properties.c.name == STATE, properties.c.value == former)
    if tx.execute(update(properties).where(*unchanged).values(value=value)).rowcount != 1:
        raise StaleLease("another process has notified")


def add(tx: Connection, rule: str, channel: str, kind: str, content: Mapping[str, Any], now: float) -> None:
    """A new message. It is due at once."""
    tx.execute(
        insert(notifications).values(
            uid=str(uuid.uuid4()),
            rule=rule,
            channel=channel,
            kind=kind,
            state=NotificationState.PENDING.value,
            content=json.dumps(content, ensure_ascii=False),
            due_at=now,
            set_at=now,
            created_at=now,
            attempts=0,
            refusals=0,
        )
    )
    ended = notifications.c.state.in_([NotificationState.SENT.value, NotificationState.FAILED.value])
    tx.execute(delete(notifications).where(ended, notifications.c.created_at < now - KEEP_S))


def made_since(tx: Connection, rule: str, since: float) -> list[float]:
    """When a rule's messages were made since a moment, the first first."""
    made = select(notifications.c.created_at).where(notifications.c.rule == rule, notifications.c.created_at > since)
    return list(tx.scalars(made.order_by(notifications.c.created_at)))


def _due(now: float) -> Select[Any]:
    """The first message that is due, or whose sender's lease is over. A clock that was ahead holds none up."""
    waits = in_state(notifications, NotificationState.PENDING, NotificationState.SENDING)
    due = (notifications.c.due_at <= now) | (notifications.c.set_at > now + CLOCK_S)
    return select(notifications.c.id, notifications.c.attempts).where(waits, due).order_by(notifications.c.id).limit(1)


def has_work(tx: Connection, now: float) -> bool:
    """Whether a message is due."""
    return tx.execute(_due(now)).first() is not None


def claim(tx: Connection, now: float, lease_s: float) -> Notification | None:
    """The next message that is due, or whose sender's lease is over. The attempt counts from now on."""
    found = tx.execute(_due(now).with_for_update(skip_locked=True)).first()
    if found is None:
        return None
    unchanged = (notifications.c.id == found.id, notifications.c.attempts == found.attempts)
    values = {"state": NotificationState.SENDING.value, "attempts": found.attempts + 1}
    changed = tx.execute(update(notifications).where(*unchanged).values(**values, due_at=now + lease_s, set_at=now))
    if changed.rowcount != 1:
        return None
    columns = [notifications.c[name] for name in Notification.__dataclass_fields__]
    return Notification(**tx.execute(select(*columns).where(notifications.c.id == found.id)).mappings().one())


def settle(
    tx: Connection,
    one: Notification,
    to: NotificationState,
    now: float,
    error: str | None,
    refusals: int,
    due_at: float = 0.0,
) -> bool:
    """How an attempt ended. to: PENDING for another one at `due_at`. False: somebody else has it now."""
    mine = and_(notifications.c.id == one.id, notifications.c.attempts == one.attempts)
    values: dict[str, Any] = {"state": to.value, "error": error, "due_at": due_at, "set_at": now}
    values["refusals"] = refusals
    if to != NotificationState.PENDING:
        values["content"] = ""
    held = in_state(notifications, NotificationState.SENDING)
    return tx.execute(update(notifications).where(mine, held).values(**values)).rowcount == 1


def latest(tx: Connection, limit: int = 50) -> list[dict[str, Any]]:
    """The latest messages, without what they say."""
    names = ("id", "rule", "channel", "kind", "state", "attempts", "error", "created_at")
    columns = [notifications.c[name] for name in names]
    found = tx.execute(select(*columns).order_by(notifications.c.id.desc()).limit(limit)).mappings()
    return [dict(row) for row in found]


def told_result(tx: Connection, result_id: int) -> ToldResult | None:
    """What may be told of a result; None if it is gone."""
    code = codes.alias()
    positive = select(func.count()).select_from(findings.join(code, code.c.id == findings.c.interpretation_id))
    positive = positive.where(findings.c.result_id == results.c.id, positive_column(code))
    row = tx.execute(
        select(
            *(results.c[name] for name in ("series_pk", "outcome", "reason_code", "model_name", "model_digest")),
            patients.c.patient_id,
            studies.c.accession_number,
            studies.c.study_date,
            (positive.scalar_subquery() > 0).label("positive"),
            (~results.c.shadow & results.c.batch_id.is_(None) & ~series.c.canary).label("is_live"),
        )
        .select_from(results.join(series).join(studies).join(patients))
        .where(results.c.id == result_id)
    ).mappings()
    found = row.first()
    return None if found is None else ToldResult(**found)


def stuck(tx: Connection, now: float, after_s: float) -> dict[str, str]:
    """Destinations that take nothing, with what is the matter in words: by tallies and one seek for each."""
    counts = tallies.read(tx)
    found = {}
    for name in counts.parts("deliveries"):
        failed = counts.rows("deliveries", DeliveryState.FAILED, name)
        pending = select(func.min(outbox.c.created_at)).where(in_state(outbox, DeliveryState.PENDING))
        oldest = tx.scalar(pending.where(outbox.c.destination == name))
        waits = oldest is not None and now - oldest > after_s
        if waits and not pauses.is_paused(tx, pauses.Pausable.DESTINATION, name):
            found[f"{name}: waiting"] = f"{name} has taken nothing for {(now - (oldest or now)) / 60:.0f} minutes."
        if failed:
            found[f"{name}: failed"] = f"Deliveries to {name} failed: {failed}. They are not tried again by themselves."
    return found


def note_end(tx: Connection, one: Notification, outcome: str, now: float, detail: Mapping[str, object]) -> None:
    """An audit row: a message was sent, or given up."""
    whole = {"rule": one.rule, "channel": one.channel, "kind": one.kind, "uid": one.uid, **detail}
    event = "notification.sent" if outcome == NotificationState.SENT else "notification.failed"
    audit.append(tx, now, event, outcome=outcome, detail=whole)
