"""The ways in which a PACS is asked about a series and gives what is missing: by DIMSE or by DICOMweb."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from config.gateways.http import HttpDestination
from config.settings import Destination, Settings
from dicom_node.completion.retrieve import Retrieval, fetch
from dicom_node.scu.query import Query, SeriesKey, querying, quick_caller
from storage.database import Database
from storage.files import FileStore


class Questions(Protocol):
    """Questions about one series. Each raises QueryFailed or PeerUnavailable if there is no usable answer."""

    def count(self, series: SeriesKey) -> int:
        """How many instances of the series the PACS holds."""
        ...

    def instances(self, series: SeriesKey) -> set[str]:
        """SOP Instance UIDs of those."""
        ...

    def ct_series(self, series: SeriesKey) -> set[str]:
        """Series Instance UIDs of the CT series of the study that it holds."""
        ...


class Way(Protocol):
    """How one PACS is reached."""

    @property
    def how(self) -> str:
        """How it gives instances, for the audit trail."""
        ...

    @property
    def ae_title(self) -> str:
        """What the index calls it as a sender."""
        ...

    def querying(self) -> AbstractContextManager[Questions]:
        """What is needed for questions about one series. Raises PeerUnavailable or NoContext."""
        ...

    def fetch(self, wanted: Retrieval, clock: Callable[[], float]) -> int:
        """Fetch instances. Returns how many of them are here now. Raises PeerUnavailable or NoContext."""
        ...


class ByDimse:
    """C-FIND, and C-GET or C-MOVE."""

    def __init__(self, settings: Settings, pacs: Destination, database: Database, files: FileStore) -> None:
        self._pacs, self._caller = pacs, quick_caller(settings)
        self._database, self._files = database, files
        self._move = settings.completion.retrieve == "move"
        self.how = "c-move" if self._move else "c-get"
        self.ae_title = pacs.ae_title

    def querying(self) -> AbstractContextManager[Query]:
        """See `Way`."""
        return querying(self._pacs, self._caller)

    def fetch(self, wanted: Retrieval, clock: Callable[[], float]) -> int:
        """See `Way`."""
        return fetch(self._pacs, self._caller, wanted, self._database, self._files, clock, move=self._move)


def way_to(settings: Settings, pacs: Destination | HttpDestination, database: Database, files: FileStore) -> Way:
    """How this PACS is reached."""
    if isinstance(pacs, Destination):
        return ByDimse(settings, pacs, database, files)
    # HTTP needs a library that not every site has installed.
    from dicom_node.completion.by_web import ByWeb

    return ByWeb(settings, pacs, database, files)
