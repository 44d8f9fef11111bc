"""Headers with hundreds of thousands of items, which cost pydicom an object each, are given up in time."""

import struct
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_node.receiver.own_images import read_equipment
from inference.errors import CorruptInstance
from inference.volume.instances import read_frames
from tests.unit.ct_series import enhanced_dataset, noise, save, slice_dataset

CONTRIBUTORS, REFERENCED = 0x0018A001, 0x00081140
SHARED, PER_FRAME = 0x52009229, 0x52009230


def with_items(path: Path, tag: int, items: int, undefined_length: bool, nested: bool) -> Path:
    """A slice with one more sequence, of empty items, at the place of a sequence that its file has with none."""
    dataset = slice_dataset(noise(1)[0], 0.0)
    dataset.add_new(tag, "SQ", Sequence([]))
    save(dataset, path)
    place = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"SQ\0\0"
    empty = b"\xfe\xff\x00\xe0\0\0\0\0" * items
    if nested:  # in a sequence of known length inside an item
        inner = struct.pack("<HH", 8, 0x1199) + b"SQ\0\0" + struct.pack("<L", len(empty)) + empty
        empty = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
    value = struct.pack("<L", len(empty)) + empty
    if undefined_length:
        value = b"\xff\xff\xff\xff" + empty + b"\xfe\xff\xdd\xe0\0\0\0\0"
    whole = path.read_bytes()
    assert whole.count(place) == 1
    path.write_bytes(whole.replace(place + b"\0\0\0\0", place + value))
    return path


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("tag", "undefined_length"), [(CONTRIBUTORS, False), (CONTRIBUTORS, True), (REFERENCED, True), (PER_FRAME, True)]
)
def test_a_header_of_too_many_items_is_corrupt(tmp_path: Path, tag: int, undefined_length: bool, nested: bool) -> None:
    path = with_items(tmp_path / "one.dcm", tag, 60_000, undefined_length, nested)
    with pytest.raises(CorruptInstance):
        read_frames(path)


def test_the_receiver_gives_such_a_header_up_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many"):
        read_equipment(with_items(tmp_path / "one.dcm", CONTRIBUTORS, 60_000, undefined_length=True, nested=False))


def test_some_hundred_items_are_an_everyday_header(tmp_path: Path) -> None:
    assert len(read_frames(with_items(tmp_path / "one.dcm", CONTRIBUTORS, 300, undefined_length=True, nested=False)))


def test_a_stated_number_of_frames_allows_no_more_than_its_bytes_can_hold(tmp_path: Path) -> None:
    path = with_items(tmp_path / "one.dcm", PER_FRAME, 60_000, undefined_length=True, nested=False)
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH", 0x28, 0x10))
    path.write_bytes(whole[:at] + struct.pack("<HH", 0x28, 8) + b"IS\x06\x00100000" + whole[at:])
    with pytest.raises(CorruptInstance):
        read_frames(path)


def test_many_frames_with_much_to_say_are_read(tmp_path: Path) -> None:
    frames = 400
    dataset = enhanced_dataset(noise(frames, 64, 64), [float(z) for z in range(frames)])
    for item in dataset.PerFrameFunctionalGroupsSequence:
        converted = Dataset()
        for number in range(60):
            converted.add_new(0x00091001 + number, "LO", str(number))
        item.UnassignedPerFrameConvertedAttributesSequence = Sequence([converted])
        item.is_undefined_length_sequence_item = converted.is_undefined_length_sequence_item = True
        item["UnassignedPerFrameConvertedAttributesSequence"].is_undefined_length = True
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    assert len(read_frames(save(dataset, tmp_path / "many.dcm"))) == frames
