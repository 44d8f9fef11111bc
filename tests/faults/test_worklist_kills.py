"""A performer that is killed before and after each of its durable steps, and each thing that the worklist hears."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from config.gateways.worklist import WorklistEntry
from dicom_node.cli.app import app
from dicom_node.gateways.worklist.contents import Coded
from dicom_node.gateways.worklist.contents import Performer as PerformedBy
from dicom_node.performer.ending import Ending
from dicom_node.performer.performer import Performer
from storage import status, tallies, workitems
from storage.workitems import StepState
from tests.outbox import ct_series, destination, make_node
from tests.performing import Hospital, StepsWorklist
from tests.ups import Steps, step_for

HEARD = ("scheduled", "claim", "read", "change", "end")
BY = PerformedBy(Coded("AI1", "99TEST", "test"), Coded("110004", "DCM", "Computer Aided Detection"))


class Killed(BaseException):
    """SIGKILL, as far as one thread can have it."""


class Killer:
    """Counts the points that the performer reaches, and kills it at one. points: their names, in order."""

    def __init__(self, at: int | None) -> None:
        self.at, self.points = at, []

    def reached(self, name: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.points.append(name)
        if self.at is not None and len(self.points) == self.at:
            raise Killed(name)

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.reached(f"{name}:before")
            result = function(*arguments, **named)
            self.reached(f"{name}:after")
            return result

        return call


class KilledDatabase:
    """The index, in whose transactions the performer is killed just before and just after the commit."""

    def __init__(self, database: Any, killer: Killer) -> None:
        self._database, self._killer = database, killer
        self.read = database.read

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._database.transaction() as tx:
            yield tx
            self._killer.reached("commit:before")
        self._killer.reached("commit:after")


class World:
    """A worklist with one step, and nodes that perform it."""

    def __init__(self, folder: Path, **attributes: object) -> None:
        self.slices = ct_series(3)
        self.worklist = Steps(folder / "worklist.sqlite")
        self.uid = self.worklist.create(step_for(self.slices, **attributes))
        (folder / "node").mkdir()
        settings = {"completion": {"quiet_s": 30.0, "select": "all"}}
        self.node = Hospital(make_node(folder / "node", destination(1, "pacs", "PACS"), **settings), turn_s=125.0)
        self.fetches = 0

    def performer(self, killer: Killer) -> Performer:
        def fetch(*_: object) -> None:
            self.fetches += 1
            self.node.node.receive(self.slices, self.node.now, 30.0)

        worklist = StepsWorklist(self.worklist, "NODE")
        for name in HEARD:
            setattr(worklist, name, killer.wrapped(name, getattr(worklist, name)))
        rules = WorklistEntry(name="ris", ae_title="WORKLIST", host="127.0.0.1", port=1, label="CHEST-AI", poll_s=5.0)
        database = KilledDatabase(self.node.node.database, killer)
        ending, now = Ending(BY, {"pacs": ("ae", "PACS")}), lambda: self.node.now
        return Performer(rules, worklist, database, killer.wrapped("fetch", fetch), ending, threading.Event(), now)

    def run(self, killer: Killer) -> None:
        """Until the step has ended; if the performer is killed, the node starts again."""
        try:
            self.node.run(performer=self.performer(killer))
        except Killed:
            self.node.run(performer=self.performer(Killer(None)), most=200)

    def check(self, state: str) -> None:
        """The worklist has the step in this end, and so has the node; nothing was done twice."""
        assert self.worklist.state(self.uid) == state
        assert self.worklist.violations == []
        (step,) = self.node.steps()
        assert step.state == StepState(state)
        assert len(self.node.node.audited("result.recorded")) == 1
        assert self.fetches <= 2


def points(folder: Path, *, refuse: bool = False) -> list[str]:
    folder.mkdir()
    world, killer = World(folder), Killer(None)
    world.node.refuse = refuse
    world.run(killer)
    world.check("CANCELED" if refuse else "COMPLETED")
    return killer.points


@pytest.mark.parametrize("refuse", [False, True])
def test_wherever_the_performer_is_killed_the_step_ends_once(tmp_path: Path, refuse: bool) -> None:
    reached = points(tmp_path / "alive", refuse=refuse)
    assert {name.split(":")[0] for name in reached} == {"commit", "fetch", *HEARD}
    # Both ways are the same until the end is told.
    first = reached.index("claim:before") if not refuse else len(reached) - 12
    for number in range(first, len(reached) + 1):
        if reached[number - 1].startswith(("read", "scheduled")):
            continue  # changes nothing anywhere
        folder = tmp_path / str(number)
        folder.mkdir()
        world, killer = World(folder), Killer(number)
        world.node.refuse = refuse
        world.run(killer)
        assert killer.points == reached[:number]
        world.check("CANCELED" if refuse else "COMPLETED")


def test_the_transaction_uid_is_in_the_index_before_the_worklist_hears_of_it(tmp_path: Path) -> None:
    reached = points(tmp_path / "alive")
    world = World(tmp_path)
    with pytest.raises(Killed):
        world.performer(Killer(reached.index("claim:before") + 1)).step()
    assert world.worklist.state(world.uid) == "SCHEDULED"
    (step,) = world.node.steps()
    assert (step.state, step.workitem_uid) == (StepState.CLAIMING, world.uid)


def test_a_step_that_another_node_took_while_this_one_was_dead_is_left_to_it(tmp_path: Path) -> None:
    reached = points(tmp_path / "alive")
    world = World(tmp_path)
    with pytest.raises(Killed):
        world.performer(Killer(reached.index("claim:before") + 1)).step()
    assert world.worklist.change_state(world.uid, "1.2.3", "IN PROGRESS", "OTHER") == 0
    world.node.now += 300
    world.node.run(performer=world.performer(Killer(None)))
    assert world.node.steps()[0].state == StepState.TAKEN
    assert (world.worklist.performed_by(world.uid), world.worklist.state(world.uid)) == ("OTHER", "IN PROGRESS")


def test_a_step_that_is_cancelled_by_its_requester_is_given_back_wherever_it_is(tmp_path: Path) -> None:
    world = World(tmp_path)
    performer = world.performer(Killer(None))
    world.node.run(performer=performer, until=lambda: world.node.steps()[0].state == StepState.ANALYSING)
    with world.node.node.database.transaction() as tx:
        assert workitems.ask_to_cancel(tx, "ris", world.uid, "wrong patient", world.node.now)
    world.node.run(performer=performer)
    assert world.worklist.state(world.uid) == "CANCELED"
    said = world.worklist.get(world.uid).ProcedureStepProgressInformationSequence[0].ReasonForCancellation
    assert said == "Cancelled by the requester: wrong patient"
    with world.node.node.database.transaction() as tx:
        assert not workitems.ask_to_cancel(tx, "ris", world.uid, "again", world.node.now)


def test_the_steps_and_their_reasons_are_shown_without_what_lets_others_change_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.node.refuse = True
    world.run(Killer(None))
    environment = {"DICOM_NODE_DATA_DIR": str(tmp_path / "node")}
    shown = CliRunner().invoke(app, ["worklist", "show", "--json"], env=environment)
    (step,) = json.loads(shown.output)
    assert (step["workitem_uid"], step["state"], step["reason_code"]) == (world.uid, "CANCELED", "NOT_CHEST")
    assert "transaction_uid" not in step
    assert world.uid in CliRunner().invoke(app, ["worklist", "show"], env=environment).output
    with world.node.node.database.read() as tx:
        assert status.status(tx, world.node.now)["worklist_steps"] == {"CANCELED": 1}
        assert status.queues(tx, world.node.now)["worklist_steps"] == {"CANCELED": 1}
        assert tallies.differences(tx) == {}
