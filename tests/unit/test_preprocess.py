"""Each preprocessing step against scipy or against its definition."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from inference.covid.card import read_zheng_card
from inference.errors import UnsuitableSeries
from inference.lungs.mask import clean, sides
from inference.models.cards import shipped_folder
from inference.models.profile import Slices
from inference.preprocess import (
    grey_table,
    greys,
    mask_box,
    nearest_resampled,
    outside_circle,
    resampled_count,
    resize_slices,
    verdict_range,
)
from inference.volume.ct_volume import CTVolume, SourceSlice

AUTHORS = read_zheng_card(shipped_folder() / "zheng2020-authors").profile


def volume_of(hu: np.ndarray, spacing_z: float) -> CTVolume:
    slices = tuple(SourceSlice(None, f"1.{z}", "", 0, (0.0, 0.0, z * spacing_z)) for z in range(len(hu)))  # type: ignore[arg-type]
    return CTVolume(hu, (spacing_z, 1.0, 1.0), np.eye(4), slices, "1", "2")


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    return (smooth * 2500 - 400).clip(-1500, 3000).astype(np.int16)


def test_the_window_is_the_floor_of_255_x_and_clips() -> None:
    hu = np.array([-3000, -1200, -1193, -1192, 0, 599, 600, 3000], np.int16)
    assert grey_table((-1200, 600))[hu.view(np.uint16)].tolist() == [0, 0, 0, 1, 170, 254, 255, 255]


def test_grey_volume_equals_scipys_zoom_then_the_window() -> None:
    hu = blobs((9, 512, 512))
    lowered = hu.copy()
    y, x = np.ogrid[:512, :512]
    lowered[:, (y - 255) ** 2 + (x - 255) ** 2 >= 253**2] -= 2000
    zoomed = ndimage.zoom(lowered, (27 / 9, 1, 1), order=3, mode="nearest")
    expected = np.floor(255 * np.clip((zoomed + 1200.0) / 1800.0, 0, 1)).astype(np.uint8)
    found = greys(volume_of(hu, 3.0), AUTHORS)
    assert found.shape == expected.shape
    # Outside the circle the two differ by a rounding at most; inside not at all.
    assert np.count_nonzero(found != expected) == 0


def test_pixels_on_the_circle_lie_outside_of_it() -> None:
    """A few pixels a slice, and they decide: with them inside, a probability of the published checks moves by 0.002."""
    outside = outside_circle(512, 512, AUTHORS.intensity.circle)
    assert outside[255, 2] and outside[508, 255]
    assert not outside[255, 3] and not outside[507, 255]


def test_a_volume_without_resampling_keeps_its_slices() -> None:
    profile = dataclasses.replace(AUTHORS, slices=Slices("ascending"))
    hu = blobs((3, 64, 64))
    found = greys(volume_of(hu, 7.0), profile)
    assert np.array_equal(found[:, 20:40, 20:40], grey_table((-1200.0, 600.0))[hu[:, 20:40, 20:40].view(np.uint16)])


@pytest.mark.parametrize("shape", [(303, 378), (99, 200), (512, 512)])
def test_resizing_by_two_matrices_equals_scipys_zoom(shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(3).integers(0, 256, (1, *shape), dtype=np.uint8)
    expected = ndimage.zoom(plane[0], (224 / shape[0], 336 / shape[1]), order=3)
    assert np.array_equal(resize_slices(plane, (224, 336))[0], expected)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_threads_that_share_slices_resize_them_as_one_does(count: int) -> None:
    slices = np.random.default_rng(3).integers(0, 256, (count, 99, 200), dtype=np.uint8)
    assert np.array_equal(resize_slices(slices, (64, 96), threads=3), resize_slices(slices, (64, 96)))


@pytest.mark.parametrize(("count", "expected"), [(268, (73, 187)), (308, (84, 215)), (240, (66, 168))])
def test_the_slices_of_the_verdict_are_those_of_the_published_code(count: int, expected: tuple[int, int]) -> None:
    assert verdict_range(count, AUTHORS.slices) == expected


def test_slices_are_counted_after_resampling_to_1_mm() -> None:
    assert [resampled_count(n, mm, AUTHORS.slices) for n, mm in ((67, 4.0), (30, 8.0), (480, 0.625))] == [268, 240, 300]


def test_the_nearest_resampled_slices_begin_and_end_with_the_volume() -> None:
    assert nearest_resampled(67, 268)[[0, 1, -1]].tolist() == [0, 4, 267]
    assert nearest_resampled(1, 5).tolist() == [0]


def test_the_box_leaves_out_the_last_index_of_each_axis() -> None:
    mask = np.zeros((6, 20, 30), np.uint8)
    mask[1:5, 3:10, 7:20] = 1
    assert mask_box(mask) == (slice(1, 4), slice(3, 9), slice(7, 19))


def test_a_mask_without_lung_is_refused_by_name() -> None:
    with pytest.raises(UnsuitableSeries, match="NO_LUNG_MASK"):
        mask_box(np.zeros((6, 20, 30), np.uint8))


def test_cleaning_keeps_two_lungs_and_no_stray_pixel() -> None:
    raw = np.zeros((10, 40, 60), np.uint8)
    raw[2:8, 10:30, 5:25] = 1
    raw[2:8, 10:30, 35:50] = 1
    lungs = raw.astype(bool)
    raw[0, 0, 0] = raw[9, 39, 59] = 1
    found = clean(raw)
    assert np.array_equal(found, lungs)
    assert sides(found, x_to_left=True) == (6 * 20 * 15, 6 * 20 * 20)
    assert sides(found, x_to_left=False) == (6 * 20 * 20, 6 * 20 * 15)


def test_joined_lungs_are_parted_where_they_are_thinnest() -> None:
    mask = np.zeros((10, 40, 60), bool)
    mask[2:8, 10:30, 5:25] = mask[2:8, 10:30, 35:50] = True
    mask[4, 20, 25:35] = True
    left, right = sides(mask, x_to_left=True)
    assert left + right == mask.sum() and abs(left - 1800) <= 10


@pytest.mark.parametrize("column", [0, 28, 59, 139])
def test_a_speck_beside_joined_lungs_is_not_taken_for_a_lung(column: int) -> None:
    mask = np.zeros((10, 40, 140), bool)
    mask[2:8, 10:30, 5:25] = mask[2:8, 10:30, 35:50] = True
    mask[4, 20, 25:35] = True
    mask[9, 0:5, column] = True
    left, right = sides(mask, x_to_left=True)
    assert left + right == mask.sum()
    assert abs(left - 1800) <= 15 and abs(right - 2400) <= 15


def test_limits_on_stored_values_are_left_out_where_a_scanner_stores_tissue_above_them() -> None:
    """HU + 8192, as United Imaging stores it: limits made for HU + 1024 would leave nothing of the patient."""
    volume = volume_of(blobs((4, 16, 16)).clip(-1000, 1500), 1.0)
    usual, other = (
        dataclasses.replace(volume, rescale=((1.0, intercept),) * len(volume.hu)) for intercept in (-1024.0, -8192.0)
    )
    np.testing.assert_array_equal(greys(other, AUTHORS), greys(usual, AUTHORS))
    assert greys(other, AUTHORS).max() == 255
