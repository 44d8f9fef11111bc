"""One association, from the accepted connection to its end, in one thread.

The protocol is the state machine of PS3.8 9.2, as far as an acceptor needs it:

    state         PDU received        what follows
    AWAITING      A-ASSOCIATE-RQ      accepted: ESTABLISHED; else A-ASSOCIATE-RJ, end
    ESTABLISHED   P-DATA-TF           a command, or a piece of a data set
    ESTABLISHED   A-RELEASE-RQ        A-RELEASE-RP, end
    any           A-ABORT             end
    any           anything else       A-ABORT, end

pynetdicom's own association (two threads that poll, queues between them, PDUs joined in memory) is not used: the
thread here waits in recv() and passes data on to the file.
"""

import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import structlog

from dicom_node.receiver import access, pdu, tls
from dicom_node.receiver.access import Address, Rejection, address_key
from dicom_node.receiver.acse import ACCEPTED, APPLICATION_CONTEXT, Context, Request, encode_accept, parse_request
from dicom_node.receiver.connection import Connection, Incoming
from dicom_node.receiver.errors import Closed, OutOfResources, ProtocolError
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.messages import Messages
from dicom_node.receiver.negotiation import STORAGE_CLASSES, Offer, negotiate
from dicom_node.receiver.reception import Reception
from dicom_node.receiver.refusals import Caller
from dicom_node.statuses import SUCCESS

log = structlog.get_logger()


class State(StrEnum):
    """Where an association is."""

    AWAITING = "AWAITING"
    ESTABLISHED = "ESTABLISHED"
    ENDED = "ENDED"


@dataclass(frozen=True)
class Admission:
    """What an admitted sender may do. label: what logs call it. user_is_verified: it named a user that we know."""

    offer: Offer
    label: str
    user_is_verified: bool = False


class Gate(Protocol):
    """What the server decides and records for all associations."""

    def admit(self, association: "Association", request: Request) -> Admission | Rejection:
        """Whether the association may be established. If so, it counts from then on."""

    def record(self, association: "Association", event: str, outcome: str, **detail: object) -> None:
        """Write an audit row about an association."""

    def leave(self, association: "Association") -> None:
        """The association and its connection are gone."""


class Association(threading.Thread):
    """One peer's association.

    incoming: its connection, made ready in this thread: a TLS handshake must not hold up the others.
    address: of the peer.
    """

    def __init__(self, incoming: Incoming, address: Address, gate: Gate, intake: Intake) -> None:
        super().__init__(name="association", daemon=True)
        self.address = str(address)
        self.network = address_key(address)
        self.state = State.AWAITING
        self.calling_ae = ""
        self.called_ae = ""
        self.instances = 0
        self.failures = 0
        self.admitted = False
        self.is_storing = False
        self.active_at = time.monotonic()
        self._has_asked = False
        self._incoming = incoming
        self._gate = gate
        self._intake = intake
        self._peer_max_pdu_bytes = 0
        self._contexts: dict[int, Context] = {}
        self._caller = Caller("", "", "", "", "")
        self._reception: Reception | None = None
        self._connection: Connection
        self._messages: Messages

    def cut(self) -> None:
        """End the connection from another thread."""
        self._incoming.cut()

    @property
    def is_silent(self) -> bool:
        """True while nothing came that may be an association request."""
        return not self._has_asked and not self._incoming.has_unread()

    @property
    def counts(self) -> bool:
        """True while the limits count this association."""
        return self.admitted and self.state is not State.ENDED

    @property
    def peer_names(self) -> frozenset[str]:
        """Names in the peer's certificate; empty without TLS."""
        return self._incoming.peer_names

    @property
    def over_tls(self) -> bool:
        """True on a port with TLS."""
        return self._incoming.over_tls

    def run(self) -> None:
        """Serve the peer until it, a deadline or an error ends the association."""
        try:
            connection = self._incoming.open()
        except OSError as error:
            self._gate.record(self, "connection.refused", "REFUSED", reason=tls.failure(error))
            self._gate.leave(self)
            return
        try:
            self._serve(connection)
        except Closed:
            self._on_closed()
        except ProtocolError as error:
            self._abort(connection, error)
        except Exception as error:  # noqa: BLE001  whatever a peer can provoke ends its own association only
            log.error("association failed", error=type(error).__name__, address=self.address)
            self._abort(connection, ProtocolError("internal error"))
        finally:
            connection.close()
            self._interrupt()
            self.state = State.ENDED
            self._gate.leave(self)

    def _serve(self, connection: Connection) -> None:
        self._connection, self._messages = connection, Messages(self, connection.deadlines.pdu_s)
        kind, content = connection.receive_request()
        self._has_asked = True
        self._begin(connection, kind, content)
        while self.state is State.ESTABLISHED:
            kind, content = connection.receive()
            if kind == pdu.P_DATA:
                self._messages.take(content)
            elif kind == pdu.RELEASE_RQ:
                self._release(connection)
            elif kind == pdu.ABORT:
                raise Closed("aborted by the peer")
            else:
                raise ProtocolError("unexpected PDU", pdu.UNEXPECTED_PDU)

    def _begin(self, connection: Connection, kind: int, content: memoryview) -> None:
        if kind == pdu.ABORT:
            raise Closed("aborted by the peer")
        if kind != pdu.ASSOCIATE_RQ:
            raise ProtocolError("unexpected PDU", pdu.UNEXPECTED_PDU)
        request = parse_request(content)
        self.calling_ae, self.called_ae = request.calling_ae, request.called_ae
        admission = _protocol_rejection(request) or self._gate.admit(self, request)
        if isinstance(admission, Rejection):
            self._gate.record(self, "association.rejected", "REJECTED", reason=admission.reason)
            self.state = State.ENDED
            connection.close_after(pdu.encode_reject(*admission.code))
            return
        answers = negotiate(request.proposals, admission.offer)
        self._contexts = {answer.context_id: answer for answer in answers if answer.result == ACCEPTED}
        self._caller = Caller(self.calling_ae, self.called_ae, self.address, self.network, admission.label)
        self._peer_max_pdu_bytes = request.max_pdu_bytes
        connection.send(
            encode_accept(request, answers, connection.max_pdu_bytes, user_is_verified=admission.user_is_verified)
        )
        self.state = State.ESTABLISHED
        self._gate.record(self, "association.accepted", "ACCEPTED", contexts=len(self._contexts))

    def on_command(self, command: pdu.Command, context_id: int) -> bool:
        """Obey a command; see messages.Listener."""
        context = self._contexts.get(context_id)
        if context is None:
            raise ProtocolError("presentation context was not accepted", pdu.INVALID_PARAMETER)
        if command.field == pdu.C_STORE_RQ and command.has_data_set and context.abstract_syntax in STORAGE_CLASSES:
            self.is_storing = True
            self._reception = Reception(command, context, self._caller, self._intake)
        elif command.field == pdu.C_ECHO_RQ and not command.has_data_set:
            self._count_command()
            self._answer(command, context_id, SUCCESS, "")
        elif command.field == pdu.C_CANCEL_RQ:  # nothing that we do can be cancelled
            self._count_command()
        else:
            raise ProtocolError("command is not of an accepted service", pdu.INVALID_PARAMETER)
        return self._reception is not None

    def _count_command(self) -> None:
        try:
            self._intake.resources.admit_command(self._caller.calling_ae, self._caller.network)
        except OutOfResources as error:
            raise ProtocolError(str(error)) from None

    def on_data(self, fragment: memoryview, is_last: bool) -> None:
        """Take a piece of an instance, and answer after the last; see messages.Listener."""
        reception = self._reception
        if reception is None:
            raise ProtocolError("a data set without its command", pdu.INVALID_PARAMETER)
        reception.write(fragment)
        if not is_last:
            return
        status, comment = reception.finish()
        self._reception = None
        self.is_storing = False
        self.active_at = time.monotonic()
        self.instances += status == SUCCESS
        self.failures += status != SUCCESS
        self._answer(reception.command, reception.context_id, status, comment)

    def _answer(self, command: pdu.Command, context_id: int, status: int, comment: str) -> None:
        response = pdu.encode_response(command, status, comment)
        self._connection.send(pdu.encode_command_pdus(context_id, response, self._peer_max_pdu_bytes))

    def _release(self, connection: Connection) -> None:
        if not self._messages.is_between:
            raise ProtocolError("release inside a message", pdu.UNEXPECTED_PDU)
        self.state = State.ENDED
        self._gate.record(self, "association.released", "RELEASED", **self._counts())
        connection.close_after(pdu.encode_release_response())

    def _interrupt(self, *why: str) -> None:
        reception, self._reception = self._reception, None
        if reception is not None:
            reception.interrupt(*why)

    def _on_closed(self) -> None:
        if self.state is State.ESTABLISHED:
            self._gate.record(self, "association.aborted", "ABORTED", reason="connection-closed", **self._counts())
        elif self.state is State.AWAITING:
            self._gate.record(self, "connection.closed", "CLOSED", reason="no-association-request")

    def _abort(self, connection: Connection, error: ProtocolError) -> None:
        event = "association.aborted" if self.state is State.ESTABLISHED else "connection.aborted"
        self._gate.record(self, event, "ABORTED", reason=str(error), **self._counts())
        self._interrupt(str(error))
        self.state = State.ENDED
        source = pdu.SERVICE_PROVIDER if error.reason else pdu.SERVICE_USER
        connection.close_after(pdu.encode_abort(source, error.reason))

    def _counts(self) -> dict[str, object]:
        return {"instances": self.instances, "failures": self.failures}


def _protocol_rejection(request: Request) -> Rejection | None:
    # Bit 0 of the protocol version is version 1, the only one, PS3.8 9.3.2.
    if not request.protocol_version & 1:
        return Rejection(access.PROTOCOL_VERSION_UNKNOWN, "protocol-version")
    if request.application_context != APPLICATION_CONTEXT:
        return Rejection(access.APPLICATION_CONTEXT_UNKNOWN, "application-context")
    # PS3.5 6.2, VR AE: printable and not empty; a backslash here is an escape of something else, or not allowed either.
    if not request.calling_ae or "\\" in request.calling_ae:
        return Rejection(access.CALLING_AE_UNKNOWN, "calling-ae-malformed")
    return None
