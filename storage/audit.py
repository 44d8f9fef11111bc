"""The audit trail: what happened, in the transaction of what it records, chained by hash, never changed.

Each row's hash is SHA-256 over the previous row's hash and the row's own content. If somebody alters or removes a
row with a database editor, `verify` shows it. Triggers refuse UPDATE and DELETE.

`append` collects; `Database.transaction` writes all rows of a transaction in one statement just before its
COMMIT. So the end of the chain is locked last and only for an instant, and no two transactions can deadlock there.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, func, insert, literal, select, text, tuple_

from storage import forgotten
from storage.models import audit, audit_archives
from storage.prepared import Prepared

PENDING = "audit_rows"
HEAD = "audit_head"
SELECT_LAST = Prepared(
    select(audit.c.hash, audit.c.id).where(audit.c.id == select(func.max(audit.c.id)).scalar_subquery())
)
FIRST = "0" * 64
# Made once: json.dumps makes an encoder for each call with options. Rows are hashed as they are written here.
_DETAIL = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
_CONTENT = json.JSONEncoder(ensure_ascii=False)
CHAIN_LOCK = 0x6175646974  # "audit": the key of PostgreSQL's advisory lock on the end of the chain
CONTENT = (
    "at event patient_id study_uid series_uid sop_uid job_id result_id peer_ae address outcome detail".split()  # noqa: SIM905
)
RECEIVED, ALWAYS_NEW = "instance.received", "NEW"
"""Of nearly all rows; they are in no index by event."""
IMPORTED = "#"
"""Ends the UID of what was imported, and begins the mark that keeps it apart from what was received."""
ALWAYS = 1e300
BY_TIME = (audit.c.at, audit.c.id)
RARE = audit.c.event != literal(RECEIVED, literal_execute=True)  # as the index has it
INSERT_ROWS = Prepared(insert(audit), [*CONTENT, "previous", "hash"])


@dataclass(frozen=True)
class Break:
    """The first row at which the chain does not hold."""

    audit_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class Subject:
    """What an event is about. Fields that do not apply are left out."""

    series_uid: str | None = None
    study_uid: str | None = None
    sop_uid: str | None = None
    patient_id: str | None = None
    job_id: int | None = None
    result_id: int | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """Who was at the other end of the association."""

    ae_title: str | None = None
    address: str | None = None


NOTHING, NOBODY = Subject(), Peer()


def append(
    tx: Connection,
    now: float,
    event: str,
    about: Subject = NOTHING,
    *,
    peer: Peer = NOBODY,
    outcome: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Record that something happened. The row is written if the transaction commits, and lost if it does not.

    event: "subject.verb" in lower case, such as "association.rejected". outcome: one upper-case word.
    detail: JSON types only.
    """
    row = {
        "at": float(now),
        "event": event,
        "patient_id": about.patient_id,
        "study_uid": _plain(about.study_uid),
        "series_uid": _plain(about.series_uid),
        "sop_uid": _plain(about.sop_uid),
        "job_id": about.job_id,
        "result_id": about.result_id,
        "peer_ae": peer.ae_title,
        "address": peer.address,
        "outcome": outcome,
        "detail": _DETAIL.encode(detail) if detail else None,
    }
    tx.info.setdefault(PENDING, []).append(row)


def _plain(uid: str | None) -> str | None:
    """A UID as DICOM has it, of one that the index marks as imported (see imported.py)."""
    return uid if uid is None else uid.partition(IMPORTED)[0]


def flush(tx: Connection) -> None:
    """Write the rows collected so far, chained to the last one. `Database.transaction` calls this before COMMIT."""
    rows: list[dict[str, Any]] = tx.info.pop(PENDING, [])
    if not rows:
        return
    if tx.dialect.name == "postgresql":
        tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CHAIN_LOCK})
    last = SELECT_LAST.execute(tx, {})
    previous, number = last[0] if last else (FIRST, 0)
    for row in rows:
        row["previous"] = previous
        row["hash"] = previous = _digest(previous, row)
    INSERT_ROWS.execute(tx, *rows)
    tx.info[HEAD] = (number + len(rows), previous)


def written_head(tx: Connection) -> tuple[int, str] | None:
    """For the transaction just committed: the hash of its last row, and a lower bound of that row's number."""
    head: tuple[int, str] | None = tx.info.pop(HEAD, None)
    return head


def forget(tx: Connection) -> None:
    """Drop the rows collected so far: their transaction did not happen."""
    tx.info.pop(PENDING, None)
    tx.info.pop(HEAD, None)


def _digest(previous: str, row: Mapping[str, Any]) -> str:
    content = _CONTENT.encode([previous, *(row[name] for name in CONTENT)])
    return hashlib.sha256(content.encode("utf-8")).hexdigest()


def verify(tx: Connection, see: Callable[[Mapping[str, Any]], None] = lambda row: None) -> Break | None:
    """Walk the whole chain, from the end of the archives. Returns the first row that does not fit, or None if all do.

    A chain whose last rows were cut off still holds: compare `head` with one noted elsewhere. see: gets each row.
    """
    flush_if_writing(tx)
    number, previous = archived(tx)
    later = select(audit).where(audit.c.id > number).order_by(audit.c.id)
    for row in tx.execute(later.execution_options(yield_per=1000)).mappings():
        reason = why_broken(previous, dict(row))
        if reason is not None:
            return Break(row["id"], reason)
        previous = row["hash"]
        see(dict(row))
    return None


def why_broken(previous: str, row: Mapping[str, Any]) -> str | None:
    """Why a row does not follow the one with the hash `previous`; None if it does.

    The hash of a row out of which a patient was taken cannot be computed; see forgotten.py for what holds it.
    """
    if row["previous"] != previous:
        return "the row before it is missing, or rows were exchanged"
    whole = row["hash"] == _digest(previous, row) or forgotten.part_of(row) is not None
    return None if whole else "its content was altered"


def archived(tx: Connection) -> tuple[int, str]:
    """Number and hash of the last row that is in an archive; 0 and FIRST without archives."""
    last = select(audit_archives.c.last_id, audit_archives.c.hash).order_by(audit_archives.c.last_id.desc()).limit(1)
    row = tx.execute(last).first()
    return (row.last_id, row.hash) if row else (0, FIRST)


def head(tx: Connection) -> tuple[int, str]:
    """Number and hash of the last row: note them outside to be able to prove that nothing was cut off."""
    flush_if_writing(tx)
    row = tx.execute(select(audit.c.id, audit.c.hash).order_by(audit.c.id.desc()).limit(1)).first()
    return (row.id, row.hash) if row else (0, FIRST)


def holds(tx: Connection, head: tuple[int, str]) -> bool:
    """True if the trail still has the row that was once its last; see `written_head`."""
    if head[1] == FIRST:
        return True
    found = select(audit.c.id).where(audit.c.id >= head[0], audit.c.hash == head[1]).limit(1)
    return tx.scalar(found) is not None


def flush_if_writing(tx: Connection) -> None:
    """Make the rows collected in this transaction visible to its own queries."""
    if tx.info.get(PENDING):
        flush(tx)


def search(
    tx: Connection,
    *,
    patient: str | None = None,
    study: str | None = None,
    series: str | None = None,
    since: float | None = None,
    until: float | None = None,
    outcome: str | None = None,
    event: str | None = None,
    limit: int | None = None,
    before: tuple[float, int] | None = None,
) -> Sequence[dict[str, Any]]:
    """Rows that match everything given, in the order in which they were written; with `limit`, the latest so many.

    patient: Patient ID. study, series: Instance UIDs. since, until: Unix seconds, both included.
    event: the event itself, or its first words: "job" matches "job.queued".
    before: time and number of a row: only what comes before it in the order in which this reads.
    """
    flush_if_writing(tx)
    subjects = ((audit.c.patient_id, patient), (audit.c.study_uid, study), (audit.c.series_uid, series))
    about = [column == value for column, value in subjects if value is not None]
    between = (since if since is not None else -ALWAYS, until if until is not None else ALWAYS)
    times = [] if since is None and until is None else [audit.c.at.between(*between)]
    if about or (event is None and outcome is None):
        # By time only if a time is given: after a clock was ahead, the latest row is still the one written last.
        order = BY_TIME if times and not about else (audit.c.id,)
        found = _latest(tx, [*about, *times, *_of_kind(event, outcome), *_before(order, before)], order, limit)
    else:
        found = []
        for kind in _kinds(tx, event, outcome):
            found += _latest_of_kind(tx, kind, between, limit, before)
        found = sorted(found, key=lambda row: (row["at"], row["id"]), reverse=True)[:limit]
    for row in found:
        row["detail"] = json.loads(row["detail"]) if row["detail"] else {}
    return sorted(found, key=lambda row: int(row["id"]))


def _latest(
    tx: Connection, conditions: Sequence[ColumnElement[bool]], order: Sequence[Column[Any]], limit: int | None
) -> list[dict[str, Any]]:
    query = select(audit).where(*conditions).order_by(*(column.desc() for column in order)).limit(limit)
    return [dict(row) for row in tx.execute(query).mappings()]


def _before(order: Sequence[Column[Any]], row: tuple[float, int] | None) -> list[ColumnElement[bool]]:
    """The condition that a row comes before this one in an order. The first one alone is what SQLite seeks by."""
    if row is None:
        return []
    if order == BY_TIME:
        return [audit.c.at <= row[0], tuple_(*BY_TIME) < tuple_(*row)]
    return [audit.c.id < row[1]]


def _of_kind(event: str | None, outcome: str | None) -> list[ColumnElement[bool]]:
    conditions = [audit.c.outcome == outcome] if outcome is not None else []
    if event is not None:
        conditions.append((audit.c.event == event) | audit.c.event.startswith(f"{event}.", autoescape=True))
    return conditions


Kind = tuple[str, str | None]
"""An event and an outcome. The rows of each are in one piece of an index, by time."""


def _latest_of_kind(
    tx: Connection,
    kind: Kind,
    between: tuple[float, float],
    limit: int | None,
    before: tuple[float, int] | None,
) -> list[dict[str, Any]]:
    event, outcome = kind
    if event == RECEIVED:
        received = [audit.c.event == event, audit.c.at.between(*between), *_before(BY_TIME, before)]
        return _latest(tx, received, BY_TIME, limit)
    of_kind = [RARE, audit.c.event == event, audit.c.outcome == outcome, audit.c.at.between(*between)]
    of_kind += _before(BY_TIME, before)
    return _latest(tx, of_kind, BY_TIME, limit)


def _kinds(tx: Connection, event: str | None, outcome: str | None) -> Iterator[Kind]:
    """What makes up an event or an outcome. There are few of both: one seek finds each of those that exist."""
    if outcome in (None, ALWAYS_NEW) and (event is None or f"{RECEIVED}.".startswith(f"{event}.")):
        yield RECEIVED, ALWAYS_NEW
    name: str | None = ""
    while (name := tx.scalar(select(func.min(audit.c.event)).where(RARE, audit.c.event > name))) is not None:
        if event is None or f"{name}.".startswith(f"{event}."):
            for one in [outcome] if outcome is not None else _outcomes(tx, name):
                yield name, one


def _outcomes(tx: Connection, event: str) -> Iterator[str | None]:
    yield None
    of_event = select(func.min(audit.c.outcome)).where(RARE, audit.c.event == event)
    outcome: str | None = tx.scalar(of_event)
    while outcome is not None:
        yield outcome
        outcome = tx.scalar(of_event.where(audit.c.outcome > outcome))
