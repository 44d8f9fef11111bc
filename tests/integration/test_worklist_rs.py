"""Steps of a worklist by UPS-RS, with images by WADO-RS, against a server that refuses what the standard refuses."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset

from config.gateways.stow import StowDestination
from config.gateways.worklist import RsWorklistEntry
from storage.workitems import StepState
from tests.outbox import ct_series, encoded, make_node, part10
from tests.performing import Hospital, performed, progress
from tests.ups import code, step_for
from tests.ups_rs import UpsRs


@dataclass
class Site:
    """A server with one series, and nodes at it."""

    server: UpsRs
    slices: list[Dataset]
    folder: Path

    def node(self, name: str = "node", **rules: object) -> Hospital:
        (self.folder / name).mkdir()
        archive = StowDestination(name="archive", kind="stow", url=self.server.url)
        entry = RsWorklistEntry(**{"name": "ris", "server": "archive", "label": "CHEST-AI", "poll_s": 5.0, **rules})
        completion = {"quiet_s": 30.0, "select": "all"}
        return Hospital(make_node(self.folder / name, archive, rs_worklists=(entry,), completion=completion))

    def ask(self, **attributes: object) -> str:
        return self.server.steps.create(step_for(self.slices, **attributes))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    slices = ct_series(3)
    with UpsRs(tmp_path / "server", slices) as server:
        yield Site(server, slices, tmp_path)
        assert server.steps.violations == []


def test_a_step_is_claimed_fetched_analysed_and_completed(site: Site) -> None:
    uid = site.ask()
    node = site.node(stations=("AI1^99TEST^test",), codes=("110004^DCM^Computer Aided Detection",))
    node.run()
    step = site.server.steps.get(uid)
    assert step is not None
    assert step.ProcedureStepState == "COMPLETED"
    (output,) = performed(step).OutputInformationSequence
    place = f"studies/{site.slices[0].StudyInstanceUID}/series/{output.SeriesInstanceUID}"
    assert output.WADORSRetrievalSequence[0].RetrieveURL == f"{site.server.url}/{place}"
    assert [row["outcome"] for row in node.node.audited("series.fetch")] == ["OK"]
    sent = site.folder / "sent.dcm"
    for one in site.slices:
        sent.write_bytes(part10(one))
        assert encoded(node.node.held()[one.SOPInstanceUID]) == encoded(sent)


@pytest.mark.parametrize("what", ["absent", "garbage"])
def test_images_that_do_not_come_cancel_the_step(site: Site, what: str) -> None:
    uid, last = site.ask(), site.slices[-1].SOPInstanceUID
    if what == "absent":
        del site.server.images[last]
    else:
        site.server.images[last] = b"no image"
    node = site.node(fetch_attempts=1)
    node.run()
    step = site.server.steps.get(uid)
    assert step is not None
    assert step.ProcedureStepState == "CANCELED"
    assert progress(step).ReasonForCancellation.startswith("MISSING_SLICES: ")


@pytest.mark.parametrize("status", [400, 409, 410])
def test_a_step_that_somebody_else_claimed_first_is_left_alone(site: Site, status: int) -> None:
    uid = site.ask()
    site.server.faults.answers["IN PROGRESS"] = status
    node = site.node()
    node.run()
    assert node.steps()[0].state == StepState.TAKEN
    assert site.server.steps.state(uid) == "SCHEDULED"


@pytest.mark.parametrize("kind", ["find", "read", "set", "IN PROGRESS", "COMPLETED"])
@pytest.mark.parametrize("status", [503, None])
def test_whatever_passes_or_is_lost_once_the_step_is_completed_once(site: Site, kind: str, status: int | None) -> None:
    uid = site.ask()
    if status is None:
        site.server.faults.lost.add(kind)
    else:
        site.server.faults.answers[kind] = status
    node = site.node()
    node.run()
    assert site.server.steps.state(uid) == "COMPLETED"
    assert node.steps()[0].state == StepState.COMPLETED
    assert len(node.node.audited("result.recorded")) == 1


def test_only_steps_meant_for_this_node_are_taken(site: Site) -> None:
    others = [site.ask(WorklistLabel="OTHER"), site.ask(ScheduledStationNameCodeSequence=[code("AI9")])]
    node = site.node(stations=("AI1^99TEST^test",))
    node.run(until=lambda: node.now > 1_800_000_050)
    assert [site.server.steps.state(uid) for uid in others] == ["SCHEDULED", "SCHEDULED"]


def test_a_step_without_usable_input_is_cancelled(site: Site) -> None:
    uid = site.ask(InputInformationSequence=[])
    site.node().run()
    assert site.server.steps.state(uid) == "CANCELED"
