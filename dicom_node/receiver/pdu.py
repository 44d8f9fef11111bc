"""The bytes of the upper layer protocol (PS3.8 9.3) and of the command sets (PS3.7 E) that a Storage SCP needs.

Associations are negotiated in acse.py. What is exchanged for every instance is read and written here and not with
pynetdicom's classes. That takes a fraction of the time, and the limits are ours.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from dicom_node.receiver.errors import ProtocolError

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
HEADER_BYTES = 6
PDV_HEADER_BYTES = 6

# Control header of a presentation data value, PS3.8 E.2.
IS_COMMAND = 0x01
IS_LAST = 0x02

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
IS_RESPONSE = 0x8000
NO_DATA_SET = 0x0101
MAX_COMMAND_BYTES = 4096
"""A C-STORE request has about 200 bytes."""

UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6
SERVICE_USER, SERVICE_PROVIDER = 0, 2
ABORTS: Mapping[tuple[int, int], tuple[str, str]] = {
    (SERVICE_USER, 0): (
        "No reason given",
        "A deadline passed, a data set is too large or too slow, or an error inside.",
    ),
    (SERVICE_PROVIDER, UNRECOGNISED_PDU): ("Unrecognized PDU", "The PDU's type is none of the seven."),
    (SERVICE_PROVIDER, UNEXPECTED_PDU): ("Unexpected PDU", "It does not fit the state of the association."),
    (SERVICE_PROVIDER, INVALID_PARAMETER): (
        "Invalid PDU parameter value",
        "A PDU, a command set or the association request is malformed or too long, or a command is not of an accepted "
        "service.",
    ),
}
"""Source and reason of each A-ABORT, with its meaning and when it is sent."""

_PDU_HEADER = struct.Struct(">BxI")
_PDV_HEADER = struct.Struct(">IBB")
_ELEMENT = struct.Struct("<HHI")
_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")


@dataclass(frozen=True)
class Command:
    """A request's command set. UIDs are raw bytes; empty if the element is absent."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: bytes
    sop_instance_uid: bytes


def parse_pdu_header(data: "bytearray | memoryview", at: int) -> tuple[int, int]:
    """Type and length (bytes after the header) of the PDU whose six header bytes start at `at`."""
    kind, length = _PDU_HEADER.unpack_from(data, at)
    return kind, length


def parse_pdv_header(data: "bytearray | memoryview", at: int) -> tuple[int, int, int]:
    """Length after the length field, context ID and control header of a presentation data value."""
    length, context_id, control = _PDV_HEADER.unpack_from(data, at)
    return length, context_id, control


def parse_command(data: bytes) -> Command:
    """Read a command set (implicit VR little endian, PS3.7 6.3.1). Raises ProtocolError."""
    values: dict[int, bytes] = {}
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ProtocolError("command set is cut short", INVALID_PARAMETER)
        group, element, length = _ELEMENT.unpack_from(data, at)
        at += 8
        if group != 0 or at + length > len(data) or element in values:
            raise ProtocolError("command set is malformed", INVALID_PARAMETER)
        values[element] = data[at : at + length]
        at += length
    try:
        (field,) = _U16.unpack(values[0x0100])
        (data_set_type,) = _U16.unpack(values[0x0800])
        (message_id,) = _U16.unpack(values[0x0110]) if field != C_CANCEL_RQ else (0,)
    except (KeyError, struct.error):
        raise ProtocolError("command set is incomplete", INVALID_PARAMETER) from None
    return Command(field, message_id, data_set_type != NO_DATA_SET, values.get(0x0002, b""), values.get(0x1000, b""))


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, number, len(value)) + value


def encode_response(command: Command, status: int, comment: str = "") -> bytes:
    """Command set of the response to a request.

    comment: goes into (0000,0902) Error Comment; ASCII, at most 64 characters, no patient data.
    The identifiers are the request's own bytes, left out if they are longer than a UID can be.
    """
    text = comment.encode("ascii", "replace")[:64]
    parts = [
        _element(0x0002, command.sop_class_uid) if 0 < len(command.sop_class_uid) <= 64 else b"",
        _element(0x0100, _U16.pack(command.field | IS_RESPONSE)),
        _element(0x0120, _U16.pack(command.message_id)),
        _element(0x0800, _U16.pack(NO_DATA_SET)),
        _element(0x0900, _U16.pack(status)),
        _element(0x0902, text + b" " * (len(text) % 2)) if text else b"",
        _element(0x1000, command.sop_instance_uid) if 0 < len(command.sop_instance_uid) <= 64 else b"",
    ]
    body = b"".join(parts)
    return _element(0x0000, _U32.pack(len(body))) + body


def encode_command_pdus(context_id: int, command_set: bytes, max_pdu_bytes: int) -> bytes:
    """P-DATA-TF PDUs that carry a command set. max_pdu_bytes: what the peer takes, after the header; 0: any."""
    room = max(max_pdu_bytes - PDV_HEADER_BYTES, 1) if max_pdu_bytes else len(command_set)
    pdus = []
    for start in range(0, len(command_set), room):
        part = command_set[start : start + room]
        control = IS_COMMAND | (IS_LAST if start + room >= len(command_set) else 0)
        pdus.append(
            _PDU_HEADER.pack(P_DATA, len(part) + 6) + _PDV_HEADER.pack(len(part) + 2, context_id, control) + part
        )
    return b"".join(pdus)


def encode_reject(result: int, source: int, reason: int) -> bytes:
    """A-ASSOCIATE-RJ, PS3.8 Table 9-21."""
    return bytes((ASSOCIATE_RJ, 0, 0, 0, 0, 4, 0, result, source, reason))


def encode_release_response() -> bytes:
    """A-RELEASE-RP."""
    return bytes((RELEASE_RP, 0, 0, 0, 0, 4, 0, 0, 0, 0))


def encode_abort(source: int, reason: int) -> bytes:
    """A-ABORT, PS3.8 Table 9-26."""
    return bytes((ABORT, 0, 0, 0, 0, 4, 0, 0, source, reason if source == SERVICE_PROVIDER else 0))
