"""Numbers at the edge of what a header can hold: each ends in a volume or a coded reason, never in a warning.

`FUZZ=100000 pytest` for a long run of random combinations, FUZZ_SEED for another one.
"""

import os
import random
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest

from inference.errors import CorruptInstance, UnsuitableSeries
from inference.suitability.check import check
from inference.suitability.policy import Policy
from inference.suitability.ranking import examine
from inference.volume.instances import read_frames
from inference.volume.load import load, outline
from tests.unit.ct_series import enhanced_dataset, noise, save, slice_dataset, write_series

ROUNDS = int(os.environ.get("FUZZ", "80"))
SEED = int(os.environ.get("FUZZ_SEED", "20261129"))
POLICY = Policy(slices=(2, 2000), extent_mm=(1, 2000), matrix=(8, 2048), field_mm=(1, 1e6))
EDGES = [
    "1e308",
    "-1e308",
    "1e-308",
    "1e999",
    "NaN",
    "inf",
    "-inf",
    "0",
    "-0",
    "1e9",
    "-1",
    "2147483647",
    "1_0",
    "",
    "x",
]
ELEMENTS = {
    "ImagePositionPatient": (0x00200032, 3),
    "ImageOrientationPatient": (0x00200037, 6),
    "PixelSpacing": (0x00280030, 2),
    "RescaleSlope": (0x00281053, 1),
    "RescaleIntercept": (0x00281052, 1),
    "SliceThickness": (0x00180050, 1),
    "SpacingBetweenSlices": (0x00180088, 1),
    "GantryDetectorTilt": (0x00181120, 1),
    "InstanceNumber": (0x00200013, 1),
    "ImagesInAcquisition": (0x00201002, 1),
    "NumberOfFrames": (0x00280008, 1),
    "AcquisitionNumber": (0x00200012, 1),
}
# What a single impossible value must come to where it would be used.
CODES = {
    "ImagePositionPatient": {"NO_POSITION"},
    "ImageOrientationPatient": {"NO_POSITION", "BAD_ORIENTATION"},
    "PixelSpacing": {"NO_POSITION"},
    "RescaleSlope": {"BAD_RESCALE"},
    "RescaleIntercept": {"BAD_RESCALE"},
    "SliceThickness": {"SLICE_THICKNESS"},
}


def put(path: Path, name: str, values: list[str]) -> None:
    """Write an element's text as it is, whatever pydicom thinks of it."""
    tag, _ = ELEMENTS[name]
    text = "\\".join(values).encode()
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add_new(tag, "OB", text + b" " * (len(text) % 2))
        dataset.save_as(path, enforce_file_format=True)


def outcome(paths: list[Path]) -> str:
    """What becomes of a series on its whole way: a code, or OK. Warnings are errors here."""
    codes = []
    for step in (lambda: check(load(paths), POLICY), lambda: examine(paths, POLICY)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                step()
            except UnsuitableSeries as reason:
                codes.append(str(reason.code))
                assert not re.search(r"\b(inf|nan)\b|e[+-]\d{3}", reason.sentence), reason.sentence
            except CorruptInstance:
                codes.append("CORRUPT_INSTANCE")
    return codes[0] if codes else "OK"


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("edge", EDGES)
def test_an_extreme_number_ends_in_a_volume_or_a_reason(tmp_path: Path, name: str, edge: str) -> None:
    paths = write_series(tmp_path, noise(4))
    count = ELEMENTS[name][1]
    for path in paths if EDGES.index(edge) % 2 else paths[1:2]:
        put(path, name, ["0"] * (count - 1) + [edge] if name != "PixelSpacing" else ["1", edge])
    code = outcome(paths)
    if edge in ("1e308", "-1e308", "1e999", "NaN", "inf", "-inf") and name in CODES:
        assert code in CODES[name]
    if edge == "1e-308" and name in ("RescaleSlope", "PixelSpacing", "SliceThickness"):
        assert code in CODES[name]


def test_random_numbers_in_random_elements_end_in_a_volume_or_a_reason(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    for _ in range(ROUNDS):
        paths = write_series(tmp_path, noise(3))
        for _ in range(dice.randint(1, 4)):
            name = dice.choice(list(ELEMENTS))
            values = [
                dice.choice([*EDGES, repr(dice.uniform(-400, 400)), repr(10.0 ** dice.uniform(-320, 308)), "1", "0"])
                for _ in range(ELEMENTS[name][1] + dice.choice([0, 0, 0, 0, 1]))
            ]
            for path in paths if dice.random() < 0.5 else [dice.choice(paths)]:
                put(path, name, values)
        outcome(paths)


@pytest.mark.parametrize("edge", ["1e308", "NaN", "-inf", "1e-308"])
@pytest.mark.parametrize("name", ["ImagePositionPatient", "RescaleSlope", "RescaleIntercept"])
def test_a_frame_of_a_multiframe_image_is_held_to_the_same(tmp_path: Path, name: str, edge: str) -> None:
    dataset = enhanced_dataset(noise(4), [0.0, 2.0, 4.0, 6.0])
    sequence = "PlanePositionSequence" if name == "ImagePositionPatient" else "PixelValueTransformationSequence"
    item = dataset.PerFrameFunctionalGroupsSequence[1][sequence].value[0]
    text = ("\\".join([edge] * ELEMENTS[name][1])).encode()
    item.add_new(ELEMENTS[name][0], "OB", text + b" " * (len(text) % 2))
    path = save(dataset, tmp_path / "x.dcm")
    if (name, edge) == ("RescaleIntercept", "1e-308"):
        assert len(load([path]).hu) == 4
        return
    with pytest.raises(UnsuitableSeries) as refused:
        load([path])
    # A position of nearly 0 is one, beside the others.
    assert refused.value.code in (CODES[name] if edge != "1e-308" else {"BAD_RESCALE", "GANTRY_TILT"})


def test_few_bits_in_a_word_are_judged_not_stumbled_over(tmp_path: Path) -> None:
    paths = write_series(
        tmp_path, noise(4, 64, 64, high=1024), BitsStored=10, HighBit=9, RescaleIntercept=-1500, PixelSpacing=[1, 1]
    )
    assert outcome(paths) in ("HU_IMPLAUSIBLE", "NOT_CHEST", "NO_PATIENT")


@pytest.mark.parametrize("make", [slice_dataset, enhanced_dataset], ids=["classic", "enhanced"])
@pytest.mark.parametrize("rows", [32, 0, 65535])
@pytest.mark.parametrize("pixels", ["none", "few", "encapsulated"])
def test_frames_that_are_only_announced_cost_nothing(
    tmp_path: Path, make: Callable[..., pydicom.Dataset], rows: int, pixels: str
) -> None:
    stored = noise(1, 8, 8)
    dataset = make(stored[0] if make is slice_dataset else stored, 0.0 if make is slice_dataset else [0.0])
    dataset.NumberOfFrames, dataset.Rows = 100_000, rows
    if pixels == "none":
        del dataset.PixelData
        path = save(dataset, tmp_path / "x.dcm")
    elif pixels == "encapsulated":
        path = save(dataset, tmp_path / "x.dcm")
        dataset.Rows = 8
        save(dataset, path, "1.2.840.10008.1.2.4.80", lambda words: b"\xff\xd8")
        whole = pydicom.dcmread(path)
        whole.Rows = rows
        whole.save_as(path)
    else:
        path = save(dataset, tmp_path / "x.dcm")
    with suppress(CorruptInstance):
        assert len(read_frames(path)) == 1
    for read in (load, outline):
        with pytest.raises((CorruptInstance, UnsuitableSeries)):
            read([path])


def test_limits_of_stored_values_hold_whatever_the_rescale(tmp_path: Path) -> None:
    volume = load(write_series(tmp_path, noise(3), RescaleSlope=9999, RescaleIntercept=-999999))
    clamped = volume.clamp_stored(-2000, 0, 3000, 3000)
    assert clamped.dtype == np.int16 and clamped.shape == volume.hu.shape
