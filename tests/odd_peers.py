"""Peers that answer an association request, or a later message, as no toolkit would."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from tests.attacker import ACCEPT, DATA, pdu

APPLICATION_CONTEXT = b"1.2.840.10008.3.1.1.1"
Answers = Callable[[bytes], bytes]


def item(kind: int, content: bytes) -> bytes:
    """An item of an association PDU (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(content)) + content


def maximum_length(length: int) -> bytes:
    """A user information item with a maximum PDU length."""
    return item(0x50, item(0x51, struct.pack(">I", length)) + item(0x52, b"1.2.3.4"))


def acceptance(request: bytes, user_information: bytes = maximum_length(16384)) -> bytes:
    """An A-ASSOCIATE-AC that accepts every presentation context in its first transfer syntax.

    request: the A-ASSOCIATE-RQ without its header of six bytes. user_information: the item; empty leaves it out.
    """
    results = b""
    for kind, content in _items(request[68:]):
        if kind == 0x20:
            syntaxes = [value for name, value in _items(content[4:]) if name == 0x40]
            results += item(0x21, content[:1] + b"\0\0\0" + item(0x40, syntaxes[0]))
    return pdu(ACCEPT, request[:68] + item(0x10, APPLICATION_CONTEXT) + results + user_information)


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        kind, length = struct.unpack(">BxH", data[:4])
        yield kind, data[4 : 4 + length]
        data = data[4 + length :]


class OddPeer:
    """Answers each association request with `answer(request)`, and the first P-DATA after it with `later`."""

    def __init__(self, answer: Answers, later: bytes = b"") -> None:
        self._answer, self._later = answer, later
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests = 0
        self.received = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "OddPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        later = self._later
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            while (head := connection.recv(6, socket.MSG_WAITALL)) and len(head) == 6:
                kind, length = struct.unpack(">BxI", head)
                content = connection.recv(length, socket.MSG_WAITALL)
                if kind == 1:
                    self.requests += 1
                    connection.sendall(self._answer(content))
                elif kind == DATA:
                    self.received += length
                    connection.sendall(later)
                    later = b""
