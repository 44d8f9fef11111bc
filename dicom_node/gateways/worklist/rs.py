"""A worklist by DICOMweb: UPS-RS (PS3.18, 11).

An answer of 400 or 409 does not say which rule of the state table was broken. The state of the step does, so the
performer asks for that.
"""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword

from config.gateways.http import HttpDestination
from config.settings import SenderSettings
from dicom_node.gateways.dicomweb import GONE, NO_CONTENT, asked, usable
from dicom_node.gateways.dicomweb_tables import JSON, STEPS
from dicom_node.gateways.http import Answer as HttpAnswer
from dicom_node.gateways.http import HttpPeer
from dicom_node.gateways.worklist.contents import (
    IN_PROGRESS,
    SCHEDULED,
    Coded,
    Workitem,
    in_order,
    read_workitem,
)
from dicom_node.gateways.worklist.interface import Answer, Said
from dicom_node.scu.association import PeerUnavailable, peer_at_fault


class RsWorklist:
    """See the module. server: whose `url` has /workitems below it. The rest: see `DimseWorklist`."""

    def __init__(
        self,
        server: HttpDestination,
        sender: SenderSettings,
        label: str,
        stations: Sequence[Coded],
        codes: Sequence[Coded],
    ) -> None:
        self._peer = HttpPeer(server, sender)
        self._queries = [_query(label, station, code) for station in stations or (None,) for code in codes or (None,)]

    def scheduled(self, limit: int) -> list[str]:
        """See `Worklist`."""
        found: list[Dataset] = []
        for query in self._queries:
            answer = self._ask("GET", f"/workitems?{query}&limit={20 * limit}")
            if answer.status not in (NO_CONTENT, *GONE):
                found += _data_sets(usable(answer))
        with peer_at_fault():
            return in_order(found)[:limit]

    def claim(self, uid: str, transaction_uid: str) -> Said:
        """See `Worklist`."""
        return self.end(uid, transaction_uid, IN_PROGRESS)

    def read(self, uid: str) -> Workitem | None:
        """See `Worklist`."""
        answer = self._ask("GET", f"/workitems/{uid}")
        if answer.status in GONE:
            return None
        found = _data_sets(usable(answer))
        if len(found) != 1:
            raise PeerUnavailable("a step was asked for and answered with something else")
        with peer_at_fault():
            return read_workitem(uid, found[0])

    def change(self, uid: str, transaction_uid: str, changes: Dataset) -> Said:
        """See `Worklist`."""
        return _said(self._ask("POST", f"/workitems/{uid}?transaction-uid={quote(transaction_uid)}", changes))

    def end(self, uid: str, transaction_uid: str, state: str) -> Said:
        """See `Worklist`."""
        wanted = Dataset()
        wanted.TransactionUID, wanted.ProcedureStepState = transaction_uid, state
        return _said(self._ask("PUT", f"/workitems/{uid}/state", wanted))

    def _ask(self, method: str, path: str, content: Dataset | None = None) -> HttpAnswer:
        body = b"" if content is None else json.dumps([content.to_json_dict()]).encode()
        headers = {"Accept": JSON} | ({} if content is None else {"Content-Type": JSON})
        return asked(self._peer, method, path, body, headers)


def _said(answer: HttpAnswer) -> Said:
    meaning = Answer.DONE if answer.ok else STEPS.get(answer.status, Answer.LATER)
    return Said(meaning, f"HTTP status {answer.status}")


def _data_sets(answer: HttpAnswer) -> list[Dataset]:
    """The data sets of an answer: a list of them, or one alone."""
    with peer_at_fault():
        found: Any = json.loads(answer.body)
        return [Dataset.from_json(one) for one in (found if isinstance(found, list) else [found])]


def _query(label: str, station: Coded | None, code: Coded | None) -> str:
    keys = {"ProcedureStepState": SCHEDULED, "InputReadinessState": "READY"} | (
        {"WorklistLabel": label} if label else {}
    )
    named = {_tag(keyword): value for keyword, value in keys.items()}
    for sequence, wanted in (("ScheduledStationNameCodeSequence", station), ("ScheduledWorkitemCodeSequence", code)):
        if wanted is not None:
            named[f"{_tag(sequence)}.{_tag('CodeValue')}"] = wanted.value
            named[f"{_tag(sequence)}.{_tag('CodingSchemeDesignator')}"] = wanted.scheme
    wanted_back = ("ScheduledProcedureStepPriority", "ScheduledProcedureStepStartDateTime")
    return urlencode([*named.items(), *(("includefield", _tag(keyword)) for keyword in wanted_back)])


def _tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"
