"""A socket with deadlines, and the one buffer that PDUs are received into.

Whatever the peer sends, a connection uses at most this buffer (twice `max_pdu_bytes`), the head of one data set
(reception.HEAD_BYTES), one command set (pdu.MAX_COMMAND_BYTES) and its thread's stack: about 0.4 MiB with PDUs of
128 KiB.
"""

import mmap
import select
import socket
import ssl
import struct
import time
from dataclasses import dataclass

from dicom_node.receiver.errors import Closed, ProtocolError
from dicom_node.receiver.pdu import HEADER_BYTES, INVALID_PARAMETER, UNRECOGNISED_PDU, parse_pdu_header
from dicom_node.receiver.tls import TlsAcceptor, peer_names

TICK_S = 1.0
"""How late a deadline may be noticed, and how long a peer may take to read an answer."""
DRAIN_BYTES = 4 * 1024**2


@dataclass(frozen=True)
class Deadlines:
    """Seconds. pdu_s: for a PDU once it began; idle_s: without anything; request_s: for the association request
    from the connection on; closing_s: for the peer to close after our last word."""

    pdu_s: float
    idle_s: float
    request_s: float
    closing_s: float


class Connection:
    """One peer's connection, used by one thread."""

    def __init__(self, sock: socket.socket, max_pdu_bytes: int, deadlines: Deadlines) -> None:
        self._socket = sock
        self.max_pdu_bytes = max_pdu_bytes
        self.deadlines = deadlines
        # Twice a PDU, so that the beginning of the next one seldom has to be moved to the front. Mapped, not
        # allocated: a silent connection uses none of it, and all of it goes back to the system at the end.
        self._buffer = mmap.mmap(-1, 2 * (max_pdu_bytes + HEADER_BYTES))
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._opened_at = time.monotonic()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A blocking call ends at least this often, for the deadlines to be looked at.
        tick_s = min(TICK_S, deadlines.pdu_s, deadlines.request_s, deadlines.idle_s)
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(tick_s)
        else:
            # The kernel's own timeouts: Python's would cost a poll() before every call.
            _set_kernel_timeouts(sock, tick_s)

    def receive_request(self) -> tuple[int, memoryview]:
        """The first PDU, within the deadline that counts from the connection on."""
        return self._receive(self._opened_at + self.deadlines.request_s)

    def receive(self) -> tuple[int, memoryview]:
        """Type and content (without the header) of the next PDU; valid until the next call.

        Raises Closed; ProtocolError for a PDU that is too long or too slow, or when nothing comes.
        """
        return self._receive(time.monotonic() + self.deadlines.idle_s)

    def _receive(self, deadline: float) -> tuple[int, memoryview]:
        if self._end == self._start:
            self._start = self._end = 0
            self._fill(HEADER_BYTES, deadline, begun=False)
        elif self._end - self._start < HEADER_BYTES:
            self._fill(HEADER_BYTES, deadline, begun=True)
        kind, length = parse_pdu_header(self._view, self._start)
        if not 1 <= kind <= 7:
            raise ProtocolError("unknown PDU type", UNRECOGNISED_PDU)
        if length > self.max_pdu_bytes:
            raise ProtocolError("PDU is longer than announced", INVALID_PARAMETER)
        size = HEADER_BYTES + length
        if self._end - self._start < size:
            self._fill(size, deadline, begun=True)
        content = self._view[self._start + HEADER_BYTES : self._start + size]
        self._start += size
        return kind, content

    def _fill(self, size: int, deadline: float, *, begun: bool) -> None:
        """Receive until `size` bytes from the start are there. begun: the PDU's first byte is there already."""
        if self._start + size > len(self._buffer):
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        if begun:
            deadline = min(deadline, time.monotonic() + self.deadlines.pdu_s)
        while self._end - self._start < size:
            count = self._receive_some(deadline)
            self._end += count
            if count and not begun:
                begun = True
                deadline = min(deadline, time.monotonic() + self.deadlines.pdu_s)

    def _receive_some(self, deadline: float) -> int:
        """Bytes received into the buffer; 0 when a tick passed without any."""
        if time.monotonic() >= deadline:
            raise ProtocolError("deadline passed")
        try:
            count = self._socket.recv_into(self._view[self._end :])
        except (TimeoutError, BlockingIOError):
            return 0
        except (OSError, ValueError):  # ValueError: TLS cut by another thread
            raise Closed("connection lost") from None
        if count == 0:
            raise Closed("connection closed by the peer")
        return count

    def send(self, data: bytes) -> None:
        """Send. Raises Closed if the peer is gone or does not read."""
        try:
            self._socket.sendall(data)
        except (OSError, ValueError):
            raise Closed("connection lost") from None

    def close_after(self, last_word: bytes) -> None:
        """Send the last PDU, wait for the peer to close, and close.

        Closing at once could lose the PDU: unread data turns the close into a reset.
        """
        deadline = time.monotonic() + self.deadlines.closing_s
        drained = 0
        try:
            self.send(last_word)
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket = self._end_tls(self._socket)
            self._socket.shutdown(socket.SHUT_WR)
            while drained < DRAIN_BYTES:
                self._end = 0
                drained += self._receive_some(deadline)
        except (Closed, ProtocolError, OSError):
            pass
        self.close()

    def _end_tls(self, sock: ssl.SSLSocket) -> socket.socket:
        """Say that no more comes, and wait for the peer to say so: otherwise a cut connection would look the same."""
        sock.settimeout(self.deadlines.closing_s)
        try:
            return sock.unwrap()
        except ValueError:
            raise Closed("connection lost") from None

    def close(self) -> None:
        """Close; harmless when repeated."""
        self._socket.close()


def _set_kernel_timeouts(sock: socket.socket, seconds: float) -> None:
    sock.settimeout(None)
    interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))  # struct timeval
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, interval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)


class Incoming:
    """An accepted socket that is not ready yet: one for TLS has its handshake first."""

    def __init__(
        self, sock: socket.socket, max_pdu_bytes: int, deadlines: Deadlines, tls: TlsAcceptor | None = None
    ) -> None:
        self._socket = sock
        self._max_pdu_bytes = max_pdu_bytes
        self._deadlines = deadlines
        self._tls = tls
        self.peer_names: frozenset[str] = frozenset()
        """Names in the peer's certificate, once open."""

    @property
    def over_tls(self) -> bool:
        """True for a port with TLS."""
        return self._tls is not None

    def open(self) -> Connection:
        """Make it ready, within the deadline for the association request. Raises OSError, and closes it then."""
        if self._tls is not None:
            try:
                self._shake_hands(self._tls)
            except OSError:
                self._socket.close()
                raise
        return Connection(self._socket, self._max_pdu_bytes, self._deadlines)

    def _shake_hands(self, tls: TlsAcceptor) -> None:
        self._socket.settimeout(self._deadlines.request_s)  # for the handshake as a whole
        wrapped = tls.wrap(self._socket)
        self._socket = wrapped
        try:
            wrapped.do_handshake()
        except OSError:  # what is wrong with a certificate is a ValueError too
            raise
        except ValueError:  # cut by another thread
            raise OSError("connection lost") from None
        self.peer_names = peer_names(wrapped)

    def has_unread(self) -> bool:
        """True if the peer sent something that its thread has not read yet; asked from another thread.

        It never waits. To peek with recv would, as long as the socket has a timeout of its own, and hold up all others.
        """
        looked = select.poll()
        try:
            looked.register(self._socket, select.POLLIN)
            return bool(looked.poll(0))
        except (OSError, ValueError):  # closed
            return False

    def cut(self) -> None:
        """End the connection from another thread; its own thread then finds it closed."""
        try:
            # The plain socket's method: SSLSocket's own takes the TLS state away from the thread that uses it.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            pass
