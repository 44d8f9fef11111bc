"""Group commit: one transaction for what several associations received while the last one was committed.

The fsync of the index is the expensive part of keeping an instance, and it costs the same for one row or fifty. So the
rows are handed to one thread, which commits whatever gathered during the last commit. The file's
own fsync runs in the association's thread at the same time: a crash in between can leave a row without its file,
which start-up reconciles, but success is answered only after both.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

import structlog
from sqlalchemy import Connection

from dicom_node.receiver.tickets import InFlight, Item, Lost, Note, RefusalNote, Ticket
from storage import audit, refused
from storage.arrival import Arrival, Outcome
from storage.database import Database
from storage.errors import DatabaseUnavailable, StorageError
from storage.files import StoredFile
from storage.lost import mark_lost
from storage.models import instances
from storage.recording import record_instances
from storage.refused import RefusedInstance

log = structlog.get_logger()

MAX_BATCH = 200
"""Rows in one transaction: bounds how long others wait for the index."""
MAX_LEFT_OVER = 1000
"""How many notes and refusals are kept while the index fails: further ones are only in the log."""
STUCK_S = 300.0
"""A commit that takes this long will not end: ten times as long as another process may lock the index."""


class _RolledBack(Exception):
    """Ends a transaction without effect."""


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
        self._in_flight = InFlight()
        self._lock = threading.Lock()
        # Notes and refusals of a transaction that failed: nobody will send those again.
        self._left_over: list[Item] = []
        self._busy_since: float | None = None
        self._under_way: list[Item] = []
        self._ended = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)

    def start(self) -> None:
        """Begin to commit."""
        self._warm_up()
        self._thread.start()

    def _warm_up(self) -> None:
        """Compile the statements in a transaction that is rolled back: the first slice must not wait for that."""
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
        """Commit what is queued, and end. Returns False if that took too long or failed.

        Then the thread is left behind, perhaps in the middle of a transaction; those who wait for it are answered.
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
        self._in_flight.enter(ticket)
        self._queue.put(ticket)
        if self._ended:
            self.abandon()
        return ticket

    def settle(self, ticket: Ticket, is_safe: bool) -> None:
        """Say what became of the ticket's file. If it is lost, so is the instance: a resend will be kept."""
        if not is_safe:
            self._queue.put(Lost(ticket.arrival))
        self._in_flight.leave(ticket, is_safe)

    def note(self, note: Note) -> None:
        """Queue an audit row; written with the next commit."""
        self._queue.put(note)

    def remember(self, instance: RefusedInstance, patience_s: float = 0.0) -> None:
        """Queue a refusal, and wait up to `patience_s` until it is durable.

        It is in the index before anything that is submitted later. If the index fails it is kept for the next commit.
        """
        refusal = RefusalNote(instance, self._clock())
        self._queue.put(refusal)
        if patience_s and not self._abandoned:
            refusal.settled.wait(patience_s)

    def failure(self) -> str | None:
        """Why no instance can be kept until this process is restarted; None while it works."""
        if self._ended:
            return "index-thread-ended"
        return "index-thread-stuck" if self.busy_s() > STUCK_S else None

    def busy_s(self) -> float:
        """How long the present commit has been under way, seconds."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

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
            # Whatever ended it, nobody may wait for it. Those who submit from now on look at this again.
            self._ended = True
            self.abandon()

    def abandon(self) -> None:
        """Answer all who wait for a thread that ended or is stuck. The outcome of its batch is not known."""
        self._abandoned = True
        error = DatabaseUnavailable("the index is no longer written")
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
            elif isinstance(item, RefusalNote):
                item.settled.set()

    def _gather(self) -> tuple[list[Item], bool]:
        """Everything that waits, at least one item; and False once the thread is asked to end."""
        item = self._queue.get()
        batch, self._left_over = self._left_over, []
        while item is not None:
            batch.append(item)
            # A loss is the last of its transaction: what was submitted after it must find it done.
            if len(batch) >= MAX_BATCH or isinstance(item, Lost):
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
            kept: list[Item] = [item for item in batch if isinstance(item, Note | RefusalNote)]
            self._left_over = kept[:MAX_LEFT_OVER]
            return
        except Exception as error:  # noqa: BLE001  the other half of the C-STORE handler: it must answer, and live on
            log.warning("commit failed", error=type(error).__name__, rows=len(batch))
            self._commit_one_by_one(batch, error)
            return
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket.decide(outcome)
        if len(tickets) < len(batch):
            for item in batch:
                if isinstance(item, RefusalNote):
                    item.settled.set()

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
                elif isinstance(item, RefusalNote):
                    refused.record(tx, item.instance, item.at)
                elif isinstance(item, Lost):
                    mark_lost(tx, instances.c.path == item.arrival.file.path, "missing", now)
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
