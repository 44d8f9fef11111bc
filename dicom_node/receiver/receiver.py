"""The receiver as the rest of the node sees it: start, stop, port."""

import errno
import gc
import resource
import threading
import time
from collections.abc import Callable

import structlog

from config.own_equipment import OwnEquipment
from config.settings import ReceiverSettings, Settings
from dicom_node.errors import NodeError, PortTaken
from dicom_node.receiver import meters
from dicom_node.receiver.access import AccessPolicy
from dicom_node.receiver.association import Association
from dicom_node.receiver.committer import Committer
from dicom_node.receiver.connection import Deadlines
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.limits import Limits, Registry
from dicom_node.receiver.own_images import OwnImages
from dicom_node.receiver.pressure import Pressure
from dicom_node.receiver.refusals import Refusals
from dicom_node.receiver.resources import Resources
from dicom_node.receiver.server import Server
from dicom_node.receiver.tls import TlsAcceptor, TlsFiles
from storage import jobs, pauses
from storage.database import Database
from storage.files import FileStore
from storage.identity import open_store
from storage.pseudonyms import Pseudonyms
from storage.stores import files_of

log = structlog.get_logger()

POLL_S = 0.1
"""How often the waiting threads check whether to stop."""
IDLE_S = 2.0
"""An association that did nothing for this long may be cut when the node stops."""
JOIN_S = 5.0
"""For the threads of associations that were cut, all together."""
LAST_COMMIT_S = 5.0
"""For the last commit, at least: with draining and JOIN_S less than the supervisor's patience."""
WATCH_S = 1.0
"""How often a running receiver is looked at."""
MIB = 1024**2


class Receiver:
    """A Storage and Verification SCP. The database is migrated; several receivers may share it.

    clock: Unix seconds, for the rows it writes.
    """

    def __init__(
        self, settings: Settings, database: Database, files: FileStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._committer = Committer(database, settings.quiet_s, clock)
        self._journal = Journal(self._committer.note, clock)
        self._clock = clock
        receiver = settings.receiver
        resources = Resources(
            files.free_bytes,
            settings.storage.low_disk_mb * MIB,
            receiver.max_associations_per_minute,
            receiver.max_instances_per_minute,
            receiver.max_mb_per_minute * MIB,
        )
        self._shared_port = receiver.processes > 1
        # Other hosts that share the index may receive the same instance.
        received_elsewhere = self._shared_port or database.is_server
        pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())
        self._intake = Intake(
            database,
            files,
            self._committer,
            resources,
            Refusals(self._committer, self._journal, pseudonyms),
            receiver.max_instance_bytes,
            receiver.min_kib_per_s * 1024,
            receiver.slow_patience_s,
            pseudonyms,
            received_elsewhere,
            _own_images(settings),
            clock,
        )

        def queued() -> int:
            with database.read() as tx:
                return jobs.count_queued(tx)

        def paused() -> frozenset[str]:
            with database.read() as tx:
                return pauses.sources(tx)

        self._pressure = Pressure(
            resources, self._committer, database.check, files.check, queued, receiver.max_queued_series, paused
        )
        self._registry = Registry(
            AccessPolicy.of(settings), Limits.of(receiver), resources, self._journal, self._pressure.reason
        )
        self._servers: list[Server] = []
        self._listening: list[threading.Thread] = []

    def start(self) -> None:
        """Listen, and serve in threads. Raises PortTaken; NodeError if the TLS files do not fit."""
        receiver = self._settings.receiver
        tls = self._tls()
        if receiver.plain:
            self._servers.append(self._listen(receiver.port, None))
        if tls is not None:
            self._servers.append(self._listen(receiver.tls_port, tls))
        self._committer.start()
        self._pressure.start()
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="receiver", daemon=True)
            thread.start()
            self._listening.append(thread)
            port, with_tls = server.server_address[1], server.tls is not None
            log.info("receiver listens", ae_title=receiver.ae_title, host=receiver.host, port=port, tls=with_tls)

    def _tls(self) -> TlsAcceptor | None:
        receiver = self._settings.receiver
        if receiver.tls_certificate is None or receiver.tls_key is None or receiver.tls_authorities is None:
            return None
        files = TlsFiles(receiver.tls_certificate, receiver.tls_key, receiver.tls_authorities)
        try:
            return TlsAcceptor(files)
        except OSError as error:
            raise NodeError(f"the TLS files of [receiver] cannot be used: {error.strerror or error}") from error

    def _listen(self, port: int, tls: TlsAcceptor | None) -> Server:
        receiver = self._settings.receiver
        deadlines = Deadlines(
            pdu_s=receiver.pdu_deadline_s,
            idle_s=receiver.idle_timeout_s,
            request_s=receiver.acse_timeout_s,
            closing_s=receiver.closing_timeout_s,
        )
        address = (receiver.host, port)
        try:
            return Server(
                address,
                receiver.ae_title,
                self._registry,
                self._intake,
                deadlines,
                receiver.max_pdu_bytes,
                tls,
                shared_port=self._shared_port,
            )
        except OSError as error:
            for server in self._servers:
                server.server_close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
                raise
            raise PortTaken(f"cannot listen on {receiver.host}:{port}: {error.strerror}") from error

    @property
    def port(self) -> int:
        """The port without TLS. Raises RuntimeError if there is none."""
        return self._port(with_tls=False)

    @property
    def tls_port(self) -> int:
        """The port with TLS. Raises RuntimeError if there is none."""
        return self._port(with_tls=True)

    def _port(self, with_tls: bool) -> int:
        for server in self._servers:
            if (server.tls is not None) == with_tls:
                return int(server.server_address[1])
        raise RuntimeError("the receiver does not listen there")

    def failure(self) -> str | None:
        """Why nothing is received, as a stable word; None while all is well."""
        if not all(thread.is_alive() for thread in self._listening):
            return "port-thread-ended"
        return self._committer.failure()

    def stop(self, drain_s: float | None = None) -> bool:
        """Take no new associations, let the running ones end, cut what is left after `drain_s`, commit, return.

        Returns False if the index could not be written to the end: a transaction may still hold the database.
        """
        if not self._servers:
            return True
        self._registry.drain()
        if self._committer.failure() is not None:
            self._committer.abandon()
        for server in self._servers:
            server.shutdown()
        self._servers, self._listening = [], []
        drained = time.monotonic() + (self._settings.receiver.drain_s if drain_s is None else drain_s)
        while any(map(_is_busy, self._registry.associations())) and time.monotonic() < drained:
            time.sleep(POLL_S)
        left = self._registry.associations()
        for association in left:
            association.cut()
        joined = time.monotonic() + JOIN_S
        for association in left:
            association.join(max(0.0, joined - time.monotonic()))
        self._pressure.stop()
        self._journal.flush(self._clock(), window_s=0)
        # The time that draining left over goes to the index: audit rows that another process holds up are worth it.
        ended = self._committer.stop(max(0.0, drained - time.monotonic()) + LAST_COMMIT_S)
        log.info("receiver stopped")
        return ended


def _is_busy(association: Association) -> bool:
    """True while a sender is in the middle of something; not for an association that is only kept open."""
    return association.is_storing or (association.counts and time.monotonic() - association.active_at < IDLE_S)


def serve(
    settings: Settings, stop: threading.Event, *, create: bool = True, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Run a receiver until `stop` is set, then drain it. create: make the index if there is none. on_ready: it listens.

    Raises PortTaken; NodeError if it failed: the supervisor starts another, and senders come back to that one.
    """
    _allow_descriptors(settings.receiver)
    files = files_of(settings)
    database = open_store(settings.database_url, files, create=create)
    receiver = Receiver(settings, database, files, database.now)
    receiver.start()
    on_ready()
    meters.RECEIVERS.set(1)
    # What is loaded stays loaded: the collector need not walk through it again every few instances.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    failure = None
    try:
        # Not one long wait: a signal that another thread takes would not end it.
        while failure is None and not stop.wait(WATCH_S):
            failure = receiver.failure()
    finally:
        ended = receiver.stop(drain_s=None if failure is None else 0)
    if failure is None and not ended:
        failure = "index-thread-stuck"
    if failure is not None:
        # Without closing the database: that would wait for the transaction which does not end.
        raise NodeError(f"the receiver has failed: {failure}")
    database.close()


def _allow_descriptors(settings: ReceiverSettings) -> None:
    """Raise this process's soft limit of open files to what its connections may need: a socket and a file each."""
    needed = 2 * (settings.max_associations + settings.max_waiting_connections) + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _own_images(settings: Settings) -> OwnImages | None:
    refused_from = frozenset(source.ae_title for source in settings.sources if source.own_images == "refuse")
    if not refused_from:
        return None
    return OwnImages(OwnEquipment.of(settings.report), refused_from)
