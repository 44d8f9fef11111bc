"""The images of a worklist's steps by WADO-RS, recorded as durably as those that a PACS sends."""

import io
from collections.abc import Callable

import structlog

from config.gateways.stow import StowDestination
from config.settings import Settings
from dicom_node.completion.retrieve import Keeper, Retrieval
from dicom_node.gateways.http import HttpPeer
from dicom_node.gateways.worklist.rs import instance
from dicom_node.receiver.errors import Refused
from dicom_node.receiver.negotiation import IMAGE_CLASSES, TRANSFER_SYNTAXES
from dicom_node.scu.association import Address, PeerUnavailable
from dicom_node.scu.query import SeriesKey
from inference.volume.part10 import UNREADABLE, read_meta
from storage import audit
from storage.database import Database
from storage.errors import StorageError
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms
from storage.workitems import InputSeries

log = structlog.get_logger()

LONGEST_TITLE = 16


class WebFetching:
    """Fetches from one DICOMweb server, whatever address a step names."""

    def __init__(
        self,
        settings: Settings,
        server: StowDestination,
        database: Database,
        files: FileStore,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._server = settings, server
        self._database, self._files, self._clock = database, files, clock
        self._peer = HttpPeer(server, settings.sender)
        # The index names senders by AE title; this one has none.
        self._sender = Address(server.name[:LONGEST_TITLE], server.peer_host, 0)
        self._pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())

    def fetch(self, one: InputSeries, missing: frozenset[str], key: SeriesKey) -> None:
        """See `inputs.Fetch`."""
        node, quiet_s = self._settings.receiver.ae_title, self._settings.quiet_s(self._sender.ae_title)
        wanted = Retrieval(key, set(missing), frozenset(), None, quiet_s, node, self._pseudonyms)
        keeper = Keeper(self._sender, self._settings.sender, wanted, self._database, self._files, self._clock)
        outcome = "FAILED"
        try:
            kept = sum(self._fetch_one(keeper, one, uid) for uid in sorted(missing))
            outcome = "OK" if kept == len(missing) else "PARTLY"
        finally:
            self._note(one, outcome, len(missing), keeper.count_here())

    def _fetch_one(self, keeper: Keeper, one: InputSeries, uid: str) -> bool:
        content = instance(self._peer, one.study_uid, one.series_uid, uid, self._settings.receiver.max_instance_bytes)
        if content is None:
            return False
        file = io.BytesIO(content)
        try:
            meta = read_meta(file)
        except UNREADABLE:
            return False
        if meta.sop_class_uid not in IMAGE_CLASSES or meta.transfer_syntax_uid not in TRANSFER_SYNTAXES:
            return False
        return _is_kept(keeper, content[file.tell() :], meta.sop_class_uid, meta.transfer_syntax_uid)

    def _note(self, one: InputSeries, outcome: str, missing: int, here: int) -> None:
        about = audit.Subject(series_uid=one.series_uid, study_uid=one.study_uid)
        peer = audit.Peer(address=self._server.peer_host)
        detail = {"how": "wado-rs", "missing": missing, "fetched": here, "destination": self._server.name}
        with self._database.transaction() as tx:
            audit.append(tx, self._clock(), "series.fetch", about, peer=peer, outcome=outcome, detail=detail)


def _is_kept(keeper: Keeper, data: bytes, sop_class: str, syntax: str) -> bool:
    try:
        return keeper.keep(data, sop_class, syntax) == 0x0000
    except Refused as error:
        log.warning("fetched instance refused", error=type(error).__name__)
        return False
    except (StorageError, OSError) as error:
        raise PeerUnavailable(f"an instance was fetched and not kept ({type(error).__name__})") from error
