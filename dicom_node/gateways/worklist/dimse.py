"""A worklist by DIMSE: C-FIND, N-GET, N-SET and N-ACTION on Unified Procedure Steps (PS3.4 CC)."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import BaseTag
from pynetdicom.association import Association
from pynetdicom.sop_class import UnifiedProcedureStepPush  # type: ignore[attr-defined]

from config.settings import SenderSettings
from dicom_node.gateways.worklist.contents import IN_PROGRESS, Coded, Workitem, in_order, matching, read_workitem
from dicom_node.gateways.worklist.interface import Answer, Said, answer_of
from dicom_node.scu.association import Link, Peer, PeerUnavailable, associate, peer_at_fault
from dicom_node.scu.contexts import UPS_PULL, UPS_WATCH, Service
from dicom_node.statuses import SUCCESS

# A request names the class UPS Push whatever the context is: the instances are of that class (PS3.4 CC.2).
CLASS = str(UnifiedProcedureStepPush)
(PULL,), (WATCH,) = UPS_PULL.classes, UPS_WATCH.classes
ALL_STEPS = "1.2.840.10008.5.1.4.34.5"
"""The well-known instance by which a subscription is for every step of the worklist."""
CHANGE_STATE, SUBSCRIBE = 1, 3
READ = ("ProcedureStepState", "InputReadinessState", "PatientID", "InputInformationSequence")
Answered = tuple[Dataset, Dataset | None]


class DimseWorklist:
    """See the module. label, stations, codes: which steps are meant for this node; empty: any."""

    def __init__(
        self, peer: Peer, caller: SenderSettings, label: str, stations: Sequence[Coded], codes: Sequence[Coded]
    ) -> None:
        self._peer, self._caller = peer, caller
        self._asked = matching(label, stations, codes)

    def scheduled(self, limit: int) -> list[str]:
        """See `Worklist`."""
        with self._open(UPS_PULL) as link:
            found = [answer for identifier in self._asked for answer in self._find(link, identifier, 20 * limit)]
        with peer_at_fault():
            return in_order(found)[:limit]

    def claim(self, uid: str, transaction_uid: str) -> Said:
        """See `Worklist`."""
        return self.end(uid, transaction_uid, IN_PROGRESS)

    def read(self, uid: str) -> Workitem | None:
        """See `Worklist`."""
        tags = cast(list[BaseTag], [BaseTag(tag_for_keyword(name) or 0) for name in READ])
        with self._open(UPS_PULL) as link:
            said, answer = _ask(link, lambda scu: scu.send_n_get(tags, CLASS, uid, meta_uid=PULL))
        if said.answer == Answer.UNKNOWN:
            return None
        if said.answer != Answer.DONE or answer is None:
            raise PeerUnavailable(f"a step was asked for and answered with {said.text}")
        with peer_at_fault():
            return read_workitem(uid, answer)

    def change(self, uid: str, transaction_uid: str, changes: Dataset) -> Said:
        """See `Worklist`."""
        sent = Dataset()
        sent.update(changes)
        sent.TransactionUID = transaction_uid
        with self._open(UPS_PULL) as link:
            return _ask(link, lambda scu: scu.send_n_set(sent, CLASS, uid, meta_uid=PULL))[0]

    def end(self, uid: str, transaction_uid: str, state: str) -> Said:
        """See `Worklist`."""
        sent = Dataset()
        sent.TransactionUID, sent.ProcedureStepState = transaction_uid, state
        with self._open(UPS_PULL) as link:
            return _ask(link, lambda scu: scu.send_n_action(sent, CHANGE_STATE, CLASS, uid, meta_uid=PULL))[0]

    def subscribe(self) -> Said:
        """Ask for events about every step, to the address that the worklist knows our AE title by."""
        sent = Dataset()
        sent.ReceivingAE, sent.DeletionLock = self._caller.calling_ae_title, "FALSE"
        with self._open(UPS_WATCH) as link:
            return _ask(link, lambda scu: scu.send_n_action(sent, SUBSCRIBE, CLASS, ALL_STEPS, meta_uid=WATCH))[0]

    @contextmanager
    def _open(self, service: Service) -> Iterator[Link]:
        with associate(self._peer, self._caller, service.contexts()) as link:
            yield link

    @staticmethod
    def _find(link: Link, identifier: Dataset, limit: int) -> list[Dataset]:
        started, status = time.monotonic(), -1
        answers: list[Dataset] = []
        with link.exchange(link.response_s):
            for response, answer in link.association.send_c_find(identifier, PULL):
                status = int(response.get("Status", -1))
                if answer is not None and len(answers) < limit:
                    answers.append(answer)
        if status == -1:
            raise PeerUnavailable(f"query: {link.why_lost(started)}")
        if status != SUCCESS:
            raise PeerUnavailable(f"the query was answered with status 0x{status:04X}")
        return answers


def _ask(link: Link, request: Callable[[Association], Answered]) -> tuple[Said, Dataset | None]:
    """One request and its response. Raises PeerUnavailable if none comes."""
    started = time.monotonic()
    with link.exchange(link.response_s):
        response, answer = request(link.association)
    if "Status" not in response:
        raise PeerUnavailable(f"a step's request: {link.why_lost(started)}")
    status = int(response.Status)
    return Said(answer_of(status), f"status 0x{status:04X}"), answer
