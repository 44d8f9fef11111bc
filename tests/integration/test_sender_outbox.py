"""The outbox against real SCPs on loopback."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node.demo.pacs import Pacs
from tests.outbox import destination, encoded, make_node, sending
from tests.programs import free_port, wait_for


def test_a_result_arrives_byte_for_byte_and_is_sent_once(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        objects = node.add_result(time.time(), ["report", "segmentation", "summary"])
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
            time.sleep(0.3)
    received = [encoded(path) for path in pacs.received()]
    stored = [encoded(path) for path in sorted((tmp_path / "node").rglob("*.dcm"))]
    assert len(received) == len(objects) == 3
    assert all(data in stored for data in received)


def test_the_report_goes_before_the_larger_objects(tmp_path: Path) -> None:
    order: list[str] = []
    with Pacs(tmp_path / "pacs", answer=lambda uid: order.append(uid) or 0) as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        objects = node.add_result(time.time(), ["segmentation", "summary", "report"])
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    assert order[0] == objects["report"].SOPInstanceUID


def test_a_pacs_that_is_away_gets_the_same_bytes_when_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    node = make_node(tmp_path / "node", destination(port))
    node.add_result(time.time())
    with sending(node):
        wait_for(lambda: node.deliveries()[0].attempts >= 3)
        assert node.states()["pacs"] in ("PENDING", "SENDING")
        with Pacs(tmp_path / "pacs", port=port) as pacs:
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    (received,) = pacs.received()
    assert encoded(received) in [encoded(path) for path in (tmp_path / "node").rglob("*.dcm")]


def test_a_slow_destination_delays_no_other(tmp_path: Path) -> None:
    release = threading.Event()

    def hang(_uid: str) -> int:
        release.wait(100)
        return 0

    with Pacs(tmp_path / "slow", answer=hang) as slow, Pacs(tmp_path / "quick") as quick:
        node = make_node(
            tmp_path / "node", destination(slow.port, "slow"), destination(quick.port, "quick"),
            sender={"response_timeout_s": 200.0},
        )  # fmt: skip
        node.add_result(time.time())
        with sending(node):
            wait_for(lambda: node.states()["quick"] == "SENT", 5)
            assert node.states()["slow"] == "SENDING"
            release.set()
            wait_for(lambda: node.states()["slow"] == "SENT")


@pytest.mark.parametrize(
    ("status", "ends"),
    [(0x0000, "SENT"), (0xB000, "SENT"), (0xB006, "SENT"), (0xB007, "SENT"), (0x0111, "SENT"),
     (0xA700, "PENDING"), (0xA7FF, "PENDING"), (0x0110, "PENDING"),
     (0xA900, "FAILED"), (0xA9FF, "FAILED"), (0xC000, "FAILED"), (0xCFFF, "FAILED"), (0x0122, "FAILED"),
     (0x0124, "FAILED")],
)  # fmt: skip
def test_each_class_of_status_ends_a_delivery_as_it_should(tmp_path: Path, status: int, ends: str) -> None:
    asked: list[str] = []
    with Pacs(tmp_path / "pacs", answer=lambda uid: asked.append(uid) or status) as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port), sender={"max_permanent_failures": 2})
        node.add_result(time.time())
        with sending(node):
            if ends == "PENDING":
                wait_for(lambda: len(asked) >= 4)
            else:
                wait_for(lambda: node.states() == {"pacs": ends})
                time.sleep(0.2)
    row = node.deliveries()[0]
    if ends == "PENDING":
        assert row.state in ("PENDING", "SENDING")
        assert f"0x{status:04X}" in row.error
    else:
        assert len(asked) == (2 if ends == "FAILED" else 1)
        assert row.state == ends
        assert (f"0x{status:04X}" in (row.warning or "")) == (status != 0 and ends == "SENT")
    assert len(set(asked)) == 1


def test_final_failures_count_across_restarts(tmp_path: Path) -> None:
    asked: list[str] = []
    with Pacs(tmp_path / "pacs", answer=lambda uid: asked.append(uid) or 0xA900) as pacs:
        node = make_node(
            tmp_path / "node", destination(pacs.port), sender={"max_permanent_failures": 3, "first_retry_s": 0.5}
        )
        node.add_result(time.time())
        for life in range(3):
            with sending(node):
                wait_for(lambda n=life: node.deliveries()[0].refusals > n or "FAILED" in node.states().values())  # type: ignore[misc]
        assert node.states() == {"pacs": "FAILED"}
    assert len(asked) == 3


def test_what_is_stored_is_not_sent_again_when_another_object_is_to_be_retried(tmp_path: Path) -> None:
    asked: list[str] = []
    node_objects: dict[str, str] = {}

    def busy_for_segmentation(uid: str) -> int:
        asked.append(uid)
        return 0xA700 if uid == node_objects["segmentation"] and asked.count(uid) < 3 else 0

    with Pacs(tmp_path / "pacs", answer=busy_for_segmentation) as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        objects = node.add_result(time.time(), ["report", "segmentation"])
        node_objects |= {kind: o.SOPInstanceUID for kind, o in objects.items()}
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    assert asked.count(node_objects["report"]) == 1
    assert asked.count(node_objects["segmentation"]) == 3


def test_a_corrupt_file_is_never_sent(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        objects = node.add_result(time.time())
        uid = objects["report"].SOPInstanceUID.encode()
        (path,) = [p for p in (tmp_path / "node").rglob("*.dcm") if uid in p.read_bytes()]
        path.write_bytes(path.read_bytes().replace(b"no one", b"so one"))
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "FAILED"})
    assert pacs.received() == []
    assert "SHA-256" in node.deliveries()[0].error


def test_a_stopped_sender_finishes_what_it_sends(tmp_path: Path) -> None:
    begun = threading.Event()

    def slow(_uid: str) -> int:
        begun.set()
        time.sleep(0.5)
        return 0

    with Pacs(tmp_path / "pacs", answer=slow) as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        node.add_result(time.time())
        with sending(node):
            assert begun.wait(10)
        assert node.states() == {"pacs": "SENT"}


def test_two_senders_never_send_the_same_delivery_however_long_it_takes(tmp_path: Path) -> None:
    asked: list[str] = []

    def slow(uid: str) -> int:
        asked.append(uid)
        time.sleep(2.5)
        return 0

    with Pacs(tmp_path / "pacs", answer=slow) as pacs:
        node = make_node(
            tmp_path / "node", destination(pacs.port), sender={"lease_s": 1.01, "response_timeout_s": 10.0}
        )
        node.add_result(time.time())
        with sending(node), sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    assert len(asked) == 1
    assert node.deliveries()[0].attempts == 1


def test_a_killed_sender_is_followed_by_one_that_sends_the_same_instance(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang_first(_uid: str) -> int:
        if not begun.is_set():
            begun.set()
            go_on.wait(20)
        return 0

    with Pacs(tmp_path / "pacs", answer=hang_first) as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port))
        objects = node.add_result(time.time())
        pacs_of = f'[{{"name": "pacs", "ae_title": "STORESCP", "host": "127.0.0.1", "port": {pacs.port}}}]'
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")} | {
            "DICOM_NODE_DATA_DIR": str(tmp_path / "node"),
            "DICOM_NODE_DESTINATIONS": pacs_of,
            "DICOM_NODE_SENDER__LEASE_S": "1.5",
        }
        command = [sys.executable, "-m", "dicom_node", "deliver"]
        first = subprocess.Popen(command, env=environment)
        try:
            assert begun.wait(30)
        finally:
            first.kill()
            first.wait()
        assert node.states() == {"pacs": "SENDING"}
        go_on.set()
        second = subprocess.Popen(command, env=environment)
        try:
            wait_for(lambda: node.states() == {"pacs": "SENT"}, 30)
        finally:
            second.terminate()
            assert second.wait(30) == 0
    uids = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in pacs.received()}
    assert uids == {objects["report"].SOPInstanceUID}
    assert len({encoded(path) for path in pacs.received()}) == 1
    assert node.deliveries()[0].attempts == 2
