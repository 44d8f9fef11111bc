"""A node that performs the steps of a worklist, with a clock of its own; models and sending are stood in for."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset

from config.gateways.worklist import WorklistEntry
from config.reasons import ReasonCode
from dicom_node.completion.closing import Completion
from dicom_node.gateways.worklist.contents import Workitem, in_order, matching, read_workitem
from dicom_node.gateways.worklist.interface import Said, answer_of
from dicom_node.performer.opening import performers
from dicom_node.performer.performer import Performer
from storage import deliveries, jobs, series, workitems
from storage.object_kinds import ObjectKind
from storage.results import NewObject, NewResult
from storage.workitems import Step
from tests.outbox import COMPREHENSIVE_3D_SR, MODEL, MODELS, Node, destination, instance, make_node, part10
from tests.storage_factory import said
from tests.ups import Steps, UpsScp

QUIET_S = 30.0


@dataclass
class Hospital:
    """One node at a worklist and a PACS. now: its clock, Unix seconds. refuse: the model analyses nothing.

    turn_s: seconds between two looks of everything that runs by itself.
    """

    node: Node
    now: float = 1_800_000_000.0
    refuse: bool = False
    turn_s: float = 10.0
    stop: threading.Event = field(default_factory=threading.Event)

    def performer(self) -> Performer:
        """The performer, as a node that starts has it."""
        (one,) = performers(self.node.settings, self.node.database, self.node.files, self.stop, lambda: self.now)
        return one

    def run(
        self, *, until: Callable[[], bool] | None = None, most: int = 60, performer: Performer | None = None
    ) -> None:
        """Everything that a node does, in turns, until every step has ended."""
        performer = performer or self.performer()
        done = until or (lambda: bool(self.steps()) and all(one.ended_at for one in self.steps()))
        for _ in range(most):
            performer.step()
            self.live_work()
            if done():
                return
            self.now += self.turn_s
        raise AssertionError(f"still: {self.steps()}")

    def live_work(self) -> None:
        """Close what is quiet, analyse what is queued, send what waits."""
        completion = Completion(self.node.settings, self.node.database, self.node.files)
        completion.close_due_series(MODELS, self.now)
        completion.stop()
        while self._analyse():
            pass
        self.deliver()

    def _analyse(self) -> bool:
        with self.node.database.transaction() as tx:
            job = jobs.claim(tx, "test", self.now, 60, 3)
            if job is None:
                return False
            refusal = job.refusal
            code = refusal.code if refusal else ReasonCode.NOT_CHEST if self.refuse else None
            result = NewResult("ANALYSED", MODEL.name, MODEL.version, MODEL.digest, said(0.5), threshold=0.5)
            if code is not None:
                text = refusal.sentence if refusal else "No lungs."
                result = NewResult(
                    "NOT_ANALYSED", MODEL.name, MODEL.version, MODEL.digest, reason_code=code, reason_text=text
                )
            report = instance(COMPREHENSIVE_3D_SR, StudyInstanceUID=job.study_instance_uid)
            file = self.node.files.write_durably([part10(report)])
            made = NewObject(
                ObjectKind.REPORT, report.SOPInstanceUID, COMPREHENSIVE_3D_SR, report.SeriesInstanceUID, file
            )
            names = [d.name for d in self.node.settings.destinations]
            jobs.finish(tx, job.job_id, job.fence, self.now, result, [made], [] if code else names)
        return True

    def deliver(self) -> None:
        """The PACS takes every result."""
        with self.node.database.transaction() as tx:
            for name in [d.name for d in self.node.settings.destinations]:
                for one in deliveries.claim(tx, name, self.now, 60, 10):
                    taken = {o.sop_instance_uid: 0x0000 for o in one.objects}
                    deliveries.mark_sent(tx, one.delivery_id, one.fence, self.now, taken)

    def steps(self) -> list[Step]:
        """The steps in the index."""
        with self.node.database.read() as tx:
            return workitems.latest(tx, 100)

    def all_series(self) -> list[series.SeriesRecord]:
        """The series in the index."""
        with self.node.database.read() as tx:
            return series.list_series(tx)


def hospital(folder: Path, worklist: UpsScp, pacs_port: int, **rules: Any) -> Hospital:
    """A node whose settings name a worklist and a PACS on loopback."""
    chosen = {"name": "ris", "ae_title": "WORKLIST", "host": "127.0.0.1", "port": worklist.port, "label": "CHEST-AI"}
    entry = WorklistEntry(**{**chosen, **rules})
    pacs = destination(pacs_port, "pacs", "DEMO_PACS")
    folder.mkdir(parents=True, exist_ok=True)
    completion = {"quiet_s": QUIET_S, "select": "all"}
    return Hospital(make_node(folder, pacs, worklists=(entry,), completion=completion))


class StepsWorklist:
    """The worklist without a network: what it answers is what the standard's table says."""

    def __init__(self, steps: Steps, ae_title: str) -> None:
        self._steps, self._ae_title = steps, ae_title

    def scheduled(self, limit: int) -> list[str]:
        """See `Worklist`."""
        return in_order(self._steps.find(matching("CHEST-AI", (), ())[0]))[:limit]

    def claim(self, uid: str, transaction_uid: str) -> Said:
        """See `Worklist`."""
        return self.end(uid, transaction_uid, "IN PROGRESS")

    def read(self, uid: str) -> Workitem | None:
        """See `Worklist`."""
        found = self._steps.get(uid)
        return None if found is None else read_workitem(uid, found)

    def change(self, uid: str, transaction_uid: str, changes: Dataset) -> Said:
        """See `Worklist`."""
        return self._said(self._steps.change(uid, transaction_uid, changes))

    def end(self, uid: str, transaction_uid: str, state: str) -> Said:
        """See `Worklist`."""
        return self._said(self._steps.change_state(uid, transaction_uid, state, self._ae_title))

    @staticmethod
    def _said(status: int) -> Said:
        return Said(answer_of(status), f"status 0x{status:04X}")


def performed(step: Dataset) -> Dataset:
    """What a step says of how it was performed."""
    return step.UnifiedProcedureStepPerformedProcedureSequence[0]


def progress(step: Dataset) -> Dataset:
    """What a step says of its progress."""
    return step.ProcedureStepProgressInformationSequence[0]
