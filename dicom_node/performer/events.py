"""What a worklist tells by itself (N-EVENT-REPORT): new steps, and requests to cancel one that is in hand.

Only the worklist may send a first byte: from its host, under its AE title, and with TLS if the receiver takes nothing
else. Nothing depends on events: a step that nobody told of is found by asking.
"""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import structlog
from pynetdicom import evt

from config.gateways.worklist import WorklistEntry
from config.settings import Settings
from dicom_node.delivery.guarded_server import GuardedLimits, GuardedServer
from dicom_node.errors import NodeError, PortTaken
from dicom_node.gateways.worklist.dimse import CLASS
from dicom_node.receiver.access import parse_address
from dicom_node.receiver.tls import TlsAcceptor, TlsFiles
from dicom_node.scu.contexts import UPS_EVENT, application_entity
from dicom_node.statuses import NO_SUCH_EVENT_TYPE, PROCESSING_FAILURE, SUCCESS, UNRECOGNISED_OPERATION
from storage import workitems
from storage.arrival import clean
from storage.database import Database
from storage.errors import StorageError

log = structlog.get_logger()

STATE, CANCEL_REQUESTED, PROGRESS, SERVICE, ASSIGNED = 1, 2, 3, 4, 5
LONGEST_REASON = 200
# Whatever else is asked on a context of this class. A generator suits C-FIND, a tuple the others.
REFUSED: list[evt.EventHandlerType] = [
    (evt.EVT_N_ACTION, lambda _: (UNRECOGNISED_OPERATION, None)),
    (evt.EVT_N_CREATE, lambda _: (UNRECOGNISED_OPERATION, None)),
    (evt.EVT_N_GET, lambda _: (UNRECOGNISED_OPERATION, None)),
    (evt.EVT_N_SET, lambda _: (UNRECOGNISED_OPERATION, None)),
    (evt.EVT_C_FIND, lambda _: iter([(UNRECOGNISED_OPERATION, None)])),
]
LIMITS = GuardedLimits(connections=8, per_address=4, pdu_s=10.0, association_s=60.0, bytes=1024 * 1024)


class EventListener:
    """Listens at the event port of one worklist. hurry: is called when there may be new steps."""

    def __init__(
        self,
        settings: Settings,
        entry: WorklistEntry,
        database: Database,
        hurry: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._entry, self._database = settings, entry, database
        self._hurry, self._clock = hurry, clock
        self._server: GuardedServer | None = None
        self.port = entry.event_port

    def start(self) -> None:
        """Listen. Raises PortTaken, or NodeError if the TLS files cannot be used."""
        entity = application_entity(self._settings.sender.calling_ae_title)
        entity.require_calling_aet = [self._entry.ae_title]
        entity.require_called_aet = True
        entity.maximum_associations = LIMITS.connections
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = LIMITS.pdu_s
        for uid in UPS_EVENT.classes:
            entity.add_supported_context(uid, list(UPS_EVENT.transfer_syntaxes), scu_role=True, scp_role=True)
        address = (self._settings.receiver.host, self.port)
        try:
            server = entity.make_server(
                address,
                evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._on_event), *REFUSED],
                server_class=GuardedServer,
                limits=LIMITS,
                knows=self._knows,
                refuse=self._refuse,
                tls=self._tls(),
            )
        except OSError as error:
            raise PortTaken(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
        self._server = cast(GuardedServer, server)
        self.port = int(server.server_address[1])
        threading.Thread(target=server.serve_forever, name="worklist-events", daemon=True).start()
        log.info("listening for a worklist's events", worklist=self._entry.name, port=self.port)

    def stop(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def _tls(self) -> TlsAcceptor | None:
        """With the receiver's files, if it takes nothing without TLS."""
        receiver = self._settings.receiver
        if receiver.plain:
            return None
        try:
            files = (receiver.tls_certificate, receiver.tls_key, receiver.tls_authorities)
            return TlsAcceptor(TlsFiles(*cast(tuple[Path, Path, Path], files)))
        except OSError as error:
            raise NodeError(f"the TLS files of [receiver] cannot be used: {error.strerror or error}") from error

    def _knows(self, address: str) -> bool:
        try:
            found = socket.getaddrinfo(self._entry.host, None)
        except OSError:
            return False
        return address in {str(parse_address(str(info[4][0]))) for info in found}

    def _refuse(self, address: str, reason: str) -> None:
        log.warning("no event is taken from this address", worklist=self._entry.name, address=address, reason=reason)

    def _on_event(self, event: evt.Event) -> tuple[int, None]:
        """EVT_N_EVENT_REPORT. Returns the DIMSE status."""
        if str(getattr(event.request, "AffectedSOPClassUID", "")) != CLASS:
            return NO_SUCH_EVENT_TYPE, None
        if event.event_type == CANCEL_REQUESTED:
            return self._cancel(event), None
        if event.event_type not in (STATE, PROGRESS, SERVICE, ASSIGNED):
            return NO_SUCH_EVENT_TYPE, None
        if event.event_type != PROGRESS:
            self._hurry()
        return SUCCESS, None

    def _cancel(self, event: evt.Event) -> int:
        said = event.event_information
        reason = clean(str(said.get("ReasonForCancellation") or ""), LONGEST_REASON)
        uid = str(getattr(event.request, "AffectedSOPInstanceUID", ""))
        try:
            with self._database.transaction() as tx:
                workitems.ask_to_cancel(tx, self._entry.name, uid, reason, self._clock())
        except StorageError as error:
            log.warning("a request to cancel was not noted", worklist=self._entry.name, error=type(error).__name__)
            return PROCESSING_FAILURE
        return SUCCESS
