"""Gas in stomach or bowel that a thin diaphragm, lost between two cells, has joined to the lung."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells
from inference.anatomy.parts import label, sizes_of
from inference.arrays import Mask

# Gas is air's own -1000 HU and even; lung is not, or lies all around where a bulla is.
_GAS_BELOW_HU = -965.0
_LEAST_ML, _MOST_ML = 3.0, 800.0
_WALL_MM, _RING_MM = 4.0, 8.0
# Of what lies around a bubble under the diaphragm, lung is this share at most; around a bulla or beside a
# pneumothorax it is more, and above that share of the lungs' height there is no bowel.
_LUNG_AROUND, _UNDER_SHARE = 0.35, 0.6


def joined_gas(cells: Cells, lungs: Mask) -> Mask:
    """The part of `lungs` that is gas of stomach or bowel with its wall: bool (z, y, x).

    A bulla and a pneumothorax stay: they lie within lung, beside it or above it.
    """
    found = np.zeros(lungs.shape, bool)
    levels = np.flatnonzero(lungs.any(axis=(1, 2)))
    if not len(levels):
        return found
    highest = levels[0] + _UNDER_SHARE * (levels[-1] - levels[0])
    gas = lungs & (ndimage.uniform_filter(cells.hu, (1, 3, 3)) < _GAS_BELOW_HU)
    labels, count = label(gas)
    volumes = sizes_of(labels, count) * cells.cell_ml
    boxes = ndimage.find_objects(labels)
    for n in map(int, np.flatnonzero((volumes >= _LEAST_ML) & (volumes <= _MOST_ML))):
        box = _grown(boxes[n - 1], cells, _RING_MM)
        piece, lung = labels[box] == n, lungs[box]
        if float(np.nonzero(piece)[0].mean()) + box[0].start > highest:
            continue
        with_wall = _grow(piece, cells, _WALL_MM)
        ring = _grow(piece, cells, _RING_MM) & ~with_wall
        if ring.any() and float(lung[ring].mean()) < _LUNG_AROUND:
            found[box] |= with_wall & lung
    return found


def _grown(box: tuple[slice, ...], cells: Cells, mm: float) -> tuple[slice, ...]:
    return tuple(
        slice(max(0, side.start - round(mm / step)), side.stop + round(mm / step))
        for side, step in zip(box, cells.spacing_mm, strict=True)
    )


def _grow(piece: Mask, cells: Cells, mm: float) -> Mask:
    """A part with all cells within a box of `mm` around each of its own."""
    size = [2 * round(mm / step) + 1 for step in cells.spacing_mm]
    grown: npt.NDArray[np.bool_] = ndimage.maximum_filter(piece, size)
    return grown
