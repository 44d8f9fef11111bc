"""Takes a PACS's answers to our storage commitment requests (N-EVENT-REPORT) on associations that it opens.

The node offers storage commitment to nobody: what comes here are answers. Only the hosts of destinations that are
asked for commitment get as far as the first byte.
"""

import socket

import structlog
from pynetdicom import AE, evt
from pynetdicom.transport import ThreadedAssociationServer

from config.settings import Settings
from dicom_node.commitment import MODEL, answer_report, asking_ae_title
from dicom_node.errors import PortTaken
from storage.database import Database

log = structlog.get_logger()

MAX_ASSOCIATIONS = 4
TIMEOUT_S = 10.0
UNRECOGNISED_OPERATION = 0x0211


class CommitmentListener:
    """An acceptor for storage commitment answers on `sender.commitment_port`."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._server: ThreadedAssociationServer | None = None
        self.port = settings.sender.commitment_port

    def start(self) -> None:
        """Listen. Raises PortTaken."""
        entity = AE(ae_title=asking_ae_title(self._settings.sender))
        entity.require_called_aet = True
        entity.maximum_associations = MAX_ASSOCIATIONS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = TIMEOUT_S
        # The PACS is the SCP on an association that it requests; not every one negotiates that role.
        entity.add_supported_context(MODEL, scu_role=True, scp_role=True)
        handlers: list[evt.EventHandlerType] = [
            (evt.EVT_CONN_OPEN, self._on_open),
            (evt.EVT_N_EVENT_REPORT, self._on_report),
            (evt.EVT_N_ACTION, _on_request),
        ]
        address = (self._settings.receiver.host, self.port)
        try:
            self._server = entity.start_server(address, block=False, evt_handlers=handlers)
        except OSError as error:
            raise PortTaken(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
        if self._server is not None:
            self.port = int(self._server.server_address[1])
        log.info("listening for storage commitment answers", port=self.port)

    def stop(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _hosts(self) -> set[str]:
        hosts: set[str] = set()
        for destination in self._settings.destinations:
            if destination.commitment != "request":
                continue
            try:
                hosts |= {str(info[4][0]) for info in socket.getaddrinfo(destination.host, None)}
            except OSError:
                continue  # it has no address now, so it cannot be who calls
        return hosts

    def _on_open(self, event: evt.Event) -> None:
        transport = event.assoc.dul.socket
        if transport is None or transport.socket is None:
            return
        # Without a timeout half a PDU holds the association's thread for ever.
        transport.socket.settimeout(TIMEOUT_S)
        address = str(getattr(event, "address", ("",))[0])
        if address not in self._hosts():
            log.warning("connection to the storage commitment port refused", address=address)
            transport.socket.shutdown(socket.SHUT_RDWR)

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        return answer_report(event, self._database, self._settings.sender), None


def _on_request(event: evt.Event) -> tuple[int, None]:
    """Somebody asks for our commitment. Images go once they are analysed: nobody may rely on them here."""
    log.warning("request for storage commitment refused", address=str(event.assoc.requestor.address))
    return UNRECOGNISED_OPERATION, None
