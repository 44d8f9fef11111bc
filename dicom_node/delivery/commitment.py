"""Does a PACS keep what it took? Storage commitment as an SCU, and C-FIND for a PACS that does not offer it.

The answer (N-EVENT-REPORT) comes on the association of the request or, later, on one that the PACS opens to us;
both end in `record_answer`. Asking ends: see `CommitmentSettings`.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from threading import Event

import structlog
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import evt
from pynetdicom.sop_class import StorageCommitmentPushModelInstance
from sqlalchemy import Connection

from config.settings import Destination, SenderSettings, Settings
from dicom_node.scu.association import Link, NoContext, PeerUnavailable, associate
from dicom_node.scu.contexts import COMMIT
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import QueryFailed, SeriesKey, querying
from dicom_node.statuses import NO_SUCH_EVENT_TYPE, PROCESSING_FAILURE, SUCCESS
from dicom_node.waits import doubling_s
from storage import commitments
from storage.commitments import Commitment
from storage.database import Database
from storage.errors import IllegalMove, NotFound, StaleLease
from storage.files import FileStore
from storage.results import StoredObject

log = structlog.get_logger()

(MODEL,) = COMMIT.classes
MODEL_INSTANCE = str(StorageCommitmentPushModelInstance)
REQUEST = 1  # Action Type ID of PS3.4 J.3.2
ALL_COMMITTED, SOME_FAILED = 1, 2  # Event Type IDs of PS3.4 J.3.3

Clock = Callable[[], float]
"""Unix seconds."""


@dataclass(frozen=True)
class Answer:
    """What an N-EVENT-REPORT says. failures: failure reason by SOP Instance UID (PS3.3 C.14)."""

    transaction_uid: str
    kept: frozenset[str]
    failures: dict[str, int]


class NotOffered(QueryFailed):
    """The PACS does not offer storage commitment."""


class Reply(StrEnum):
    """How a question ended."""

    LATER = "LATER"
    """The request was taken; its answer comes, or came, to `record_answer`."""
    KEPT = "KEPT"
    NOT_KEPT = "NOT_KEPT"
    NONE = "NONE"
    """It cannot say now."""
    NEVER = "NEVER"
    """It cannot say, or has not said in all the times it was asked."""


class Asking:
    """Asks one destination about the deliveries that it took."""

    def __init__(self, settings: Settings, destination: Destination, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._files = files
        self._sender = settings.sender
        self._destination = destination
        self._database = database

    def settle_one(self, clock: Clock) -> bool:
        """Ask about one delivery that is due for it. Returns False if none was."""
        with self._database.transaction() as tx:
            due = commitments.due(tx, self._destination.name, clock(), limit=1)
            waiting = next((one for one in due if one.questions < self._sender.commitment.max_questions), None)
            transaction_uid = self._count_question(tx, waiting, clock()) if waiting else None
        if waiting is not None:
            self._record(waiting, *self._ask(waiting, transaction_uid, clock), clock())
        elif due:
            asked = due[0].questions
            self._record(due[0], Reply.NEVER, f"{asked} questions whether it keeps the objects had no answer", clock())
        return bool(due)

    def _count_question(self, tx: Connection, waiting: Commitment, now: float) -> str | None:
        """Count the question before it goes out. Returns the Transaction UID of a storage commitment request."""
        limits = self._sender.commitment
        by_request = self._destination.commitment == "request" and waiting.questions < limits.attempts
        transaction_uid = str(generate_uid(prefix=None)) if by_request else None
        wait_s = doubling_s(limits.timeout_s, waiting.questions + 1, self._sender.longest_retry_s)
        commitments.ask(tx, waiting.delivery_id, now, now + wait_s, transaction_uid)
        return transaction_uid

    def _ask(self, waiting: Commitment, transaction_uid: str | None, clock: Clock) -> tuple[Reply, str]:
        """Ask by request if there is a transaction, and by query if that is not offered. Returns a reply and why."""
        try:
            if transaction_uid is not None:
                try:
                    self._request(waiting, transaction_uid, clock)
                    return Reply.LATER, ""
                except NotOffered as error:
                    log.info("no storage commitment", destination=self._destination.name, detail=str(error))
            return self._query(waiting)
        except NoContext as error:
            return Reply.NEVER if error.permanent else Reply.NONE, f"neither storage commitment nor C-FIND: {error}"
        except (PeerUnavailable, QueryFailed) as error:
            return Reply.NONE, str(error)

    def _request(self, waiting: Commitment, transaction_uid: str, clock: Clock) -> None:
        """Send the N-ACTION, and take the answer if it comes on the same association soon.

        Raises NotOffered or PeerUnavailable.
        """
        answered = Event()

        def on_report(event: evt.Event) -> tuple[int, None]:
            status = answer_report(event, self._database, self._sender, clock(), {self._destination.name})
            answered.set()
            return status, None

        handlers: list[evt.EventHandlerType] = [(evt.EVT_N_EVENT_REPORT, on_report)]
        caller = self._sender.model_copy(update={"calling_ae_title": asking_ae_title(self._sender)})
        try:
            with associate(self._destination, caller, COMMIT.contexts(), handlers=handlers) as link:
                _send_request(link, _references(transaction_uid, waiting.objects))
                answered.wait(self._sender.commitment.wait_s)
        except NoContext as error:
            raise NotOffered(str(error)) from error

    def _query(self, waiting: Commitment) -> tuple[Reply, str]:
        """Ask by C-FIND whether the PACS holds what it took. Raises NoContext, QueryFailed or PeerUnavailable."""
        wanted = {item.sop_instance_uid for item in waiting.objects}
        missing = wanted - self._held(waiting)
        if missing:
            return Reply.NOT_KEPT, f"{len(missing)} of {len(wanted)} objects are not there, says C-FIND"
        return Reply.KEPT, ""

    def _held(self, waiting: Commitment) -> set[str]:
        held: set[str] = set()
        path = next((item.path for item in waiting.objects), "")
        patient_id = patient_id_for_pacs(self._settings, self._files, waiting.patient_id, path)
        with querying(self._destination, self._sender) as query:
            for series_uid in sorted({item.series_instance_uid for item in waiting.objects}):
                held |= query.instances(SeriesKey(patient_id, waiting.study_instance_uid, series_uid))
        return held

    def _record(self, waiting: Commitment, reply: Reply, why: str, now: float) -> None:
        if reply == Reply.LATER:
            return
        if reply in (Reply.NONE, Reply.NEVER):
            what = "delivery not confirmed yet" if reply == Reply.NONE else "delivery stays unconfirmed"
            log.warning(what, destination=self._destination.name, delivery=waiting.delivery_id, detail=why)
        try:
            with self._database.transaction() as tx:
                self._move(tx, waiting, reply, why, now)
        except (IllegalMove, StaleLease):
            # Answered on another association, or sent again by an operator, while this question was under way.
            log.info("answer no longer wanted", destination=self._destination.name, delivery=waiting.delivery_id)

    def _move(self, tx: Connection, waiting: Commitment, reply: Reply, why: str, now: float) -> None:
        if reply == Reply.KEPT:
            commitments.mark_committed(tx, waiting.delivery_id, now, how="c-find")
        elif reply == Reply.NOT_KEPT:
            not_kept(tx, self._sender, waiting, now, why)
        elif reply == Reply.NONE:
            commitments.not_answered(tx, waiting.delivery_id, now, why)
        else:
            commitments.give_up(tx, waiting.delivery_id, now, why)


def _send_request(link: Link, references: Dataset) -> None:
    started = time.monotonic()
    with link.exchange(link.response_s + 1):
        response, _ = link.association.send_n_action(references, REQUEST, MODEL, MODEL_INSTANCE)
    if "Status" not in response:
        raise PeerUnavailable(f"storage commitment: {link.why_lost(started)}")
    if response.Status != SUCCESS:
        raise NotOffered(f"storage commitment request answered with status 0x{response.Status:04X}")


def asking_ae_title(sender: SenderSettings) -> str:
    """The AE title under which storage commitment is requested and its answer expected."""
    return sender.commitment.ae_title or sender.calling_ae_title


def not_kept(tx: Connection, sender: SenderSettings, waiting: Commitment, now: float, error: str) -> None:
    """The destination does not keep what it took: send it again after a while, or FAILED if resending did not help."""
    limits = sender.commitment
    if waiting.resends >= limits.max_resends:
        error = f"not kept although it was sent {waiting.resends + 1} times: {error}"
        log.warning("delivery failed", destination=waiting.destination, delivery=waiting.delivery_id, detail=error)
        commitments.fail(tx, waiting.delivery_id, now, error)
        return
    wait_s = doubling_s(limits.resend_s, waiting.resends + 1, sender.longest_retry_s)
    commitments.send_again(tx, waiting.delivery_id, now, now + wait_s, error)


def answer_report(
    event: evt.Event, database: Database, sender: SenderSettings, now: float, destinations: Collection[str]
) -> int:
    """EVT_N_EVENT_REPORT, on whatever association it comes: record the answer. Returns the DIMSE status.

    destinations: names of those that the peer may speak for.
    """
    if getattr(event.request, "EventTypeID", None) not in (ALL_COMMITTED, SOME_FAILED):
        return NO_SUCH_EVENT_TYPE
    try:
        answer = read_answer(event.event_information)
    except (AttributeError, TypeError, ValueError):
        return PROCESSING_FAILURE
    return record_answer(database, sender, answer, now, destinations)


def read_answer(information: Dataset) -> Answer:
    """The Event Information of an N-EVENT-REPORT. Raises AttributeError if required elements are missing."""
    kept = frozenset(str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or [])
    failures = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", PROCESSING_FAILURE))
        for item in information.get("FailedSOPSequence") or []
    }
    return Answer(str(information.TransactionUID), kept, failures)


def record_answer(
    database: Database, sender: SenderSettings, answer: Answer, now: float, destinations: Collection[str]
) -> int:
    """COMMITTED when the PACS keeps every object, else sent again or FAILED. Returns the DIMSE status for the PACS.

    Repeated answers change nothing. An answer to an outdated request, or to one that we did not send this peer, is a
    failure.
    """
    try:
        with database.transaction() as tx:
            waiting = commitments.find(tx, answer.transaction_uid)
            if waiting.destination not in destinations:
                raise NotFound("the peer was not asked this")
            wanted = {item.sop_instance_uid for item in waiting.objects}
            if wanted <= answer.kept and not wanted & answer.failures.keys():
                commitments.mark_committed(tx, waiting.delivery_id, now)
            else:
                not_kept(tx, sender, waiting, now, _why(wanted, answer))
    except (NotFound, IllegalMove, StaleLease) as error:
        log.warning("storage commitment answer not used", reason=type(error).__name__)
        return PROCESSING_FAILURE
    return SUCCESS


def _why(wanted: set[str], answer: Answer) -> str:
    reasons = sorted({f"0x{reason:04X}" for uid, reason in answer.failures.items() if uid in wanted})
    missing = len(wanted - answer.kept)
    return f"the PACS does not commit to {missing} of {len(wanted)} objects: {', '.join(reasons) or 'not mentioned'}"


def _references(transaction_uid: str, objects: Sequence[StoredObject]) -> Dataset:
    """The Action Information of PS3.4 J.3.2.1.1.1."""
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = []
    for item in objects:
        reference = Dataset()
        reference.ReferencedSOPClassUID = item.sop_class_uid
        reference.ReferencedSOPInstanceUID = item.sop_instance_uid
        information.ReferencedSOPSequence.append(reference)
    return information
