"""Landmarks that tell how a chest lies: the body's middle, the heart's side, the windpipe above the lungs.

All are measured on the coarse copy of a volume (see body.py). Its rows run to the patient's left and its columns to
the back, lowest slice first.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.arrays import Mask
from inference.suitability.body import Coarse

# Area of a piece of air in one slice that may be the windpipe: 1.5 to 4 cm2 in adults, less at the vocal cords.
_WINDPIPE_CM2 = (0.5, 8.0)
_WINDPIPE_ABOVE_HU, _WINDPIPE_FROM_MIDDLE_MM = -500.0, 35.0
# Slices with less air than this in the lung mask lie beyond the lungs: it is windpipe, or the tips of the recesses.
_BEYOND_CM2 = 10.0
_TISSUE_ABOVE_HU = -300.0
# Where the heart lies, as shares of the lungs' height from below.
_HEART_LEVELS = (0.25, 0.6)


@dataclass(frozen=True)
class Landmarks:
    """What was measured.

    smaller_side_share: share of the air-filled lung on the side of the body that has less; 0.5 at most.
    heart_left_mm: how far the middle between the lungs lies to the patient's left of the body's middle at the
        height of the heart: 2 to 11 in the scans at hand; 0 if no row shows both lungs.
    heart_left_of_cage_mm: the same against the middle of the lungs' outer edges. An arm beside the trunk does not
        move that middle, but a lost part of a lung does: -7 (a mass) to 9.
    windpipe_above, windpipe_below: share of the slices beyond the lungs that show air in the middle, as the neck does.
    windpipe_beside: the same for the highest third of the lungs.
    """

    smaller_side_share: float
    heart_left_mm: float
    heart_left_of_cage_mm: float
    windpipe_above: float
    windpipe_below: float
    windpipe_beside: float


def find_landmarks(coarse: Coarse, lungs: Mask) -> Landmarks:
    """The landmarks of a chest. lungs: bool on the coarse grid, see `body.measure_chest`; not empty."""
    middle = body_middle(coarse, lungs)
    windpipe = _windpipe(coarse, middle)
    areas = coarse.areas_cm2(lungs)
    inside = np.flatnonzero(areas >= min(_BEYOND_CM2, float(areas.max())))
    first, last = int(inside[0]), int(inside[-1])
    of_body, of_cage = _heart_offsets(lungs, middle, first, last)
    return Landmarks(
        smaller_side_share=smaller_side(lungs, middle),
        heart_left_mm=of_body * coarse.spacing_mm[2],
        heart_left_of_cage_mm=of_cage * coarse.spacing_mm[2],
        windpipe_above=_share(windpipe[last + 1 :]),
        windpipe_below=_share(windpipe[:first]),
        windpipe_beside=_share(windpipe[last - (last - first) // 3 : last + 1]),
    )


def body_middle(coarse: Coarse, lungs: Mask) -> float:
    """Column of the trunk's middle at the lungs' height, in fractional cells; arms apart from it do not count."""
    pieces = _pieces(coarse.hu[lungs.any(axis=(1, 2))] > _TISSUE_ABOVE_HU)
    trunks = [max((size, column) for size, column in at_one_height) for at_one_height in pieces if at_one_height]
    return float(np.median([column for _, column in trunks])) if trunks else (coarse.hu.shape[2] - 1) / 2


def smaller_side(mask: Mask, middle: float) -> float:
    """Share of a mask's voxels on the side of `middle` (a column) that has fewer; 0 for an empty mask."""
    columns = mask.sum(axis=(0, 1)).astype(np.float64)
    total = float(columns.sum())
    if not total:
        return 0.0
    whole = int(np.clip(np.floor(middle + 0.5), 0, len(columns) - 1))
    low = float(columns[:whole].sum() + columns[whole] * (middle + 0.5 - whole))
    return min(low, total - low) / total


def _share(found: npt.NDArray[np.bool_]) -> float:
    return float(found.mean()) if found.size else 0.0


def _windpipe(coarse: Coarse, middle: float) -> npt.NDArray[np.bool_]:
    """For each slice, whether a piece of air of a windpipe's size lies near the middle, apart from other air."""
    smallest, largest = (cm2 * 100.0 / (coarse.spacing_mm[1] * coarse.spacing_mm[2]) for cm2 in _WINDPIPE_CM2)
    reach = _WINDPIPE_FROM_MIDDLE_MM / coarse.spacing_mm[2]
    return np.array(
        [
            any(smallest <= size <= largest and abs(column - middle) < reach for size, column in pieces)
            for pieces in _pieces(coarse.hu < _WINDPIPE_ABOVE_HU)
        ],
        bool,
    )


def _pieces(mask: Mask) -> list[list[tuple[int, float]]]:
    """The connected pieces in each slice of a mask, as (cells, mean column)."""
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(mask, in_plane)
    places = np.flatnonzero(labels)
    piece = labels.ravel()[places]
    heights, places = np.divmod(places, mask.shape[1] * mask.shape[2])
    sizes = np.bincount(piece, minlength=count + 1)
    sums = np.bincount(piece, places % labels.shape[2], minlength=count + 1)
    height = np.zeros(count + 1, np.intp)
    height[piece] = heights
    found: list[list[tuple[int, float]]] = [[] for _ in mask]
    for label in range(1, count + 1):
        found[height[label]].append((int(sizes[label]), float(sums[label] / sizes[label])))
    return found


def _heart_offsets(lungs: Mask, middle: float, first: int, last: int) -> tuple[float, float]:
    """Cells from the middles of body and cage to the middle between the lungs, over all rows that cross both lungs."""
    whole, height = round(middle), last - first + 1
    low, high = (first + int(share * height) for share in _HEART_LEVELS)
    between, cage = [], []
    for plane in lungs[low : high + 1]:
        for row in plane[plane[:, :whole].any(axis=1) & plane[:, whole:].any(axis=1)]:
            columns = np.flatnonzero(row)
            between.append((columns[columns < whole].max() + columns[columns >= whole].min()) / 2)
            cage.append((columns[0] + columns[-1]) / 2)
    if not between:
        return 0.0, 0.0
    return float(np.mean(between)) - middle, float(np.mean(between) - np.mean(cage))
