"""The node as an SCU: verification, and storing instances unchanged."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, build_context
from pynetdicom.presentation import PresentationContext

from config.headers import UNREADABLE, quiet
from config.settings import SenderSettings
from dicom_node.scu.association import Link, NoContext, Peer, PeerUnavailable, associate
from dicom_node.scu.contexts import VERIFY

# pynetdicom sends a file's encoded data set as it is only with this switch; it would decode and encode it otherwise.
_config.STORE_SEND_CHUNKED_DATASET = True

MAX_CONTEXTS = 128  # PS3.8 9.3.2.2: odd one-byte identifiers
SLOWEST_BYTES_PER_S = 125_000
"""A transfer may take as long as it needs at 1 Mbit/s, on top of the time for the response."""
UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)


class StoreOutcome(StrEnum):
    """How a C-STORE ended. WARNING: stored, with a remark from the peer."""

    STORED = "STORED"
    WARNING = "WARNING"
    TRANSIENT = "TRANSIENT"
    PERMANENT = "PERMANENT"


@dataclass(frozen=True)
class EchoAnswer:
    """Whether a peer answers C-ECHO, and a sentence for a person."""

    ok: bool
    detail: str


@dataclass(frozen=True)
class InstanceFile:
    """A DICOM file to be sent. part10: it has a file meta header, so that its bytes can go as they are."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    part10: bool = True


@dataclass(frozen=True)
class StoreResult:
    """The outcome of one C-STORE. status: the DIMSE status, or None if none came. detail: without patient data.

    comment: the peer's Error Comment, on one line. It may hold anything, so it goes into no log.
    """

    sop_instance_uid: str
    outcome: StoreOutcome
    status: int | None
    detail: str
    comment: str = ""


@dataclass(frozen=True)
class Reaction:
    """What the node does about a C-STORE status. first, last: the range. meaning: the standard's."""

    first: int
    last: int
    outcome: StoreOutcome
    meaning: str


# PS3.7 C and PS3.4 B.2.3. The first range that a status is in counts.
REACTIONS = (
    Reaction(0x0000, 0x0000, StoreOutcome.STORED, "success"),
    Reaction(0x0001, 0x0001, StoreOutcome.WARNING, "requested optional attributes are not supported"),
    Reaction(0x0107, 0x0107, StoreOutcome.WARNING, "attribute list error"),
    Reaction(0x0116, 0x0116, StoreOutcome.WARNING, "attribute value out of range"),
    # An earlier attempt was stored and its answer lost. The resend is the same instance.
    Reaction(0x0111, 0x0111, StoreOutcome.WARNING, "duplicate SOP instance"),
    Reaction(0xB000, 0xBFFF, StoreOutcome.WARNING, "stored, with a warning"),
    Reaction(0x0110, 0x0110, StoreOutcome.TRANSIENT, "processing failure"),
    Reaction(0x0210, 0x0210, StoreOutcome.TRANSIENT, "duplicate invocation"),
    Reaction(0xFE00, 0xFE00, StoreOutcome.TRANSIENT, "cancelled"),
    Reaction(0xA700, 0xA7FF, StoreOutcome.TRANSIENT, "refused: out of resources"),
    Reaction(0x0000, 0xFFFF, StoreOutcome.PERMANENT, "any other, such as A9xx and Cxxx"),
)


def classify(status: int) -> StoreOutcome:
    """What a C-STORE status means for the sender."""
    return next(one.outcome for one in REACTIONS if one.first <= status <= one.last)


def echo(peer: Peer, caller: SenderSettings) -> EchoAnswer:
    """Ask a peer whether it answers (C-ECHO)."""
    try:
        with associate(peer, caller, VERIFY.contexts()) as link:
            started = time.monotonic()
            with link.exchange(link.response_s):
                answer = link.association.send_c_echo()
            if "Status" not in answer:
                return EchoAnswer(False, link.why_lost(started))
            milliseconds = (time.monotonic() - started) * 1000
            if answer.Status != 0:
                return EchoAnswer(False, f"C-ECHO answered with status 0x{answer.Status:04X}")
            return EchoAnswer(True, f"C-ECHO answered in {milliseconds:.0f} ms")
    except (PeerUnavailable, NoContext) as error:
        return EchoAnswer(False, str(error))


def read_instance(path: Path) -> InstanceFile:
    """What is needed to send a file, from its file meta, or from its data set if it has none.

    Raises InvalidDicomError when it is not a DICOM instance.
    """
    try:
        meta = read_file_meta_info(path)
        return InstanceFile(
            path,
            str(meta.MediaStorageSOPClassUID),
            str(meta.MediaStorageSOPInstanceUID),
            str(meta.TransferSyntaxUID),
        )
    except (InvalidDicomError, *UNREADABLE):
        return _read_bare(path)


def _read_bare(path: Path) -> InstanceFile:
    """A data set without file meta, as some exports write it: it begins with group 0008."""
    with path.open("rb") as file:
        if file.read(2) != b"\x08\x00":
            raise InvalidDicomError("not a DICOM instance")
    try:
        with quiet():
            dataset = dcmread(
                path, force=True, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"]
            )
        implicit = dataset.original_encoding[0]
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        return InstanceFile(path, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), str(syntax), part10=False)
    except UNREADABLE as error:
        raise InvalidDicomError("not a DICOM instance") from error


def store(
    peer: Peer,
    caller: SenderSettings,
    instances: Sequence[InstanceFile],
    on_result: Callable[[StoreResult], None] | None = None,
) -> list[StoreResult]:
    """C-STORE instances in their order, as many as fit the contexts of one association in each.

    The encoded data sets are sent as the files hold them, in their own transfer syntax. If the peer takes an
    uncompressed class only in the other little endian encoding, that instance alone is converted.
    Returns one result for each instance; never raises for what the network does.
    """
    results: list[StoreResult] = []
    for batch in _batches(instances):
        for result in _store_batch(peer, caller, batch):
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results


def _store_batch(peer: Peer, caller: SenderSettings, batch: Sequence[InstanceFile]) -> Iterator[StoreResult]:
    done = 0
    try:
        with associate(peer, caller, _contexts(batch)) as link:
            for number, instance in enumerate(batch, start=1):
                result = _store_one(link, instance, number % 65535 + 1)
                done = number
                yield result
                if result.status is None and not link.association.is_established:
                    raise PeerUnavailable(f"not sent: {result.detail}")
    except NoContext as error:
        outcome = StoreOutcome.PERMANENT if error.permanent else StoreOutcome.TRANSIENT
        yield from (StoreResult(i.sop_instance_uid, outcome, None, str(error)) for i in batch[done:])
    except PeerUnavailable as error:
        yield from (StoreResult(i.sop_instance_uid, StoreOutcome.TRANSIENT, None, str(error)) for i in batch[done:])


def _store_one(link: Link, instance: InstanceFile, message_id: int) -> StoreResult:
    content = _content(link, instance)
    if content is None:
        return _not_accepted(link, instance)
    association = link.association
    association.dimse_timeout = link.response_s + instance.path.stat().st_size / SLOWEST_BYTES_PER_S
    started = time.monotonic()
    try:
        # The margin lets pynetdicom's own timeout act first, which aborts in good order.
        with link.exchange(association.dimse_timeout + 1):
            answer = association.send_c_store(content, msg_id=message_id)
    except PeerUnavailable as error:
        return StoreResult(instance.sop_instance_uid, StoreOutcome.TRANSIENT, None, str(error))
    if "Status" not in answer:
        return StoreResult(instance.sop_instance_uid, StoreOutcome.TRANSIENT, None, link.why_lost(started))
    outcome = classify(answer.Status)
    comment = "".join(c if c.isprintable() else " " for c in str(answer.get("ErrorComment", "")))
    detail = f"status 0x{answer.Status:04X}"
    return StoreResult(instance.sop_instance_uid, outcome, answer.Status, detail, comment.strip())


def _content(link: Link, instance: InstanceFile) -> Path | Dataset | None:
    """The file to send unchanged, or its data set to be converted; None when the peer takes neither."""
    if instance.part10 and link.accepted(instance.sop_class_uid, instance.transfer_syntax_uid):
        return instance.path
    if not any(link.accepted(instance.sop_class_uid, syntax) for syntax in _syntaxes(instance)):
        return None
    dataset = dcmread(instance.path, force=not instance.part10)
    if not instance.part10:
        dataset.file_meta.TransferSyntaxUID = UID(instance.transfer_syntax_uid)
    return dataset


def _not_accepted(link: Link, instance: InstanceFile) -> StoreResult:
    reasons = [c.result for c in link.association.rejected_contexts if c.abstract_syntax == instance.sop_class_uid]
    outcome = (
        StoreOutcome.PERMANENT if reasons and all(reason in (3, 4) for reason in reasons) else StoreOutcome.TRANSIENT
    )
    return StoreResult(instance.sop_instance_uid, outcome, None, "the peer does not accept this class of object")


def _syntaxes(instance: InstanceFile) -> tuple[str, ...]:
    """Transfer syntaxes that an instance can be sent in, its own first."""
    own = instance.transfer_syntax_uid
    if own not in UNCOMPRESSED:
        return (own,)
    return (own, *(str(syntax) for syntax in UNCOMPRESSED if syntax != own))


def _pairs(instances: Iterable[InstanceFile]) -> dict[tuple[str, str], None]:
    return {(i.sop_class_uid, syntax): None for i in instances for syntax in _syntaxes(i)}


def _contexts(instances: Iterable[InstanceFile]) -> list[PresentationContext]:
    # One transfer syntax each: with several in a context the peer would choose, and might choose a conversion.
    return [build_context(sop_class, syntax) for sop_class, syntax in _pairs(instances)]


def _batches(instances: Sequence[InstanceFile]) -> Iterator[list[InstanceFile]]:
    """Split in order so that each batch needs no more contexts than one association has."""
    batch: list[InstanceFile] = []
    pairs: dict[tuple[str, str], None] = {}
    for instance in instances:
        more = pairs | _pairs([instance])
        if len(more) > MAX_CONTEXTS:
            yield batch
            batch, more = [], _pairs([instance])
        batch.append(instance)
        pairs = more
    if batch:
        yield batch
