"""The performers that a node's settings name."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from config.gateways.stow import StowDestination
from config.gateways.worklist import RsWorklistEntry, WorklistEntry, WorklistRules
from config.settings import Destination, Settings
from dicom_node.completion.retrieve import Retrieval, fetch
from dicom_node.gateways.worklist.contents import Coded
from dicom_node.gateways.worklist.contents import Performer as PerformedBy
from dicom_node.gateways.worklist.dimse import DimseWorklist
from dicom_node.gateways.worklist.interface import Worklist
from dicom_node.performer.ending import Ending
from dicom_node.performer.events import EventListener
from dicom_node.performer.inputs import AWAY, NoSource
from dicom_node.performer.performer import Performer
from dicom_node.scu.query import SeriesKey
from dicom_node.scu.store import EchoAnswer
from storage import audit
from storage.database import Database
from storage.files import FileStore
from storage.pseudonyms import Pseudonyms
from storage.workitems import InputSeries

MOST_SHOWN = 100
DETECTION = Coded("110004", "DCM", "Computer Aided Detection")


def performers(
    settings: Settings,
    database: Database,
    files: FileStore,
    stop: threading.Event,
    clock: Callable[[], float] | None = None,
) -> list[Performer]:
    """One for each worklist of the settings. clock: Unix seconds; None: that of the index."""
    clock = clock or database.now
    ways = {one.name: ("ae", one.ae_title) for one in settings.dicom_destinations}
    ways |= {one.name: ("rs", one.url) for one in settings.destinations if isinstance(one, StowDestination)}
    made = []
    for entry in settings.worklists:
        worklist = dimse_worklist(settings, entry)
        fetching = Fetching(settings, entry, database, files, clock)
        ending = Ending(performed_by(settings, entry), ways)
        subscribe = worklist.subscribe if entry.event_port else None
        made.append(Performer(entry, worklist, database, fetching.fetch, ending, stop, clock, subscribe))
    return made + [_by_rs(settings, one, database, files, stop, clock, ways) for one in settings.rs_worklists]


def _by_rs(
    settings: Settings,
    entry: RsWorklistEntry,
    database: Database,
    files: FileStore,
    stop: threading.Event,
    clock: Callable[[], float],
    ways: Mapping[str, tuple[str, str]],
) -> Performer:
    # HTTP needs a library that not every site has installed.
    from dicom_node.performer.web_fetching import WebFetching

    server, worklist = _server_of(settings, entry), rs_worklist(settings, entry)
    by_dimse = Fetching(settings, entry, database, files, clock)
    by_web = WebFetching(settings, server, database, files, clock)
    ending = Ending(performed_by(settings, entry), ways)
    fetch = by_dimse.fetch if entry.fetch_from else by_web.fetch
    return Performer(entry, worklist, database, fetch, ending, stop, clock)


@contextmanager
def listening(settings: Settings, found: Sequence[Performer], database: Database) -> Iterator[list[EventListener]]:
    """Listen for the events of the worklists that have a port for them. Raises PortTaken or NodeError."""
    pairs = [(entry, one) for entry, one in zip(settings.worklists, found, strict=False) if entry.event_port]
    listeners = [EventListener(settings, entry, database, one.hurry, database.now) for entry, one in pairs]
    with ExitStack() as stack:
        for listener in listeners:
            listener.start()
            stack.callback(listener.stop)
        yield listeners


def dimse_worklist(settings: Settings, entry: WorklistEntry) -> DimseWorklist:
    """A worklist by DIMSE."""
    return DimseWorklist(entry, settings.sender, entry.label, coded(entry.stations), coded(entry.codes))


def rs_worklist(settings: Settings, entry: RsWorklistEntry) -> Worklist:
    """A worklist by DICOMweb. Raises ModuleNotFoundError without the extra."""
    from dicom_node.gateways.worklist.rs import RsWorklist

    server = _server_of(settings, entry)
    return RsWorklist(server, settings.sender, entry.label, coded(entry.stations), coded(entry.codes))


def _server_of(settings: Settings, entry: RsWorklistEntry) -> StowDestination:
    return next(d for d in settings.destinations if isinstance(d, StowDestination) and d.name == entry.server)


def _opened(settings: Settings, entry: WorklistEntry | RsWorklistEntry) -> Worklist:
    return rs_worklist(settings, entry) if isinstance(entry, RsWorklistEntry) else dimse_worklist(settings, entry)


def ask(settings: Settings, entry: WorklistEntry | RsWorklistEntry) -> EchoAnswer:
    """Whether a worklist answers when it is asked for steps that are meant for this node. None is claimed."""
    started = time.monotonic()
    try:
        waiting = len(_opened(settings, entry).scheduled(MOST_SHOWN))
    except AWAY as error:
        return EchoAnswer(False, str(error))
    except ModuleNotFoundError as error:
        return EchoAnswer(False, f"it needs {error.name}: pip install 'dicom-node[gateways]'")
    steps = "1 step waits" if waiting == 1 else f"{waiting}{' or more' if waiting == MOST_SHOWN else ''} steps wait"
    milliseconds = (time.monotonic() - started) * 1000
    return EchoAnswer(True, f"it answered in {milliseconds:.0f} ms; {steps} for this node")


def coded(texts: tuple[str, ...]) -> list[Coded]:
    """Codes as the settings write them: VALUE^SCHEME^MEANING."""
    return [Coded(*text.split("^")) for text in texts]


def performed_by(settings: Settings, entry: WorklistRules) -> PerformedBy:
    """What ended steps say of this node."""
    title = settings.sender.calling_ae_title
    station = coded(entry.stations)[:1] or [Coded(title, "99NODE", title)]
    return PerformedBy(station[0], (coded(entry.codes)[:1] or [DETECTION])[0])


class Fetching:
    """Fetches images of steps from the PACS that the settings or the step name, as durably as those that are sent."""

    def __init__(
        self,
        settings: Settings,
        entry: WorklistRules,
        database: Database,
        files: FileStore,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._entry = settings, entry
        self._database, self._files, self._clock = database, files, clock
        self._pseudonyms = Pseudonyms(settings.storage.pseudonym_key.get_secret_value())

    def fetch(self, one: InputSeries, missing: frozenset[str], key: SeriesKey) -> None:
        """See `inputs.Fetch`."""
        pacs = self._pacs(one)
        how = "move" if self._settings.completion.retrieve == "move" else "get"
        wanted = Retrieval(
            key,
            set(missing),
            frozenset(),
            None,
            self._settings.quiet_s(pacs.ae_title),
            self._settings.receiver.ae_title,
            self._pseudonyms,
        )
        detail: dict[str, object] = {"how": f"c-{how}", "missing": len(missing), "destination": pacs.name}
        outcome = "FAILED"
        try:
            got = fetch(
                pacs, self._settings.sender, wanted, self._database, self._files, self._clock, move=how == "move"
            )
            outcome, detail["fetched"] = "OK" if got == len(missing) else "PARTLY", got
        except AWAY as error:
            detail["reason"] = str(error)
            raise
        finally:
            self._note(one, pacs, outcome, detail)

    def _pacs(self, one: InputSeries) -> Destination:
        name, found = self._entry.fetch_from, None
        if name:
            found = self._settings.dicom_destination(name)
        else:
            found = next((d for d in self._settings.dicom_destinations if d.ae_title == one.source), None)
        if found is None:
            raise NoSource("no destination of the settings has the AE title that the step names for its images")
        return found

    def _note(self, one: InputSeries, pacs: Destination, outcome: str, detail: dict[str, object]) -> None:
        about = audit.Subject(series_uid=one.series_uid, study_uid=one.study_uid)
        peer = audit.Peer(ae_title=pacs.ae_title, address=pacs.host)
        with self._database.transaction() as tx:
            audit.append(tx, self._clock(), "series.fetch", about, peer=peer, outcome=outcome, detail=detail)
