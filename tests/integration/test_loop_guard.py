"""What the node made, or had a part in, comes back to it: kept or refused as the site wants it, and never analysed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset

from config.own_equipment import OwnEquipment
from config.settings import ReceiverSettings, Source
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from dicom_node.completion.closing import Completion
from dicom_node.receiver.own_images import OwnImages
from dicom_node.receiver.receiver import Receiver
from dicom_node.scu import push
from inference.volume.instances import read_frames
from storage import series
from tests.outbox import SEGMENTATION, Node, ct_series, instance, make_node, write_all
from tests.programs import free_port

NODE_NAME = "DICOM AI node"


@contextmanager
def receiving(folder: Path, **source: object) -> Iterator[Node]:
    """A node that takes images from the AE title PACS."""
    sources = (Source(ae_title="PACS", **source),)
    node = make_node(
        folder,
        sources=sources,
        receiver=ReceiverSettings(port=free_port()),
        report={"report_not_analysed": True},
        completion={"select": "all"},
    )
    receiver = Receiver(node.settings, node.database, node.files)
    receiver.start()
    try:
        yield node
    finally:
        receiver.stop()


def send(datasets: list[Dataset], folder: Path, node: Node) -> push.PushResult:
    write_all(datasets, folder)
    return push.send(folder, "127.0.0.1", node.settings.receiver.port, "DICOM_NODE", "PACS")


def close(node: Node) -> series.SeriesRecord:
    completion = Completion(node.settings, node.database, node.files)
    completion.close_due_series(current_models(node.settings), time.time() + 3600)
    completion.stop()
    return node.series()


def contributed(**values: str) -> list[Dataset]:
    """CT images to which a device contributed."""
    slices = ct_series(3)
    item = Dataset()
    item.Manufacturer, item.ManufacturerModelName = values["manufacturer"], values["model"]
    for one in slices:
        one.ContributingEquipmentSequence = [item]
    return slices


def made_here() -> list[Dataset]:
    slices = ct_series(3)
    for one in slices:
        one.Manufacturer, one.ManufacturerModelName = NODE_NAME, NODE_NAME
    return slices


OWN = {
    "contributing equipment": lambda: contributed(manufacturer=NODE_NAME, model="demonstration DeCoVNet"),
    "device": made_here,
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_own_images_are_kept_and_neither_analysed_nor_reported(tmp_path: Path, own: object) -> None:
    with receiving(tmp_path / "node") as node:
        assert send(own(), tmp_path / "images", node).failed == 0  # type: ignore[operator]
    close(node)
    assert Worker(node.settings, node.database, node.files, "cpu").work_once(time.time() + 3600)
    record = node.series()
    assert (record.outcome, record.reason_code, record.instance_count) == ("NOT_ANALYSED", "OWN_OBJECT", 3)
    assert node.deliveries() == []


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
def test_own_images_are_refused_where_the_site_wants_that(tmp_path: Path, own: object) -> None:
    with receiving(tmp_path / "node", own_images="refuse") as node:
        refused = send(own(), tmp_path / "images", node)  # type: ignore[operator]
        others = send(contributed(manufacturer="ACME", model="Gateway"), tmp_path / "others", node)
    assert (refused.stored, refused.failed) == (0, 3)
    assert (others.stored, others.failed) == (3, 0)
    assert len(node.held()) == 3


@pytest.mark.parametrize(
    ("device", "contributor", "is_own"),
    [
        (("ACME", "Scanner"), None, False),
        (("ACME", "Scanner"), ("ACME", "Workstation"), False),
        (("ACME", "Scanner"), (NODE_NAME, "U-Net"), True),
        ((NODE_NAME, NODE_NAME), None, True),
        ((f"{NODE_NAME} ", NODE_NAME), None, True),
        ((NODE_NAME, "A scanner of that manufacturer"), None, False),
        ((NODE_NAME, "A scanner of that manufacturer"), (NODE_NAME, "A scanner of that manufacturer"), False),
        ((NODE_NAME, "A scanner of that manufacturer"), (NODE_NAME, "U-Net"), True),
    ],
)
def test_door_and_analysis_have_one_rule(
    tmp_path: Path, device: tuple[str, str], contributor: tuple[str, str] | None, is_own: bool
) -> None:
    slices = contributed(manufacturer=contributor[0], model=contributor[1]) if contributor else ct_series(3)
    for one in slices:
        one.Manufacturer, one.ManufacturerModelName = device
    write_all(slices, tmp_path)
    paths = sorted(tmp_path.iterdir())
    own = OwnEquipment(NODE_NAME, NODE_NAME)
    door = OwnImages(own, frozenset({"PACS"}))
    assert [door.refuses("PACS", path) for path in paths] == [is_own] * 3
    header = read_frames(paths[0])[0].header
    assert own.had_a_part((header.manufacturer, header.manufacturer_model), header.equipment) == is_own


def test_own_results_are_kept_from_a_source_that_may_send_them_and_never_queued(tmp_path: Path) -> None:
    results = [instance(), instance(SEGMENTATION)]
    for one in results[1:]:
        one.SeriesInstanceUID, one.StudyInstanceUID = results[0].SeriesInstanceUID, results[0].StudyInstanceUID
    with receiving(tmp_path / "node", classes=("ct", "results")) as node:
        assert send(results, tmp_path / "results", node).stored == 2
    record = close(node)
    assert (record.state, record.refusal_code, record.job_id) == ("CLOSED", "NOT_IMAGES", None)


def test_own_results_are_refused_from_every_other_source(tmp_path: Path) -> None:
    with receiving(tmp_path / "node") as node:
        assert send([instance()], tmp_path / "results", node).stored == 0
    assert not any((tmp_path / "node" / "files").rglob("*.dcm"))
