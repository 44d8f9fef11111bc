"""The PACS that is asked about open series: what it holds of them, and the instances that the node lacks."""

from collections.abc import Callable, Mapping

import structlog

from config.settings import Destination, SenderSettings, Settings
from dicom_node.completion.retrieve import Retrieval, fetch
from dicom_node.completion.rule import Said
from dicom_node.scu.association import NoContext, PeerUnavailable
from dicom_node.scu.query import Query, QueryFailed, SeriesKey, querying
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

    def __init__(self, settings: Settings, pacs: Destination, database: Database, files: FileStore) -> None:
        self._settings = settings
        self._pacs = pacs
        # A query that could take as long as a transfer would delay the other series.
        self._caller: SenderSettings = settings.sender.model_copy(
            update={"response_timeout_s": settings.completion.query_timeout_s}
        )
        self._database = database
        self._files = files
        self._silent_until = 0.0
        self._silence = ""

    def ask(self, key: SeriesKey, here: int, clock: Clock) -> Said:
        """How many instances of a series it holds, and which if that is not fewer than are `here`."""
        if clock() < self._silent_until:
            return Said(None, silence=f"shortly before: {self._silence}")
        try:
            with querying(self._pacs, self._caller) as query:
                count = query.count(key)
                return Said(count, self._list(query, key, needed=count > here) if count >= here else None)
        except NO_PEER as error:
            self._silent_until = clock() + self._settings.completion.silence_s
            self._silence = str(error)
            log.warning("the PACS cannot count", destination=self._pacs.name, detail=self._silence)
            return Said(None, silence=self._silence)

    def ct_series(self, key: SeriesKey) -> frozenset[str] | None:
        """The CT series that it holds of a study; None if it does not say."""
        try:
            with querying(self._pacs, self._caller) as query:
                return frozenset(query.ct_series(key))
        except NO_PEER as error:
            log.warning("the PACS does not list the study", destination=self._pacs.name, detail=str(error))
            return None

    def _list(self, query: Query, key: SeriesKey, needed: bool) -> frozenset[str] | None:
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
        how = self._settings.completion.retrieve
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
            got = fetch(self._pacs, self._caller, wanted, self._database, self._files, clock, move=how == "move")
            outcome = "OK" if got == len(missing) else "PARTLY"
            detail: dict[str, object] = {"how": f"c-{how}", "missing": len(missing), "fetched": got}
        except NO_PEER as error:
            outcome, detail = "FAILED", {"reason": str(error)}
        log.info("missing instances asked for", series=one.series_pk, outcome=outcome.lower(), **detail)
        with self._database.transaction() as tx:
            audit.append(
                tx,
                clock(),
                "series.fetch",
                subject(one),
                peer=audit.Peer(ae_title=self._pacs.ae_title, address=self._pacs.host),
                outcome=outcome,
                detail=detail,
            )


def subject(one: DueSeries) -> audit.Subject:
    """What audit rows about a series name."""
    return audit.Subject(
        series_uid=one.series_instance_uid, study_uid=one.study_instance_uid, patient_id=one.patient_id
    )
