"""SIGKILL before and after every durable step of every process of a real node; then nothing is lost, nothing twice.

By default a few points are tried; NODE_FAULT_ROUNDS=n tries every point n times.
"""

import os
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node import push
from dicom_node.errors import NodeError
from dicom_node.pacs import Pacs
from storage import audit
from storage.database import Database
from storage.files import FileStore
from storage.series import series_instances
from tests.factories import write_series
from tests.programs import wait_for
from tests.running import Node

INJECT = Path(__file__).parent / "inject"
ROUNDS = int(os.environ.get("NODE_FAULT_ROUNDS", "0"))
STEPS = {
    "receive": ["file", "instance.received"],
    "schedule": ["series.closed"],
    "work": ["job.running", "file", "result.recorded"],
    "deliver": ["delivery.sending", "delivery.sent"],
}
POINTS = ["receive:answer:before"] + [
    f"{process}:{step}:{moment}" for process, steps in STEPS.items() for step in steps for moment in ("before", "after")
]
FEW = ["receive:answer:before", "work:result.recorded:after", "deliver:delivery.sent:before"]
CASES = [(point, "tree") for point in FEW]
if ROUNDS:
    CASES = [(point, scope) for point in POINTS for scope in ("tree", "process") for _ in range(ROUNDS)]


class Watched:
    """A node that dies once, and whoever starts it again."""

    def __init__(self, folder: Path, point: str, scope: str, pacs: Pacs) -> None:
        self.faults = folder / "faults"
        self.faults.mkdir()
        (self.faults / "kill").write_text(point)
        (self.faults / "scope").write_text(scope)
        self.data = folder / "node"
        self.node = Node(
            self.data,
            pacs.port,
            NODE_FAULTS=str(self.faults),
            PYTHONPATH=str(INJECT),
            DICOM_NODE_REPORT__SEGMENTATION="false",
            DICOM_NODE_REPORT__SUMMARY="false",
            DICOM_NODE_WORKER__LEASE_S="3",
            DICOM_NODE_SENDER__LEASE_S="3",
            DICOM_NODE_LOGGING__LEVEL="error",
        )

    def tend(self) -> None:
        """Start it again where all of it died."""
        if self.node.process is not None and self.node.process.poll() is not None:
            self.node.process = None
            self.node.start()

    def rows(self, statement: str) -> list[dict[str, object]]:
        database = Database(f"sqlite:///{self.data}/node.db")
        try:
            with database.read() as tx:
                return [dict(row) for row in tx.exec_driver_sql(statement).mappings()]
        finally:
            database.close()


def send_until_acknowledged(folder: Path, watched: Watched) -> None:
    """As a PACS does: again and again, until each instance was answered with success."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        watched.tend()
        try:
            if push.send(folder, "127.0.0.1", watched.node.port, watched.node.ae_title, "PACS").failed == 0:
                return
        except (NodeError, OSError):
            pass
        time.sleep(0.3)
    raise AssertionError("the node never took the whole series")


@pytest.mark.parametrize(("point", "scope"), CASES)
def test_after_a_kill_nothing_is_lost_and_nothing_comes_twice(point: str, scope: str, tmp_path: Path) -> None:
    write_series(tmp_path / "sent")
    sent = {str(dcmread(path).SOPInstanceUID): path for path in (tmp_path / "sent").iterdir()}
    with Pacs(tmp_path / "pacs", ae_title="PACS") as pacs:
        watched = Watched(tmp_path, point, scope, pacs)
        watched.node.start()
        try:
            send_until_acknowledged(tmp_path / "sent", watched)

            def delivered() -> bool:
                watched.tend()
                return {row["state"] for row in watched.rows("SELECT state FROM deliveries")} == {"SENT"}

            wait_for(delivered, 90, "the report is delivered")
            assert (watched.faults / "done").exists(), "the point was never reached"
        finally:
            watched.node.stop() if watched.node.process is not None else None
        received = [dcmread(path) for path in pacs.received()]
    recorded = {row["sop_instance_uid"] for row in watched.rows("SELECT sop_instance_uid FROM result_objects")}
    distinct = {str(item.SOPInstanceUID) for item in received}
    # What is recorded beside it are the same report in lower classes, for destinations that refuse this one.
    assert len(distinct) == 1 and distinct <= recorded, "one distinct report, and the one that was recorded"
    assert [row["state"] for row in watched.rows("SELECT state FROM jobs")] == ["REPORTED"]
    database, files = Database(f"sqlite:///{watched.data}/node.db"), FileStore(watched.data / "files")
    with database.read() as tx:
        assert audit.verify(tx) is None
        held = {item.sop_instance_uid: item for item in series_instances(tx, 1)}
    database.close()
    assert held.keys() == sent.keys()
    for uid, path in sent.items():
        files.read_verified(held[uid].path, held[uid].sha256)
        assert dcmread(files.absolute(held[uid].path)).PixelData == dcmread(path).PixelData
