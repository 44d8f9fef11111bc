"""A PACS as the source of a batch: which series it has, and fetching one of them, at a polite pace."""

import time
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path

import structlog
from pynetdicom import evt

from config.settings import Destination, SenderSettings
from dicom_node.batch.local_files import stored_start
from dicom_node.completion.retrieve import IMPLICIT_VR, NOT_ASKED_FOR, Wanted, retrieve
from dicom_node.errors import NodeError
from dicom_node.receiver.errors import Refused
from dicom_node.receiver.headers import read_header
from dicom_node.receiver.uids import parse_uid
from dicom_node.scu.query import SeriesKey, querying
from dicom_node.statuses import OUT_OF_RESOURCES, SUCCESS

log = structlog.get_logger()


def days_of(keys: Mapping[str, str]) -> list[dict[str, str]]:
    """A query for each day of its StudyDate range, so that no PACS has to answer for years at once.

    Raises NodeError for a range that is not one.
    """
    first, dash, last = keys.get("StudyDate", "").partition("-")
    if not dash:
        return [dict(keys)]
    try:
        begin, end = (date.fromisoformat(text) for text in (first, last))
    except ValueError:
        raise NodeError("StudyDate is a day, 20260131, or a range with both ends, 20260101-20260131") from None
    if end < begin:
        raise NodeError("StudyDate: the range ends before it begins")
    days = (begin + timedelta(days=number) for number in range((end - begin).days + 1))
    return [{**keys, "StudyDate": f"{day:%Y%m%d}"} for day in days]


def series_matching(
    pacs: Destination, caller: SenderSettings, keys: Mapping[str, str], pause_s: float
) -> Iterator[dict[str, str]]:
    """The series of one query, with what their study and they are called. keys of a series narrow what it says of them.

    Raises QueryFailed, PeerUnavailable or NoContext.
    """
    modality = keys.get("Modality", "CT")
    of_study = {name: value for name, value in keys.items() if name != "Modality"}
    with querying(pacs, caller) as query:
        for study in query.studies(of_study):
            time.sleep(pause_s)
            for one in query.series_of(study["StudyInstanceUID"]):
                if one["SeriesInstanceUID"] and (one["Modality"] or modality) == modality:
                    yield {**study, **{name: value for name, value in one.items() if value}}


def fetch_series(pacs: Destination, caller: SenderSettings, study: str, series: str, folder: Path) -> frozenset[str]:
    """Fetch a series into a folder. Returns the SOP Instance UIDs that the PACS says it holds; not all may have come.

    Raises QueryFailed, PeerUnavailable or NoContext; OSError.
    """
    key = SeriesKey("", study, series)
    with querying(pacs, caller) as query:
        listed = frozenset(query.instances(key))
    if listed:
        keeper = Keeper(series, listed, folder)
        retrieve(pacs, caller, Wanted(key, set(listed), frozenset()), keeper.on_store, lambda: len(keeper.came))
    return listed


class Keeper:
    """Takes the instances of a C-GET into a folder, under generated names. None of it is promised to anybody."""

    def __init__(self, series: str, wanted: frozenset[str], folder: Path) -> None:
        self._series, self._wanted, self._folder = series, wanted, folder
        self.came: set[str] = set()

    def on_store(self, event: evt.Event) -> int:
        """EVT_C_STORE: keep one instance. Returns the DIMSE status."""
        try:
            return self._keep(event)
        except Refused as error:
            return error.status
        except OSError as error:
            log.warning("fetched instance not kept", error=type(error).__name__)
            return OUT_OF_RESOURCES

    def _keep(self, event: evt.Event) -> int:
        data = event.request.DataSet.getvalue()  # type: ignore[union-attr]
        sop_class, syntax = str(event.context.abstract_syntax), str(event.context.transfer_syntax)
        header = read_header(data, len(data), syntax == IMPLICIT_VR)
        uid = parse_uid(header.sop_instance_uid, "SOP Instance UID")
        if uid not in self._wanted or parse_uid(header.series_instance_uid, "Series Instance UID") != self._series:
            return NOT_ASKED_FOR
        name = self._folder / f"{len(self.came)}.dcm"
        name.write_bytes(stored_start(sop_class, uid, syntax) + data)
        self.came.add(uid)
        return SUCCESS
