"""Storage commitment as an SCU: ask a PACS to take responsibility for the objects sent, and hear its answer.

The answer (N-EVENT-REPORT) comes on the association of the request or, later, on one that the PACS opens to us;
both end in `record_answer`. Where a PACS offers no commitment, a C-FIND says whether it holds the objects.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import structlog
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from config.settings import Destination, SenderSettings, Settings
from dicom_node.delivery.backoff import backoff_s
from dicom_node.scu.association import NoContext, Peer, PeerUnavailable, associate
from dicom_node.scu.patient_id import patient_id_for_pacs
from dicom_node.scu.query import QueryFailed, SeriesKey, querying
from storage import deliveries
from storage.database import Database
from storage.deliveries import Commitment
from storage.errors import IllegalMove, NotFound, StaleLease
from storage.results import StoredObject

log = structlog.get_logger()

# Not deflated: a megabyte of that may be a thousand.
SYNTAXES = [str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian)]
MODEL = str(StorageCommitmentPushModel)
MODEL_INSTANCE = str(StorageCommitmentPushModelInstance)
REQUEST = 1  # Action Type ID of PS3.4 J.3.2
ALL_COMMITTED, SOME_FAILED = 1, 2  # Event Type IDs of PS3.4 J.3.3
SUCCESS, PROCESSING_FAILURE, NO_SUCH_EVENT_TYPE = 0x0000, 0x0110, 0x0113


@dataclass(frozen=True)
class Answer:
    """What an N-EVENT-REPORT says. failures: failure reason by SOP Instance UID (PS3.3 C.14)."""

    transaction_uid: str
    kept: frozenset[str]
    failures: dict[str, int]


class NotOffered(QueryFailed):
    """The PACS does not do storage commitment."""


def settle_one(settings: Settings, destination: Destination, database: Database, now: float) -> bool:
    """Ask for the commitment of one sent delivery that is due for it. Returns False when none was."""
    sender = settings.sender
    with database.transaction() as tx:
        waiting = deliveries.commitments_due(tx, destination.name, now, limit=1)
    if not waiting:
        return False
    ask = destination.commitment == "request" and waiting[0].attempt < sender.commitment.attempts
    if ask:
        try:
            request_commitment(sender, destination, database, waiting[0], now)
            return True
        except NotOffered as error:
            log.info("no storage commitment, asking by query", destination=destination.name, detail=str(error))
    verify_by_query(settings, destination, database, waiting[0], now)
    return True


def request_commitment(sender: SenderSettings, peer: Peer, database: Database, waiting: Commitment, now: float) -> None:
    """Send the N-ACTION, and take the answer when it comes on the same association.

    Raises NotOffered. A PACS that is away is asked again when its time is over.
    """
    transaction_uid = str(generate_uid(prefix=None))
    with database.transaction() as tx:
        # Noted before the request: the answer may be faster than our next line.
        deliveries.await_commitment(tx, waiting.delivery_id, now, transaction_uid, now + sender.commitment.timeout_s)
    answered = Event()

    def on_report(event: evt.Event) -> tuple[int, None]:
        status = answer_report(event, database, sender)
        answered.set()
        return status, None

    try:
        handlers: list[evt.EventHandlerType] = [(evt.EVT_N_EVENT_REPORT, on_report)]
        caller = sender.model_copy(update={"calling_ae_title": asking_ae_title(sender)})
        with associate(peer, caller, [build_context(MODEL, SYNTAXES)], handlers=handlers) as link:
            started = time.monotonic()
            with link.line.deadline(link.response_s + 1), link.ended_is_unavailable():
                response, _ = link.association.send_n_action(
                    _references(transaction_uid, waiting.objects), REQUEST, MODEL, MODEL_INSTANCE
                )
            if "Status" not in response:
                raise PeerUnavailable(f"storage commitment: {link.why_lost(started)}")
            if response.Status != SUCCESS:
                raise NotOffered(f"storage commitment request answered with status 0x{response.Status:04X}")
            answered.wait(sender.commitment.wait_s)
    except NoContext as error:
        raise NotOffered(str(error)) from error
    except PeerUnavailable as error:
        log.warning("storage commitment could not be asked for", detail=str(error))


def asking_ae_title(sender: SenderSettings) -> str:
    """The AE title as which storage commitment is asked for, and its answer expected."""
    return sender.commitment.ae_title or sender.calling_ae_title


def verify_by_query(
    settings: Settings, destination: Destination, database: Database, waiting: Commitment, now: float
) -> None:
    """Decide by C-FIND whether the PACS holds what it took; what it does not hold is sent again."""
    wanted = {item.sop_instance_uid for item in waiting.objects}
    try:
        held = _held(settings, destination, waiting)
    except PeerUnavailable as error:
        with database.transaction() as tx:
            deliveries.ask_again(tx, waiting.delivery_id, now, now + settings.sender.commitment.timeout_s, str(error))
        return
    except (NoContext, QueryFailed) as error:
        with database.transaction() as tx:
            deliveries.commitment_not_offered(tx, waiting.delivery_id, now, str(error))
        return
    with database.transaction() as tx:
        if wanted <= held:
            deliveries.mark_committed(tx, waiting.delivery_id, now, how="c-find")
        else:
            error_text = f"{len(wanted - held)} of {len(wanted)} objects are not there, says C-FIND"
            retry_at = now + backoff_s(waiting.attempt, settings.sender)
            deliveries.commitment_failed(tx, waiting.delivery_id, now, retry_at, error_text)


def _held(settings: Settings, peer: Peer, waiting: Commitment) -> set[str]:
    held: set[str] = set()
    path = next((item.path for item in waiting.objects), "")
    patient_id = patient_id_for_pacs(settings, waiting.patient_id, path)
    with querying(peer, settings.sender) as query:
        for series_uid in sorted({item.series_instance_uid for item in waiting.objects}):
            held |= query.instances(SeriesKey(patient_id, waiting.study_instance_uid, series_uid))
    return held


def answer_report(event: evt.Event, database: Database, sender: SenderSettings) -> int:
    """EVT_N_EVENT_REPORT, on whatever association it comes: record the answer. Returns the DIMSE status."""
    if getattr(event.request, "EventTypeID", None) not in (ALL_COMMITTED, SOME_FAILED):
        return NO_SUCH_EVENT_TYPE
    try:
        answer = read_answer(event.event_information)
    except (AttributeError, TypeError, ValueError):
        return PROCESSING_FAILURE
    return record_answer(database, sender, answer, time.time())


def read_answer(information: Dataset) -> Answer:
    """The Event Information of an N-EVENT-REPORT. Raises AttributeError where required elements are missing."""
    kept = frozenset(str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence") or [])
    failures = {
        str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", PROCESSING_FAILURE))
        for item in information.get("FailedSOPSequence") or []
    }
    return Answer(str(information.TransactionUID), kept, failures)


def record_answer(database: Database, sender: SenderSettings, answer: Answer, now: float) -> int:
    """COMMITTED when the PACS keeps every object, else sent again. Returns the DIMSE status for the PACS.

    Repeated answers change nothing; an answer to a request that is not ours, or outdated, is a failure.
    """
    try:
        with database.transaction() as tx:
            waiting = deliveries.find_commitment(tx, answer.transaction_uid)
            wanted = {item.sop_instance_uid for item in waiting.objects}
            if wanted <= answer.kept and not wanted & answer.failures.keys():
                deliveries.mark_committed(tx, waiting.delivery_id, now)
            else:
                retry_at = now + backoff_s(waiting.attempt, sender)
                deliveries.commitment_failed(tx, waiting.delivery_id, now, retry_at, _why(wanted, answer))
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
