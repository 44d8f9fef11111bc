"""A worklist of Unified Procedure Steps, written from the standard's state table (PS3.4 CC.1 and CC.2) and not from the
node: it keeps steps in a database of its own, refuses whatever the table refuses, and notes every violation of a rule.
"""

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import UID, generate_uid
from pydicom.valuerep import DT
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    UnifiedProcedureStepEvent,
    UnifiedProcedureStepPull,
    UnifiedProcedureStepPush,
    UnifiedProcedureStepWatch,
)

PUSH, PULL, WATCH = map(str, (UnifiedProcedureStepPush, UnifiedProcedureStepPull, UnifiedProcedureStepWatch))
EVENT = str(UnifiedProcedureStepEvent)
ALL_STEPS = "1.2.840.10008.5.1.4.34.5"
FINAL = ("COMPLETED", "CANCELED")
MAY_SET = {
    "TransactionUID",
    "ProcedureStepProgressInformationSequence",
    "UnifiedProcedureStepPerformedProcedureSequence",
}
# PS3.4 Table CC.1.1-2, rows "N-ACTION to Change State", with the correct Transaction UID.
WITH_UID = {
    ("IN PROGRESS", "SCHEDULED"): 0x0000,
    ("IN PROGRESS", "IN PROGRESS"): 0xC302,
    ("IN PROGRESS", "COMPLETED"): 0xC300,
    ("IN PROGRESS", "CANCELED"): 0xC300,
    ("COMPLETED", "SCHEDULED"): 0xC310,
    ("COMPLETED", "IN PROGRESS"): 0x0000,
    ("COMPLETED", "COMPLETED"): 0xB306,
    ("COMPLETED", "CANCELED"): 0xC300,
    ("CANCELED", "SCHEDULED"): 0xC310,
    ("CANCELED", "IN PROGRESS"): 0x0000,
    ("CANCELED", "COMPLETED"): 0xC300,
    ("CANCELED", "CANCELED"): 0xB304,
}
# Row "N-ACTION to Request Cancel".
CANCEL = {"SCHEDULED": 0x0000, "IN PROGRESS": 0x0000, "COMPLETED": 0xC311, "CANCELED": 0xB304}


def code(value: str, scheme: str = "99TEST", meaning: str = "test") -> Dataset:
    """A code item."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def step_for(slices: list[Dataset], source: str = "DEMO_PACS", **attributes: object) -> Dataset:
    """A step about these instances, as a requester creates it. source: AE title that has them."""
    step = Dataset()
    step.SOPClassUID, step.SOPInstanceUID = PUSH, generate_uid()
    step.ProcedureStepState, step.InputReadinessState = "SCHEDULED", "READY"
    step.ScheduledProcedureStepPriority, step.WorklistLabel = "MEDIUM", "CHEST-AI"
    step.ProcedureStepLabel, step.ScheduledProcedureStepStartDateTime = "Chest CT AI", "20260101120000"
    step.ScheduledStationNameCodeSequence = [code("AI1")]
    step.ScheduledWorkitemCodeSequence = [code("110004", "DCM", "Computer Aided Detection")]
    step.PatientID, step.PatientName = "TEST", "Test^Outbox"
    step.InputInformationSequence = []
    for uid in dict.fromkeys(one.SeriesInstanceUID for one in slices):
        step.InputInformationSequence.append(_input([one for one in slices if one.SeriesInstanceUID == uid], source))
    for keyword, value in attributes.items():
        setattr(step, keyword, value)
    return step


def _input(slices: list[Dataset], source: str) -> Dataset:
    item, way = Dataset(), Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID, item.SeriesInstanceUID = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    item.ReferencedSOPSequence = []
    for one in slices:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
        item.ReferencedSOPSequence.append(reference)
    way.RetrieveAETitle = source
    item.DICOMRetrievalSequence = [way]
    return item


class Steps:
    """The steps in a database. violations: rules that a performer broke. claims: each claim that was granted."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE TABLE steps (uid PRIMARY KEY, state, transaction_uid, content, by)")
        self._lock = threading.RLock()
        self.violations: list[str] = []

    def create(self, step: Dataset) -> str:
        """N-CREATE: born SCHEDULED. Returns its UID."""
        values = (step.SOPInstanceUID, "SCHEDULED", None, step.to_json(), None)
        self._database.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?)", values)
        return str(step.SOPInstanceUID)

    def state(self, uid: str) -> str | None:
        """Its state; None if there is no such step."""
        row = self._row(uid)
        return row[0] if row else None

    def performed_by(self, uid: str) -> str | None:
        """Who claimed it."""
        return self._row(uid)[3]

    def get(self, uid: str) -> Dataset | None:
        """N-GET: everything but the Transaction UID, which is nobody else's business."""
        row = self._row(uid)
        if row is None:
            return None
        step = Dataset.from_json(row[2])
        step.ProcedureStepState = row[0]
        return step

    def find(self, keys: Dataset) -> list[Dataset]:
        """C-FIND with single value and sequence matching."""
        uids = [row[0] for row in self._database.execute("SELECT uid FROM steps ORDER BY rowid").fetchall()]
        return [step for uid in uids if (step := self.get(uid)) is not None and _matches(step, keys)]

    def change(self, uid: str, transaction_uid: str | None, changes: Dataset) -> int:
        """N-SET (CC.2.6)."""
        with self._lock:
            row = self._row(uid)
            if row is None:
                return self._refuse(0xC307, "N-SET of an unknown step")
            if row[0] in FINAL:
                return self._refuse(0xC300, "N-SET of a step that has ended", is_violation=False)
            if row[0] == "SCHEDULED":
                return self._refuse(0xC310, "N-SET by a performer who has not claimed it")
            if transaction_uid != row[1]:
                return self._refuse(0xC301, "N-SET with another's Transaction UID", is_violation=False)
            forbidden = {element.keyword for element in changes} - MAY_SET
            if forbidden:
                return self._refuse(0x0106, f"N-SET of {sorted(forbidden)}")
            step = Dataset.from_json(row[2])
            step.update({e.tag: e for e in changes if e.keyword != "TransactionUID"})
            self._database.execute("UPDATE steps SET content = ? WHERE uid = ?", (step.to_json(), uid))
            return 0x0000

    def change_state(self, uid: str, transaction_uid: str | None, to: str, by: str = "") -> int:
        """N-ACTION to Change State (CC.2.1)."""
        with self._lock:
            row = self._row(uid)
            if row is None:
                return self._refuse(0xC307, "a change of an unknown step", is_violation=False)
            if to == "SCHEDULED" or to not in ("IN PROGRESS", *FINAL):
                return self._refuse(0xC303, f"a change to {to!r}")
            if not transaction_uid or not UID(transaction_uid).is_valid:
                return self._refuse(0xC301, "a change without a Transaction UID")
            if row[1] is not None and transaction_uid != row[1]:
                return self._refuse(0xC301, "a change with another's Transaction UID", is_violation=False)
            status = WITH_UID[to, row[0]]
            if status == 0xC310:
                self.violations.append("the end of a step that was not claimed")
            if status == 0x0000 and to in FINAL:
                problems = unmet(Dataset.from_json(row[2]), to)
                if problems:
                    return self._refuse(0xC304, f"{to} without {problems}")
            if status == 0x0000:
                taken = (to, transaction_uid, by if to == "IN PROGRESS" else row[3], uid)
                self._database.execute("UPDATE steps SET state = ?, transaction_uid = ?, by = ? WHERE uid = ?", taken)
            return status

    def force(self, uid: str, state: str) -> None:
        """The worklist's administrator changes a state."""
        self._database.execute("UPDATE steps SET state = ? WHERE uid = ?", (state, uid))

    def forget(self, uid: str) -> None:
        """The worklist deletes a step."""
        self._database.execute("DELETE FROM steps WHERE uid = ?", (uid,))

    def request_cancel(self, uid: str) -> int:
        """N-ACTION to Request Cancel (CC.2.2): who asked for it hears of a step in progress through an event."""
        row = self._row(uid)
        if row is None:
            return 0xC307
        if row[0] == "SCHEDULED":
            self.force(uid, "CANCELED")
        return CANCEL[row[0]]

    def _row(self, uid: str) -> tuple[str, str | None, str, str | None] | None:
        query = "SELECT state, transaction_uid, content, by FROM steps WHERE uid = ?"
        found: tuple[str, str | None, str, str | None] | None = self._database.execute(query, (uid,)).fetchone()
        return found

    def _refuse(self, status: int, why: str, *, is_violation: bool = True) -> int:
        if is_violation:
            self.violations.append(why)
        return status


def _matches(step: Dataset, keys: Dataset) -> bool:
    for element in keys:
        if element.VR == "SQ":
            for wanted in element.value:
                given = [e for e in wanted if e.value not in ("", None)]
                items = step.get(element.keyword) or []
                if given and not any(all(item.get(e.keyword) == e.value for e in given) for item in items):
                    return False
        elif element.value not in ("", None) and step.get(element.keyword) != element.value:
            return False
    return True


def unmet(step: Dataset, state: str) -> list[str]:
    """What a step lacks to end in a state (Table CC.2.5-3, column "Final State")."""
    (performed, *more) = step.get("UnifiedProcedureStepPerformedProcedureSequence") or [None]
    lacking = [] if performed is not None and not more else ["one performed procedure"]
    if performed is not None:
        lacking += [
            name
            for name in ("PerformedStationNameCodeSequence", "PerformedWorkitemCodeSequence")
            if not (
                performed.get(name)
                and all(c.CodeValue and c.CodingSchemeDesignator and c.CodeMeaning for c in performed[name].value)
            )
        ]
        began, ended = (str(performed.get(f"PerformedProcedureStep{n}DateTime") or "") for n in ("Start", "End"))
        lacking += [] if began and ended and DT(began) <= DT(ended) else ["start and end in this order"]
        if "OutputInformationSequence" not in performed:
            lacking.append("OutputInformationSequence")
        lacking += [f"output: {p}" for o in performed.get("OutputInformationSequence") or [] for p in _unusable(o)]
    if state == "COMPLETED" and performed is not None and not performed.get("OutputInformationSequence"):
        lacking.append("an output")
    if state == "CANCELED":
        (progress, *_) = step.get("ProcedureStepProgressInformationSequence") or [Dataset()]
        lacking += [] if progress.get("ProcedureStepCancellationDateTime") else ["a time of cancellation"]
        lacking += [] if progress.get("ProcedureStepDiscontinuationReasonCodeSequence") else ["a coded reason"]
    return lacking


def _unusable(item: Dataset) -> Iterator[str]:
    for name in ("TypeOfInstances", "StudyInstanceUID", "SeriesInstanceUID", "ReferencedSOPSequence"):
        if not item.get(name):
            yield name
    for one in item.get("ReferencedSOPSequence") or []:
        if not (
            UID(one.get("ReferencedSOPClassUID", "")).is_valid and UID(one.get("ReferencedSOPInstanceUID", "")).is_valid
        ):
            yield "a reference"
    if not (item.get("DICOMRetrievalSequence") or item.get("WADORSRetrievalSequence")):
        yield "a way to retrieve it"


@dataclass
class Faults:
    """answers: a status in place of doing what is asked, once each. lost: do it, and close without an answer, once.

    Both by what is asked: find, read, set, IN PROGRESS, COMPLETED, CANCELED.
    """

    answers: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)


class UpsScp:
    """The worklist by DIMSE, on loopback. asked: each request's kind, in order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.steps, self.faults = Steps(folder / "worklist.sqlite"), Faults()
        self.asked: list[str] = []
        self.subscribers: set[str] = set()
        entity = AE(ae_title="WORKLIST")
        for sop_class in (PULL, WATCH, PUSH):
            entity.add_supported_context(sop_class)
        handlers = [
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_GET, self._get),
            (evt.EVT_N_SET, self._set),
            (evt.EVT_N_ACTION, self._act),
        ]
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "UpsScp":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def tell(
        self, port: int, ae_title: str, kind: int, uid: str, information: Dataset, calling: str = "WORKLIST"
    ) -> int:
        """N-EVENT-REPORT to a subscriber. Returns its status; -1 if it takes no association."""
        entity = AE(ae_title=calling)
        entity.add_requested_context(EVENT)
        association = entity.associate("127.0.0.1", port, ae_title=ae_title)
        if not association.is_established:
            return -1
        status, _ = association.send_n_event_report(information, kind, PUSH, uid, meta_uid=EVENT)
        association.release()
        return int(status.Status) if "Status" in status else -1

    def _first(self, event: evt.Event, kind: str, contexts: tuple[str, ...]) -> int | None:
        self.asked.append(kind)
        if str(event.context.abstract_syntax) not in contexts:
            self.steps.violations.append(f"{kind} on {event.context.abstract_syntax}")
            return 0x0122
        named = getattr(event.request, "RequestedSOPClassUID", None) or PUSH
        if str(named) != PUSH:
            self.steps.violations.append(f"{kind} of class {named}")
            return 0x0119
        return self.faults.answers.pop(kind, None)

    def _last(self, event: evt.Event, kind: str, status: int) -> int:
        if kind in self.faults.lost:
            self.faults.lost.discard(kind)
            event.assoc.abort()
        return status

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        refused = self._first(event, "find", (PULL, WATCH))
        if refused is not None:
            yield refused, None
            return
        for step in self.steps.find(event.identifier):
            yield 0xFF00, step

    def _get(self, event: evt.Event) -> tuple[int, Dataset | None]:
        refused = self._first(event, "read", (PULL, WATCH, PUSH))
        step = self.steps.get(str(event.request.RequestedSOPInstanceUID))
        if refused is not None or step is None:
            return refused or 0xC307, None
        answer = Dataset()
        answer.update({tag: step[tag] for tag in event.attribute_identifiers if tag in step})
        return self._last(event, "read", 0x0000), answer

    def _set(self, event: evt.Event) -> tuple[int, Dataset | None]:
        refused = self._first(event, "set", (PULL,))
        if refused is not None:
            return refused, None
        changes = event.modification_list
        status = self.steps.change(str(event.request.RequestedSOPInstanceUID), changes.get("TransactionUID"), changes)
        return self._last(event, "set", status), None

    def _act(self, event: evt.Event) -> tuple[int, Dataset | None]:
        said, uid = event.action_information, str(event.request.RequestedSOPInstanceUID)
        if event.action_type == 3:
            refused = self._first(event, "subscribe", (WATCH,))
            if uid != ALL_STEPS or said.get("DeletionLock") not in ("TRUE", "FALSE"):
                self.steps.violations.append("a subscription without a lock")
            if refused is None:
                self.subscribers.add(str(said.ReceivingAE))
            return refused or 0x0000, None
        to = str(said.get("ProcedureStepState", ""))
        refused = self._first(event, to, (PULL, PUSH))
        if refused is not None or event.action_type != 1:
            return refused or 0x0123, None
        by = event.assoc.requestor.ae_title
        status = self.steps.change_state(uid, said.get("TransactionUID"), to, by)
        return self._last(event, to, status), None
