"""The bytes of an association request and of its acceptance: PS3.8 9.3.2, 9.3.3 and D, PS3.7 D.3.3.

They are read here and not with pynetdicom's classes. Those take seconds for a request made to be slow, and they refuse
requests with unknown items, which the standard says to ignore. Here false lengths are refused, and the number of items
is limited.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.receiver.errors import ProtocolError
from dicom_node.receiver.pdu import ASSOCIATE_AC, INVALID_PARAMETER

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
IMPLICIT_VR = "1.2.840.10008.1.2"
VERIFICATION = "1.2.840.10008.1.1"
# Results of a presentation context, PS3.8 Table 9-18.
ACCEPTED, ABSTRACT_SYNTAX_UNKNOWN, TRANSFER_SYNTAXES_UNKNOWN = 0, 3, 4
USERNAME_AND_PASSCODE = 2
MAX_ITEMS = 10_000
"""Items of one request, all levels together. The largest real request, 128 contexts of 40 syntaxes, has 5,400."""
MAX_UID_BYTES = 64
FIXED_BYTES = 68
"""Protocol version, AE titles and reserved bytes before the items."""

# Item types.
_APPLICATION, _CONTEXT, _ANSWERED_CONTEXT, _ABSTRACT, _TRANSFER, _USER = 0x10, 0x20, 0x21, 0x30, 0x40, 0x50
_MAX_LENGTH, _IMPLEMENTATION_CLASS, _IMPLEMENTATION_VERSION, _IDENTITY, _IDENTITY_ANSWER = 0x51, 0x52, 0x55, 0x58, 0x59
_ITEM = struct.Struct(">BxH")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")


@dataclass(frozen=True)
class Proposal:
    """One presentation context as the requestor proposes it."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Context:
    """The answer to one proposal. transfer_syntax: the agreed one; it means nothing if the proposal is refused."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    result: int


@dataclass(frozen=True)
class UserIdentity:
    """Who the requestor says it is, PS3.7 D.3.3.7. wants_answer: asks to hear that it was verified."""

    kind: int
    wants_answer: bool
    primary: bytes = field(repr=False)
    secondary: bytes = field(repr=False)


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
    user: UserIdentity | None = None

    @property
    def only_verifies(self) -> bool:
        """True if the requestor can do nothing but C-ECHO with this association."""
        return all(proposal.abstract_syntax == VERIFICATION for proposal in self.proposals)


def parse_request(content: "bytes | memoryview") -> Request:
    """Read an A-ASSOCIATE-RQ. content: the PDU after its header. Raises ProtocolError."""
    data = bytes(content)
    if len(data) < FIXED_BYTES:
        raise _malformed()
    reader = _Reader(data)
    application, max_pdu_bytes, user = "", 0, None
    proposals: list[Proposal] = []
    for kind, start, end in reader.items(FIXED_BYTES, len(data)):
        if kind == _APPLICATION:
            application = _uid(data[start:end])
        elif kind == _CONTEXT:
            proposals.append(_proposal(reader, start, end))
        elif kind == _USER:
            for sub, at, until in reader.items(start, end):
                if sub == _MAX_LENGTH:
                    max_pdu_bytes = _number(data[at:until])
                elif sub == _IDENTITY:
                    user = _identity(data[at:until])
    ids = [proposal.context_id for proposal in proposals]
    if not ids or len(set(ids)) != len(ids) or any(number % 2 == 0 for number in ids):
        raise ProtocolError("association request has no usable presentation contexts", INVALID_PARAMETER)
    return Request(
        called_ae=_ae_title(data[4:20]),
        calling_ae=_ae_title(data[20:36]),
        ae_titles=data[4:36],
        protocol_version=_U16.unpack_from(data)[0],
        application_context=application,
        max_pdu_bytes=max_pdu_bytes,
        proposals=tuple(proposals),
        user=user,
    )


class _Reader:
    """Steps through items, and counts them all."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = MAX_ITEMS

    def items(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Type, start and end of the value of each item between two offsets. Raises ProtocolError."""
        at = start
        while at < end:
            self._left -= 1
            if at + 4 > end or self._left < 0:
                raise _malformed()
            kind, length = _ITEM.unpack_from(self.data, at)
            at += 4
            if at + length > end:
                raise _malformed()
            yield kind, at, at + length
            at += length


def _proposal(reader: _Reader, start: int, end: int) -> Proposal:
    if end - start < 4:
        raise _malformed()
    abstract, transfers = "", []
    for kind, at, until in reader.items(start + 4, end):
        if kind == _ABSTRACT:
            abstract = _uid(reader.data[at:until])
        elif kind == _TRANSFER:
            transfers.append(_uid(reader.data[at:until]))
    return Proposal(reader.data[start], abstract, tuple(transfers))


def _identity(value: bytes) -> UserIdentity:
    try:
        kind, wants_answer = value[0], value[1]
        (length,) = _U16.unpack_from(value, 2)
        primary = value[4 : 4 + length]
        (second,) = _U16.unpack_from(value, 4 + length)
        secondary = value[6 + length : 6 + length + second]
    except (IndexError, struct.error):
        raise _malformed() from None
    if len(primary) != length or len(secondary) != second:
        raise _malformed()
    return UserIdentity(kind, wants_answer == 1, primary, secondary)


def _number(value: bytes) -> int:
    if len(value) != 4:
        raise _malformed()
    return int(_U32.unpack(value)[0])


def _uid(value: bytes) -> str:
    """A UID's text; some senders pad it. Bytes that cannot be a UID match none that we know."""
    return value.rstrip(b"\0 ").decode("ascii", "replace") if len(value) <= MAX_UID_BYTES + 1 else ""


def _ae_title(value: bytes) -> str:
    text = value.rstrip(b"\0").decode("ascii", "backslashreplace").strip(" ")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _malformed() -> ProtocolError:
    return ProtocolError("association request is malformed", INVALID_PARAMETER)


def encode_accept(
    request: Request, contexts: Sequence[Context], max_pdu_bytes: int, *, user_is_verified: bool = False
) -> bytes:
    """A-ASSOCIATE-AC. max_pdu_bytes: the longest PDU, after its header, that we take."""
    user = b"".join(
        (
            _item(_MAX_LENGTH, _U32.pack(max_pdu_bytes)),
            _item(_IMPLEMENTATION_CLASS, IMPLEMENTATION_CLASS_UID.encode("ascii")),
            _item(_IMPLEMENTATION_VERSION, IMPLEMENTATION_VERSION_NAME.encode("ascii")),
            # The answer to a passcode is an empty one. Other requests get no answer, which means one operation at a
            # time and default roles.
            _item(_IDENTITY_ANSWER, _U16.pack(0))
            if user_is_verified and request.user is not None and request.user.wants_answer
            else b"",
        )
    )
    body = b"".join(
        (
            # The AE titles are returned as they came, PS3.8 9.3.3.
            _U16.pack(1) + bytes(2) + request.ae_titles + bytes(32),
            _item(_APPLICATION, APPLICATION_CONTEXT.encode("ascii")),
            *map(_answered, contexts),
            _item(_USER, user),
        )
    )
    return bytes((ASSOCIATE_AC, 0)) + _U32.pack(len(body)) + body


def _answered(context: Context) -> bytes:
    # The transfer syntax of a refused context means nothing, but readers expect one.
    syntax = context.transfer_syntax if context.result == ACCEPTED else IMPLICIT_VR
    head = bytes((context.context_id, 0, context.result, 0))
    return _item(_ANSWERED_CONTEXT, head + _item(_TRANSFER, syntax.encode("ascii")))


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM.pack(kind, len(value)) + value
