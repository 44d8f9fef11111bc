"""One regular axial stack from positions alone, or the reason why there is none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import UnsuitableSeries
from inference.volume.ct_volume import SeriesHeader
from inference.volume.geometry import find_stacks
from inference.volume.instances import CT_IMAGE, Frame, Instance, PixelFormat

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def frame(position: Sequence[float], number: int = 0, **values: Any) -> Frame:
    """One frame; `values` go into the frame, its header or its pixel format, whichever has the name."""
    pixels = PixelFormat(512, 512, 16, 12, 11, False, 1, "MONOCHROME2", "1.2.840.10008.1.2.1", None)
    keys = {"acquisition": "", "temporal position": ""} | values.pop("keys", {})
    header = SeriesHeader(image_type=values.pop("image_type", ("ORIGINAL", "PRIMARY", "AXIAL")))
    rows = values.pop("rows", 512)
    instance = Instance(
        Path(f"{number}"), f"2.25.{number}", CT_IMAGE, "2.25.1", "2.25.2", "2.25.3", "p",
        PixelFormat(**{**pixels.__dict__, "rows": rows}), header,
    )  # fmt: skip
    given = {"orientation": AXIAL, "spacing_mm": (0.7, 0.7)} | values
    x, y, z = position
    return Frame(
        instance=instance, index=0, position_mm=(float(x), float(y), float(z)), slope=1.0, intercept=-1024.0,
        spans=(), header=header, split_keys=tuple(keys.items()), **given,
    )  # fmt: skip


def stack(heights: Sequence[float], **values: Any) -> list[Frame]:
    return [frame((-170.0, -160.0, z), number, **values) for number, z in enumerate(heights)]


def refusal(frames: list[Frame]) -> UnsuitableSeries:
    with pytest.raises(UnsuitableSeries) as refused:
        find_stacks(frames)
    assert refused.value.sentence.endswith(".")
    return refused.value


def steps(count: int, spacing: float, start: float = -300.0) -> np.ndarray:
    return start + spacing * np.arange(count)


def test_any_order_of_files_gives_the_same_ascending_stack() -> None:
    frames = stack(steps(40, 1.25))
    shuffled = [frames[index] for index in np.random.default_rng(1).permutation(40)]
    (volume,) = find_stacks(shuffled)
    assert [found[0] for found in volume.candidates] == frames
    assert volume.spacing_mm == (1.25, 0.7, 0.7)
    assert np.allclose(volume.affine @ [10, 20, 3, 1], [-163, -146, -296.25, 1])


@pytest.mark.parametrize("spacing", [0.5, 0.625, 0.8, 1.25, 2.0, 3.27, 8.0])
@pytest.mark.parametrize("decimals", [1, 2, 4])
def test_positions_rounded_by_the_scanner_pass(spacing: float, decimals: int) -> None:
    heights = np.round(steps(200, spacing, start=-312.37), decimals)
    (volume,) = find_stacks(stack(heights))
    assert volume.spacing_mm[0] == pytest.approx(spacing, abs=0.1 / 199)


def test_67_slices_of_4_mm_are_268_mm_and_no_hair_less() -> None:
    (volume,) = find_stacks(stack([-437.7 + 4 * index for index in range(67)]))
    assert 67 * volume.spacing_mm[0] == 268.0


def test_random_jitter_of_a_twentieth_of_the_spacing_passes() -> None:
    jitter = np.random.default_rng(2).uniform(-0.05, 0.05, 150)
    find_stacks(stack(steps(150, 1.0) + jitter))


@pytest.mark.parametrize("count", [20, 67, 300, 1000])
@pytest.mark.parametrize("missing", [1, 2, 5])
@pytest.mark.parametrize("where", ["second", "middle", "apart", "last but one"])
def test_missing_interior_slices_are_seen(count: int, missing: int, where: str) -> None:
    first = {"second": 1, "middle": count // 2, "last but one": count - 1 - missing, "apart": 2}[where]
    lost = range(first, first + missing) if where != "apart" else range(2, 2 + 3 * missing, 3)
    heights = np.delete(steps(count, 1.5), list(lost))
    refused = refusal(stack(heights))
    assert refused.code == "MISSING_SLICES"
    assert refused.sentence.startswith("1 slice is missing:" if missing == 1 else f"{missing} slices are missing:")


def test_a_random_half_of_the_slices_lost_is_seen() -> None:
    for seed in range(20):
        kept = np.sort(np.random.default_rng(seed).permutation(np.arange(1, 99))[:49])
        heights = steps(100, 2.0)[[0, *kept, 99]]
        assert refusal(stack(heights)).code in ("MISSING_SLICES", "IRREGULAR_SPACING")


@pytest.mark.parametrize("second", [0.8, 1.1, 1.5, 2.0, 3.0])
def test_a_spacing_that_changes_midway_is_seen(second: float) -> None:
    heights = np.cumsum([0.0] + [1.0] * 60 + [second] * 60)
    assert refusal(stack(heights)).code == "IRREGULAR_SPACING"


def test_images_at_one_position_only_are_no_volume() -> None:
    assert refusal(stack([5.0])).code == "SINGLE_SLICE"
    assert refusal(stack([5.0, 5.0])).code == "SINGLE_SLICE"


@pytest.mark.parametrize(("orientation", "word"), [(CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_reformats_are_named(orientation: tuple[float, ...], word: str) -> None:
    normal = np.cross(orientation[:3], orientation[3:])
    frames = [frame(2.0 * index * normal, index, orientation=orientation) for index in range(30)]
    refused = refusal(frames)
    assert refused.code == "NOT_AXIAL" and word in refused.sentence


def tilted(degrees: float) -> tuple[float, ...]:
    return (1.0, 0.0, 0.0, 0.0, math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


@pytest.mark.parametrize(("degrees", "code"), [(3.0, None), (10.0, "NOT_AXIAL"), (45.0, "NOT_AXIAL")])
def test_oblique_stacks_pass_up_to_five_degrees(degrees: float, code: str | None) -> None:
    orientation = tilted(degrees)
    normal = np.cross(orientation[:3], orientation[3:])
    frames = [frame(2.0 * index * normal, index, orientation=orientation) for index in range(30)]
    if code:
        assert refusal(frames).code == code
        return
    (volume,) = find_stacks(frames)
    assert np.allclose(volume.affine[:3, 2], 2.0 * normal)


def test_a_tilted_gantry_is_seen_in_the_shear_of_the_stack() -> None:
    frames = [frame((0, 0, 2.0 * index), index, orientation=tilted(4.0)) for index in range(30)]
    assert refusal(frames).code == "GANTRY_TILT"


def test_one_slice_beside_the_others_is_seen() -> None:
    frames = stack(steps(30, 2.0))
    frames[10] = frame((-165.0, -160.0, frames[10].position_mm[2]), 10)  # type: ignore[index]
    assert refusal(frames).code == "SIDEWAYS_SHIFT"


def test_rows_stored_upside_down_still_ascend_towards_the_head() -> None:
    (volume,) = find_stacks(stack(steps(10, 2.0), orientation=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0)))
    assert volume.affine[2, 2] == 2.0 and volume.affine[1, 1] == -0.7


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"orientation": CORONAL}, "MIXED_ORIENTATIONS"),
        ({"spacing_mm": (0.8, 0.8)}, "MIXED_PIXEL_SPACING"),
        ({"rows": 256}, "MIXED_MATRIX"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}, "LOCALIZER"),
        ({"orientation": None}, "NO_POSITION"),
    ],
)
def test_one_image_unlike_the_others_is_refused(values: dict[str, Any], code: str) -> None:
    frames = stack(steps(30, 2.0))
    frames[7] = frame(frames[7].position_mm or (), 7, **values)
    assert refusal(frames).code == code


def test_axes_that_are_not_at_right_angles_are_refused() -> None:
    assert refusal(stack(steps(5, 2.0), orientation=(1.0, 0.0, 0.0, 0.3, 0.95, 0.0))).code == "BAD_ORIENTATION"


def test_two_acquisitions_of_one_region_are_split_in_the_order_of_their_numbers() -> None:
    first = stack(steps(30, 2.0), keys={"acquisition": "10"})
    second = stack(steps(25, 2.0, start=-299.0), keys={"acquisition": "9"})
    volumes = find_stacks([*first, *second])
    assert [volume.part for volume in volumes] == ["acquisition 9 of 2", "acquisition 10 of 2"]
    assert [len(volume.candidates) for volume in volumes] == [25, 30]


@pytest.mark.parametrize("other", [{"spacing": 3.0}, {"x": -150.0}, {"image_type": ("ORIGINAL", "PRIMARY")}])
def test_acquisitions_that_are_not_alike_are_no_volumes_of_one_series(other: dict[str, Any]) -> None:
    first = stack(steps(30, 2.0), keys={"acquisition": "1"})
    heights = steps(25, other.pop("spacing", 2.0), start=-299.0)
    x = other.pop("x", -170.0)
    second = [frame((x, -160, z), 100 + n, keys={"acquisition": "2"}, **other) for n, z in enumerate(heights)]
    assert refusal([*first, *second]).code in ("IRREGULAR_SPACING", "MISSING_SLICES", "SIDEWAYS_SHIFT")


def test_two_acquisitions_with_a_gap_between_them_are_not_split() -> None:
    first = stack(steps(30, 2.0), keys={"acquisition": "1"})
    second = stack(steps(30, 2.0, start=-220.0), keys={"acquisition": "2"})
    assert refusal([*first, *second]).code == "MISSING_SLICES"


def test_one_clean_volume_of_many_acquisitions_stays_whole() -> None:
    frames = [frame((0, 0, 2.0 * index), index, keys={"acquisition": str(index)}) for index in range(30)]
    (volume,) = find_stacks(frames)
    assert len(volume.candidates) == 30 and volume.part == ""


def test_missing_slices_are_not_explained_away_by_a_split() -> None:
    heights = np.delete(steps(60, 2.0), 30)
    frames = [frame((0, 0, z), index, keys={"acquisition": str(index // 30)}) for index, z in enumerate(heights)]
    assert refusal(frames).code == "MISSING_SLICES"
