"""Steps of a worklist by DIMSE, from claim to end, against a worklist that refuses whatever the standard refuses."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset
from typer.testing import CliRunner

from config.reasons import ReasonCode
from dicom_node.cli.app import app
from dicom_node.cli.common import PEER_UNREACHABLE
from dicom_node.demo.pacs import Pacs
from dicom_node.gateways.worklist.interface import Answer, answer_of
from dicom_node.runtime.metrics import NodeCollector, problems
from dicom_node.web import health
from storage import deliveries, worklists_away
from storage.results import objects_of
from storage.workitems import StepState
from tests.outbox import ct_series, write_all
from tests.performing import Hospital, hospital, performed, progress
from tests.programs import free_port
from tests.ups import UpsScp, code, step_for


@dataclass
class Site:
    """A worklist, a PACS with one series, and a node."""

    worklist: UpsScp
    pacs: Pacs
    slices: list[Dataset]
    folder: Path

    def node(self, name: str = "node", **rules: object) -> Hospital:
        return hospital(self.folder / name, self.worklist, self.pacs.port, **rules)

    def ask(self, **attributes: object) -> str:
        return self.worklist.steps.create(step_for(self.slices, **attributes))

    def step(self, uid: str) -> Dataset:
        found = self.worklist.steps.get(uid)
        assert found is not None
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    slices = ct_series(4)
    write_all(slices, tmp_path / "images")
    with Pacs(tmp_path / "pacs") as pacs, UpsScp(tmp_path / "worklist") as worklist:
        pacs.load(tmp_path / "images")
        yield Site(worklist, pacs, slices, tmp_path)
        assert worklist.steps.violations == []


def test_a_step_is_claimed_fetched_analysed_and_completed_with_what_the_pacs_has(site: Site) -> None:
    uid = site.ask()
    node = site.node()
    node.run()
    step = site.step(uid)
    assert step.ProcedureStepState == "COMPLETED"
    assert [one.instance_count for one in node.all_series()] == [4]
    (output,) = performed(step).OutputInformationSequence
    with node.node.database.read() as tx:
        (report,) = objects_of(tx, *node.steps()[0].results)
    assert output.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == report.sop_instance_uid
    assert output.StudyInstanceUID == site.slices[0].StudyInstanceUID
    assert output.DICOMRetrievalSequence[0].RetrieveAETitle == "DEMO_PACS"
    assert progress(step).ProcedureStepProgress == 100


def test_a_series_that_is_not_analysed_ends_its_step_canceled_with_the_reason(site: Site) -> None:
    uid = site.ask()
    node = site.node()
    node.refuse = True
    node.run()
    step = site.step(uid)
    assert step.ProcedureStepState == "CANCELED"
    assert progress(step).ReasonForCancellation == "NOT_CHEST: No lungs."
    assert node.steps()[0].reason_code == ReasonCode.NOT_CHEST


def test_input_that_is_here_is_not_fetched_again_and_a_reported_series_is_not_analysed_again(site: Site) -> None:
    node = site.node()
    node.node.receive(site.slices, node.now, 30)
    first, second = site.ask(), site.ask()
    node.run()
    assert {site.step(uid).ProcedureStepState for uid in (first, second)} == {"COMPLETED"}
    assert node.node.audited("series.fetch") == []
    assert len(node.node.audited("result.recorded")) == 1
    third = site.ask()
    site.pacs.stop()
    node.now += 60
    node.run(until=lambda: site.step(third).ProcedureStepState == "COMPLETED")
    outputs = [performed(site.step(uid)).OutputInformationSequence[0] for uid in (first, third)]
    assert outputs[0].ReferencedSOPSequence == outputs[1].ReferencedSOPSequence
    assert len(node.node.audited("result.recorded")) == 1


def test_images_that_do_not_come_leave_the_series_unanalysed_and_cancel_the_step(site: Site) -> None:
    uid = site.ask()
    site.pacs.delete(site.slices[-1].SOPInstanceUID)
    node = site.node(fetch_attempts=2)
    node.run()
    step = site.step(uid)
    assert step.ProcedureStepState == "CANCELED"
    assert progress(step).ReasonForCancellation.startswith("MISSING_SLICES: ")
    assert progress(step).ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110523"
    assert [row["outcome"] for row in node.node.audited("result.recorded")] == ["NOT_ANALYSED"]


def test_a_series_does_not_close_while_its_images_are_being_fetched(site: Site) -> None:
    site.ask()
    site.pacs.delete(site.slices[-1].SOPInstanceUID)
    node = site.node(fetch_attempts=20)
    performer = node.performer()
    node.run(until=lambda: len(node.all_series()) == 1, performer=performer)
    node.now += 300
    node.live_work()
    assert node.all_series()[0].state == "OPEN"
    write_all(site.slices[-1:], site.folder / "late")
    site.pacs.load(site.folder / "late")
    node.run(performer=performer)
    assert node.steps()[0].state == StepState.COMPLETED
    assert node.all_series()[0].revision == 1


def test_a_pacs_that_is_away_is_waited_for(site: Site) -> None:
    uid = site.ask()
    site.pacs.stop()
    node = site.node(fetch_attempts=1)
    performer = node.performer()
    for _ in range(5):
        node.run(until=lambda: True, performer=performer)
        node.now += 60
    assert site.step(uid).ProcedureStepState == "IN PROGRESS"
    assert node.steps()[0].state == StepState.FETCHING
    node.now += 24 * 3600
    node.run(performer=performer)
    assert site.step(uid).ProcedureStepState == "CANCELED"


def test_a_worklist_that_is_away_is_shown_until_it_answers_again(site: Site, tmp_path: Path) -> None:
    def shown(node: Hospital) -> tuple[str, list[str], list[str]]:
        settings, database, files = node.node.settings, node.node.database, node.node.files
        (up,) = [
            one for one in NodeCollector(settings, database, files, list).collect() if one.name.endswith("worklist_up")
        ]
        found = health.examine(settings, database, files, node.now)
        said = [one.what for one in found.problems if "worklist" in one.what]
        with database.read() as tx:
            listed = [one.name for one in worklists_away.away(tx, settings.worklist_names, node.now)]
        return str([sample.value for sample in up.samples]), said, listed

    away = site.node(port=free_port())
    away.now = away.node.database.now()
    performer = away.performer()
    for _ in range(3):
        performer.step()
        away.now += 600
    said = "The worklist ris has not answered for 30 min: no connection: refused, unreachable or timed out."
    assert shown(away) == ("[0]", [said], ["ris"])
    assert "worklist-late" not in problems(away.node.settings, away.node.database, away.node.files, None)
    with away.node.database.transaction() as tx:
        worklists_away.note_back(tx, "ris")
        worklists_away.note_away(tx, "ris", away.node.database.now() - 3600, "no answer")
    assert "worklist-late" in problems(away.node.settings, away.node.database, away.node.files, None)
    back = site.node()
    back.now = away.now
    back.performer().step()
    assert shown(back) == ("[1]", [], [])


def test_a_step_waits_until_a_pacs_has_the_result(site: Site) -> None:
    uid = site.ask()
    node = site.node()
    node.deliver = lambda: None  # type: ignore[method-assign]
    performer = node.performer()
    node.run(until=lambda: bool(node.node.audited("result.recorded")), performer=performer)
    for _ in range(3):
        node.now += 3600
        node.run(until=lambda: True, performer=performer)
    assert site.step(uid).ProcedureStepState == "IN PROGRESS"
    Hospital.deliver(node)
    node.run(performer=performer)
    assert site.step(uid).ProcedureStepState == "COMPLETED"


def test_a_step_whose_result_no_pacs_takes_is_cancelled(site: Site) -> None:
    def refuse() -> None:
        with node.node.database.transaction() as tx:
            for one in deliveries.claim(tx, "pacs", node.now, 60, 10):
                deliveries.fail(tx, one.delivery_id, one.fence, node.now, "refused")

    uid = site.ask()
    node = site.node()
    node.deliver = refuse  # type: ignore[method-assign]
    node.run()
    assert progress(site.step(uid)).ReasonForCancellation == "The result is in this node, and no PACS has taken it."


def test_two_nodes_never_both_do_a_step(site: Site) -> None:
    asked = [site.ask() for _ in range(6)]
    nodes = [site.node(name) for name in ("one", "two")]
    performers = [node.performer() for node in nodes]
    for _ in range(6):
        for node, performer in zip(nodes, performers, strict=True):
            node.run(until=lambda: True, performer=performer)
            node.now += 60
    assert {site.step(uid).ProcedureStepState for uid in asked} == {"COMPLETED"}
    done = [{s.workitem_uid for s in node.steps() if s.state == StepState.COMPLETED} for node in nodes]
    assert done[0] | done[1] == set(asked) and not done[0] & done[1]
    assert site.worklist.asked.count("COMPLETED") == len(asked)


@pytest.mark.parametrize("status", [0xC300, 0xC301, 0xC302, 0xC307])
def test_a_step_that_somebody_else_claimed_first_is_left_alone(site: Site, status: int) -> None:
    uid = site.ask()
    site.worklist.faults.answers["IN PROGRESS"] = status
    node = site.node()
    node.run()
    assert node.steps()[0].state == StepState.TAKEN
    assert site.step(uid).ProcedureStepState == "SCHEDULED"
    assert set(site.worklist.asked) == {"find", "IN PROGRESS"}


@pytest.mark.parametrize("kind", ["find", "read", "set", "IN PROGRESS", "COMPLETED"])
@pytest.mark.parametrize("status", [0xC312, None])
def test_whatever_passes_or_is_lost_once_the_step_is_completed_once(site: Site, kind: str, status: int | None) -> None:
    uid = site.ask()
    if status is None:
        site.worklist.faults.lost.add(kind)
    else:
        site.worklist.faults.answers[kind] = status
    node = site.node(poll_s=5.0)
    node.run()
    assert site.step(uid).ProcedureStepState == "COMPLETED"
    assert node.steps()[0].state == StepState.COMPLETED
    assert len(node.node.audited("result.recorded")) == 1


def test_a_lost_answer_to_a_claim_that_another_node_won_is_recognised(site: Site) -> None:
    uid = site.ask()
    site.worklist.faults.answers["IN PROGRESS"] = 0xA700
    node = site.node()
    performer = node.performer()
    performer.step()
    assert site.worklist.steps.change_state(uid, "1.2.3", "IN PROGRESS", "OTHER") == 0
    node.now += 60
    node.run(performer=performer)
    assert node.steps()[0].state == StepState.TAKEN
    assert (site.worklist.steps.performed_by(uid), site.step(uid).ProcedureStepState) == ("OTHER", "IN PROGRESS")


@pytest.mark.parametrize("fate", ["CANCELED", "COMPLETED", "SCHEDULED", "gone"])
def test_a_step_that_the_worklist_took_away_is_lost_and_not_told_anything(site: Site, fate: str) -> None:
    uid = site.ask()
    node = site.node()
    performer = node.performer()
    node.run(until=lambda: node.steps()[0].state == StepState.ANALYSING, performer=performer)
    if fate == "gone":
        site.worklist.steps.forget(uid)
    else:
        site.worklist.steps.force(uid, fate)
    node.run(performer=performer)
    # A step that ended as ours would have is as good as told.
    assert node.steps()[0].state == (StepState.COMPLETED if fate == "COMPLETED" else StepState.LOST)
    site.worklist.steps.violations.clear()  # the state was changed behind the node's back


def test_requirements_that_are_never_met_end_in_a_lost_step_that_says_why(site: Site) -> None:
    site.ask()
    node = site.node()
    performer = node.performer()
    for _ in range(16):
        site.worklist.faults.answers["COMPLETED"] = 0xC304
        node.run(until=lambda: True, performer=performer)
        node.now += 1801
    step = node.steps()[0]
    assert (step.state, step.error) == (StepState.LOST, "status 0xC304")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, "COMPLETED"),
        ({"WorklistLabel": "OTHER"}, "SCHEDULED"),
        ({"InputReadinessState": "INCOMPLETE"}, "SCHEDULED"),
        ({"ScheduledStationNameCodeSequence": [code("AI9")]}, "SCHEDULED"),
        ({"ScheduledWorkitemCodeSequence": [code("110005", "DCM")]}, "SCHEDULED"),
        ({"InputInformationSequence": []}, "CANCELED"),
    ],
)
def test_only_steps_meant_for_this_node_are_taken(site: Site, attributes: dict[str, object], expected: str) -> None:
    uid = site.ask(**attributes)
    codes = ("110003^DCM^Computer Aided Diagnosis", "110004^DCM^Computer Aided Detection")
    node = site.node(stations=("AI1^99TEST^test",), codes=codes)
    if expected == "SCHEDULED":
        node.run(until=lambda: node.now > 1_800_000_100)
        assert node.steps() == []
    else:
        node.run()
    assert site.step(uid).ProcedureStepState == expected


def test_no_more_steps_are_claimed_than_are_to_be_in_hand(site: Site) -> None:
    asked = [site.ask() for _ in range(5)]
    site.pacs.stop()
    node = site.node(claims=2)
    node.run(until=lambda: node.now > 1_800_000_200)
    states = [site.step(uid).ProcedureStepState for uid in asked]
    assert states == ["IN PROGRESS", "IN PROGRESS", "SCHEDULED", "SCHEDULED", "SCHEDULED"]


def test_a_step_goes_first_whose_priority_is_high(site: Site) -> None:
    site.ask(), site.ask(ScheduledProcedureStepPriority="LOW")
    urgent = site.ask(ScheduledProcedureStepPriority="HIGH")
    node = site.node(claims=1)
    performer = node.performer()
    performer.step()
    assert [one.workitem_uid for one in node.steps()] == [urgent]


def test_every_status_of_the_standard_has_a_meaning() -> None:
    known = {0xC300, 0xC301, 0xC302, 0xC303, 0xC304, 0xC307, 0xC308, 0xC309, *range(0xC310, 0xC316)}
    assert all(answer_of(status) is not Answer.DONE for status in known)
    assert {answer_of(status) for status in (0x0000, 0x0001, 0xB301, 0xB304, 0xB305, 0xB306)} == {Answer.DONE}
    assert [status for status in known if answer_of(status) is Answer.LATER] == [0xC312]


def test_a_person_asks_whether_a_worklist_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.ask()
    node = site.node().node.settings
    entries = [node.worklists[0].model_dump(mode="json"), {**node.worklists[0].model_dump(mode="json"), "name": "off"}]
    entries[1]["port"] = free_port()
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(node.data_dir))
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps([d.model_dump(mode="json") for d in node.destinations]))
    monkeypatch.setenv("DICOM_NODE_WORKLISTS", json.dumps(entries))
    both = CliRunner().invoke(app, ["worklist", "test"])
    assert both.exit_code == PEER_UNREACHABLE
    assert re.search(r"^ris: it answered in \d+ ms; 1 steps? waits? for this node$", both.output, re.M), both.output
    assert "off: no connection" in both.output
    one = CliRunner().invoke(app, ["worklist", "test", "ris", "--json"])
    assert one.exit_code == 0 and json.loads(one.output)[0]["reachable"]
    assert CliRunner().invoke(app, ["worklist", "test", "no"]).exit_code not in (0, PEER_UNREACHABLE)
    assert site.node().steps() == [], "nothing is claimed"
