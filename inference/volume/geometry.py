"""Which frames form one complete volume, by position alone: never by count, instance number or file order.

Every tolerance names its unit and its origin. Positions are decimal strings that vendors round to between 0.1 and
0.0001 mm. They round each slice independently, so rounding errors do not add up along the stack; the effect of a
missing slice or a changed spacing does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from config.reasons import ReasonCode
from inference.errors import UnsuitableSeries
from inference.volume.agreement import (
    PIXEL_SPACING_TOLERANCE,
    common_axes,
    common_grid,
    every_frame_has_geometry,
    no_localizers,
    one_reconstruction,
    one_scan_after_the_other,
    same_subject,
)
from inference.volume.instances import Frame

# Largest distance of a slice from the regular grid, as a share of the spacing and in mm, whichever is larger.
# Positions rounded to 0.1 mm are off by up to 0.05 mm. A missing slice shifts all others by a whole spacing, far more
# than a tenth of it. A tenth also moves no structure by more than a tenth of what one slice covers.
GRID_TOLERANCE_OF_SPACING = 0.1
GRID_TOLERANCE_MM = 0.06
# Two slices closer than this share one position: less than CT's finest spacing (0.25 mm), more than rounding.
SAME_POSITION_MM = 0.05
# Angle between the slice normal and the patient's long axis, degrees. Chest CT is made without tilt; 5 degrees is
# a table that is not quite level, and moves the far edge of a 400 mm image by 35 mm.
AXIAL_TOLERANCE_DEG = 5.0
# Drift of the slices within their own plane, degrees against the normal. Half a degree is 2.6 mm over 300 mm.
SHEAR_TOLERANCE_DEG = 0.5
# Largest sideways step of one slice off the straight stack, mm. Straight table feed gives none at all; half a pixel
# of a 500 mm, 512 pixel image is the most that passes.
SIDEWAYS_TOLERANCE_MM = 0.5


@dataclass(frozen=True)
class Stack:
    """Frames of one volume, lowest first.

    candidates: per position, the frames found there; more than one are duplicates until their pixels differ.
    spacing_mm: (z, y, x).  affine: voxel index (x, y, z, 1) to LPS mm.
    part: what sets this volume apart from the others of its series, in words; empty for a whole series.
    """

    candidates: tuple[tuple[Frame, ...], ...]
    spacing_mm: tuple[float, float, float]
    affine: npt.NDArray[np.float64]
    part: str = ""

    @property
    def height_mm(self) -> float:
        """Distance from the lowest slice's centre to the highest's."""
        return (len(self.candidates) - 1) * self.spacing_mm[0]


def find_stacks(frames: Sequence[Frame]) -> list[Stack]:
    """The volumes of one series: usually one; several if one header value separates clean volumes.

    Tried in this order: the series as it is, then split by acquisition, then by temporal position. A split counts
    only when every part is a clean volume by itself, all cover the same region and all are reconstructed alike: a gap
    between two acquisitions stays a gap, and two series mixed into one are not repaired.
    Raises UnsuitableSeries with the reason why the series as a whole is not a volume.
    """
    same_subject(frames)
    try:
        return [stack_of(frames)]
    except UnsuitableSeries as whole:
        stacks = _split(frames)
        if stacks:
            return stacks
        # The split's own errors are left out: why the whole failed explains more than why the parts did.
        raise whole from None


def shows_conflict(stack: Stack) -> bool:
    """True if frames share a position, so that only their pixels can tell duplicates from a conflict."""
    return any(len(frames) > 1 for frames in stack.candidates)


def split_conflicting(frames: Sequence[Frame]) -> list[Stack]:
    """Like the split in `find_stacks`, for a series whose doubled positions hold different pixels.

    Raises UnsuitableSeries CONFLICTING_SLICES if nothing separates them.
    """
    stacks = _split(frames)
    if not stacks:
        raise UnsuitableSeries(
            ReasonCode.CONFLICTING_SLICES,
            "Several images lie at one position but differ, and nothing tells them apart.",
        )
    return stacks


def _split(frames: Sequence[Frame]) -> list[Stack]:
    for name in dict(frames[0].split_keys):
        parts: dict[str, list[Frame]] = {}
        for frame in frames:
            parts.setdefault(dict(frame.split_keys)[name], []).append(frame)
        if len(parts) < 2 or "" in parts:
            continue
        try:
            stacks = [stack_of(parts[key], f"{name} {key} of {len(parts)}") for key in sorted(parts, key=_natural)]
        except UnsuitableSeries:
            continue
        if _scan_one_region(stacks):
            return stacks
    return []


def _scan_one_region(stacks: Sequence[Stack]) -> bool:
    """True when the parts are overlapping scans of one region, reconstructed alike.

    Pieces with a gap between them, and series that were mixed together, are not volumes of one series.
    """
    ranges = [(float(one.affine[2, 3]), float(one.affine[2, 3]) + one.height_mm) for one in stacks]
    shared_mm = min(high for _, high in ranges) - max(low for low, _ in ranges)
    if shared_mm < 0.5 * min(high - low for low, high in ranges):
        return False
    spacings = np.array([one.spacing_mm for one in stacks])
    corners = np.array([one.affine[:2, 3] for one in stacks])
    ways = {_reconstruction(one.candidates[0][0]) for one in stacks}
    return bool(
        len(ways) == 1
        and np.ptp(spacings, axis=0).max() <= PIXEL_SPACING_TOLERANCE * spacings.max()
        and np.ptp(corners, axis=0).max() <= SIDEWAYS_TOLERANCE_MM
    )


def _reconstruction(frame: Frame) -> tuple[object, ...]:
    pixels, header = frame.instance.pixels, frame.header
    return pixels.rows, pixels.columns, header.kernel, header.slice_thickness_mm, header.image_type


def _natural(key: str) -> tuple[float, str]:
    try:
        return float(key), key
    except ValueError:
        return math.inf, key


def stack_of(frames: Sequence[Frame], part: str = "") -> Stack:
    """Sort frames along their common normal into one regular stack.

    Raises UnsuitableSeries: NO_POSITION, LOCALIZER, MIXED_ORIENTATIONS, MIXED_MATRIX, MIXED_PIXEL_SPACING,
    SINGLE_SLICE, MIXED_RECONSTRUCTIONS, MIXED_ACQUISITIONS, NOT_AXIAL, GANTRY_TILT, SIDEWAYS_SHIFT, MISSING_SLICES or
    IRREGULAR_SPACING.
    """
    every_frame_has_geometry(frames)
    no_localizers(frames)
    rows, columns, normal = common_axes(frames)
    spacing_y, spacing_x = common_grid(frames)
    positions = np.array([frame.position_mm for frame in frames], dtype=np.float64)
    order, groups = _by_height(positions @ normal)
    candidates = tuple(tuple(frames[index] for index in order[group]) for group in groups)
    if len(candidates) < 2:
        raise UnsuitableSeries(
            ReasonCode.SINGLE_SLICE, "The series holds images at one position only, which is not a volume."
        )
    one_reconstruction(frames)
    one_scan_after_the_other(candidates)
    places = np.array([positions[order[group]].mean(axis=0) for group in groups])
    _is_axial(normal)
    _is_straight(places, normal)
    step = _regular_step(places @ normal)
    along = (places[-1] - places[0]) / (len(places) - 1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = rows * spacing_x, columns * spacing_y, along, places[0]
    return Stack(candidates, (step, spacing_y, spacing_x), affine, part)


def _by_height(heights: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], list[slice]]:
    """Indices in ascending order of height, and the runs of them that share one position."""
    order = np.argsort(heights, kind="stable")
    starts = [0, *(np.flatnonzero(np.diff(heights[order]) > SAME_POSITION_MM) + 1).tolist(), len(order)]
    return order, [slice(first, last) for first, last in pairwise(starts)]


def _is_axial(normal: npt.NDArray[np.float64]) -> None:
    angle = math.degrees(math.acos(min(1.0, abs(float(normal[2])))))
    if angle <= AXIAL_TOLERANCE_DEG:
        return
    plane = ("sagittal", "coronal", "oblique")[int(np.argmax(np.abs(normal)))]
    raise UnsuitableSeries(
        ReasonCode.NOT_AXIAL,
        f"The images are {plane if angle > 60 else 'oblique'}, {angle:.0f} degrees away from axial; "
        f"at most {AXIAL_TOLERANCE_DEG:g} are accepted.",
    )


def _is_straight(places: npt.NDArray[np.float64], normal: npt.NDArray[np.float64]) -> None:
    """The stack goes straight up its normal: no shear, no slice off to the side."""
    run = places[-1] - places[0]
    shear = math.degrees(math.acos(min(1.0, abs(float(run @ normal)) / max(float(np.linalg.norm(run)), 1e-9))))
    if shear > SHEAR_TOLERANCE_DEG:
        raise UnsuitableSeries(
            ReasonCode.GANTRY_TILT, f"The stack leans {shear:.1f} degrees against its slices, as with a tilted gantry."
        )
    share = ((places - places[0]) @ normal) / (run @ normal)
    aside = np.linalg.norm(places - places[0] - share[:, None] * run, axis=1)
    if aside.max() > SIDEWAYS_TOLERANCE_MM:
        raise UnsuitableSeries(
            ReasonCode.SIDEWAYS_SHIFT,
            f"Some images lie up to {aside.max():.1f} mm to the side of the others; one stack is straight.",
        )


def _regular_step(heights: npt.NDArray[np.float64]) -> float:
    """The spacing in mm of ascending heights that lie on a regular grid without holes."""
    steps = np.diff(heights)
    # Rounded, so that 67 slices of 4 mm are 268 mm and not a hair less.
    mean = round(float(heights[-1] - heights[0]) / len(steps), 6)
    tolerance = max(GRID_TOLERANCE_MM, GRID_TOLERANCE_OF_SPACING * mean)
    grid = heights[0] + mean * np.arange(len(heights))
    offset = heights - grid
    if float(np.abs(offset - (offset.max() + offset.min()) / 2).max()) <= tolerance:
        return mean
    _refuse_missing(steps)
    raise UnsuitableSeries(
        ReasonCode.IRREGULAR_SPACING,
        f"The distance from slice to slice varies from {steps.min():.2f} to {steps.max():.2f} mm within the series.",
    )


def _refuse_missing(steps: npt.NDArray[np.float64]) -> None:
    """Raises MISSING_SLICES if every step is a multiple of the smallest, and the wide ones are scattered.

    Wide steps that form one run at an end are another spacing, not holes.
    """
    usual = float(np.median(steps[steps <= 1.3 * steps.min()]))
    whole = np.rint(steps / usual)
    tolerance = max(2 * GRID_TOLERANCE_MM, 2 * GRID_TOLERANCE_OF_SPACING * usual)
    wide = np.flatnonzero(whole >= 2)
    on_grid = np.abs(steps - whole * usual) <= tolerance
    one_run = wide.size >= 5 and int(wide[-1] - wide[0]) + 1 == wide.size
    at_an_end = wide.size > 0 and (wide[0] == 0 or wide[-1] == len(steps) - 1)
    if wide.size and bool(on_grid.all()) and not (one_run and at_an_end):
        missing = int((whole[wide] - 1).sum())
        raise UnsuitableSeries(
            ReasonCode.MISSING_SLICES,
            f"{'1 slice is' if missing == 1 else f'{missing} slices are'} missing: "
            f"up to {steps.max():.1f} mm from one slice to the next, "
            f"{usual:.1f} mm elsewhere.",
        )
