"""The images of a worklist's steps by WADO-RS, recorded as durably as those that a PACS sends."""

from collections.abc import Callable

from config.gateways.stow import StowDestination
from config.settings import Settings
from dicom_node.completion.by_web import ByWeb
from dicom_node.completion.retrieve import Retrieval
from dicom_node.performer.inputs import AWAY
from dicom_node.scu.query import SeriesKey
from storage import audit
from storage.database import Database
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms
from storage.workitems import InputSeries


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
        self._way = ByWeb(settings, server, database, files)
        self._database, self._clock = database, clock
        self._pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())

    def fetch(self, one: InputSeries, missing: frozenset[str], key: SeriesKey) -> None:
        """See `inputs.Fetch`."""
        node, quiet_s = self._settings.receiver.ae_title, self._settings.quiet_s(self._way.ae_title)
        wanted = Retrieval(key, set(missing), frozenset(), None, quiet_s, node, self._pseudonyms)
        detail: dict[str, object] = {"how": self._way.how, "missing": len(missing), "destination": self._server.name}
        outcome = "FAILED"
        try:
            got = self._way.fetch(wanted, self._clock)
            outcome, detail["fetched"] = "OK" if got == len(missing) else "PARTLY", got
        except AWAY as error:
            detail["reason"] = str(error)
            raise
        finally:
            self._note(one, outcome, detail)

    def _note(self, one: InputSeries, outcome: str, detail: dict[str, object]) -> None:
        about = audit.Subject(series_uid=one.series_uid, study_uid=one.study_uid)
        peer = audit.Peer(address=self._server.peer_host)
        with self._database.transaction() as tx:
            audit.append(tx, self._clock(), "series.fetch", about, peer=peer, outcome=outcome, detail=detail)
