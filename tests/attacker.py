"""Bytes that no toolkit would send: the attacker in the receiver's tests."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

CONTEXT_ID = 1
VERIFICATION_ID = 3
ABORT, REJECT, ACCEPT, RELEASED, DATA = 7, 3, 2, 6, 4


def association_request(
    calling_ae: bytes = b"ATTACKER",
    called_ae: bytes = b"DICOM_NODE",
    syntax: str = ExplicitVRLittleEndian,
    sop_class: str = CTImageStorage,
) -> bytes:
    """An A-ASSOCIATE-RQ for CT (or another class) and verification; the AE titles can be any bytes."""
    request = A_ASSOCIATE()
    request.application_context_name = UID("1.2.840.10008.3.1.1.1")
    request.calling_ae_title, request.called_ae_title = "X", "X"
    contexts = [build_context(sop_class, syntax), build_context("1.2.840.10008.1.1")]
    for context, number in zip(contexts, (CONTEXT_ID, VERIFICATION_ID), strict=True):
        context.context_id = number
    request.presentation_context_definition_list = contexts
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16384
    implementation.implementation_class_uid = UID("1.2.3.4")
    request.user_information = [length, implementation]
    pdu = bytearray(A_ASSOCIATE_RQ(request).encode())
    pdu[10:26], pdu[26:42] = called_ae.ljust(16), calling_ae.ljust(16)
    return bytes(pdu)


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """A PDU; `length` replaces the true length of its content."""
    return struct.pack(">BxI", kind, len(content) if length is None else length) + content


def pdv(content: bytes, control: int, context_id: int = CONTEXT_ID) -> bytes:
    """A presentation data value. control: 1 for a command, plus 2 for the last fragment."""
    return struct.pack(">IBB", len(content) + 2, context_id, control) + content


def command_element(number: int, value: bytes) -> bytes:
    """One element of a command set."""
    return struct.pack("<HHI", 0, number, len(value)) + value


def store_command(sop_instance_uid: bytes, sop_class_uid: bytes = CTImageStorage.encode()) -> bytes:
    """The command set of a C-STORE request."""
    body = (
        command_element(0x0002, sop_class_uid + b"\0" * (len(sop_class_uid) % 2))
        + command_element(0x0100, b"\x01\x00")
        + command_element(0x0110, b"\x01\x00")
        + command_element(0x0700, b"\x02\x00")
        + command_element(0x0800, b"\x01\x00")
        + command_element(0x1000, sop_instance_uid + b"\0" * (len(sop_instance_uid) % 2))
    )
    return command_element(0x0000, struct.pack("<I", len(body))) + body


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """A data element, explicit VR little endian; `length` replaces the true length of its value."""
    value += (b"\0" if vr in (b"UI", b"OB") else b" ") * (len(value) % 2)
    length = len(value) if length is None else length
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        return start + struct.pack("<HI", 0, length) + value
    return start + struct.pack("<H", length) + value


def data_set(sop_instance_uid: bytes = b"1.2.3.4.5", extra: bytes = b"", series: bytes = b"1.2.3.4") -> bytes:
    """A minimal CT data set, explicit VR little endian; `extra` comes before the study's UID."""
    return (
        element(0x00080016, b"UI", CTImageStorage.encode())
        + element(0x00080018, b"UI", sop_instance_uid)
        + element(0x00100010, b"PN", b"Planted^Patient")
        + element(0x00100020, b"LO", b"PLANTED-4711")
        + extra
        + element(0x0020000D, b"UI", b"1.2.3")
        + element(0x0020000E, b"UI", series)
        + element(0x7FE00010, b"OW", bytes(100))
    )


class Attacker:
    """A raw connection to the receiver."""

    def __init__(self, port: int, source: str = "127.0.0.1", host: str = "127.0.0.1") -> None:
        from_where = (source, 0) if host == "127.0.0.1" else None
        self.socket = socket.create_connection((host, port), timeout=20, source_address=from_where)

    def send(self, data: bytes) -> None:
        """Send; it is not an error if the connection has been closed."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def answer(self) -> tuple[int, bytes]:
        """Type and content of the next PDU; type 0 if the connection was closed instead."""
        header = self._exactly(6)
        if len(header) < 6:
            return 0, b""
        kind, length = struct.unpack(">BxI", header)
        return kind, self._exactly(length)

    def associate(self, **how: Any) -> int:
        """Ask for an association. Returns the type of the answer."""
        self.send(association_request(**how))
        return self.answer()[0]

    def store(
        self, command_uid: bytes, content: bytes, piece: int = 16000, sop_class: str = CTImageStorage
    ) -> int | None:
        """Send a C-STORE. Returns the status, or None if the association ended instead."""
        self.send(pdu(DATA, pdv(store_command(command_uid, sop_class.encode()), 3)))
        for start in range(0, len(content), piece):
            is_last = start + piece >= len(content)
            self.send(pdu(DATA, pdv(content[start : start + piece], 2 if is_last else 0)))
        kind, answer = self.answer()
        if kind != DATA:
            return None
        at = answer.index(struct.pack("<HHI", 0, 0x0900, 2))
        return int(struct.unpack_from("<H", answer, at + 8)[0])

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                piece = self.socket.recv(count - len(data))
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece
        return data


@contextmanager
def attacker(port: int, source: str = "127.0.0.1") -> Iterator[Attacker]:
    """A raw connection, closed at the end."""
    connection = Attacker(port, source)
    try:
        yield connection
    finally:
        connection.close()
