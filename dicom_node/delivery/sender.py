"""The outbox loop: sends each result to each destination until it is there, however long that takes.

One thread per destination, so that a slow PACS delays no other. What is sent are the bytes that the worker stored,
digest checked, or a message that was composed once and kept, so that every resend is the same instance or message. A
lost answer therefore costs a resend and no more.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Connection

from config.settings import AnyDestination, Destination, Settings
from dicom_node import heartbeat
from dicom_node.delivery.backoff import backoff_s
from dicom_node.delivery.commitment import Asking, Clock
from dicom_node.delivery.commitment_listener import CommitmentListener
from dicom_node.delivery.ways import way_of
from dicom_node.errors import NodeError
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from dicom_node.waits import doubling_s
from inference.models.registry import is_demonstration
from storage import commitments, deliveries, pauses
from storage.database import Database
from storage.deliveries import ClaimedDelivery
from storage.errors import CorruptFile, StaleLease, StorageError, StoreUnavailable
from storage.files import FileStore
from storage.pauses import Pausable

log = structlog.get_logger()

DRAIN_S = 50.0
LONGEST_PAUSE_S = 60.0
"""A destination that is away is tried this often, with one of the deliveries that wait for it and not with each."""
NOT_TOLD = (AttemptOutcome.REFUSED, AttemptOutcome.WITHHELD)
"""After these the destination does not have what was sent. After an attempt without an answer it may."""
WITHHELD = Verdict(
    AttemptOutcome.WITHHELD, "a demonstration model made this result, and the destination is not on this machine"
)


def run(settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> None:
    """Send from the outbox until `stop` is set; a sending under way is finished within its time.

    Raises PortTaken when the port for storage commitment answers cannot be listened on.
    """
    senders = [DestinationSender(settings, d, database, files) for d in settings.served_destinations]
    threads = [threading.Thread(target=s.run, args=(stop,), name=f"send-{s.name}", daemon=True) for s in senders]
    listener = CommitmentListener(settings, database) if settings.sender.commitment.port else None
    if listener is not None:
        listener.start()
    for thread in threads:
        thread.start()
    log.info("sender started", destinations=[s.name for s in senders])
    stop.wait()
    deadline = time.monotonic() + DRAIN_S
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if listener is not None:
        listener.stop()


def clock_from(now: float) -> Clock:
    """The time counted from `now`, whatever happens to the machine's clock."""
    began = time.monotonic()
    return lambda: now + time.monotonic() - began


class DestinationSender:
    """Sends the deliveries of one destination, one after the other."""

    def __init__(self, settings: Settings, destination: AnyDestination, database: Database, files: FileStore) -> None:
        self.name = destination.name
        self._settings = settings
        self._destination = destination
        self._database = database
        self._way = way_of(settings, destination, database, files)
        self._asking = None
        if isinstance(destination, Destination):
            self._asking = Asking(settings, destination, database, files)
        self._times_away = 0
        self._away_until = 0.0
        self._paused = False
        self._overtaken: list[ClaimedDelivery] = []
        self._host = socket.gethostname() if database.is_server else ""

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        failures = 0
        while not stop.is_set():
            try:
                idle_s = 0.0 if self.work_once(self._database.now()) else self._settings.sender.poll_s
                failures = 0
            except Exception as error:  # noqa: BLE001 - the sender loop outlives every delivery
                # The type and not the text: a library's message may quote patient data.
                log.error("delivery could not be handled", destination=self.name, error=type(error).__name__)
                failures += 1
                idle_s = doubling_s(self._settings.sender.poll_s, failures, LONGEST_PAUSE_S)
            stop.wait(idle_s)

    def work_once(self, now: float) -> bool:
        """Send one delivery, or ask about one that was sent. Returns False if nothing was due."""
        clock = clock_from(now)
        self._set_right(now)
        with self._database.read() as tx:
            if self._is_paused(tx) or self._is_away(now) or not deliveries.has_work(tx, self.name, now):
                return False
        with self._database.transaction() as tx:
            claimed = deliveries.claim(tx, self.name, now, self._settings.sender.lease_s, host=self._host)
        if claimed:
            self._deliver(claimed[0], clock)
            return True
        return self._asking.settle_one(clock) if self._asking else self._ask_no_more(clock())

    def _ask_no_more(self, now: float) -> bool:
        """End a wait for a confirmation that began while the destination was a PACS. Returns False if none was due."""
        with self._database.transaction() as tx:
            due = commitments.due(tx, self.name, now, limit=1)
            for waiting in due:
                commitments.give_up(tx, waiting.delivery_id, now, "destinations of its kind cannot be asked")
        return bool(due)

    def _is_paused(self, tx: Connection) -> bool:
        """Whether a person has paused this destination; said once. Who resumes it says that it answers again."""
        paused = pauses.is_paused(tx, Pausable.DESTINATION, self.name)
        if paused is not self._paused:
            log.warning("destination is paused" if paused else "destination is resumed", destination=self.name)
            self._times_away, self._away_until = 0, 0.0
        self._paused = paused
        return paused

    def _is_away(self, now: float) -> bool:
        """Whether it did not answer a moment ago. A clock that was set back keeps nobody waiting longer."""
        return now < self._away_until <= now + LONGEST_PAUSE_S

    def _deliver(self, claimed: ClaimedDelivery, clock: Clock) -> None:
        started = time.monotonic()
        try:
            with self._lease(claimed):
                verdict = self._attempt(claimed, clock)
        except StaleLease:
            log.warning("delivery not sent: its lease was over", destination=self.name, series=claimed.series_pk)
            return
        self._note_away(verdict, clock())
        try:
            self._record(claimed, verdict, clock())
        except StaleLease:
            log.warning("delivery lost to another sender", destination=self.name, series=claimed.series_pk)
            if verdict.sent and verdict.outcome not in NOT_TOLD:
                self._overtaken.append(claimed)
                self._set_right(clock())
        delivered = verdict.outcome == AttemptOutcome.DELIVERED
        (log.info if delivered else log.warning)(
            "delivery attempted",
            destination=self.name,
            series=claimed.series_pk,
            attempt=claimed.attempt,
            outcome=verdict.outcome.lower(),
            detail=verdict.text,
            seconds=round(time.monotonic() - started, 3),
        )

    def _set_right(self, now: float) -> None:
        """At once, in the index: if this process is gone a moment later, another sender goes on. If the index cannot be
        written, it is tried again before anything else."""
        while self._overtaken:
            self._way.set_right(self._overtaken[0], now)
            del self._overtaken[0]

    def _attempt(self, claimed: ClaimedDelivery, clock: Clock) -> Verdict:
        """Send what is not there yet. Anything that goes wrong becomes a verdict with its own backoff.

        Raises StaleLease if the delivery is no longer this sender's; then nothing was sent.
        """
        try:
            if self._must_stay_here(claimed):
                return WITHHELD
            return self._way.attempt(claimed, clock)
        except StaleLease:
            raise
        except CorruptFile as error:
            # The bytes are gone or altered: sending others under the same UID would be worse than not sending.
            return Verdict(AttemptOutcome.REFUSED, str(error))
        except StoreUnavailable as error:
            return Verdict(AttemptOutcome.TRANSIENT, f"could not be read: {error}", sent=False)
        except NodeError as error:
            # Of what comes before sending: a gateway that sends makes a verdict of what the network does.
            return Verdict(AttemptOutcome.TRANSIENT, str(error), sent=False)
        except Exception as error:  # noqa: BLE001 - one delivery must hold up neither itself nor the others
            log.error("delivery raised", destination=self.name, error=type(error).__name__)
            sent = not isinstance(error, StorageError)  # the index is read and written before anything is sent
            return Verdict(AttemptOutcome.TRANSIENT, f"could not be sent ({type(error).__name__})", sent)

    def _note_away(self, verdict: Verdict, now: float) -> None:
        """Leave a destination that does not answer alone for a while, whatever else waits for it."""
        if verdict.outcome != AttemptOutcome.UNANSWERED:
            self._times_away = 0
            return
        self._times_away += 1
        sender = self._settings.sender
        longest_s = min(LONGEST_PAUSE_S, sender.longest_retry_s)
        self._away_until = now + doubling_s(min(sender.first_retry_s, longest_s), self._times_away, longest_s)

    def _must_stay_here(self, claimed: ClaimedDelivery) -> bool:
        """True for a demonstration model's result on its way off this machine. The worker makes no such delivery, but
        the destination's address or the permission may have changed since."""
        if self._settings.may_leave(self._destination, demonstration=True):
            return False
        return is_demonstration(self._settings.models_dir, claimed.model_name, claimed.model_digest)

    def _record(self, claimed: ClaimedDelivery, verdict: Verdict, now: float) -> None:
        """Commit how the attempt ended. Raises StaleLease if another sender has the delivery now."""
        sender = self._settings.sender
        ticket = claimed.delivery_id, claimed.fence, now
        refused = verdict.outcome == AttemptOutcome.REFUSED
        given_up = verdict.outcome == AttemptOutcome.WITHHELD or (
            refused and claimed.refusals + 1 >= sender.max_permanent_failures
        )
        delivered = verdict.outcome == AttemptOutcome.DELIVERED
        statuses = self._way.stored(claimed.delivery_id)
        with self._database.transaction() as tx:
            if delivered:
                deliveries.mark_sent(tx, *ticket, statuses, verdict.text or None, self._asked_at(now))
            elif given_up:
                deliveries.fail(tx, *ticket, verdict.text)
            else:
                wait_s = backoff_s(claimed.attempt, sender)
                deliveries.retry_later(tx, *ticket, now + wait_s, verdict.text, refused=refused)
        if delivered or given_up:
            self._way.forget(claimed.delivery_id)

    def _asked_at(self, now: float) -> float | None:
        """When the destination is first asked whether it keeps what it took; None: not at all."""
        is_asked = isinstance(self._destination, Destination) and self._destination.commitment != "none"
        return now if is_asked else None

    @contextmanager
    def _lease(self, claimed: ClaimedDelivery) -> Iterator[None]:
        """Keep the delivery's lease while the body sends."""
        lease_s = self._settings.sender.lease_s

        def renew(tx: Connection, now: float) -> bool:
            return deliveries.heartbeat(tx, claimed.delivery_id, claimed.fence, now, lease_s)

        with heartbeat.kept(self._database, renew, lease_s, delivery=claimed.delivery_id):
            yield
