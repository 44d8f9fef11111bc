"""The same image by a second route is counted and raises no alarm; another image under its UID does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless
from sqlalchemy import text

from dicom_node.completion import second_copies
from dicom_node.completion.second_copies import compare
from storage import orphans
from tests.factories import Grid, chest, slice_dataset
from tests.outbox import Node, ct_series, make_node

GRID = Grid(shape=(4, 32, 32))
QUIET_S = 30.0


def rows(node: Node, table: str) -> list[dict[str, Any]]:
    with node.database.read() as tx:
        return [dict(row) for row in tx.execute(text(f"SELECT * FROM {table}")).mappings()]


def files(node: Node) -> int:
    return sum(path.is_file() for path in node.files.root.rglob("*"))


def one_slice(**attributes: Any) -> Dataset:
    """The same slice each time, but for the attributes."""
    return slice_dataset(GRID, 1, chest(GRID)[1], **attributes)


def compressed(syntax: str) -> Dataset:
    sent = one_slice()
    sent.compress(syntax, generate_instance_uid=False)
    return sent


def implicit() -> Dataset:
    sent = one_slice()
    sent.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return sent


def with_sequence(undefined_length: bool) -> Dataset:
    sent, item = one_slice(), Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "T-28000", "SRT", "Lung"
    sent.AnatomicRegionSequence = Sequence([item])
    sent["AnatomicRegionSequence"].is_undefined_length = undefined_length
    return sent


def eight_bits(implicit_vr: bool) -> Dataset:
    """An image that the node does not decode."""
    sent = one_slice()
    sent.BitsAllocated = sent.BitsStored = 8
    sent.HighBit, sent.PixelRepresentation = 7, 0
    sent.PixelData = bytes(32 * 32)
    if implicit_vr:
        sent.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return sent


def moved() -> Dataset:
    sent = one_slice()
    sent.ImagePositionPatient = [0, 0, 999]
    return sent


def repainted() -> Dataset:
    sent = one_slice()
    pixels = chest(GRID)[1].copy()
    pixels[0, 0] += 1
    sent.PixelData = np.ascontiguousarray(pixels, "<i2").tobytes()
    return sent


def truncated() -> Dataset:
    sent = compressed(RLELossless)
    sent.PixelData = sent.PixelData[:-200]
    return sent


SAME: dict[str, tuple[Callable[[], Dataset], Callable[[], Dataset]]] = {
    "implicit VR": (one_slice, implicit),
    "RLE": (one_slice, lambda: compressed(RLELossless)),
    "JPEG-LS": (one_slice, lambda: compressed(JPEGLSLossless)),
    "JPEG 2000 after RLE": (lambda: compressed(RLELossless), lambda: compressed(JPEG2000Lossless)),
    "sequences": (lambda: with_sequence(False), lambda: with_sequence(True)),
    "another description": (one_slice, lambda: one_slice(SeriesDescription="CHEST, edited by the archive")),
    "pixels that are not decoded": (lambda: eight_bits(False), lambda: eight_bits(True)),
}
OTHER: dict[str, tuple[Callable[[], Dataset], str]] = {
    "pixels": (repainted, "other pixels"),
    "position": (moved, "another position or orientation"),
    "rescale": (lambda: one_slice(RescaleIntercept=-1024), "another rescale"),
    "name": (lambda: one_slice(PatientName="Somebody^Else"), "another patient"),
    "cut off": (truncated, "a file that cannot be read"),
}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return make_node(tmp_path)


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_the_same_image_in_another_encoding_is_counted_and_its_file_deleted(
    node: Node, first: Callable[[], Dataset], second: Callable[[], Dataset]
) -> None:
    node.receive([first()], time.time(), QUIET_S)
    [before] = rows(node, "instances")
    node.receive([second()], time.time(), QUIET_S)
    assert compare(node.database, node.files, time.time()) == 1
    assert rows(node, "instances") == [before]
    [copy] = rows(node, "conflicts")
    assert (copy["verdict"], copy["times_seen"]) == ("SAME", 1)
    assert files(node) == 1
    assert node.audited("instance.conflict") == []
    assert rows(node, "instances_set_aside") == []
    # Once more in those bytes, it is known.
    node.receive([second()], time.time(), QUIET_S)
    assert compare(node.database, node.files, time.time()) == 0
    assert [row["times_seen"] for row in rows(node, "conflicts")] == [2]


@pytest.mark.parametrize(("second", "difference"), OTHER.values(), ids=OTHER)
def test_another_image_under_the_same_uid_is_kept_and_a_person_told(
    node: Node, second: Callable[[], Dataset], difference: str
) -> None:
    node.receive([one_slice()], time.time(), QUIET_S)
    node.receive([second()], time.time(), QUIET_S)
    assert node.audited("instance.conflict") == []
    compare(node.database, node.files, time.time())
    [alarm] = node.audited("instance.conflict")
    assert alarm["detail"]["difference"] == difference  # type: ignore[index]
    assert [row["standing"] for row in rows(node, "instances_set_aside")] == ["contradicts"]
    assert files(node) == 2


def test_what_is_judged_the_same_when_the_node_dies_is_swept(node: Node) -> None:
    node.receive([one_slice()], time.time(), QUIET_S)
    node.receive([implicit()], time.time(), QUIET_S)
    remove = node.files.remove
    node.files.remove = lambda path: False  # type: ignore[method-assign]
    compare(node.database, node.files, time.time())
    node.files.remove = remove  # type: ignore[method-assign]
    assert files(node) == 2
    orphans.sweep(node.database, node.files, time.time() + 3600, age_s=60)
    assert files(node) == 1
    [held] = rows(node, "instances")
    node.files.read_verified(held["path"], held["sha256"])


def test_a_copy_of_an_instance_whose_file_is_lost_waits(node: Node) -> None:
    node.receive([one_slice()], time.time(), QUIET_S)
    node.receive([implicit()], time.time(), QUIET_S)
    [held] = rows(node, "instances")
    node.files.absolute(held["path"]).unlink()
    assert compare(node.database, node.files, time.time()) == 0
    assert [row["verdict"] for row in rows(node, "conflicts")] == [None]


def test_a_copy_whose_first_file_went_by_retention_has_an_end(node: Node) -> None:
    node.receive([one_slice()], time.time(), QUIET_S)
    node.receive([implicit()], time.time(), QUIET_S)
    with node.database.transaction() as tx:
        tx.execute(text("UPDATE instances SET gone_at = 1, gone_reason = 'retention'"))
    assert compare(node.database, node.files, time.time()) == 1
    [alarm] = node.audited("instance.conflict")
    assert "retention" in alarm["detail"]["difference"]  # type: ignore[index]
    assert compare(node.database, node.files, time.time()) == 0


def test_damaged_first_files_do_not_keep_other_copies_waiting(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_copies, "AT_ONCE", 1)
    slices = ct_series(2)
    node.receive(slices, time.time(), QUIET_S)
    for one in slices:
        one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        node.receive([one], time.time(), QUIET_S)
    first = rows(node, "conflicts")[0]["sop_instance_uid"]
    damaged = next(row for row in rows(node, "instances") if row["sop_instance_uid"] == first)
    node.files.absolute(damaged["path"]).write_bytes(b"")
    assert [compare(node.database, node.files, time.time()) for _ in range(2)] == [0, 1]
    assert [alarm["outcome"] for alarm in node.audited("instance.lost")] == ["CORRUPT"]


def test_a_whole_series_by_a_second_route_changes_nothing(node: Node, tmp_path: Path) -> None:
    slices = ct_series(5)
    node.receive(slices, time.time(), QUIET_S)
    record = node.series()
    for one in slices:
        one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    node.receive(slices, time.time(), QUIET_S)
    assert compare(node.database, node.files, time.time()) == 5
    assert node.series() == record
    assert node.audited("instance.conflict") == []
