"""Results to Debian's Orthanc by DICOMweb: they arrive, value for value, and once, whatever happens on the way."""

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from config.gateways.stow import StowDestination
from tests.conftest import require_dicomweb
from tests.outbox import Node, make_node, sending
from tests.programs import CuttingProxy, Orthanc, orthanc, wait_for
from tests.shown_series import reported
from tests.storage_factory import Store

pytestmark = pytest.mark.peer


@contextmanager
def pacs(folder: Path, **options: object) -> Iterator[Orthanc]:
    with orthanc(folder, Plugins=[require_dicomweb()], **options) as server:
        yield server


def node_with_real_objects(folder: Path, url: str, **more: object) -> tuple[Node, dict[str, Dataset]]:
    """A node with the report, segmentation and summary of an analysed series in its outbox, by SOP Instance UID."""
    with Store(folder / "made") as store:
        reported(store, folder / "series")
        rows = store.rows("SELECT path FROM result_objects WHERE kind <> 'heat'")
        made = [dcmread(store.files.absolute(str(row["path"]))) for row in rows]
    settings = StowDestination(kind="stow", name="archive", url=url, **more)
    node = make_node(folder / "node", settings)
    node.add_result(time.time(), objects=dict(zip(("report", "segmentation", "summary"), made, strict=True)))
    return node, {str(one.SOPInstanceUID): one for one in made}


def held(server: Orthanc) -> dict[str, Dataset]:
    """What the archive holds."""
    found = [dcmread(io.BytesIO(server.file(identifier))) for identifier in server.call("/instances")]
    assert len({one.SOPInstanceUID for one in found}) == len(found)
    return {str(one.SOPInstanceUID): one for one in found}


def test_report_segmentation_and_summary_arrive_value_for_value(tmp_path: Path) -> None:
    with pacs(tmp_path / "orthanc") as server:
        node, made = node_with_real_objects(tmp_path, f"http://127.0.0.1:{server.http_port}/dicom-web")
        with sending(node):
            wait_for(lambda: node.states() == {"archive": "SENT"}, what="sent")
        assert held(server) == made and len(made) == 3
        kept = {node.files.absolute(one.path).read_bytes() for one in node.objects()}
        assert {server.file(identifier) for identifier in server.call("/instances")} == kept
        assert {one.Modality for one in made.values()} == {"SR", "SEG", "OT"}


def test_an_answer_that_is_lost_costs_a_resend_and_no_second_copy(tmp_path: Path) -> None:
    with pacs(tmp_path / "orthanc") as server:
        proxy = CuttingProxy(server.http_port, b"HTTP/1.1 200")
        proxy.arm(2)
        node, made = node_with_real_objects(tmp_path, f"http://127.0.0.1:{proxy.port}/dicom-web")
        with sending(node):
            wait_for(lambda: node.states() == {"archive": "SENT"}, what="sent")
        assert proxy.cuts == 2
        assert held(server) == made


def test_an_archive_that_is_away_gets_it_when_it_is_back(tmp_path: Path) -> None:
    with pacs(tmp_path / "orthanc") as server:
        port = server.http_port
    node, made = node_with_real_objects(tmp_path, f"http://127.0.0.1:{port}/dicom-web")
    with sending(node):
        wait_for(lambda: node.deliveries()[0].attempts > 1, what="attempts in vain")
        with pacs(tmp_path / "orthanc", HttpPort=port) as server:
            wait_for(lambda: node.states() == {"archive": "SENT"}, what="sent")
            assert held(server) == made


def test_the_archive_asks_for_a_password(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    options = {"AuthenticationEnabled": True, "RegisteredUsers": {"node": "right"}}
    with pacs(tmp_path / "orthanc", **options) as server:
        url = f"http://127.0.0.1:{server.http_port}/dicom-web"
        node, _ = node_with_real_objects(tmp_path, url, auth="basic", user="node", credentials=secret)
        with sending(node):
            wait_for(lambda: node.deliveries()[0].error, what="refused")
            assert "does not accept who the node says it is" in node.deliveries()[0].error
            secret.write_text("right")
            wait_for(lambda: node.states() == {"archive": "SENT"}, what="sent")
