"""The listening side: pynetdicom's association server, made so that no peer can hold up another.

Kept from `pynetdicom.transport.AssociationServer`: binding, IPv4 and IPv6, and socketserver's accept loop. These parts
of a default server are replaced:

- its accept loop does the TLS handshake: here the connection's own thread does, with a deadline;
- accepted sockets have no timeout: here every PDU has a deadline (connection.py);
- an association is two polling threads: here it is one that waits (association.py);
- there is no limit but the number of associations: here connections without an association are limited by address
  and evicted, silent ones first and the oldest of them, so that they cannot keep a sender out; associations are
  limited by address, by AE title and altogether, and refused as transient above that (limits.py).

tests/unit/test_receiver_server.py pins what is relied on.
"""

import socket
import time
from typing import cast

import structlog
from pynetdicom import AE
from pynetdicom.transport import AssociationServer

from dicom_node.receiver.access import parse_address
from dicom_node.receiver.association import Association
from dicom_node.receiver.connection import Deadlines, Incoming
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.limits import Registry
from dicom_node.receiver.tls import TlsAcceptor

log = structlog.get_logger()


class Server(AssociationServer):
    """Listens on one port. Raises OSError if it cannot.

    tls: does the handshake on a port for TLS; None on one without.
    shared_port: other processes of this node listen on it too, and the system deals connections out to them.
    """

    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        ae_title: str,
        registry: Registry,
        intake: Intake,
        deadlines: Deadlines,
        max_pdu_bytes: int,
        tls: TlsAcceptor | None,
        *,
        shared_port: bool = False,
    ) -> None:
        self._registry = registry
        self._intake = intake
        self._deadlines = deadlines
        self._max_pdu_bytes = max_pdu_bytes
        self.tls = tls
        self._shared_port = shared_port
        super().__init__(AE(ae_title=ae_title), address, ae_title, [])

    def server_bind(self) -> None:
        """Bind the socket; see AssociationServer."""
        if self._shared_port:
            cast(socket.socket, self.socket).setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept a connection; no handshake here."""
        listener = cast(socket.socket, self.socket)
        try:
            return listener.accept()
        except OSError:
            # Out of descriptors: the connection stays in the queue, and the loop must not spin on it.
            time.sleep(0.1)
            raise

    def process_request(self, request: object, client_address: object) -> None:
        """Start the thread of a connection, or close it if its address may not connect."""
        if not isinstance(request, socket.socket) or not isinstance(client_address, tuple):
            raise TypeError("a stream socket was expected")
        address = parse_address(client_address[0])
        if not self._registry.may_connect(address):
            request.close()
            return
        incoming = Incoming(request, self._max_pdu_bytes, self._deadlines, self.tls)
        association = Association(incoming, address, self._registry, self._intake)
        self._registry.enter(association)
        try:
            association.start()
        except RuntimeError:
            # No more threads: this connection is closed, the others go on.
            self._registry.leave(association)
            request.close()

    def service_actions(self) -> None:
        """Nothing: the base class collects garbage here, half a minute apart, for its own associations."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Log without details; the base class prints a traceback."""
        log.error("connection could not be served")

    def shutdown(self) -> None:
        """Stop accepting."""
        # Not AssociationServer.shutdown: that one wants to be in its AE's list of servers.
        super(AssociationServer, self).shutdown()
        self.server_close()
