"""Batches: one model on many series, for research. Their jobs are a lane of their own, and their results stay apart.

A batch has cases, one for each series (see batch_cases.py). A job of a batch is a shadow job with the batch's number:
its result has no objects and no deliveries, is never current, and no live result replaces it or is replaced by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from storage import audit
from storage.errors import NotFound
from storage.jobs import ModelRef
from storage.models import batch_cases, batches
from storage.moves import Machine, by_id, in_state, insert_row, move


class BatchState(StrEnum):
    """Where a batch is."""

    CREATING = "CREATING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    CANCELLED = "CANCELLED"


# Each state, and the states from which it may be entered. Rows are born CREATING.
TRANSITIONS: Mapping[str, frozenset[str]] = {
    BatchState.CREATING: frozenset(),
    BatchState.RUNNING: frozenset({BatchState.CREATING, BatchState.PAUSED}),  # all cases are there; `resume`
    BatchState.PAUSED: frozenset({BatchState.RUNNING}),
    BatchState.DONE: frozenset({BatchState.RUNNING}),  # every case has its result, or a reason why not
    BatchState.CANCELLED: frozenset({BatchState.CREATING, BatchState.RUNNING, BatchState.PAUSED}),
}
BATCH = Machine(
    "batch",
    batches,
    TRANSITIONS,
    select(batches.c.state, batches.c.id.label("batch")).where(by_id(batches)),
)


class CaseState(StrEnum):
    """Where a case is. DONE has a result; WITHOUT_RESULT has a reason instead."""

    WAITING = "WAITING"
    QUEUED = "QUEUED"
    DONE = "DONE"
    WITHOUT_RESULT = "WITHOUT_RESULT"


@dataclass(frozen=True)
class NewBatch:
    """What a batch is about. source: "store", "folder" or "pacs". query: what is asked of it, as JSON.

    labels, labels_sha256: path of the labels and digest of their bytes; None without.
    """

    source: str
    query: str
    model: ModelRef
    labels: str | None = None
    labels_sha256: str | None = None


@dataclass(frozen=True)
class Batch:
    """A batch with its counts. Times are Unix seconds; ended_at: when it was done or cancelled."""

    id: int
    state: BatchState
    source: str
    query: str
    cursor: str
    model: ModelRef
    labels: str | None
    labels_sha256: str | None
    cases: int
    queued: int
    done: int
    without_result: int
    created_at: float
    ended_at: float | None

    @property
    def ended(self) -> int:
        """How many cases have a result, or a reason why not."""
        return self.done + self.without_result

    @property
    def waiting(self) -> int:
        """How many cases nobody has taken up."""
        return self.cases - self.queued - self.ended


@dataclass(frozen=True)
class NewCase:
    """A series to be analysed. place: where its images are, as JSON; empty if they are in the index."""

    series_uid: str
    place: str = ""
    label_line: int | None = None
    series_pk: int | None = None


def create(tx: Connection, new: NewBatch, now: float, user: str) -> int:
    """A new batch without cases, CREATING. Returns its number."""
    values = {
        "state": BatchState.CREATING.value,
        "source": new.source,
        "query": new.query,
        "cursor": "",
        "model_name": new.model.name,
        "model_version": new.model.version,
        "model_digest": new.model.digest,
        "labels": new.labels,
        "labels_sha256": new.labels_sha256,
        **dict.fromkeys(("cases", "queued", "done", "without_result"), 0),
        "created_at": now,
    }
    batch_id = insert_row(tx, batches, values)
    detail = {
        "batch": batch_id,
        "user": user,
        "source": new.source,
        "model": f"{new.model.name} {new.model.version}",
        "model_digest": new.model.digest,
        "labels_sha256": new.labels_sha256,
    }
    audit.append(tx, now, "batch.created", outcome=BatchState.CREATING, detail=detail)
    return batch_id


def half_created(tx: Connection, new: NewBatch) -> Batch | None:
    """A batch about the same whose creation was interrupted; None if there is none."""
    same = (
        in_state(batches, BatchState.CREATING),
        batches.c.source == new.source,
        batches.c.query == new.query,
        batches.c.model_digest == new.model.digest,
        batches.c.labels_sha256.is_not_distinct_from(new.labels_sha256),
    )
    found = tx.scalar(select(batches.c.id).where(*same).order_by(batches.c.id).limit(1))
    return None if found is None else get(tx, int(found))


def add_cases(tx: Connection, batch_id: int, cases: Sequence[NewCase], cursor: str) -> int:
    """Add cases, and note how far the creation has come, in one transaction. Returns how many are new.

    A series is one case: if it is there already, its place becomes the later one.
    """
    new = 0
    upsert = sqlite_insert if tx.dialect.name == "sqlite" else postgresql_insert
    for case in cases:
        values = {**vars(case), "batch_id": batch_id, "state": CaseState.WAITING.value, "due_at": 0.0, "tries": 0}
        statement = upsert(batch_cases).values(values)
        new += tx.scalar(statement.on_conflict_do_nothing().returning(batch_cases.c.id)) is not None
    tx.execute(update(batches).where(batches.c.id == batch_id).values(cases=batches.c.cases + new, cursor=cursor))
    return new


def place_of(tx: Connection, batch_id: int, series_uid: str) -> str | None:
    """Where the images of a case are; None if the batch has no such case."""
    same = (batch_cases.c.batch_id == batch_id, batch_cases.c.series_uid == series_uid)
    found: str | None = tx.scalar(select(batch_cases.c.place).where(*same))
    return found


def set_place(tx: Connection, batch_id: int, series_uid: str, place: str) -> None:
    """A case's images are in more places than were known."""
    same = (batch_cases.c.batch_id == batch_id, batch_cases.c.series_uid == series_uid)
    tx.execute(update(batch_cases).where(*same).values(place=place))


def bring_to(tx: Connection, batch_id: int, state: BatchState, now: float, user: str = "") -> BatchState:
    """Move a batch, with its audit row. Returns the state that it left. Raises NotFound or IllegalMove."""
    leaving = BatchState(BATCH.row(tx, batch_id)["state"])
    ends = state in (BatchState.DONE, BatchState.CANCELLED)
    values = {"ended_at": now} if ends else {}
    move(tx, BATCH, batch_id, leaving, state, now, values=values, detail={"user": user} if user else None)
    return leaving


def to_feed(tx: Connection) -> list[Batch]:
    """The batches that run or still have jobs, the first comes first."""
    active = select(batches).where(in_state(batches, BatchState.RUNNING) | (batches.c.queued > 0))
    return [_batch(dict(row)) for row in tx.execute(active.order_by(batches.c.id)).mappings()]


def get(tx: Connection, batch_id: int) -> Batch:
    """One batch. Raises NotFound."""
    found = listed(tx, batch_id)
    if not found:
        raise NotFound(f"there is no batch {batch_id}; `dicom-node batch list` shows them")
    return found[0]


def listed(tx: Connection, batch_id: int | None = None) -> list[Batch]:
    """All batches, the latest first; or one."""
    query = select(batches).order_by(batches.c.id.desc())
    if batch_id is not None:
        query = query.where(batches.c.id == batch_id)
    return [_batch(dict(row)) for row in tx.execute(query).mappings()]


def _batch(row: dict[str, object]) -> Batch:
    model = ModelRef(*(str(row.pop(f"model_{name}")) for name in ("name", "version", "digest")))
    return Batch(**{**row, "state": BatchState(str(row["state"])), "model": model})  # type: ignore[arg-type]


def count(tx: Connection, batch_id: int, **changes: int) -> None:
    """Change the counts of a batch's cases, in the transaction that changes the cases."""
    changed = {name: batches.c[name] + by for name, by in changes.items() if by}
    if changed:
        tx.execute(update(batches).where(batches.c.id == batch_id).values(changed))


def rate_per_s(tx: Connection, batch_id: int, now: float, of_last: int = 200) -> float | None:
    """Cases that ended in a second, over the last ones; None if fewer than two have."""
    ended = select(batch_cases.c.ended_at).where(
        batch_cases.c.batch_id == batch_id, batch_cases.c.ended_at.is_not(None)
    )
    times = list(tx.scalars(ended.order_by(batch_cases.c.ended_at.desc()).limit(of_last)))
    return None if len(times) < 2 else (len(times) - 1) / max(now - times[-1], 1e-3)
