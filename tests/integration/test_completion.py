"""Completeness against a small PACS of our own on loopback; DCMTK's and Orthanc are asked in tests/peers."""

import socket
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from config.reasons import ReasonCode
from dicom_node.completion.closing import PACS_COUNT, PACS_HAS_FEWER, PACS_SILENT, Completion
from dicom_node.demo.pacs import Pacs
from storage import series
from tests.outbox import MODEL, Node, ct_series, destination, encoded, make_node, write_all
from tests.programs import free_port, wait_for

SETTLE_S = 0.1


def asking_node(folder: Path, port: int, **completion: object) -> Node:
    """A node that asks the PACS at this port."""
    pacs = destination(port, "pacs", "DEMO_PACS")
    settings = {"query_destination": "pacs", "settle_s": SETTLE_S, "query_timeout_s": 2.0, **completion}
    return make_node(folder, pacs, completion=settings)


def close(node: Node, timeout_s: float = 15.0) -> float:
    """Run the scheduler's job until the only series is closed. Returns the seconds that took."""
    started = time.monotonic()
    completion = Completion(node.settings, node.database, node.files)
    try:

        def closed() -> bool:
            completion.close_due_series(MODEL, time.time())
            return node.series().state == "CLOSED"

        wait_for(closed, timeout_s, "the series closes")
        return time.monotonic() - started
    finally:
        completion.stop()


def test_an_equal_count_completes_at_once_without_the_quiet_time(tmp_path: Path) -> None:
    slices = ct_series(4)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, time.time(), quiet_s=60)
        assert close(node) < 2.0
    record = node.series()
    assert (record.completeness, record.expected_count, record.refusal_code) == (PACS_COUNT, 4, None)
    assert record.job_state == "QUEUED"


@pytest.mark.parametrize("counts", [True, False])
def test_missing_slices_are_fetched_unchanged_and_then_the_series_is_complete(tmp_path: Path, counts: bool) -> None:
    slices = ct_series(7)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs", counts=counts) as pacs:
        pacs.load(tmp_path / "pacs")
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices[::2], time.time(), quiet_s=60)
        assert close(node) < 5.0
    record = node.series()
    assert (record.completeness, record.instance_count, record.refusal_code) == (PACS_COUNT, 7, None)
    held = node.held()
    assert set(held) == {s.SOPInstanceUID for s in slices}
    for number, dataset in enumerate(slices):
        assert encoded(held[dataset.SOPInstanceUID]) == encoded(tmp_path / "pacs" / f"{number:04}.dcm")
    assert [row["outcome"] for row in node.audited("series.fetch")] == ["OK"]
    assert len(node.audited("instance.received")) == 7


def test_slices_that_cannot_be_fetched_refuse_the_series_by_name(tmp_path: Path) -> None:
    slices = ct_series(5)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        (tmp_path / "pacs" / "0003.dcm").unlink()  # indexed, and gone from its disk
        node = asking_node(tmp_path / "node", pacs.port, fetch_attempts=2)
        node.receive(slices[:3], time.time(), quiet_s=0.5)
        close(node)
    record = node.series()
    assert record.refusal_code == ReasonCode.MISSING_SLICES
    assert record.expected_count == 5
    assert record.refusal_text is not None and "5" in record.refusal_text
    assert record.job_state == "QUEUED"


def test_a_fetched_slice_that_the_node_refuses_is_remembered_like_one_that_was_sent(tmp_path: Path) -> None:
    slices = ct_series(4)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        spoilt = dcmread(tmp_path / "pacs" / "0003.dcm")
        del spoilt.StudyInstanceUID
        spoilt.save_as(tmp_path / "pacs" / "0003.dcm")
        node = asking_node(tmp_path / "node", pacs.port, fetch_attempts=1)
        node.receive(slices[:3], time.time(), quiet_s=0.5)
        close(node)
    assert node.series().refusal_code == ReasonCode.MISSING_SLICES
    [row] = node.audited("instance.refused")
    assert row["sop_uid"] == slices[3].SOPInstanceUID
    assert row["detail"]["reason"] == "Study Instance UID is missing"  # type: ignore[index]


def test_a_pacs_that_is_away_leaves_the_quiet_time_to_decide_and_that_is_recorded(tmp_path: Path) -> None:
    node = asking_node(tmp_path / "node", free_port())
    received_at = time.time()
    node.receive(ct_series(3), received_at, quiet_s=1.0)
    close(node)
    record = node.series()
    assert (record.completeness, record.refusal_code) == (PACS_SILENT, None)
    assert record.closed_at is not None and record.closed_at >= received_at + 1.0
    (note,) = node.audited("series.count-unknown")
    assert "no connection" in note["detail"]["reason"]  # type: ignore[index]


def test_a_pacs_that_does_not_know_the_series_leaves_the_quiet_time_to_decide(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(ct_series(3), time.time(), quiet_s=0.5)
        close(node)
    assert (node.series().completeness, node.series().expected_count) == (PACS_HAS_FEWER, 0)


def test_without_a_pacs_to_ask_the_quiet_time_counts(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    now = 1_700_000_000.0
    node.receive(ct_series(3), now, quiet_s=30)
    completion = Completion(node.settings, node.database, node.files)
    completion.close_due_series(MODEL, now + 29.9)
    assert node.series().state == "OPEN"
    completion.close_due_series(MODEL, now + 30.0)
    assert (node.series().state, node.series().completeness) == ("CLOSED", "quiet-time")
    completion.stop()


def test_a_silent_pacs_delays_no_series_beyond_its_own_timeout(tmp_path: Path) -> None:
    """Ten series at once against a PACS that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        node = asking_node(tmp_path / "node", silent.getsockname()[1], query_timeout_s=0.5)
        for _ in range(10):
            node.receive(ct_series(1), time.time(), quiet_s=0.3)
        completion = Completion(node.settings, node.database, node.files)
        started = time.monotonic()

        def all_closed() -> bool:
            completion.close_due_series(MODEL, time.time())
            with node.database.read() as tx:
                return all(s.state == "CLOSED" for s in series.list_series(tx))

        wait_for(all_closed, 15)
        completion.stop()
    assert time.monotonic() - started < 6
