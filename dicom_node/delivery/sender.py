"""The outbox loop: sends each result to each destination until it is there, however long that takes.

One thread per destination, so that a slow PACS delays no other. What is sent are the bytes that the worker stored,
digest checked, so that every resend is the same instance. A lost answer therefore costs a resend and no more.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import structlog
from sqlalchemy import Connection

from config.settings import Destination, Settings
from dicom_node import lease
from dicom_node.delivery import commitment
from dicom_node.delivery.backoff import backoff_s
from dicom_node.delivery.commitment_listener import CommitmentListener
from dicom_node.logs import short
from dicom_node.scu.store import Outcome, StoreResult, read_instance, store
from inference.models.registry import DEMONSTRATION, list_models
from storage import deliveries
from storage.database import Database
from storage.deliveries import ClaimedDelivery
from storage.errors import CorruptFile, StaleLease
from storage.files import FileStore
from storage.object_kinds import REPORT_KINDS, ObjectKind
from storage.results import StoredObject

log = structlog.get_logger()

DRAIN_S = 50.0
DELIVERED = (Outcome.STORED, Outcome.WARNING)
WITHHELD = "a demonstration model made this result, and the destination is not on this machine"


@dataclass
class Progress:
    """What earlier attempts of a delivery came to, as long as this process lives.

    statuses: by SOP Instance UID of the objects that are stored.
    """

    statuses: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the results of one attempt mean for its delivery. text: for `status`, without patient data."""

    outcome: Outcome
    text: str


def run(settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> None:
    """Send from the outbox until `stop` is set; what is being sent then is finished within its time.

    Raises PortTaken when the port for storage commitment answers cannot be listened on.
    """
    senders = [DestinationSender(settings, d, database, files) for d in settings.destinations if d.send_results]
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


class DestinationSender:
    """Sends the deliveries of one destination, one after the other."""

    def __init__(self, settings: Settings, destination: Destination, database: Database, files: FileStore) -> None:
        self.name = destination.name
        self._settings = settings
        self._destination = destination
        self._database = database
        self._files = files
        self._progress: dict[int, Progress] = {}

    def run(self, stop: threading.Event) -> None:
        """Send until `stop` is set."""
        while not stop.is_set():
            try:
                worked = self.work_once(time.time())
            except Exception as error:  # noqa: BLE001 - the sender loop outlives every delivery
                # The type and not the text: a library's message may quote patient data.
                log.error("delivery could not be handled", destination=self.name, error=type(error).__name__)
                worked = False
            if not worked:
                stop.wait(self._settings.sender.poll_s)

    def work_once(self, now: float) -> bool:
        """Send one delivery, or ask for one storage commitment. Returns False when none was due."""
        with self._database.read() as tx:
            if self.name not in deliveries.destinations_with_work(tx, now):
                return False
        with self._database.transaction() as tx:
            claimed = deliveries.claim(tx, self.name, now, self._settings.sender.lease_s)
        if claimed:
            self._deliver(claimed[0])
            return True
        return commitment.settle_one(self._settings, self._destination, self._database, now)

    def _deliver(self, claimed: ClaimedDelivery) -> None:
        started = time.monotonic()
        progress = self._progress.setdefault(claimed.delivery_id, Progress())
        with self._lease(claimed):
            try:
                verdict = self._attempt(claimed, progress)
            except CorruptFile as error:
                # The bytes are gone or altered: sending others under the same UID would be worse than not sending.
                verdict = Verdict(Outcome.PERMANENT, str(error))
        try:
            self._record(claimed, verdict, progress, time.time())
        except StaleLease:
            log.warning("delivery lost to another sender", destination=self.name)
        log.info(
            "delivery attempted",
            destination=self.name,
            series=short(claimed.series_instance_uid),
            attempt=claimed.attempt,
            outcome=verdict.outcome.lower(),
            detail=verdict.text,
            seconds=round(time.monotonic() - started, 3),
        )

    def _attempt(self, claimed: ClaimedDelivery, progress: Progress) -> Verdict:
        if self._must_stay_here(claimed):
            return Verdict(Outcome.PERMANENT, WITHHELD)
        results = send_objects(claimed.objects, progress.statuses, self._store)
        progress.statuses.update(
            {uid: r.status or 0 for uid, r in results.items() if r.outcome in DELIVERED},
        )
        return judge(claimed.objects, results)

    def _store(self, objects: Sequence[StoredObject]) -> list[StoreResult]:
        instances = []
        for item in objects:
            self._files.read_verified(item.path, item.sha256)
            instances.append(read_instance(self._files.absolute(item.path)))
        return store(self._destination, self._settings.sender, instances)

    def _must_stay_here(self, claimed: ClaimedDelivery) -> bool:
        """True for a demonstration model's result on its way off this machine; the worker makes no such delivery,
        but the destination's address or the permission may have changed since."""
        if self._destination.is_loopback or self._settings.model.allow_demonstration_model:
            return False
        if claimed.model_name == DEMONSTRATION:  # whichever version of it: the card may have been replaced since
            return True
        identities = [card.identity() for card in list_models(self._settings.models_dir)]
        return any(i.demonstration and i.digest == claimed.model_digest for i in identities)

    def _record(self, claimed: ClaimedDelivery, verdict: Verdict, progress: Progress, now: float) -> None:
        """Commit what the attempt came to. Raises StaleLease when another sender has the delivery by now."""
        sender = self._settings.sender
        ticket = claimed.delivery_id, claimed.fence, now
        refused = verdict.outcome == Outcome.PERMANENT
        given_up = verdict.text == WITHHELD or (refused and claimed.refusals + 1 >= sender.max_permanent_failures)
        with self._database.transaction() as tx:
            if verdict.outcome in DELIVERED:
                wants_commitment = now if self._destination.commitment != "none" else None
                deliveries.mark_sent(tx, *ticket, progress.statuses, verdict.text or None, wants_commitment)
            elif refused and given_up:
                deliveries.fail(tx, *ticket, verdict.text)
            else:
                wait_s = backoff_s(claimed.attempt, sender)
                deliveries.retry_later(tx, *ticket, now + wait_s, verdict.text, refused=refused)
        if verdict.outcome in DELIVERED or given_up:
            self._progress.pop(claimed.delivery_id, None)

    @contextmanager
    def _lease(self, claimed: ClaimedDelivery) -> Iterator[None]:
        """Keep the delivery's lease while the body sends."""
        lease_s = self._settings.sender.lease_s

        def renew(tx: Connection, now: float) -> bool:
            return deliveries.heartbeat(tx, claimed.delivery_id, claimed.fence, now, lease_s)

        with lease.kept(self._database, renew, lease_s, delivery=claimed.delivery_id):
            yield


def send_objects(
    objects: Sequence[StoredObject],
    already: dict[str, int],
    send: Callable[[Sequence[StoredObject]], list[StoreResult]],
) -> dict[str, StoreResult]:
    """Send what an earlier attempt has not stored, the report first, and of the reports the first accepted kind.

    already: statuses by SOP Instance UID of what is stored. send: one association's C-STOREs.
    Returns results by SOP Instance UID, those of `already` included.
    """
    results = {uid: StoreResult(uid, Outcome.STORED, status, "stored before") for uid, status in already.items()}
    reports = sorted((o for o in objects if o.kind.is_report), key=lambda o: REPORT_KINDS.index(o.kind))
    others = [o for o in objects if not o.kind.is_report]
    stored_before = any(o.sop_instance_uid in already for o in reports)
    first = [] if stored_before else reports[:1]
    waiting = [o for o in (*first, *others) if o.sop_instance_uid not in already]
    results |= _by_uid(send(waiting)) if waiting else {}
    for previous, fallback in pairwise(reports):
        refused = results.get(previous.sop_instance_uid)
        if refused is not None and class_refused(refused):
            results |= _by_uid(send([fallback]))
    return results


def class_refused(result: StoreResult) -> bool:
    """True when the destination does not take this class of object at all (PS3.7 C.5.6 has 0x0122 for it)."""
    return result.outcome == Outcome.PERMANENT and result.status in (None, 0x0122)


def judge(objects: Sequence[StoredObject], results: dict[str, StoreResult]) -> Verdict:
    """What the C-STORE results mean for the delivery as a whole.

    Any transient failure: try again. A final failure of an object whose class the destination takes, or nothing that
    tells the result (a report, or the summary image for it): permanent. Other classes that the destination
    does not take: delivered, with a remark.
    """
    answered = [(o, results[o.sop_instance_uid]) for o in objects if o.sop_instance_uid in results]
    transient = [(o, r) for o, r in answered if r.outcome == Outcome.TRANSIENT]
    if transient:
        return Verdict(Outcome.TRANSIENT, _sentence(transient))
    reported = any(o.kind.is_report for o in objects)
    told = any(o.kind.tells_result or not reported for o, r in answered if r.outcome in DELIVERED)
    final = [(o, r) for o, r in answered if r.outcome == Outcome.PERMANENT and not class_refused(r)]
    refused = [(o, r) for o, r in answered if class_refused(r)]
    if final or not told:
        return Verdict(Outcome.PERMANENT, _sentence(final or refused))
    remarks = refused + [(o, r) for o, r in answered if r.outcome == Outcome.WARNING]
    if not remarks:
        return Verdict(Outcome.STORED, "")
    return Verdict(Outcome.WARNING, "; ".join(filter(None, [_sentence(remarks), _instead(answered)])))


def _instead(answered: Sequence[tuple[StoredObject, StoreResult]]) -> str:
    """What tells the result where the destination does not take the report in its own class; empty where it does."""
    delivered = {o.kind for o, r in answered if r.outcome in DELIVERED}
    refused = {o.kind for o, r in answered if class_refused(r)}
    if ObjectKind.REPORT not in refused:
        return ""
    told_by = next((kind for kind in ObjectKind if kind.tells_result and kind in delivered), "")
    return f"the result is told by: {told_by}" if told_by else ""


def _sentence(pairs: Sequence[tuple[StoredObject, StoreResult]]) -> str:
    return "; ".join(dict.fromkeys(f"{o.kind}: {r.detail}" for o, r in pairs))


def _by_uid(results: Sequence[StoreResult]) -> dict[str, StoreResult]:
    return {result.sop_instance_uid: result for result in results}
