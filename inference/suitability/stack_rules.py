"""What the pixels say about the stack of slices: it must show one body, once, in order, on one Hounsfield scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.reasons import ReasonCode
from inference.anatomy.regions import Air, beyond_field
from inference.errors import Evidence, UnsuitableSeries
from inference.suitability.body import Coarse, Floats

_SLICES_MATCH = 0.75
# A step between neighbours that is far larger than those around it: two bodies stacked on one another. A breath
# between two slices gives 3 to 5 times the usual difference.
_STEP_MATCH, _STEP_TIMES = 0.85, 8.0
# In whole scans slices match their neighbours best, so this stays near 0 (0.007 with breathing); a slice of another
# series gives 0.18 and more.
_STRANGER = 0.04
# The closer two slices of one body lie, the less they differ. This is the difference of neighbours on the way over
# that of the two ends: 0.5 to 0.95 in the scans at hand, 2 and more if two neighbours changed places or if anatomy
# comes twice. Differences below the floor are noise.
_TIMES_FARTHER, _DIFFERENCE_FLOOR = 1.6, 0.004
_REPEAT_MM, _REPEAT_TIMES = 20.0, 1.9
# In thick slices, the medians of air, fat and muscle in neighbouring slices differ by up to 9 HU.
_STEP_HU, _STEP_CELLS, _STEP_KINDS = 17.0, 150, 2
_FAR_OFF_HU, _FAR_SPREAD = 300.0, 0.2
_STILL_HU = 6.0
# A wrong intercept moves all of them by the same amount; a change of anatomy does not.
_STEP_SPREAD_HU, _STEP_SPREAD = 10.0, 0.05
_FAT_HU, _MUSCLE_HU, _AIR_BELOW_HU = (-170.0, -30.0), (-20.0, 120.0), -900.0


@dataclass(frozen=True)
class _Misplaced:
    """Slices that match more distant ones too well. swapped: two neighbours; otherwise anatomy that comes twice."""

    z: int
    swapped: bool


def check_far_off(air: Air) -> None:
    """Raises UnsuitableSeries (HU_STEP) if all of a slice is far brighter or darker than all of the next."""
    hu = air.cells.hu
    seen = ~beyond_field(hu.shape[1:], 0.97)
    middle = np.diff(_percentiles(hu, seen, 50))
    if not (np.abs(middle) > _FAR_OFF_HU).any():
        return
    dark = np.diff(_percentiles(hu, seen, 10))
    far = (np.abs(middle) > _FAR_OFF_HU) & (np.abs(dark - middle) < _STEP_SPREAD_HU + _FAR_SPREAD * np.abs(middle))
    if far.any():
        raise UnsuitableSeries(
            ReasonCode.HU_STEP,
            f"Between two neighbouring slices all values change by {np.abs(middle[far]).max():.0f} HU: some slices "
            "have another scale of Hounsfield units than the others.",
            Evidence(air.cells.slice_of(int(far.argmax()) + 1)),
        )


def _percentiles(hu: Floats, seen: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.float64]:
    """A percentile of the cells in each slice that are seen."""
    return np.concatenate([np.percentile(plane[seen], (share,)) for plane in hu])


def check_scale(air: Air) -> None:
    """Raises UnsuitableSeries (HU_STEP) if air, fat and muscle jump together from one slice to the next."""
    hu = air.cells.hu
    outside = air.outside & (hu < _AIR_BELOW_HU) & (hu > -1023.9)
    for z in range(len(hu) - 1):
        steps = np.array(list(_steps_until_still(hu[z : z + 2], outside[z] & outside[z + 1])))
        up, down = steps[steps > _STEP_HU], -steps[steps < -_STEP_HU]
        jumped = up if len(up) > len(down) else down
        if len(jumped) < _STEP_KINDS or np.abs(steps).min() < _STILL_HU:
            continue
        size = float(np.median(jumped))
        if np.ptp(jumped) < _STEP_SPREAD_HU + _STEP_SPREAD * size:
            raise UnsuitableSeries(
                ReasonCode.HU_STEP,
                f"Between two neighbouring slices air, fat and muscle change by {size:.0f} HU at once: some slices "
                "have another scale of Hounsfield units than the others.",
                Evidence(air.cells.slice_of(z + 1)),
            )


def _steps_until_still(pair: Floats, outside: npt.NDArray[np.bool_]) -> Iterator[float]:
    """The steps of air, fat and muscle up to the first that is none: then the scale is the same in both slices."""
    for step in scale_steps(pair, outside):
        yield step
        if abs(step) < _STILL_HU:
            return


def scale_steps(pair: Floats, outside: npt.NDArray[np.bool_]) -> Iterator[float]:
    """Median change in HU from the lower to the upper of two slices: of air, fat and muscle, each if there is enough.

    pair: float32 (2, y, x).  outside: air around the patient in both.
    """
    change = pair[1] - pair[0]
    yield from _middle(change, (outside,))
    # Fat of one slice and fat of the other: if the two are not the same, their borders move to opposite sides.
    for limits in (_FAT_HU, _MUSCLE_HU):
        yield from _middle(change, [_between(hu, limits) for hu in pair])


def _middle(change: Floats, kinds: Sequence[npt.NDArray[np.bool_]]) -> Iterator[float]:
    """The mean of the medians in masks, of those that are large enough; nothing if none is."""
    medians = [float(np.median(change[kind])) for kind in kinds if np.count_nonzero(kind) >= _STEP_CELLS]
    if medians:
        yield float(np.mean(medians))


def _between(hu: Floats, limits: tuple[float, float]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (hu > limits[0]) & (hu < limits[1])
    return found


def check_stack(coarse: Coarse) -> None:
    """Raises UnsuitableSeries: SLICES_DO_NOT_MATCH for slices of another body, SLICE_ORDER for slices out of order."""
    matches = neighbour_matches(coarse)
    misplaced = find_misplaced(coarse)
    if misplaced is not None and misplaced.swapped:
        raise UnsuitableSeries(
            ReasonCode.SLICE_ORDER,
            f"Slices {misplaced.z + 1} and {misplaced.z + 2} from below have changed places.",
            Evidence(misplaced.z),
        )
    usual = ndimage.median_filter(1 - matches, size=21, mode="nearest")
    step = (matches < _STEP_MATCH) & (1 - matches > _STEP_TIMES * usual)
    if matches.min(initial=1.0) < _SLICES_MATCH or step.any():
        worst = int((step if step.any() else -matches).argmax())
        raise UnsuitableSeries(
            ReasonCode.SLICES_DO_NOT_MATCH, "Neighbouring slices do not show the same body.", Evidence(worst + 1)
        )
    if misplaced is not None:
        raise UnsuitableSeries(
            ReasonCode.SLICE_ORDER,
            f"Above slice {misplaced.z + 1} from below the same part of the body comes again, as when two breath-holds "
            "overlap.",
            Evidence(misplaced.z),
        )
    if worst_stranger(coarse) > _STRANGER:
        raise UnsuitableSeries(ReasonCode.SLICES_DO_NOT_MATCH, "Neighbouring slices do not show the same body.")


def find_misplaced(coarse: Coarse) -> _Misplaced | None:
    """Two neighbours that changed places, or else a stretch of anatomy that comes twice."""
    beside = 1 - _matches(coarse.every, 1)
    if len(beside) < 3:
        return None
    second = 1 - _matches(coarse.every, 2)
    as_is, swapped = beside[:-2] + beside[2:], second[:-1] + second[1:]
    times = np.where(as_is > 2 * _DIFFERENCE_FLOOR, as_is / np.maximum(swapped, _DIFFERENCE_FLOOR), 0.0)
    if times.max() > _TIMES_FARTHER:
        return _Misplaced(int(times.argmax()) + 1, swapped=True)
    most = int(_REPEAT_MM / max(coarse.slice_mm, 0.1))
    for lag in range(2, min(max(most, 3), len(coarse.every) - 1)):
        way = np.lib.stride_tricks.sliding_window_view(beside, lag).max(axis=1)
        ends = 1 - _matches(coarse.every, lag)
        farther = (way > _DIFFERENCE_FLOOR) & (way > _REPEAT_TIMES * np.maximum(ends, _DIFFERENCE_FLOOR / 2))
        twice = np.flatnonzero(farther[:-1] & farther[1:])
        if len(twice):
            first = int(twice[0])
            return _Misplaced(first + int(beside[first : first + lag].argmax()), swapped=False)
    return None


def neighbour_matches(coarse: Coarse) -> npt.NDArray[np.float64]:
    """Correlation of each slice with the next, over the body: 0.9 and above in any whole scan."""
    return _matches(coarse.every, 1)


def worst_stranger(coarse: Coarse) -> float:
    """The most by which two slices match each other better than some neighbours between them do.

    The closer two slices of one body are, the better they match, breathing or not, so this stays below 0. One or a
    few slices of another body or scan in between match neither side.
    """
    beside = _matches(coarse.every, 1)
    worst = -1.0
    for lag in range(2, min(5, len(coarse.every))):
        way = np.lib.stride_tricks.sliding_window_view(beside, lag).min(axis=1)
        worst = max(worst, float((_matches(coarse.every, lag) - way).max()))
    return worst


def _matches(planes: Floats, lag: int) -> npt.NDArray[np.float64]:
    """Correlation of each slice with the one `lag` slices above it. planes: normalised, (slices, cells)."""
    matches: npt.NDArray[np.float64] = (planes[:-lag] * planes[lag:]).sum(axis=1, dtype=np.float64)
    return matches
