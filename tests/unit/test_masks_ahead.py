"""Masks that were computed while slices arrived: used for the very slices that they are of, and the same ones."""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.arrays import Grey
from inference.covid.ahead import MasksAhead
from inference.covid.card import read_zheng_card
from inference.covid.judging import Judging
from inference.covid.kept import KeptResults
from inference.covid.kept_masks import KeptMasks
from inference.covid.segmentation import Segmentation
from inference.covid.verdict_input import needed_slices
from inference.device import Device
from inference.lungs.engine import UnetEngine, open_unet
from inference.models.cards import shipped_folder
from inference.models.profile import Profile
from inference.preprocess import greys
from inference.volume.arriving import arrived
from inference.volume.ct_volume import upright
from inference.volume.load import DecodedFile, decode, load
from tests.unit.ct_series import noise, write_series
from tests.unit.test_pipeline_engines import random_unet

CPU = Device("cpu", 0, "", 2)
SLICES = 60
FOLDER = shipped_folder() / "zheng2020-authors"
AUTHORS = read_zheng_card(FOLDER).profile
SMALL = dataclasses.replace(AUTHORS, unet=dataclasses.replace(AUTHORS.unet, size=(16, 16)))
DESCENDING = dataclasses.replace(SMALL, slices=dataclasses.replace(SMALL.slices, order="descending"))


class MasksOnly(Judging):
    """What DeCoVNet does ahead has tests of its own: test_verdict_ahead.py."""

    def __init__(self) -> None:
        pass

    def ahead(self, grey: Grey, raw: Grey, results: KeptResults) -> Iterator[None]:
        return iter(())


class Counting:
    """A U-Net engine that counts the slices that it computes."""

    def __init__(self, engine: UnetEngine, precision: str = "float32") -> None:
        self.name, self.precision, self.engine, self.computed = engine.name, precision, engine, 0

    def masks(self, slices: Grey) -> Grey:
        self.computed += len(slices)
        return self.engine.masks(slices)


@pytest.fixture(scope="module")
def engine() -> UnetEngine:
    return open_unet(random_unet("batch"), CPU, "float32", "torch")


def series(folder: Path, spacing: float, **values: Any) -> list[Path]:
    """Noise over a slope, so that no two slices and no two places within one are alike."""
    return write_series(
        folder,
        noise(SLICES, 16, 16),
        [-300 + spacing * index for index in range(SLICES)],
        InstanceNumber=lambda index: index + 1,
        SOPInstanceUID=lambda index: f"2.25.9.{index}",
        SliceThickness=spacing,
        **values,
    )


def run(
    ahead: MasksAhead, decoded: dict[str, DecodedFile], *, settled: bool = False, expected: int | None = None
) -> None:
    there = arrived(decoded, expected)
    while there is not None and ahead.go_on(there, settled=settled):
        pass


def ahead_of(
    paths: Sequence[Path], engine: UnetEngine, profile: Profile, together: int = 5
) -> tuple[Grey, Grey, int, int]:
    """Slices arrive in an order. Returns the masks with and without what was computed meanwhile, how many slices the
    whole had to compute with it, and how many it needed."""
    counting = Counting(engine)
    segmentation = Segmentation(counting, counting, profile, CPU)  # type: ignore[arg-type]
    ahead, decoded = MasksAhead(segmentation, MasksOnly(), profile, CPU, 1 << 20), dict[str, DecodedFile]()
    for start in range(0, len(paths), together):
        decoded |= {path.name: decode(path, 1 << 20) for path in paths[start : start + together]}
        run(ahead, decoded)
    run(ahead, decoded, settled=True)
    volume = upright(load(sorted(paths)))
    grey = greys(volume, profile)
    needed = needed_slices(len(volume.hu), len(grey), profile)
    counting.computed = 0
    found = segmentation.raw_masks(grey, needed, ahead.kept.masks)
    missing = counting.computed
    return found, segmentation.raw_masks(grey, needed), missing, len(needed)


@pytest.mark.parametrize("spacing", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("profile", [SMALL, DESCENDING], ids=["ascending", "descending"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["upright", "mirrored"])
def test_all_masks_are_there_at_the_close_and_are_the_same(
    tmp_path: Path, engine: UnetEngine, spacing: float, profile: Profile, mirrored: bool
) -> None:
    turned = {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]} if mirrored else {}
    found, plain, missing, needed = ahead_of(series(tmp_path, spacing, **turned), engine, profile)
    assert needed > 20 and missing == 0
    assert np.array_equal(found, plain) and plain.any()


@pytest.mark.parametrize("order", ["backwards", "shuffled"])
@pytest.mark.parametrize("spacing", [1.0, 0.7])
def test_in_any_order_too(tmp_path: Path, engine: UnetEngine, spacing: float, order: str) -> None:
    paths = series(tmp_path, spacing, ImagesInAcquisition=SLICES)[::-1]
    if order == "shuffled":
        random.Random(4).shuffle(paths)
    found, plain, missing, _ = ahead_of(paths, engine, SMALL, together=3)
    assert missing == 0 and np.array_equal(found, plain)


def test_resampled_slices_are_computed_before_the_end_if_the_scanner_says_how_many_images_it_made(
    tmp_path: Path, engine: UnetEngine
) -> None:
    counting = Counting(engine)
    ahead = MasksAhead(Segmentation(counting, counting, SMALL, CPU), MasksOnly(), SMALL, CPU, 1 << 20)  # type: ignore[arg-type]
    paths = series(tmp_path, 0.7, ImagesInAcquisition=SLICES)
    run(ahead, {path.name: decode(path, 1 << 20) for path in paths[: SLICES - 10]})
    assert counting.computed > 10


def test_of_a_series_that_was_taken_for_another_no_mask_is_used(tmp_path: Path, engine: UnetEngine) -> None:
    counting = Counting(engine)
    segmentation = Segmentation(counting, counting, SMALL, CPU)  # type: ignore[arg-type]
    ahead = MasksAhead(segmentation, MasksOnly(), SMALL, CPU, 1 << 20)
    paths = series(tmp_path, 0.7, ImagesInAcquisition=SLICES + 7)  # the last seven never come
    run(ahead, {path.name: decode(path, 1 << 20) for path in paths})
    assert counting.computed > 0 and ahead.nbytes > 0
    grey = greys(load(paths), SMALL)
    needed = needed_slices(SLICES, len(grey), SMALL)
    assert np.array_equal(segmentation.raw_masks(grey, needed, ahead.kept.masks), segmentation.raw_masks(grey, needed))


def test_masks_of_the_lower_precision_are_not_taken_for_the_verdicts(engine: UnetEngine) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    exact, fast = Counting(engine), Counting(engine, "bfloat16")
    segmentation = Segmentation(exact, fast, SMALL, CPU)  # type: ignore[arg-type]
    kept = KeptMasks(1 << 20)
    segmentation.keep_ahead(grey, np.zeros(40, bool), kept)  # guessed to lie outside of the verdict
    exact.computed = fast.computed = 0
    segmentation.raw_masks(grey, None, kept)
    assert exact.computed > 0 and fast.computed == 0


def test_no_more_masks_are_kept_than_there_is_memory_for(engine: UnetEngine) -> None:
    grey = np.random.default_rng(2).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    kept = KeptMasks(5 * 32)
    kept.add(grey, grey // 128, "float32")
    kept.add(grey, grey // 128, "float32")
    masks = np.zeros_like(grey)
    found = kept.fill(masks, grey, np.arange(40), "float32")
    assert kept.nbytes == 5 * 32 and found.sum() == 5 and np.array_equal(masks[:5], grey[:5] // 128)


def test_images_that_form_no_volume_are_left_to_the_job(tmp_path: Path) -> None:
    paths = series(tmp_path, 1.0, Modality="MR", SOPClassUID="1.2.840.10008.5.1.4.1.1.4")
    decoded = {path.name: DecodedFile((), []) for path in paths[:3]}
    assert arrived(decoded) is None and arrived({}) is None
    one = {"x": decode(series(tmp_path / "ct", 1.0)[0], 1 << 20)}
    assert arrived(one) is None
