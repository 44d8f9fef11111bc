"""A worklist tells of new steps and of requests to cancel one, at a port of the node's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset

from dicom_node.demo.pacs import Pacs
from dicom_node.performer.opening import listening
from storage.workitems import StepState
from tests.outbox import ct_series
from tests.performing import Hospital, hospital, progress
from tests.programs import free_port
from tests.ups import UpsScp, step_for

STATE, CANCEL = 1, 2


@pytest.fixture
def worklist(tmp_path: Path) -> Iterator[UpsScp]:
    with UpsScp(tmp_path / "worklist") as found:
        yield found
        assert found.steps.violations == []


def told(node: Hospital, worklist: UpsScp, kind: int, uid: str, calling: str = "WORKLIST") -> int:
    said = Dataset()
    said.ProcedureStepState, said.InputReadinessState = "SCHEDULED", "READY"
    said.ReasonForCancellation = "wrong patient"
    port = node.node.settings.worklists[0].event_port
    return worklist.tell(port, node.node.settings.sender.calling_ae_title, kind, uid, said, calling)


def test_events_bring_new_steps_at_once_and_cancel_those_in_hand(tmp_path: Path, worklist: UpsScp) -> None:
    slices = ct_series(2)
    with Pacs(tmp_path / "pacs") as pacs:
        node = hospital(tmp_path / "node", worklist, pacs.port, event_port=free_port(), poll_s=1000.0)
        performer = node.performer()
        with listening(node.node.settings, [performer], node.node.database):
            performer.step()
            assert worklist.subscribers == {node.node.settings.sender.calling_ae_title}
            uid = worklist.steps.create(step_for(slices))
            performer.step()
            assert worklist.steps.state(uid) == "SCHEDULED"
            assert told(node, worklist, STATE, uid) == 0x0000
            performer.step()
            assert worklist.steps.state(uid) == "IN PROGRESS"
            assert told(node, worklist, CANCEL, uid, calling="STRANGER") == -1
            assert told(node, worklist, 9, uid) == 0x0113
            assert node.steps()[0].cancel_reason is None
            assert told(node, worklist, CANCEL, uid) == 0x0000
            node.run(performer=performer)
        said = worklist.steps.get(uid)
        assert said is not None
        assert said.ProcedureStepState == "CANCELED"
        assert progress(said).ReasonForCancellation == "Cancelled by the requester: wrong patient"
        assert node.steps()[0].state == StepState.CANCELED


@pytest.mark.parametrize("status", [0xC308, 0xC315, 0x0122])
def test_a_worklist_that_sends_no_events_is_asked(tmp_path: Path, worklist: UpsScp, status: int) -> None:
    worklist.faults.answers["subscribe"] = status
    uid = worklist.steps.create(step_for(ct_series(1), InputInformationSequence=[]))
    node = hospital(tmp_path / "node", worklist, 1, event_port=free_port())
    node.run()
    assert worklist.steps.state(uid) == "CANCELED"
