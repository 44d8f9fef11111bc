"""Completeness against real archives: Debian's Orthanc and DCMTK's dcmqrscp hold all slices, the node not."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless

from config.reasons import ReasonCode
from config.settings import ReceiverSettings, SenderSettings
from dicom_node.completion.closing import Completion
from dicom_node.completion.rule import PACS_COUNT
from dicom_node.receiver.receiver import Receiver
from dicom_node.scu import push
from dicom_node.scu.query import SeriesKey, querying
from tests.outbox import MODELS, Node, ct_series, destination, encoded, make_node, write_all
from tests.programs import dcmqrscp, free_port, orthanc, wait_for

pytestmark = pytest.mark.peer


@dataclass
class Archive:
    """A running archive that holds slices. delete: lose one of them, or None if the archive cannot."""

    port: int
    ae_title: str
    delete: Callable[[Dataset], None] | None


@contextmanager
def filled_orthanc(folder: Path, slices: Sequence[Dataset], callers: dict[str, int] | None = None) -> Iterator[Archive]:
    """Orthanc with these slices."""
    with orthanc(folder / "orthanc", callers) as server:
        names = {
            dataset.SOPInstanceUID: server.upload(path)
            for dataset, path in zip(slices, write_all(slices, folder / "slices"), strict=True)
        }

        def delete(dataset: Dataset) -> None:
            server.call(f"/instances/{names[dataset.SOPInstanceUID]}", method="DELETE")

        yield Archive(server.port, "ORTHANC", delete)


@contextmanager
def filled_dcmqrscp(
    folder: Path, slices: Sequence[Dataset], callers: dict[str, int] | None = None
) -> Iterator[Archive]:
    """dcmqrscp with these slices."""
    write_all(slices, folder / "slices")
    folder.mkdir(exist_ok=True)
    compressed = slices[0].file_meta.TransferSyntaxUID == JPEGLSLossless
    with dcmqrscp(folder / "dcmqrscp", callers or {}, *(["+xt"] if compressed else [])) as port:
        result = push.send(folder / "slices", "127.0.0.1", port, "ARCHIVE", "SENDER")
        assert result.failed == 0, result.detail
        yield Archive(port, "ARCHIVE", None)


ARCHIVES = pytest.mark.parametrize("archive", [filled_orthanc, filled_dcmqrscp], ids=["orthanc", "dcmqrscp"])
Start = Callable[[Path, Sequence[Dataset]], AbstractContextManager[Archive]]


def asking_node(folder: Path, archive: Archive, **completion: object) -> Node:
    """A node that asks this archive."""
    pacs = destination(archive.port, "pacs", archive.ae_title)
    settings = {"query_destination": "pacs", "settle_s": 0.2, **completion}
    return make_node(folder / "node", pacs, completion=settings, sender={"response_timeout_s": 10.0})


def close(node: Node, timeout_s: float = 20.0) -> float:
    """Run the scheduler's job every half second, as it does. Returns the seconds until the only series is closed."""
    started = time.monotonic()
    completion = Completion(node.settings, node.database, node.files)
    try:
        while node.series().state != "CLOSED":
            assert time.monotonic() - started < timeout_s
            completion.close_due_series(MODELS, time.time())
            wait_for(lambda: node.series().state == "CLOSED" or time.monotonic() > started, 1)
            time.sleep(0.05)
        return time.monotonic() - started
    finally:
        completion.stop()


@ARCHIVES
def test_the_archive_counts_and_lists_a_series(tmp_path: Path, archive: Start) -> None:
    slices = ct_series(3)
    with (
        archive(tmp_path, [*slices, *ct_series(2)]) as pacs,
        querying(destination(pacs.port, ae_title=pacs.ae_title), SenderSettings()) as query,
    ):
        key = SeriesKey("TEST", slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID)
        assert query.count(key) == 3
        assert query.instances(key) == {s.SOPInstanceUID for s in slices}
        assert query.count(SeriesKey("TEST", "1.2.3.4", "1.2.3.5")) == 0


@ARCHIVES
def test_a_whole_series_is_complete_in_under_two_seconds(tmp_path: Path, archive: Start) -> None:
    slices = ct_series(5)
    with archive(tmp_path, slices) as pacs:
        # The settings that a site gets: one second to settle, a look every half second.
        node = asking_node(tmp_path, pacs, settle_s=1.0)
        node.receive(slices, time.time(), quiet_s=60)
        assert close(node) < 2.0
    assert (node.series().completeness, node.series().expected_count) == (PACS_COUNT, 5)


@ARCHIVES
@pytest.mark.parametrize(
    "syntax", [None, ImplicitVRLittleEndian, JPEGLSLossless], ids=["explicit", "implicit", "jpegls"]
)
def test_withheld_slices_are_fetched_in_the_syntax_that_the_archive_has(
    tmp_path: Path, archive: Start, syntax: str | None
) -> None:
    slices = ct_series(9) if syntax != ImplicitVRLittleEndian else ct_series(9, ImplicitVRLittleEndian)
    if syntax == JPEGLSLossless:
        for dataset in slices:
            dataset.compress(JPEGLSLossless)
    with archive(tmp_path, slices) as pacs:
        node = asking_node(tmp_path, pacs)
        node.receive(slices[:3] + slices[6:], time.time(), quiet_s=60)
        close(node)
    record = node.series()
    assert (record.completeness, record.instance_count, record.refusal_code) == (PACS_COUNT, 9, None)
    held = node.held()
    originals = dict(zip((s.SOPInstanceUID for s in slices), sorted((tmp_path / "slices").iterdir()), strict=True))
    assert {uid: encoded(path) for uid, path in held.items()} == {u: encoded(p) for u, p in originals.items()}


def test_slices_deleted_at_the_archive_too_leave_a_whole_that_only_geometry_can_refuse(tmp_path: Path) -> None:
    slices = ct_series(6)
    with filled_orthanc(tmp_path, slices) as pacs:
        assert pacs.delete is not None
        pacs.delete(slices[3])
        node = asking_node(tmp_path, pacs)
        node.receive(slices[:3] + slices[4:], time.time(), quiet_s=60)
        close(node)
    assert (node.series().completeness, node.series().instance_count) == (PACS_COUNT, 5)


@ARCHIVES
def test_without_retrieval_missing_slices_refuse_the_series(tmp_path: Path, archive: Start) -> None:
    slices = ct_series(4)
    with archive(tmp_path, slices) as pacs:
        node = asking_node(tmp_path, pacs, retrieve="none")
        node.receive(slices[:2], time.time(), quiet_s=0.5)
        close(node)
    record = node.series()
    assert (record.refusal_code, record.expected_count, record.instance_count) == (ReasonCode.MISSING_SLICES, 4, 2)


@pytest.mark.parametrize("name", ["orthanc", "dcmqrscp"])
def test_missing_slices_are_fetched_by_c_move_through_our_own_receiver(tmp_path: Path, name: str) -> None:
    slices = ct_series(6)
    node = make_node(tmp_path / "node", receiver={"port": free_port(), "ae_title": "NODE"})
    callers = {"NODE": node.settings.receiver.port}
    archive = filled_orthanc if name == "orthanc" else filled_dcmqrscp
    with archive(tmp_path, slices, callers) as pacs:
        asked = destination(pacs.port, "pacs", pacs.ae_title)
        completion = node.settings.completion.model_copy(
            update={"query_destination": "pacs", "settle_s": 0.2, "retrieve": "move"}
        )
        node.settings = node.settings.model_copy(update={"destinations": (asked,), "completion": completion})
        node.receive(slices[:4], time.time(), quiet_s=60)
        receiver = Receiver(node.settings, node.database, node.files)
        receiver.start()
        try:
            close(node)
        finally:
            receiver.stop()
    record = node.series()
    assert (record.completeness, record.instance_count, record.refusal_code) == (PACS_COUNT, 6, None)
    assert len(node.audited("association.accepted")) >= 1


def test_a_slice_that_comes_by_routing_and_by_fetching_is_no_conflict(tmp_path: Path) -> None:
    """Byte for byte the same file, whichever way an instance takes."""
    slices = ct_series(3)
    with filled_orthanc(tmp_path, slices) as pacs:
        node = asking_node(tmp_path, pacs)
        node.receive(slices[:1], time.time(), quiet_s=60)
        close(node)
        receiver = Receiver(
            node.settings.model_copy(update={"receiver": ReceiverSettings(port=free_port())}), node.database, node.files
        )
        receiver.start()
        try:
            sent = push.send(tmp_path / "slices" / "0002.dcm", "127.0.0.1", receiver.port, "DICOM_NODE", "PACS")
        finally:
            receiver.stop()
    assert sent.stored == 1
    assert len(node.audited("instance.duplicate")) == 1
    assert node.audited("instance.conflict") == []
    assert node.series().state == "CLOSED"
