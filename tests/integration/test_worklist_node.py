"""A whole node at a worklist, in its own processes: killed while it has a step in hand, and started again."""

import json
from pathlib import Path

from dicom_node.demo.pacs import Pacs
from storage import workitems
from storage.database import open_database
from storage.workitems import Step
from tests.outbox import ct_series, write_all
from tests.performing import progress
from tests.programs import wait_for
from tests.running import Node
from tests.ups import UpsScp, step_for


def steps_of(data_dir: Path) -> list[Step]:
    database = open_database(f"sqlite:///{data_dir / 'node.db'}")
    with database.read() as tx:
        found = workitems.latest(tx, 10)
    database.close()
    return found


def test_a_node_that_is_killed_ends_its_steps_after_it_is_started_again(tmp_path: Path) -> None:
    slices = ct_series(3)
    write_all(slices, tmp_path / "images")
    with Pacs(tmp_path / "pacs") as pacs, UpsScp(tmp_path / "worklist") as worklist:
        pacs.load(tmp_path / "images")
        uid = worklist.steps.create(step_for(slices))
        entry = {"name": "ris", "ae_title": "WORKLIST", "host": "127.0.0.1", "port": worklist.port, "label": "CHEST-AI"}
        settings = {"DICOM_NODE_WORKLISTS": json.dumps([entry]), "DICOM_NODE_COMPLETION__SELECT": "all"}
        node = Node(tmp_path / "node", pacs.port, "DEMO_PACS", **settings)
        node.log = tmp_path / "log"
        node.start()
        try:
            wait_for(lambda: worklist.steps.state(uid) == "IN PROGRESS", 60, "the step is claimed")
            node.kill()
            node.start()
            wait_for(lambda: worklist.steps.state(uid) == "CANCELED", 120, "the step has ended")
            wait_for(lambda: steps_of(tmp_path / "node")[0].ended_at, 30, "the node knows")
        finally:
            node.stop()
        told = worklist.steps.get(uid)
        assert told is not None
        (step,) = steps_of(tmp_path / "node")
        assert progress(told).ReasonForCancellation.startswith(f"{step.reason_code}: ")
        assert (step.state, step.workitem_uid) == ("CANCELED", uid)
        assert worklist.steps.violations == []
