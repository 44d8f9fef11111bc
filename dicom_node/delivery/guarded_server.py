"""pynetdicom's server behind limits, for the little that arrives beside images: answers to storage commitment requests.

It relies on these parts of pynetdicom, pinned by tests/faults/test_commitment_attacks.py:

- `process_request` begins an association's thread before it returns, and `active_associations` has it from then on;
  before, nothing is read;
- all that a peer sends comes through `recv` of the association's socket, first a PDU's six header bytes, then its
  rest; an OSError there ends the association.

A connection uses at most the memory of what it may send, `GuardedLimits.bytes`, and of what pydicom makes of that.
"""

import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.transport import AssociationServer, AssociationSocket

from dicom_node.receiver.access import parse_address
from dicom_node.receiver.tls import TlsAcceptor

log = structlog.get_logger()


@dataclass(frozen=True)
class GuardedLimits:
    """What peers may use; see `CommitmentSettings`.

    connections, of which per_address. pdu_s: for a PDU's header, and for its rest. association_s: for everything.
    bytes: of everything that comes on an association.
    """

    connections: int
    per_address: int
    pdu_s: float
    association_s: float
    bytes: int


class GuardedServer(AssociationServer):
    """An association server for known hosts.

    knows: whether an address may connect. refuse: is called for each that may not, with a word that says why.
    tls: does the server's side of TLS, in the association's own thread; None: without TLS.
    """

    request_queue_size = 64

    def __init__(
        self,
        *arguments: Any,
        limits: GuardedLimits,
        knows: Callable[[str], bool],
        refuse: Callable[[str, str], None],
        tls: TlsAcceptor | None = None,
        **named: Any,
    ) -> None:
        self._tls = tls
        self._limits = limits
        self._knows = knows
        self._refuse = refuse
        super().__init__(*arguments, **named)
        self.bind(evt.EVT_CONN_OPEN, self._guard)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin an association's thread, or close the connection before a byte is read.

        Here and not in `verify_request`: an error here ends one connection; there it would end the whole server.
        """
        address = str(parse_address(str(client_address[0])))
        reason = self._why_not(address)
        if reason:
            self.shutdown_request(request)
            self._refuse(address, reason)
        else:
            super().process_request(self._tls.wrap(request) if self._tls else request, client_address)

    def _why_not(self, address: str) -> str:
        if not self._knows(address):
            return "address"
        present = [str(parse_address(one.requestor.address)) for one in self.active_associations]
        if present.count(address) >= self._limits.per_address or len(present) >= self._limits.connections:
            return "too-many-connections"
        return ""

    def _guard(self, event: evt.Event) -> None:
        transport = event.assoc.dul.socket
        if transport is not None and transport.socket is not None:
            address = str(parse_address(event.assoc.requestor.address))
            intake = _Intake(transport, self._limits, lambda: self._refuse(address, "tls"))
            transport.recv = intake.recv  # type: ignore[method-assign]

    def service_actions(self) -> None:
        """Nothing: the base class collects garbage here, and a peer that knocks often enough could keep it at that."""

    def shutdown(self) -> None:
        """Stop accepting."""
        # Not AssociationServer.shutdown: that one wants to be in its AE's list of servers.
        super(AssociationServer, self).shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log without details; the base class prints a traceback."""
        log.error("connection could not be served")


class _Intake:
    """All that is received on one association, within its limits.

    on_tls_failure: is called when TLS was not agreed on.
    """

    def __init__(self, transport: AssociationSocket, limits: GuardedLimits, on_tls_failure: Callable[[], None]) -> None:
        self._socket = cast(socket.socket, transport.socket)
        self._on_tls_failure = on_tls_failure
        self._agreed = not isinstance(self._socket, ssl.SSLSocket)
        self._limits = limits
        self._left = limits.bytes
        self._ends = time.monotonic() + limits.association_s

    def recv(self, nr_bytes: int) -> bytearray:
        """That many bytes, or fewer if the peer closed. Raises OSError if a limit is exceeded or TLS fails."""
        # Before anything is read: a length is only a claim.
        if nr_bytes > self._left:
            raise OSError("more than an association may send")
        self._left -= nr_bytes
        deadline = min(self._ends, time.monotonic() + self._limits.pdu_s)
        if not self._agreed:
            self._agree(deadline)
        received = bytearray()
        while len(received) < nr_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("deadline passed")
            self._socket.settimeout(left)
            piece = self._socket.recv(nr_bytes - len(received))
            if not piece:
                break
            received += piece
        self._socket.settimeout(self._limits.pdu_s)  # for what is sent
        return received

    def _agree(self, deadline: float) -> None:
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            cast(ssl.SSLSocket, self._socket).do_handshake()
        except OSError:
            self._on_tls_failure()
            raise
        self._agreed = True
