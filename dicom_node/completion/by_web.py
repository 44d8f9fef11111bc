"""A PACS by DICOMweb: counted and listed by QIDO-RS; what is missing comes by WADO-RS, recorded as what is sent."""

import io
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import structlog

from config.gateways.http import HttpDestination
from config.settings import Settings
from dicom_node.completion.retrieve import SLOWEST_S_PER_INSTANCE, Keeper, Retrieval
from dicom_node.gateways.dicomweb import WebQuery, instance_files
from dicom_node.gateways.http import HttpPeer
from dicom_node.receiver.negotiation import IMAGE_CLASSES, TRANSFER_SYNTAXES
from dicom_node.scu.association import Address, PeerUnavailable
from dicom_node.scu.query import quick_caller
from dicom_node.statuses import OUT_OF_RESOURCES
from inference.volume.part10 import UNREADABLE, read_meta
from storage.database import Database
from storage.files import FileStore

log = structlog.get_logger()

LONGEST_TITLE = 16
LARGEST_BYTES = 512 * 1024**2
"""An instance that is fetched is in memory for a moment."""
LONGEST_META_BYTES = 2 * 1024**2


class ByWeb:
    """See `completion.ways.Way`."""

    how = "wado-rs"

    def __init__(self, settings: Settings, server: HttpDestination, database: Database, files: FileStore) -> None:
        self._caller, self._quick = settings.sender, quick_caller(settings)
        self._peer, self._asked = HttpPeer(server, self._caller), HttpPeer(server, self._quick)
        # The index names senders by AE title; this one has none.
        self._sender = Address(server.name[:LONGEST_TITLE], server.peer_host, 0)
        self._database, self._files = database, files
        self._max_bytes = min(settings.receiver.max_instance_bytes, LARGEST_BYTES)

    @property
    def ae_title(self) -> str:
        """What the index calls it as a sender."""
        return self._sender.ae_title

    def querying(self) -> AbstractContextManager[WebQuery]:
        """See `Way`."""
        return nullcontext(WebQuery(self._asked, self._quick.response_timeout_s))

    def fetch(self, wanted: Retrieval, clock: Callable[[], float]) -> int:
        """See `Way`. What came before an error stays."""
        keeper = Keeper(self._sender, self._caller, wanted, self._database, self._files, clock)
        until = time.monotonic() + self._caller.response_timeout_s + SLOWEST_S_PER_INSTANCE * len(wanted.missing)
        for uid in sorted(wanted.missing):
            if time.monotonic() > until:
                raise PeerUnavailable("retrieval: no response in time")
            for file in instance_files(self._peer, wanted.series, uid, self._max_bytes):
                _keep(keeper, file)
        return keeper.count_here()


def _keep(keeper: Keeper, file: memoryview) -> None:
    """Keep an instance that came as a DICOM file, if it is one of those wanted."""
    start = io.BytesIO(file[:LONGEST_META_BYTES])
    try:
        meta = read_meta(start)
    except UNREADABLE as error:
        log.warning("no DICOM file where an instance was asked for", error=type(error).__name__)
        return
    if meta.sop_class_uid not in IMAGE_CLASSES or meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
        log.warning("fetched instance refused", sop_class=meta.sop_class_uid, syntax=meta.transfer_syntax_uid)
        return
    data = bytes(file[start.tell() :])
    if keeper.keep(data, meta.sop_class_uid, meta.transfer_syntax_uid) == OUT_OF_RESOURCES:
        raise PeerUnavailable("an instance was fetched and could not be kept")
