"""Files to one volume: headers that vary, multi-frame twins, padding, damage and limits."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import find_series
from inference.volume.load import load
from tests.unit.ct_series import ENHANCED_CT, change, enhanced_dataset, noise, save, slice_dataset, write_series

LEGACY_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"


def refusal(paths: list[Path], **options: int) -> str:
    with pytest.raises(UnsuitableSeries) as refused:
        load(paths, **options)
    assert refused.value.sentence.endswith(".")
    return refused.value.code


def test_voxels_geometry_and_sources_are_those_of_the_files(tmp_path: Path) -> None:
    stored = noise(5)
    paths = write_series(tmp_path, stored, [-10.0, -7.5, -5.0, -2.5, 0.0])
    volume = load(list(reversed(paths)))
    assert np.array_equal(volume.hu, stored - 1024)
    assert volume.spacing_mm == (2.5, 0.75, 0.5)
    assert volume.affine @ [20, 10, 3, 1] == pytest.approx([-100 + 20 * 0.5, -120 + 10 * 0.75, -2.5, 1])
    source, dataset = volume.slices[3], pydicom.dcmread(paths[3])
    assert (source.sop_instance_uid, source.frame) == (dataset.SOPInstanceUID, 0)
    assert source.position_mm == (-100, -120, -2.5)
    assert np.array_equal(dataset.pixel_array.astype(int) - 1024, volume.hu[3])


@pytest.mark.parametrize("sop_class", [ENHANCED_CT, LEGACY_ENHANCED_CT])
def test_a_multiframe_series_is_its_classic_twin(tmp_path: Path, sop_class: str) -> None:
    stored, heights = noise(6), [5.0, 1.0, 3.0, 7.0, 11.0, 9.0]  # frames in no order
    classic = load(write_series(tmp_path / "classic", stored, heights))
    path = save(enhanced_dataset(stored, heights, sop_class=sop_class), tmp_path / "enhanced.dcm")
    twin = load([path])
    assert twin.digest() == classic.digest()
    assert twin.header.image_type == ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
    assert twin.header.slice_thickness_mm == 2 and twin.header.has_rescale
    assert [source.frame for source in twin.slices] == [1, 2, 0, 3, 5, 4]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.70"])
def test_a_compressed_multiframe_series_is_the_same_volume(tmp_path: Path, syntax: str) -> None:
    import imagecodecs

    encode = {
        "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
        "1.2.840.10008.1.2.4.70": lambda words: imagecodecs.ljpeg_encode(words, bitspersample=16),
    }[syntax]
    stored, heights = noise(6), [5.0, 1.0, 3.0, 7.0, 11.0, 9.0]
    plain = load([save(enhanced_dataset(stored, heights), tmp_path / "plain.dcm")])
    packed = load([save(enhanced_dataset(stored, heights), tmp_path / "packed.dcm", syntax, encode)])
    assert packed.digest() == plain.digest()


def test_a_series_of_several_multiframe_instances_is_one_volume(tmp_path: Path) -> None:
    stored = noise(6)
    heights = [2.0 * index for index in range(6)]
    whole = load([save(enhanced_dataset(stored, heights), tmp_path / "whole.dcm")])
    parts = [
        save(enhanced_dataset(stored[part], heights[part]), tmp_path / f"{part.start}.dcm")
        for part in (slice(3, 6), slice(0, 3))
    ]
    assert load(parts).digest() == whole.digest()


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    stored = noise(3, high=2000)
    slopes, intercepts = ["1", "0.5", "1.5"], ["-1024", "-1000.5", "0"]
    paths = write_series(
        tmp_path, stored, RescaleSlope=lambda index: slopes[index], RescaleIntercept=lambda index: intercepts[index]
    )
    volume = load(paths)
    for z in range(3):
        assert np.array_equal(volume.hu[z], np.rint(stored[z] * float(slopes[z]) + float(intercepts[z])))
    assert volume.rescale == ((1.0, -1024.0), (0.5, -1000.5), (1.5, 0.0))


def test_stored_values_can_be_clamped_after_the_rescale(tmp_path: Path) -> None:
    stored = noise(2, low=-32768, high=32768)
    volume = load(write_series(tmp_path, stored, signed=True))
    clamped = np.where(stored < -2000, 0, np.where(stored > 3000, 3000, stored))
    assert np.array_equal(volume.clamp_stored(-2000, 0, 3000, 3000), clamped - 1024)
    within = dataclasses.replace(volume, hu=np.zeros((2, 8, 8), np.int16))
    assert within.clamp_stored(-2000, 0, 3000, 3000) is within.hu


def test_padding_below_air_stays_and_padding_like_tissue_becomes_air(tmp_path: Path) -> None:
    stored = noise(2, low=900, high=1100)
    stored[:, :3] = -2000
    kept = load(write_series(tmp_path / "low", stored, signed=True, PixelPaddingValue=-2000))
    assert (kept.hu[:, :3] == -3024).all()
    stored[:, :3] = 1500
    stored[:, 20, 20] = 1500  # the same value inside the patient
    air = load(write_series(tmp_path / "high", stored, signed=True, PixelPaddingValue=1500))
    assert (air.hu[:, :3] == -1024).all()
    assert (air.hu[:, 20, 20] == 476).all()
    assert np.array_equal(air.hu[:, 4:20], stored[:, 4:20] - 1024)


def test_a_range_of_padding_values_becomes_air(tmp_path: Path) -> None:
    stored = noise(2, low=900, high=1100)
    stored[:, 0], stored[:, 1] = 3000, 3005
    volume = load(write_series(tmp_path, stored, PixelPaddingValue=3000, PixelPaddingRangeLimit=3010))
    assert (volume.hu[:, :2] == -1024).all()


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "COLOUR"),
        ({"BitsStored": 8, "HighBit": 7}, "EIGHT_BIT"),
        ({"HighBit": 9, "BitsStored": 12}, "UNSUPPORTED_BITS"),
        ({"RescaleSlope": 0}, "BAD_RESCALE"),
        ({"RescaleSlope": -1}, "BAD_RESCALE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "SECONDARY_CAPTURE"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}, "NOT_CT"),
        ({"ImagePositionPatient": None}, "NO_POSITION"),
        ({"ImageOrientationPatient": None}, "NO_POSITION"),
        ({"PixelSpacing": None}, "NO_POSITION"),
    ],
)
def test_what_cannot_be_a_ct_volume_is_refused_by_name(tmp_path: Path, values: dict[str, Any], code: str) -> None:
    assert refusal(write_series(tmp_path, noise(3), **values)) == code


def test_a_colour_series_is_refused(tmp_path: Path) -> None:
    for index, plane in enumerate(noise(2, high=255)):
        dataset = slice_dataset(plane, float(index), SamplesPerPixel=3, PhotometricInterpretation="RGB")
        change(dataset, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PlanarConfiguration": 0})
        dataset.PixelData = bytes(3 * plane.size)
        save(dataset, tmp_path / f"{index}.dcm")
    assert refusal(sorted(tmp_path.iterdir())) == "COLOUR"


def test_no_files_are_no_images() -> None:
    assert refusal([]) == "NO_IMAGES"


def test_a_header_larger_than_the_pixel_data_is_corrupt_and_takes_no_memory(tmp_path: Path) -> None:
    path = write_series(tmp_path, noise(3), Rows=65000, Columns=65000)[0]
    with pytest.raises(CorruptInstance, match="8450000000 bytes"):
        load([path])


def test_a_series_over_the_memory_cap_is_refused_before_decoding(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(4))
    assert load(paths, max_bytes=4 * 32 * 40 * 2).hu.nbytes == 4 * 32 * 40 * 2
    assert refusal(paths, max_bytes=4 * 32 * 40 * 2 - 1) == "TOO_LARGE"


def test_a_huge_compressed_matrix_is_refused_before_decoding(tmp_path: Path) -> None:
    import imagecodecs

    for index, plane in enumerate(noise(2)):
        dataset = slice_dataset(plane, float(index))
        path = save(dataset, tmp_path / f"{index}.dcm", "1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode)
        dataset.Rows = dataset.Columns = 65000
        dataset.save_as(path, enforce_file_format=True)
    assert refusal(sorted(tmp_path.iterdir())) == "TOO_LARGE"


@pytest.mark.parametrize("content", [b"", b"not DICOM", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\x02\x00\x10\x00"])
def test_an_unreadable_file_is_a_corrupt_instance(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    with pytest.raises((CorruptInstance, UnsuitableSeries)):
        load([path])
    assert find_series(tmp_path) == {}


def test_error_texts_hold_no_patient_data(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(2), PatientName="SECRET^NAME", PatientID="SECRET", RescaleSlope=0)
    with pytest.raises(UnsuitableSeries) as refused:
        load(paths)
    assert "SECRET" not in str(refused.value)
    paths[0].write_bytes(paths[0].read_bytes()[:-10])
    with pytest.raises(CorruptInstance) as corrupt:
        load(paths)
    assert "SECRET" not in str(corrupt.value) and corrupt.value.__cause__ is None


def test_find_series_groups_by_series_and_skips_the_rest(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a", noise(2))
    second = write_series(tmp_path / "b" / "c", noise(2), SeriesInstanceUID="2.25.77")
    (tmp_path / "notes.txt").write_text("no image")
    assert find_series(tmp_path) == {"2.25.2": first, "2.25.77": second}
    assert find_series(second[0]) == {"2.25.77": [second[0]]}


def test_exact_duplicates_are_dropped_whatever_their_order(tmp_path: Path) -> None:
    stored = noise(4)
    paths = write_series(tmp_path / "once", stored)
    again = write_series(tmp_path / "again", stored[1:3], [2.0, 4.0])
    volume, twice, other = load(paths), load([*paths, *again]), load([*again, *reversed(paths)])
    assert volume.digest() == twice.digest() == other.digest()
    assert len(twice.dropped) == 2 and twice.dropped == other.dropped
    assert [one.sop_instance_uid for one in twice.slices] == [one.sop_instance_uid for one in other.slices]


def test_the_same_file_twice_is_one_slice(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(3))
    volume = load([*paths, *paths])
    assert volume.digest() == load(paths).digest() and volume.dropped == ()


def test_different_pixels_at_one_position_are_refused(tmp_path: Path) -> None:
    stored = noise(4)
    paths = write_series(tmp_path / "a", stored) + write_series(tmp_path / "b", stored[:1] + 1)
    assert refusal(paths) == "CONFLICTING_SLICES"


def test_of_two_acquisitions_the_larger_is_loaded_and_says_which_it_is(tmp_path: Path) -> None:
    stored = noise(12)
    first = write_series(tmp_path / "a", stored[:5], AcquisitionNumber=1)
    second = write_series(tmp_path / "b", stored[5:], AcquisitionNumber=2)
    chosen = load([*second, *first])
    assert chosen.part == "acquisition 2 of 2"
    assert np.array_equal(chosen.hu, stored[5:] - 1024)
    assert set(chosen.passed_over) == {source.sop_instance_uid for source in load(first).slices}


def test_two_equal_phases_are_split_by_temporal_position_and_the_first_is_loaded(tmp_path: Path) -> None:
    stored = noise(8)
    second = write_series(tmp_path / "b", stored[4:], TemporalPositionIdentifier=20)
    first = write_series(tmp_path / "a", stored[:4], TemporalPositionIdentifier=3)
    volume: CTVolume = load([*second, *first])
    assert volume.part == "temporal position 3 of 2" and np.array_equal(volume.hu, stored[:4] - 1024)


def test_a_split_that_leaves_one_part_broken_is_refused_for_what_the_whole_is(tmp_path: Path) -> None:
    stored = noise(12)
    first = write_series(tmp_path / "a", stored[:5], AcquisitionNumber=1)
    broken = write_series(tmp_path / "b", stored[5:], [0, 2, 4, 8, 10, 12, 14], AcquisitionNumber=2)
    assert refusal([*first, *broken]) == "CONFLICTING_SLICES"


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("SeriesInstanceUID", "2.25.99", "MIXED_SERIES"),
        ("StudyInstanceUID", "2.25.99", "MIXED_SERIES"),
        ("PatientID", "1", "MIXED_PATIENTS"),
        ("FrameOfReferenceUID", "2.25.99", "MIXED_FRAMES_OF_REFERENCE"),
        ("ManufacturerModelName", "Other", "MIXED_SCANNERS"),
    ],
)
def test_images_of_two_subjects_are_refused(tmp_path: Path, keyword: str, value: str, code: str) -> None:
    values = {"ManufacturerModelName": "One"} | {keyword: lambda index: value if index == 2 else "One"}
    if keyword != "ManufacturerModelName":
        values[keyword] = lambda index: value if index == 2 else "2.25.5"
    assert refusal(write_series(tmp_path, noise(4), **values)) == code
