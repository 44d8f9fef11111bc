"""What the node offers as an acceptor, and the answer to an association request.

PDUs are decoded and encoded with pynetdicom's classes. A hostile request makes them raise one of MALFORMED and
nothing else (tests/fuzz pins that).
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    Verification,
)

from dicom_node.receiver.errors import ProtocolError
from dicom_node.receiver.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.receiver.pdu import INVALID_PARAMETER

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
STORAGE_CLASSES = frozenset(
    str(uid) for uid in (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
)
VERIFICATION = str(Verification)
UNCOMPRESSED = (str(ExplicitVRLittleEndian), str(ImplicitVRLittleEndian))
# Lossless only, because the analysis measures HU. Deflated is left out: a megabyte of it can be gigabytes.
TRANSFER_SYNTAXES = frozenset(
    (
        *UNCOMPRESSED,
        *map(
            str,
            (
                RLELossless,
                JPEGLossless,
                JPEGLosslessSV1,
                JPEGLSLossless,
                JPEG2000Lossless,
                HTJ2KLossless,
                HTJ2KLosslessRPCL,
            ),
        ),
    )
)
OFFERED: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(STORAGE_CLASSES, TRANSFER_SYNTAXES),
    VERIFICATION: frozenset(UNCOMPRESSED),
}

AE_TITLES = slice(10, 42)  # of an A-ASSOCIATE-RQ and -AC: called, calling

CACHED, CACHED_BYTES = 16, 20_000
"""Requests that are kept read, and the longest of them: bounds their memory."""

# Result of one presentation context, PS3.8 Table 9-18.
ACCEPTED, ABSTRACT_SYNTAX_UNKNOWN, TRANSFER_SYNTAXES_UNKNOWN = 0, 3, 4
# What pynetdicom's decoders raise for bytes that are not a request.
MALFORMED = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error)


@dataclass(frozen=True)
class Proposal:
    """One presentation context as the requestor proposes it."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """An association request.

    called_ae, calling_ae: stripped; bytes that an AE title cannot hold show as escapes, so that they match no known
    one. ae_titles: the two fields as they came. max_pdu_bytes: what the requestor takes; 0: any.
    """

    called_ae: str
    calling_ae: str
    ae_titles: bytes
    protocol_version: int
    application_context: str
    max_pdu_bytes: int
    proposals: tuple[Proposal, ...]


@dataclass(frozen=True)
class Context:
    """The answer to one proposal. transfer_syntax: the agreed one; of a refused proposal, its first."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    result: int


def parse_request(pdu: bytes) -> Request:
    """Read an A-ASSOCIATE-RQ. Raises ProtocolError."""
    return _parse_known(pdu) if len(pdu) <= CACHED_BYTES else _parse(pdu)


def _parse(pdu: bytes) -> Request:
    decoded = A_ASSOCIATE_RQ()
    try:
        # The AE titles are read here: pynetdicom refuses to decode what an AE title cannot hold.
        decoded.decode(pdu[: AE_TITLES.start] + b"X".ljust(16) * 2 + pdu[AE_TITLES.stop :])
        proposals = tuple(
            Proposal(int(item.context_id or 0), str(item.abstract_syntax or ""), tuple(map(str, item.transfer_syntax)))
            for item in decoded.presentation_context
        )
        user = decoded.user_information
        request = Request(
            called_ae=_ae_title(pdu[10:26]),
            calling_ae=_ae_title(pdu[26:42]),
            ae_titles=pdu[AE_TITLES],
            protocol_version=int(decoded.protocol_version),
            application_context=str(decoded.application_context_name or ""),
            max_pdu_bytes=int((user.maximum_length if user else 0) or 0),
            proposals=proposals,
        )
    except MALFORMED:
        raise ProtocolError("association request is malformed", INVALID_PARAMETER) from None
    _check(request)
    return request


# A sender asks the same every time, some for every single instance; a request for everything takes 10 ms to read.
_parse_known = lru_cache(maxsize=CACHED)(_parse)


def _check(request: Request) -> None:
    """Raises ProtocolError for a request whose answer could not be encoded."""
    ids = [proposal.context_id for proposal in request.proposals]
    if not ids or len(set(ids)) != len(ids) or any(number % 2 == 0 for number in ids):
        raise ProtocolError("association request has no usable presentation contexts", INVALID_PARAMETER)
    if not all(proposal.transfer_syntaxes for proposal in request.proposals):
        raise ProtocolError("a presentation context has no transfer syntax", INVALID_PARAMETER)


def _ae_title(field: bytes) -> str:
    text = field.rstrip(b"\0").decode("ascii", "backslashreplace").strip(" ")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def negotiate(proposals: Iterable[Proposal], offered: Mapping[str, frozenset[str]] = OFFERED) -> tuple[Context, ...]:
    """Answer each proposal; of the transfer syntaxes that both sides know, the one that the requestor names first."""
    answers = []
    for proposal in proposals:
        known = offered.get(proposal.abstract_syntax)
        first = proposal.transfer_syntaxes[0]
        agreed = next((syntax for syntax in proposal.transfer_syntaxes if known and syntax in known), None)
        if known is None:
            answer = (first, ABSTRACT_SYNTAX_UNKNOWN)
        elif agreed is None:
            answer = (first, TRANSFER_SYNTAXES_UNKNOWN)
        else:
            answer = (agreed, ACCEPTED)
        answers.append(Context(proposal.context_id, proposal.abstract_syntax, *answer))
    return tuple(answers)


def encode_accept(request: Request, contexts: Sequence[Context], max_pdu_bytes: int) -> bytes:
    """A-ASSOCIATE-AC.

    max_pdu_bytes: the longest PDU, after its header, that we take.
    Raises ProtocolError where the request named something that cannot be encoded.
    """
    try:
        primitive = A_ASSOCIATE()
        primitive.application_context_name = UID(APPLICATION_CONTEXT)
        primitive.called_ae_title = primitive.calling_ae_title = "X"  # put in below
        primitive.result, primitive.result_source = 0, 1
        primitive.presentation_context_definition_results_list = [_result(context) for context in contexts]
        primitive.user_information = _user_information(max_pdu_bytes)
        encoded = bytearray(A_ASSOCIATE_AC(primitive).encode())
    except MALFORMED:
        raise ProtocolError("association request cannot be answered", INVALID_PARAMETER) from None
    # Returned as they came, PS3.8 9.3.3.
    encoded[AE_TITLES] = request.ae_titles
    return bytes(encoded)


def _result(context: Context) -> PresentationContext:
    result = PresentationContext()
    result.context_id = context.context_id
    result.result = context.result
    result.transfer_syntax = [UID(context.transfer_syntax)]
    return result


def _user_information(max_pdu_bytes: int) -> list[Any]:
    length = MaximumLengthNotification()
    length.maximum_length_received = max_pdu_bytes
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return [length, implementation, version]
