"""Metrics and health of a whole node with two receiver processes on one port; and that neither these nor its logs tell
anything about patients, whatever it is sent."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import psutil
import pytest
from pydicom import DataElement
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword

from tests.attacker import association_request, attacker, data_set, pdu, pdv, store_command
from tests.programs import free_port, wait_for
from tests.receiving import BIRTH_DATE, NAME, PATIENT_ID, associate, ct_slice, store
from tests.running import Node, running


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    metrics_port = free_port()
    one = Node(
        tmp_path_factory.mktemp("node"),
        free_port(),
        DICOM_NODE_METRICS__PORT=str(metrics_port),
        DICOM_NODE_RECEIVER__PROCESSES="2",
        DICOM_NODE_LOGGING__LEVEL="debug",
        PYTHONWARNINGS="always",
    )
    one.log = tmp_path_factory.mktemp("log") / "log"
    one.metrics = f"http://127.0.0.1:{metrics_port}"  # type: ignore[attr-defined]
    with running(one):
        wait_for(lambda: get(one, "/health")[0] == 200, 60, "the node is healthy")
        yield one


PLANTED = "Zaphod^Quux19020304"


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
        assert not refused.is_established
    wait_for(lambda: value(node, "dicom_node_associations") == 0, 10, "the associations are gone")
    status, text = get(node, "/metrics")
    assert status == 200
    assert 'dicom_node_instances_total{outcome="NEW"} 10.0' in text
    assert value(node, "dicom_node_series") == 1
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


TEXT = [
    "PatientName",
    "PatientID",
    "OtherPatientIDs",
    "PatientComments",
    "AccessionNumber",
    "StudyDescription",
    "SeriesDescription",
    "StudyID",
    "ReferringPhysicianName",
    "OperatorsName",
    "StationName",
    "InstitutionName",
    "ProtocolName",
    "ImageComments",
    "BodyPartExamined",
    "RequestedProcedureDescription",
    "Manufacturer",
    "ImageType",
    "KVP",
    "SliceThickness",
    "InstanceNumber",
    "AcquisitionNumber",
    "SeriesNumber",
    "StudyDate",
    "StudyTime",
    "PatientAge",
    "ConvolutionKernel",
    "WindowCenter",
]


def test_planted_patient_strings_appear_nowhere(node: Node) -> None:
    """In every text of a normal slice, in values that are none, in commands, AE titles and association requests."""
    comments = []
    normal, broken, short = ct_slice(), ct_slice(), ct_slice()
    for keyword in TEXT:
        for one in (normal, broken):
            element = DataElement(tag_for_keyword(keyword), "LO", PLANTED, validation_mode=IGNORE)
            one[keyword] = element
    normal.add(DataElement(0x00091001, "LT", PLANTED))
    broken.SOPInstanceUID = broken.StudyInstanceUID = PLANTED
    del short.SeriesInstanceUID
    comments += [comment for _, comment in store(node, normal, broken, short)]  # type: ignore[arg-type]
    planted = PLANTED.encode()
    for how in ({"calling_ae": planted[:16]}, {"called_ae": planted[:16]}, {"syntax": PLANTED}):
        with attacker(node.port) as one:
            one.associate(**how)
    with attacker(node.port) as one:
        one.associate()
        one.send(pdu(4, pdv(store_command(planted, planted), 3)) + pdu(4, pdv(data_set(planted), 2)))
        comments.append(str(one.answer()))
    for sent in (planted * 20, association_request() + planted, association_request() + pdu(4, planted)):
        with attacker(node.port) as one:
            one.send(sent)
            comments.append(str(one.answer()))
    wait_for(lambda: value(node, "dicom_node_jobs") >= 1, 60, "a series is queued")
    wait_for(lambda: 'dicom_node_jobs{state="REPORTED"} 0.0' not in get(node, "/metrics")[1], 90, "and reported")
    assert node.process is not None
    processes = [psutil.Process(node.process.pid), *psutil.Process(node.process.pid).children(recursive=True)]
    titles = " ".join(" ".join(process.cmdline()) for process in processes)
    assert node.log is not None
    log = node.log.read_text()
    assert "instance refused" in log
    assert "job done" in log
    for where in (log, get(node, "/metrics")[1], titles, " ".join(comments[:3])):
        for part in (PLANTED, *PLANTED.split("^"), NAME, PATIENT_ID, BIRTH_DATE):
            assert part not in where


def test_another_page_is_not_found(node: Node) -> None:
    assert get(node, "/../node.db")[0] == 404
