"""What the receiver takes the loader takes: encodings that are legal but unusual, or wrong but clear; unusual UIDs."""

import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pynetdicom.dsutils import encode

from config.reasons import Refusal
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import read_headers, read_sources
from inference.volume.instances import read_frames
from inference.volume.load import load
from storage import series
from storage.object_kinds import ObjectKind
from tests.attacker import ACCEPT, attacker, element
from tests.factories import Grid, chest, finding_on, model, slice_dataset
from tests.receiving import Node

GRID = Grid(shape=(3, 16, 16))
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = (struct.pack("<HH", 0xFFFE, number) for number in (0xE000, 0xE00D, 0xE0DD))


def ct() -> Dataset:
    sent = slice_dataset(GRID, 0, chest(GRID)[0])
    del sent.file_meta
    return sent


def insert(extra: bytes, before: bytes = b"\x20\x00\x0d\x00") -> bytes:
    """An encoded slice with something more before the study's UID, or before another element."""
    data = encode(ct(), False, True) or b""
    at = data.index(before)
    return data[:at] + extra + data[at:]


def unknown(items: bytes) -> bytes:
    return element(0x00191001, b"UN", items + SEQUENCE_END + bytes(4), length=UNDEFINED)


def open_item(content: bytes) -> bytes:
    return ITEM + struct.pack("<L", UNDEFINED) + content + ITEM_END + bytes(4)


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


INSIDE = element(0x00191002, b"LO", b"abcd") + element(0x00191003, b"DS", b"1.5 ")
ODDITIES: dict[str, Callable[[], bytes]] = {
    "UN with items in implicit VR": lambda: insert(unknown(open_item(implicit(0x00191002, b"abcd")))),
    "UN with items in explicit VR": lambda: insert(unknown(open_item(INSIDE))),
    "UN with items of a length in explicit VR": lambda: insert(
        unknown(ITEM + struct.pack("<L", len(INSIDE)) + INSIDE)
    ),
    "UN in explicit VR inside UN in explicit VR": lambda: insert(
        unknown(open_item(unknown(open_item(INSIDE)) + INSIDE))
    ),
    "UN without items": lambda: insert(unknown(b"")),
    "UN of odd length": lambda: insert(element(0x00191001, b"UN", b"abc", length=3)[:-1]),
    "a delimiter with a length": lambda: insert(
        element(
            0x00081140, b"SQ", ITEM + struct.pack("<L", UNDEFINED) + INSIDE + ITEM_END + b"\4\0\0\0" + SEQUENCE_END
            + b"\x08\0\0\0", length=UNDEFINED,
        )
    ),
    "an empty sequence of undefined length": lambda: insert(
        element(0x00081140, b"SQ", SEQUENCE_END + bytes(4), length=UNDEFINED)
    ),
    "a value of odd length": lambda: insert(element(0x00204000, b"LT", b"odd", length=3)[:-1], b"\x28\x00\x02\x00"),
    "private elements without a creator": lambda: insert(element(0x00190010, b"SH", b"")),
    "group lengths": lambda: insert(element(0x00200000, b"UL", b"\4\0\0\0")),
    "padding at the end": lambda: (encode(ct(), False, True) or b"") + element(0xFFFCFFFC, b"OB", bytes(20)),
    "zeros at the end": lambda: (encode(ct(), False, True) or b"") + bytes(8),
    "a delimiter too many at the end": lambda: (encode(ct(), False, True) or b"") + SEQUENCE_END + bytes(4),
    "elements out of order": lambda: insert(element(0x00081010, b"SH", b"ROOM 1")),
    "a UID padded with a space": lambda: insert(b"").replace(
        element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2"),
        element(0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2 "),
    ),
}  # fmt: skip


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as running:
        yield running


@pytest.mark.parametrize("content", ODDITIES.values(), ids=ODDITIES)
def test_what_is_unusual_and_clear_is_received_and_read(node: Node, content: Callable[[], bytes]) -> None:
    expected = ct()
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        assert sender.store(str(expected.SOPInstanceUID).encode(), content()) == 0
    with node.database.read() as tx:
        [held] = series.series_instances(tx, 1)
    [frame] = read_frames(node.files.absolute(held.path))
    assert frame.instance.series_instance_uid == expected.SeriesInstanceUID
    assert frame.position_mm == tuple(map(float, expected.ImagePositionPatient))
    ((offset, length),) = frame.spans
    stored = node.files.absolute(held.path).read_bytes()[offset : offset + length]
    assert np.array_equal(np.frombuffer(stored, "<i2"), np.frombuffer(expected.PixelData, "<i2"))


@pytest.mark.filterwarnings("ignore")
def test_a_series_whose_uids_have_leading_zeros_is_received_loaded_and_reported_on(node: Node) -> None:
    hu = chest(GRID)
    uids = {"StudyInstanceUID": "1.2.03", "SeriesInstanceUID": "1.2.03.4", "FrameOfReferenceUID": "1.2.0005"}
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        for z in range(GRID.shape[0]):
            sent = slice_dataset(GRID, z, hu[z], SOPInstanceUID=f"1.2.03.4.00{z}", **uids)
            del sent.file_meta
            assert sender.store(f"1.2.03.4.00{z}".encode(), encode(sent, False, True) or b"") == 0
    with node.database.read() as tx:
        paths = [node.files.absolute(held.path) for held in series.series_instances(tx, 1)]
    volume = load(paths)
    context = ReportContext(created_at=datetime.now(UTC))
    built = build_all(finding_on(volume), volume, read_sources(volume), context, list(KINDS))
    built.append((ObjectKind.REPORT, build_not_analysed(Refusal("X", "Why."), read_headers(paths), context, model())))
    assert {kind for kind, _ in built} == set(KINDS) - {ObjectKind.KEY_IMAGES}, "no localisation, no key images"
    for _, made in built:
        read = dcmread(BytesIO(to_part10(made)))
        assert read.StudyInstanceUID == uids["StudyInstanceUID"]
        assert b"1.2.03.4.00" in to_part10(made), "it refers to the images as they are called"
