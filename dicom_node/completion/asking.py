"""The PACS that is asked about open series: what it holds of them, and the instances that the node lacks."""

from collections.abc import Callable, Mapping

import structlog

from config.gateways.stow import StowDestination
from config.settings import Destination, Settings
from dicom_node.completion.retrieve import Retrieval
from dicom_node.completion.rule import Said
from dicom_node.completion.ways import Questions, way_to
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.query import NotKnown, QueryFailed, SeriesKey
from storage import audit
from storage.database import Database
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms
from storage.quiet_time import DueSeries

log = structlog.get_logger()

NO_PEER = (PeerUnavailable, NoContext, QueryFailed)
Clock = Callable[[], float]


class QueriedPacs:
    """One PACS. After a failure it is not asked for `completion.silence_s`: every series would wait for it in turn."""

    def __init__(
        self, settings: Settings, pacs: Destination | StowDestination, database: Database, files: FileStore
    ) -> None:
        self._settings = settings
        self._pacs = pacs
        self._way = way_to(settings, pacs, database, files)
        self._database = database
        self._silent_until = 0.0
        self._silence = ""

    def ask(self, key: SeriesKey, here: int, clock: Clock) -> Said:
        """How many instances of a series it holds, and which if that is not fewer than are `here`."""
        if clock() < self._silent_until:
            return Said(None, silence=f"shortly before: {self._silence}")
        try:
            with self._way.querying() as query:
                count = query.count(key)
                return Said(count, self._list(query, key, needed=count > here) if count >= here else None)
        except NotKnown as error:  # says nothing of other series
            return Said(None, silence=str(error))
        except NO_PEER as error:
            self._silent_until = clock() + self._settings.completion.silence_s
            self._silence = str(error)
            log.warning("the PACS cannot count", destination=self._pacs.name, detail=self._silence)
            return Said(None, silence=self._silence)

    def ct_series(self, key: SeriesKey) -> frozenset[str] | None:
        """The CT series that it holds of a study; None if it does not say."""
        try:
            with self._way.querying() as query:
                return frozenset(query.ct_series(key))
        except NO_PEER as error:
            log.warning("the PACS does not list the study", destination=self._pacs.name, detail=str(error))
            return None

    def _list(self, query: Questions, key: SeriesKey, needed: bool) -> frozenset[str] | None:
        """Which instances it holds. If it cannot list them but counts as many as are here, its count is believed."""
        try:
            return frozenset(query.instances(key))
        except QueryFailed:
            if needed:
                raise
            return None

    def fetch(
        self, one: DueSeries, key: SeriesKey, missing: frozenset[str], held: Mapping[str, str], clock: Clock
    ) -> None:
        """Get instances that it holds and the node does not. held: transfer syntaxes by SOP Instance UID."""
        wanted = Retrieval(
            key,
            set(missing),
            frozenset(held.values()),
            one.series_pk,
            one.quiet_s,
            self._settings.receiver.ae_title,
            Pseudonyms(self._settings.storage.pseudonym_key.get_secret_value()),
        )
        try:
            got = self._way.fetch(wanted, clock)
            outcome = "OK" if got == len(missing) else "PARTLY"
            detail: dict[str, object] = {"how": self._way.how, "missing": len(missing), "fetched": got}
        except NO_PEER as error:
            outcome, detail = "FAILED", {"reason": str(error)}
        log.info("missing instances asked for", series=one.series_pk, outcome=outcome.lower(), **detail)
        with self._database.transaction() as tx:
            audit.append(
                tx,
                clock(),
                "series.fetch",
                subject(one),
                peer=audit.Peer(ae_title=self._way.ae_title, address=self._pacs.peer_host),
                outcome=outcome,
                detail=detail,
            )


def subject(one: DueSeries) -> audit.Subject:
    """What audit rows about a series name."""
    return audit.Subject(
        series_uid=one.series_instance_uid, study_uid=one.study_instance_uid, patient_id=one.patient_id
    )
