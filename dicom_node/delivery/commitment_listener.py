"""Takes a PACS's answers to our storage commitment requests (N-EVENT-REPORT) on associations that it opens.

The node offers storage commitment to nobody: only answers come here. Only destinations that are asked for commitment
may send a first byte: from their hosts, under their AE titles, and with TLS if the receiver takes nothing else. An
answer counts only for deliveries to its sender.
"""

import socket
import threading
import time
from pathlib import Path
from typing import cast

import structlog
from pynetdicom import evt

from config.settings import Destination, SenderSettings, Settings
from dicom_node.delivery.commitment import MODEL, answer_report, asking_ae_title
from dicom_node.delivery.guarded_server import GuardedLimits, GuardedServer
from dicom_node.errors import NodeError, PortTaken
from dicom_node.receiver.access import parse_address
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.tickets import Note
from dicom_node.receiver.tls import TlsAcceptor, TlsFiles
from dicom_node.scu.contexts import COMMIT, application_entity
from dicom_node.statuses import UNRECOGNISED_OPERATION
from storage import audit
from storage.database import Database
from storage.errors import StorageError

log = structlog.get_logger()

LOOK_UP_EVERY_S = 60.0


class CommitmentListener:
    """An acceptor for storage commitment answers on `sender.commitment.port`."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._limits = _limits(settings.sender)
        self._server: GuardedServer | None = None
        self._journal = Journal(self._write, database.now)
        self._addresses: dict[str, set[str]] = {}
        self._looked_up_at = float("-inf")
        self.port = settings.sender.commitment.port

    def start(self) -> None:
        """Listen. Raises PortTaken, or NodeError if the TLS files cannot be used."""
        tls = self._tls()
        entity = application_entity(asking_ae_title(self._settings.sender))
        entity.require_calling_aet = sorted({d.answers_as or d.ae_title for d in self._asked()})
        entity.require_called_aet = True
        entity.maximum_associations = self._limits.connections
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._limits.pdu_s
        # The PACS is the SCP on an association that it requests; not every PACS negotiates that role.
        entity.add_supported_context(MODEL, list(COMMIT.transfer_syntaxes), scu_role=True, scp_role=True)
        address = (self._settings.receiver.host, self.port)
        try:
            server = entity.make_server(
                address,
                evt_handlers=[
                    (evt.EVT_N_EVENT_REPORT, self._on_report),
                    (evt.EVT_N_ACTION, _on_request),
                    (evt.EVT_REJECTED, self._on_rejected),
                ],
                server_class=GuardedServer,
                limits=self._limits,
                knows=self._knows,
                refuse=self._refuse,
                tls=tls,
            )
        except OSError as error:
            raise PortTaken(f"cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error
        self._server = cast(GuardedServer, server)
        self.port = int(server.server_address[1])
        threading.Thread(target=server.serve_forever, name="commitment", daemon=True).start()
        log.info("listening for storage commitment answers", port=self.port, tls=tls is not None)

    def _tls(self) -> TlsAcceptor | None:
        """With the receiver's files; None if answers are taken without TLS."""
        receiver, wanted = self._settings.receiver, self._settings.sender.commitment.tls
        files = receiver.tls_certificate, receiver.tls_key, receiver.tls_authorities
        if not (wanted or (wanted is None and not receiver.plain)):
            return None
        if None in files:
            raise NodeError("the commitment port is to use TLS: name the three TLS files in [receiver]")
        try:
            return TlsAcceptor(TlsFiles(*cast(tuple[Path, Path, Path], files)))
        except OSError as error:
            raise NodeError(f"the TLS files of [receiver] cannot be used: {error.strerror or error}") from error

    def _asked(self) -> list[Destination]:
        return [d for d in self._settings.dicom_destinations if d.commitment == "request"]

    def stop(self) -> None:
        """Stop listening."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            self._journal.flush(self._database.now(), window_s=0)

    def _knows(self, address: str) -> bool:
        """Whether it is the address of a destination that is asked for commitment.

        Names are looked up only for an unknown address, and seldom. If the name server is away, known addresses must
        neither wait nor be forgotten.
        """
        if not self._is_known(address) and time.monotonic() - self._looked_up_at >= LOOK_UP_EVERY_S:
            self._look_up()
            self._looked_up_at = time.monotonic()
        return self._is_known(address)

    def _is_known(self, address: str) -> bool:
        return any(address in found for found in self._addresses.values())

    def _look_up(self) -> None:
        for destination in self._asked():
            try:
                found = socket.getaddrinfo(destination.host, None)
            except OSError:
                continue  # what was known about it stays
            self._addresses[destination.name] = {str(parse_address(str(info[4][0]))) for info in found}

    def _refuse(self, address: str, reason: str) -> None:
        self._journal.record("commitment.refused", address=address, outcome="REFUSED", reason=reason)

    def _write(self, note: Note) -> None:
        try:
            with self._database.transaction() as tx:
                audit.append(
                    tx,
                    note.at,
                    note.event,
                    peer=audit.Peer(address=note.address),
                    outcome=note.outcome,
                    detail=note.detail,
                )
        except StorageError as error:
            log.warning("refusal not audited", error=type(error).__name__)

    def _on_rejected(self, event: evt.Event) -> None:
        self._refuse(str(parse_address(event.assoc.requestor.address)), "association-rejected")

    def _on_report(self, event: evt.Event) -> tuple[int, None]:
        return answer_report(
            event, self._database, self._settings.sender, self._database.now(), self._speaks_for(event)
        ), None

    def _speaks_for(self, event: evt.Event) -> set[str]:
        """Names of the destinations whose answers may come from the peer's address under its AE title."""
        requestor = event.assoc.requestor
        address = str(parse_address(requestor.address))
        return {
            d.name
            for d in self._asked()
            if requestor.ae_title.strip() == (d.answers_as or d.ae_title) and address in self._addresses.get(d.name, ())
        }


def _limits(sender: SenderSettings) -> GuardedLimits:
    return GuardedLimits(
        connections=sender.commitment.max_connections,
        per_address=sender.commitment.max_connections_per_address,
        pdu_s=sender.commitment.pdu_deadline_s,
        association_s=sender.commitment.association_s,
        bytes=sender.commitment.max_kib * 1024,
    )


def _on_request(event: evt.Event) -> tuple[int, None]:
    """Somebody asks for our commitment. Images may go once they are analysed: nobody may rely on us to keep them."""
    log.warning("request for storage commitment refused", address=str(event.assoc.requestor.address))
    return UNRECOGNISED_OPERATION, None
