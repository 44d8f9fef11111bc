"""pynetdicom's server behind limits, for the little that arrives beside images: answers to storage commitment requests.

What it relies on in pynetdicom, pinned by tests/faults/test_commitment_attacks.py:

- `process_request` begins an association's thread before it returns, and `active_associations` has it from then on;
  before, nothing is read;
- all that a peer sends comes through `recv` of the association's socket, a PDU's six header bytes and its rest
  apart; an OSError there ends the association.

Memory of a connection is at most what it may send, `Limits.bytes`, and what pydicom makes of that.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import structlog
from pynetdicom import evt
from pynetdicom.transport import AssociationServer, AssociationSocket

from dicom_node.receiver.access import parse_address

log = structlog.get_logger()


@dataclass(frozen=True)
class Limits:
    """What peers may use; see `SenderSettings.commitment_*`.

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

    knows: whether an address may connect. refuse: is told the address and a word that says why, for each that may not.
    """

    request_queue_size = 64

    def __init__(
        self,
        *arguments: Any,
        limits: Limits,
        knows: Callable[[str], bool],
        refuse: Callable[[str, str], None],
        **named: Any,
    ) -> None:
        self._limits = limits
        self._knows = knows
        self._refuse = refuse
        super().__init__(*arguments, **named)
        self.bind(evt.EVT_CONN_OPEN, self._guard)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin an association's thread, or close the connection before a byte is read.

        Here and not in `verify_request`: what goes wrong here ends one connection, there the whole server.
        """
        address = str(parse_address(str(client_address[0])))
        reason = self._why_not(address)
        if reason:
            self.shutdown_request(request)
            self._refuse(address, reason)
        else:
            super().process_request(request, client_address)

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
            transport.recv = _Intake(transport, self._limits).recv  # type: ignore[method-assign]

    def service_actions(self) -> None:
        """Nothing: the base class collects garbage here, which whoever knocks often enough could make it do all day."""

    def shutdown(self) -> None:
        """Stop accepting."""
        # Not AssociationServer.shutdown: that one wants to be in its AE's list of servers.
        super(AssociationServer, self).shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log without details; the base class prints a traceback."""
        log.error("connection could not be served")


class _Intake:
    """All that is received on one association, within its limits."""

    def __init__(self, transport: AssociationSocket, limits: Limits) -> None:
        self._socket = cast(socket.socket, transport.socket)
        self._limits = limits
        self._left = limits.bytes
        self._ends = time.monotonic() + limits.association_s

    def recv(self, nr_bytes: int) -> bytearray:
        """That many bytes, or fewer where the peer closed. Raises OSError where a limit is passed."""
        # Before anything is read: a length is only a claim.
        if nr_bytes > self._left:
            raise OSError("more than an association may send")
        self._left -= nr_bytes
        deadline = min(self._ends, time.monotonic() + self._limits.pdu_s)
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
