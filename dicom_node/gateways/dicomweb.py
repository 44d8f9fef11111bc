"""A DICOMweb server as a source: what it holds (QIDO-RS, PS3.18 10.6) and its instances (WADO-RS, PS3.18 10.4)."""

import json
import time
from collections.abc import Mapping
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import urlencode

from config.uids import is_uid
from dicom_node.gateways.dicomweb_tables import INSTANCE, JSON, PAGE
from dicom_node.gateways.http import Answer, HttpPeer, NoAnswer
from dicom_node.scu.association import PeerUnavailable, peer_at_fault
from dicom_node.scu.query import MAX_ANSWERS, NotKnown, QueryFailed, SeriesKey

GONE, NO_CONTENT = (404, 410), 204
MODALITY, SOP_INSTANCE_UID, SERIES_INSTANCE_UID, INSTANCES = "00080060", "00080018", "0020000E", "00201209"
MAX_LIST_BYTES, MAX_METADATA_BYTES = 16 * 1024**2, 64 * 1024**2
MOST_PARTS = 1000
PATIENCE = 6
"""All questions about one series may take this many times as long as one may, pages included."""
Item = Mapping[str, Any]


class WebQuery:
    """Questions about one series, as `scu.query.Query` asks them by C-FIND.

    answer_s: how long one answer may take, in seconds.
    """

    def __init__(self, peer: HttpPeer, answer_s: float) -> None:
        self._peer = peer
        self._until = time.monotonic() + PATIENCE * answer_s
        self._stated = 0

    def count(self, series: SeriesKey) -> int:
        """How many instances of the series the server holds; 0 if it lists no such series.

        Takes Number of Series Related Instances, or counts instances if the server leaves that out.
        Raises QueryFailed or PeerUnavailable.
        """
        uid = series.series_instance_uid
        keys = {SERIES_INSTANCE_UID: uid, "includefield": INSTANCES}
        found = self._list(f"/studies/{series.study_instance_uid}/series", keys, SERIES_INSTANCE_UID, ends_with=uid)
        if uid not in found:
            return 0
        with peer_at_fault():
            stated = _whole_number(_value(found[uid], INSTANCES))
        if stated is None:
            return len(self.instances(series))
        self._stated = stated
        return stated

    def instances(self, series: SeriesKey) -> set[str]:
        """SOP Instance UIDs of the series that the server holds. Raises QueryFailed or PeerUnavailable.

        Some servers cut the lists of a search and give no further page (Orthanc with LimitFindInstances): if there are
        fewer than were counted, the metadata of the series are asked for.
        """
        path = f"/studies/{series.study_instance_uid}/series/{series.series_instance_uid}"
        found = _of_series(series, self._list(f"{path}/instances", {}, SOP_INSTANCE_UID, enough=self._stated))
        return found if len(found) >= self._stated else found | self._described(series, f"{path}/metadata")

    def _described(self, series: SeriesKey, path: str) -> set[str]:
        """SOP Instance UIDs in the metadata of the series; none if the server gives no metadata."""
        try:
            items, _ = self._page(path, {}, MAX_METADATA_BYTES)
        except QueryFailed:
            return set()
        with peer_at_fault():
            return _of_series(series, {_uid(item, SOP_INSTANCE_UID): item for item in items})

    def ct_series(self, series: SeriesKey) -> set[str]:
        """Series Instance UIDs of the CT series, and of those without a modality, that the server holds of the study.

        Raises QueryFailed or PeerUnavailable.
        """
        path = f"/studies/{series.study_instance_uid}/series"
        found = self._list(path, {"includefield": MODALITY}, SERIES_INSTANCE_UID)
        with peer_at_fault():
            return {uid for uid, item in found.items() if _value(item, MODALITY) in (None, "", "CT")}

    def _list(
        self, path: str, keys: Mapping[str, str], uid_tag: str, enough: int = 0, ends_with: str = ""
    ) -> dict[str, Item]:
        """All items by UID, over all pages: until one brings nothing new, as a server may cut pages as it likes.

        enough, ends_with: a number of items, or the UID of one, after which no further page is asked for, unless the
        server says that there is one.
        """
        found: dict[str, Item] = {}
        at = 0
        while True:
            page, more = self._page(path, {**keys, "limit": str(PAGE), "offset": str(at)})
            with peer_at_fault():
                new = {_uid(item, uid_tag): item for item in page}
            if not new.keys() - found.keys():
                return found
            found |= new
            at += len(page)
            if len(found) > MAX_ANSWERS:
                raise QueryFailed("the query was answered without end")
            if ends_with in found or (not more and len(page) < PAGE and 0 < enough <= len(found)):
                return found

    def _page(self, path: str, keys: Mapping[str, str], most: int = MAX_LIST_BYTES) -> tuple[list[Item], bool]:
        """The items of one answer, and whether the server says that it has more. most: bytes."""
        if time.monotonic() > self._until:
            raise QueryFailed("the query takes too long")
        full = f"{path}?{urlencode(keys)}" if keys else path
        answer = asked(self._peer, "GET", full, b"", {"Accept": JSON}, most)
        if answer.status == NO_CONTENT:
            return [], False
        if answer.status in GONE:
            raise NotKnown(f"HTTP status {answer.status}: it knows no such study or series")
        if not answer.ok:
            raise QueryFailed(answer.words)
        with peer_at_fault():
            items = json.loads(answer.body)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise QueryFailed("the query was answered with something that is no list")
        return items, _header(answer, "Warning").startswith("299")


def instance_files(peer: HttpPeer, series: SeriesKey, uid: str, max_bytes: int) -> list[memoryview]:
    """One instance as a DICOM file, in the transfer syntax that the server has it in; none if it has none.

    Whatever else the server sends is in the list, too. Raises PeerUnavailable.
    """
    path = f"/studies/{series.study_instance_uid}/series/{series.series_instance_uid}/instances/{uid}"
    answer = asked(peer, "GET", path, b"", {"Accept": INSTANCE}, max_bytes)
    if answer.status in GONE:
        return []
    with peer_at_fault():
        return _parts(usable(answer))


def asked(peer: HttpPeer, method: str, path: str, body: bytes, headers: dict[str, str], *limits: int) -> Answer:
    """The answer to a request. Raises PeerUnavailable if none comes."""
    try:
        return peer.ask(method, path, body, headers, *limits)
    except NoAnswer as error:
        raise PeerUnavailable(str(error)) from error


def usable(answer: Answer) -> Answer:
    """An answer of success. Raises PeerUnavailable for any other."""
    if not answer.ok:
        raise PeerUnavailable(answer.words)
    return answer


def _parts(answer: Answer) -> list[memoryview]:
    """The parts of a multipart answer. Raises ValueError if it is none, or not whole."""
    name = _header(answer, "Content-Type")
    boundary = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {name}\r\n\r\n".encode()).get_boundary()
    if not boundary or not name.lower().startswith("multipart/"):
        raise ValueError("no multipart answer")
    mark, body, view = b"--" + boundary.encode("ascii"), answer.body, memoryview(answer.body)
    found: list[memoryview] = []
    at = 0 if body.startswith(mark) else body.index(b"\r\n" + mark) + 2
    while not body.startswith(b"--", at + len(mark)):
        if len(found) == MOST_PARTS:
            raise ValueError("parts without end")
        start = body.index(b"\r\n\r\n", at + len(mark)) + 4
        at = body.index(b"\r\n" + mark, start) + 2
        found.append(view[start : at - 2])
    return found


def _of_series(series: SeriesKey, items: Mapping[str, Item]) -> set[str]:
    """Those of the items that do not say that they are of another series."""
    with peer_at_fault():
        same = (None, series.series_instance_uid)
        return {uid for uid, item in items.items() if _value(item, SERIES_INSTANCE_UID) in same}


def _header(answer: Answer, name: str) -> str:
    return next((value for key, value in answer.headers.items() if key.lower() == name.lower()), "")


def _value(item: Item, tag: str) -> object:
    """The first value of an element of the DICOM JSON model (PS3.18 F); None if there is none."""
    values = item.get(tag, {}).get("Value") or [None]
    return values[0]


def _uid(item: Item, tag: str) -> str:
    """An item's UID. Raises ValueError without one: left out, it would make the list shorter than it is."""
    uid = _value(item, tag)
    if not isinstance(uid, str) or not is_uid(uid):
        raise ValueError("an answer without a UID")
    return uid


def _whole_number(value: object) -> int | None:
    """A number of instances, which some write as text; None without one. Raises ValueError for what is no number."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str) or int(value) != float(value):
        raise ValueError("no whole number")
    if not 0 <= int(value) < 1 << 31:
        raise ValueError("no number of instances")
    return int(value)
