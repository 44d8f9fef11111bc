"""What associations hand to the thread that writes to the index, and how they learn what became of it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.arrival import Arrival, Outcome
from storage.errors import StorageError
from storage.refused import RefusedInstance


class Ticket:
    """A promise about one arrival: what became of its row, and whether its file is durable."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        # Locks that are free once the answer is known: they cost a fraction of what events cost.
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
        """Decide now if that has not happened: nobody else is left to do it."""
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


@dataclass(frozen=True)
class RefusalNote:
    """An instance that is not kept, to be remembered. settled: set once that is durable, or nobody is left to do it."""

    instance: RefusedInstance
    at: float
    settled: threading.Event = field(default_factory=threading.Event)


Item = Ticket | Note | Lost | RefusalNote


class InFlight:
    """The arrivals whose file is not known to be durable yet, one for each SOP Instance UID.

    The same instance may come on several associations at once. A duplicate is acknowledged because the earlier file is
    there, so that file must first be durable, or known not to be.
    """

    def __init__(self) -> None:
        self._tickets: dict[str, Ticket] = {}
        self._lock = threading.Lock()

    def enter(self, ticket: Ticket) -> None:
        """Block until no other arrival of the same instance is in flight; then this one is."""
        while (earlier := self._first(ticket)) is not ticket:
            earlier.file_is_safe()

    def _first(self, ticket: Ticket) -> Ticket:
        with self._lock:
            return self._tickets.setdefault(ticket.arrival.sop_instance_uid, ticket)

    def leave(self, ticket: Ticket, is_safe: bool) -> None:
        """The file's fate is known."""
        with self._lock:
            del self._tickets[ticket.arrival.sop_instance_uid]
        ticket.settle_file(is_safe)
