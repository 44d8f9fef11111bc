"""The outbox against DCMTK's storescp, healthy and in every way in which it can be made to fail."""

import struct
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless, RLELossless

from config.settings import SenderSettings
from dicom_node.scu import push
from dicom_node.scu.store import echo
from tests.outbox import (
    CT,
    Node,
    ct_series,
    destination,
    encoded,
    instance,
    make_node,
    same_content,
    sending,
    write_all,
)
from tests.programs import CuttingProxy, free_port, storescp, wait_for

pytestmark = pytest.mark.peer


def stored(node: Node) -> list[bytes]:
    """Encoded data sets of all files that the node holds."""
    return [encoded(path) for path in node.files.root.rglob("*.dcm")]


def test_echo_is_answered(tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port:
        answer = echo(destination(port), SenderSettings())
    assert answer.ok, answer.detail


def test_report_segmentation_and_summary_arrive_bit_by_bit(tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port:
        node = make_node(tmp_path / "node", destination(port))
        node.add_result(time.time(), ["report", "segmentation", "summary"])
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    received = list((tmp_path / "scp").iterdir())
    assert len(received) == 3
    assert all(encoded(path) in stored(node) for path in received)


def test_a_pacs_that_takes_implicit_vr_only_gets_the_same_content(tmp_path: Path) -> None:
    with storescp(tmp_path / "scp", "+xi") as port:
        node = make_node(tmp_path / "node", destination(port))
        objects = node.add_result(time.time())
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
    (received,) = (tmp_path / "scp").iterdir()
    assert dcmread(received).file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert same_content(received, objects["report"])


@pytest.mark.parametrize(
    "options",
    [("--refuse",), ("--abort-after",), ("--abort-during",), ("--sleep-after", "4"), ("--sleep-during", "4"), ()],
    ids=lambda options: options[0] if options else "absent",
)
def test_the_outbox_converges_after_the_pacs_failed(tmp_path: Path, options: tuple[str, ...]) -> None:
    port = free_port()
    node = make_node(tmp_path / "node", destination(port), sender={"response_timeout_s": 1.0})
    objects = node.add_result(time.time(), ["report", "segmentation"])
    with sending(node):
        if options:
            with storescp(tmp_path / "failing", *options, port=port):
                wait_for(lambda: node.deliveries()[0].attempts >= 3, 40)
        else:
            wait_for(lambda: node.deliveries()[0].attempts >= 3)
        assert node.states()["pacs"] in ("PENDING", "SENDING")
        assert node.deliveries()[0].error
        with storescp(tmp_path / "healthy", port=port):
            wait_for(lambda: node.states() == {"pacs": "SENT"}, 40)
    # By name, not content: the failing peer was killed, perhaps in the middle of a file. storescp names files by UID.
    received = {
        path.name.partition(".")[2] for name in ("failing", "healthy") for path in (tmp_path / name).glob("*.1.2.*")
    }
    assert received == {o.SOPInstanceUID for o in objects.values()}
    assert all(encoded(path) in stored(node) for path in (tmp_path / "healthy").iterdir())


def test_a_lost_answer_costs_a_resend_of_the_same_instance_and_nothing_else(tmp_path: Path) -> None:
    with storescp(tmp_path / "scp") as port:
        proxy = CuttingProxy(port)
        proxy.arm(2)
        node = make_node(tmp_path / "node", destination(proxy.port))
        objects = node.add_result(time.time())
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "SENT"})
        proxy.close()
    assert proxy.cuts == 2
    assert node.deliveries()[0].attempts == 3
    # storescp names files by SOP Instance UID: the three sendings are one instance.
    (received,) = (tmp_path / "scp").iterdir()
    assert dcmread(received).SOPInstanceUID == objects["report"].SOPInstanceUID
    assert encoded(received) in stored(node)


def test_a_folder_is_pushed_with_each_file_in_its_own_transfer_syntax(tmp_path: Path) -> None:
    datasets = [*ct_series(3), *ct_series(2, ImplicitVRLittleEndian)]
    for syntax in (RLELossless, JPEGLSLossless):
        frames = ct_series(1)[0]
        frames.compress(syntax)
        datasets.append(frames)
    datasets.append(instance(CT, ExplicitVRLittleEndian))
    paths = write_all(datasets, tmp_path / "folder" / "below")
    # A group length, as old scanners write: every library drops it when it encodes anew.
    body = encoded(paths[-1])
    start = paths[-1].read_bytes()[: -len(body)]
    paths[-1].write_bytes(start + struct.pack("<HH2sHI", 8, 0, b"UL", 4, 0) + body)
    (tmp_path / "folder" / "README.txt").write_text("not DICOM")
    with storescp(tmp_path / "scp", "+xa") as port:
        result = push.send(tmp_path / "folder", "127.0.0.1", port, "STORESCP", "SENDER")
    assert (result.stored, result.failed) == (8, 0), result.detail
    received = {dcmread(path).SOPInstanceUID: path for path in (tmp_path / "scp").iterdir()}
    for path, dataset in zip(paths, datasets, strict=True):
        assert encoded(received[dataset.SOPInstanceUID]) == encoded(path)
        assert (
            dcmread(received[dataset.SOPInstanceUID]).file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID
        )
