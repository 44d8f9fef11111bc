"""Metrics and health of a whole node with two receiver processes on one port."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import psutil
import pytest

from tests.programs import free_port, wait_for
from tests.receiving import BIRTH_DATE, NAME, PATIENT_ID, associate, ct_slice
from tests.running import Node, running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    metrics_port = free_port()
    one = Node(
        tmp_path_factory.mktemp("node"),
        free_port(),
        DICOM_NODE_METRICS__PORT=str(metrics_port),
        DICOM_NODE_RECEIVER__PROCESSES="2",
        DICOM_NODE_COMPLETION__QUIET_S="300",
    )
    one.metrics = f"http://127.0.0.1:{metrics_port}"  # type: ignore[attr-defined]
    with running(one):
        wait_for(lambda: get(one, "/health")[0] == 200, 60, "the node is healthy")
        yield one


def get(node: Node, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(node.metrics + path, timeout=10) as answer:  # type: ignore[attr-defined]
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def value(node: Node, name: str) -> float:
    """Sum of a metric's samples."""
    found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", get(node, "/metrics")[1], re.MULTILINE)
    return sum(map(float, found))


def test_it_counts_associations_of_both_processes_and_tells_nothing_of_patients(node: Node) -> None:
    assert value(node, "dicom_node_receivers") == 2
    series = "1.2.826.0.1.3680043.8.498.4711"
    for number in range(10):
        with associate(node) as association:  # type: ignore[arg-type]
            assert association.send_c_store(ct_slice(number, series_uid=series)).Status == 0
    with associate(node):  # type: ignore[arg-type]
        wait_for(lambda: value(node, "dicom_node_associations") == 1, 10, "it is counted")
    with associate(node, called_ae="PLANTED-4711") as refused:  # type: ignore[arg-type]
        assert refused.is_rejected
    wait_for(lambda: value(node, "dicom_node_associations") == 0, 10, "the associations are gone")
    status, text = get(node, "/metrics")
    assert status == 200
    assert 'dicom_node_instances_total{outcome="NEW"} 10.0' in text
    assert 'dicom_node_series{state="OPEN"} 1.0' in text
    assert 'event="association.rejected",reason="called-ae-unknown"} 1.0' in text
    assert value(node, "dicom_node_disk_free_bytes") > 0
    assert not any(planted in text for planted in (NAME, "Planted", PATIENT_ID, BIRTH_DATE, series, "SENDER"))


def test_a_receiver_that_died_shows_and_is_started_again(node: Node) -> None:
    assert node.process is not None
    children = psutil.Process(node.process.pid).children()
    victim = next(child for child in children if "receive" in child.cmdline())
    victim.kill()
    wait_for(lambda: get(node, "/health") == (503, "receiver-down\n"), 20, "the missing receiver shows")
    wait_for(lambda: get(node, "/health") == (200, "ok\n"), 60, "the receiver is back")
    assert value(node, "dicom_node_associations") == 0


def test_another_page_is_not_found(node: Node) -> None:
    assert get(node, "/../node.db")[0] == 404
