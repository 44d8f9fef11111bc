"""Group commit: one transaction for what several associations received in the meantime.

The fsync of the index is the dear part of keeping an instance, and it costs the same for one row or fifty. So the
rows are handed to one thread, which commits whatever has gathered while the last commit was under way. The file's
own fsync runs in the association's thread at the same time: a crash in between can leave a row without its file,
which start-up reconciles, but success is answered only after both.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import structlog
from sqlalchemy import Connection, update

from storage import audit
from storage.arrival import Arrival, Outcome
from storage.database import Database
from storage.errors import CorruptFile, DatabaseUnavailable, StorageError
from storage.files import FileStore, StoredFile
from storage.models import instances
from storage.recording import held_file, record_instances, replace_file

log = structlog.get_logger()

MAX_BATCH = 200
"""Rows in one transaction: bounds how long others wait for the index."""
STUCK_S = 300.0
"""A commit that takes this long will not end: ten times what the index may be locked by another process."""


class Ticket:
    """A promise about one arrival: what became of its row, and whether its file is durable."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        # Locks that are free once the answer is known: a fraction of what events cost.
        self._row = threading.Lock()
        self._row.acquire()
        self._file = threading.Lock()
        self._file.acquire()
        self._outcome: Outcome | None = None
        self._error: Exception | None = None
        self._file_is_safe = False

    def decide(self, outcome: Outcome | None, error: Exception | None = None) -> None:
        """The committer's word, once: the row is durable with this outcome, or it is not there."""
        self._outcome, self._error = outcome, error
        self._row.release()

    def give_up(self, error: Exception) -> None:
        """Decide where that did not happen yet: nobody is left who would."""
        if self._outcome is None and self._error is None:
            self.decide(None, error)

    def wait(self) -> Outcome:
        """Block until the row is durable. Raises what kept it from being so."""
        with self._row:
            pass
        if self._error is not None:
            raise self._error
        if self._outcome is None:
            raise StorageError("the index gave no outcome")
        return self._outcome

    def settle_file(self, is_safe: bool) -> None:
        """The association's word, once: the file is durable, or it could not be made so."""
        self._file_is_safe = is_safe
        self._file.release()

    def file_is_safe(self) -> bool:
        """Block until the file's fate is known."""
        with self._file:
            return self._file_is_safe


@dataclass(frozen=True)
class Note:
    """One audit row that belongs to no instance."""

    event: str
    at: float
    peer_ae: str | None = None
    address: str | None = None
    outcome: str | None = None
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """An instance whose row was committed and whose file then could not be made durable."""

    arrival: Arrival


class _RolledBack(Exception):
    """Ends a transaction without effect."""


Item = Ticket | Note | Lost


class Committer:
    """The thread that writes to the index for all associations.

    quiet_s: seconds by calling AE title, see `record_instances`. clock: Unix seconds.
    """

    def __init__(
        self, database: Database, quiet_s: Callable[[str], float], clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._quiet_s = quiet_s
        self._clock = clock
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        # By SOP Instance UID: arrivals whose file is not known to be durable yet.
        self._in_flight: dict[str, Ticket] = {}
        self._lock = threading.Lock()
        self._busy_since: float | None = None
        self._under_way: list[Item] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._warm_up()
        self._thread.start()

    def _warm_up(self) -> None:
        """Have the statements compiled, in a transaction that is rolled back: the first slice must not wait for it."""
        file = StoredFile("warm-up", "", 0)
        arrival = Arrival("0", "", "0", "0", "", "", "", "", file)
        try:
            with self._database.transaction() as tx:
                record_instances(tx, [arrival], 0.0, 0.0)
                audit.flush(tx)
                raise _RolledBack
        except (_RolledBack, StorageError):
            pass

    def stop(self, patience_s: float) -> bool:
        """Commit what is queued, and end. Returns False where that took too long or failed.

        The thread is left then, perhaps in the middle of a transaction; who waits for it is answered.
        """
        self._queue.put(None)
        self._thread.join(patience_s if self.failure() is None else 0)
        if not self._thread.is_alive():
            return True
        log.error("index thread left behind", busy_s=round(self.busy_s(), 1))
        self.abandon()
        return False

    def submit(self, arrival: Arrival) -> Ticket:
        """Queue an arrival whose bytes are written. The caller settles the ticket's file, whatever happens."""
        ticket = Ticket(arrival)
        # The same instance on several associations at once: a duplicate is acknowledged on the strength of the
        # earlier one's file, so that one has to be durable, or known not to be, first.
        while (earlier := self._first_in_flight(ticket)) is not ticket:
            earlier.file_is_safe()
        self._queue.put(ticket)
        if self._ended:
            self.abandon()
        return ticket

    def _first_in_flight(self, ticket: Ticket) -> Ticket:
        with self._lock:
            return self._in_flight.setdefault(ticket.arrival.sop_instance_uid, ticket)

    def settle(self, ticket: Ticket, is_safe: bool) -> None:
        """Say what became of the ticket's file. Where it is lost, so is the instance: a resend will be kept."""
        if not is_safe:
            self._queue.put(Lost(ticket.arrival))
        with self._lock:
            del self._in_flight[ticket.arrival.sop_instance_uid]
        ticket.settle_file(is_safe)

    def rely_on_held(self, arrival: Arrival, files: FileStore) -> None:
        """Before an instance that the index holds already is acknowledged: make sure of the file that it names.

        That file may never have been made durable (a receiver that died between the row and the fsync), or be gone.
        The arrival's own file, which is durable, takes its place then; else it is removed. Raises StorageError.
        """
        with self._database.read() as tx:
            held = held_file(tx, arrival)
        if held is None:
            raise StorageError("the index does not hold this instance")
        if held == arrival.file.path:
            return
        try:
            files.make_durable(held, arrival.file.sha256)
        except CorruptFile:
            with self._database.transaction() as tx:
                replace_file(tx, arrival, held, self._clock())
            return
        files.remove(arrival.file.path)

    def failure(self) -> str | None:
        """Why no instance can be kept any more until this process is started anew; None while it works."""
        if self._ended:
            return "index-thread-ended"
        return "index-thread-stuck" if self.busy_s() > STUCK_S else None

    def busy_s(self) -> float:
        """For how long the commit under way has been so, seconds."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def note(self, note: Note) -> None:
        """Queue an audit row; written with the next commit."""
        self._queue.put(note)

    def _run(self) -> None:
        going_on = True
        try:
            while going_on:
                batch, going_on = self._gather()
                self._busy_since = time.monotonic()
                self._under_way = batch
                self._commit(batch)
                self._under_way = []
                self._busy_since = None
        finally:
            # Whatever ended it, nobody may wait for it for ever. Who submits from now on looks at this again.
            self._ended = True
            self.abandon()

    def abandon(self) -> None:
        """Answer all who wait for a thread that ended or is stuck; what becomes of the batch it began, nobody knows."""
        error = DatabaseUnavailable("the index is written no more")
        with self._lock:
            left, self._under_way = self._under_way, []
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    left.append(item)
        for item in left:
            if isinstance(item, Ticket):
                item.give_up(error)

    def _gather(self) -> tuple[list[Item], bool]:
        """Everything that waits, at least one item; and False once the end was asked for."""
        item = self._queue.get()
        batch: list[Item] = []
        while item is not None:
            batch.append(item)
            # A loss is the last of its transaction: what was submitted after it must find it done.
            if len(batch) == MAX_BATCH or isinstance(item, Lost):
                return batch, True
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _commit(self, batch: list[Item]) -> None:
        tickets = [item for item in batch if isinstance(item, Ticket)]
        try:
            outcomes = self._write(batch, tickets)
        except StorageError as error:
            # The index itself: each row alone would fare no better, and wait as long.
            log.warning("commit failed", error=type(error).__name__, rows=len(batch))
            for ticket in tickets:
                ticket.decide(None, error)
            return
        except Exception as error:  # noqa: BLE001  the other half of the C-STORE handler: it must answer, and live on
            log.warning("commit failed", error=type(error).__name__, rows=len(batch))
            self._commit_one_by_one(batch, error)
            return
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.decide(outcome)

    def _commit_one_by_one(self, batch: list[Item], error: Exception) -> None:
        """One row that the index refuses must not fail the others of its batch."""
        if len(batch) > 1:
            for item in batch:
                self._commit([item])
        elif batch and isinstance(batch[0], Ticket):
            batch[0].decide(None, error)

    def _write(self, batch: list[Item], tickets: list[Ticket]) -> list[Outcome]:
        if not batch:
            return []
        now = self._clock()
        with self._database.transaction() as tx:
            outcomes = (
                record_instances(tx, [ticket.arrival for ticket in tickets], now, self._quiet_s) if tickets else []
            )
            for item in batch:
                if isinstance(item, Note):
                    _append(tx, item)
                elif isinstance(item, Lost):
                    _mark_lost(tx, item.arrival, now)
            return outcomes


def _append(tx: Connection, note: Note) -> None:
    audit.append(
        tx,
        note.at,
        note.event,
        peer=audit.Peer(ae_title=note.peer_ae, address=note.address),
        outcome=note.outcome,
        detail=note.detail,
    )


def _mark_lost(tx: Connection, arrival: Arrival, now: float) -> None:
    """As start-up does for a file that is missing: the next one that arrives takes its place."""
    held = (instances.c.path == arrival.file.path) & instances.c.gone_at.is_(None)
    changed = tx.execute(update(instances).where(held).values(gone_at=now, gone_reason="missing"))
    if changed.rowcount:
        audit.append(
            tx,
            now,
            "instance.lost",
            audit.Subject(
                sop_uid=arrival.sop_instance_uid,
                series_uid=arrival.series_instance_uid,
                study_uid=arrival.study_instance_uid,
            ),
            outcome="MISSING",
            detail={"path": arrival.file.path, "sha256": arrival.file.sha256, "size": arrival.file.size},
        )
