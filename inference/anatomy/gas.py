"""Gas without lung tissue in it: whether it lies in stomach or bowel, or in the chest beside the lung."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells
from inference.anatomy.parts import label, sizes_of
from inference.arrays import Mask

# Gas has pure air's -1000 HU and is uniform. Lung is not; around a bulla, lung lies on all sides.
_GAS_BELOW_HU = -965.0
_LEAST_ML, _MOST_ML = 3.0, 800.0
_WALL_MM, _RING_MM = 4.0, 8.0
# The first is the largest share of lung around a bubble under the diaphragm; around a bulla or beside a pneumothorax
# it is larger. Above the second, a share of the lungs' height, there is no bowel.
_LUNG_AROUND, _UNDER_SHARE = 0.35, 0.6
# A pneumothorax rises high, is wider than the windpipe, lies to one side and beside lung.
_FREE_LEAST_ML, _FREE_TOP_SHARE, _FREE_WIDER_CM2 = 30.0, 0.75, 10.0
_FREE_FROM_MIDDLE_MM, _FREE_LUNG_AROUND = 35.0, 0.08


@dataclass(frozen=True)
class _Piece:
    """One part of gas. mask: in `box`.  height: of its middle, as a share of the lungs' height.  top: of its top."""

    box: tuple[slice, ...]
    mask: Mask
    with_wall: Mask
    height: float
    top: float
    lung_around: float
    beside_mm: float
    widest_cm2: float

    @property
    def in_pleura(self) -> bool:
        """True for a pneumothorax."""
        wide = self.widest_cm2 > _FREE_WIDER_CM2 and self.beside_mm > _FREE_FROM_MIDDLE_MM
        return wide and self.top > _FREE_TOP_SHARE and self.height < 1 and self.lung_around > _FREE_LUNG_AROUND


def joined_gas(cells: Cells, lungs: Mask) -> Mask:
    """The part of `lungs` that is gas of stomach or bowel with its wall: bool (z, y, x).

    A bulla or a pneumothorax is not part of it: those lie within lung, beside it or above it.
    """
    found = np.zeros(lungs.shape, bool)
    gas = _uniform(cells, lungs)
    for piece in _pieces(cells, gas, lungs, _LEAST_ML, _MOST_ML):
        if piece.height <= _UNDER_SHARE and piece.lung_around < _LUNG_AROUND and not piece.in_pleura:
            found[piece.box] |= piece.with_wall & lungs[piece.box]
    return found


def _uniform(cells: Cells, lungs: Mask) -> Mask:
    """Cells of `lungs` where the mean of 3 by 3 cells is that of gas: bool (z, y, x)."""
    found = np.zeros(lungs.shape, bool)
    for inside, gas, hu in zip(lungs, found, cells.hu, strict=True):
        rows = np.flatnonzero(inside.any(axis=1))
        if len(rows):
            # With a row more on both sides, for the mean.
            part = slice(max(0, int(rows[0]) - 1), int(rows[-1]) + 2)
            gas[part] = inside[part] & (ndimage.uniform_filter(hu[part], 3) < _GAS_BELOW_HU)
    return found


def pleural_gas(cells: Cells, gas: Mask, lungs: Mask) -> Mask:
    """The part of `gas` that is a pneumothorax: bool (z, y, x).

    gas: air inside the body that is neither lung nor airway.
    """
    found = np.zeros(lungs.shape, bool)
    for piece in _pieces(cells, gas, lungs, _FREE_LEAST_ML, np.inf):
        if piece.in_pleura:
            found[piece.box] |= piece.mask
    return found


def _pieces(cells: Cells, gas: Mask, lungs: Mask, least_ml: float, most_ml: float) -> Iterator[_Piece]:
    """The parts of `gas` in a range of sizes, measured against the lungs; none if there are no lungs."""
    levels = np.flatnonzero(lungs.any(axis=(1, 2)))
    if not len(levels):
        return
    across = np.flatnonzero(lungs.any(axis=(0, 1)))
    middle, tall = float(across[0] + across[-1]) / 2, float(levels[-1] - levels[0] + 1)
    labels, count = label(gas)
    volumes = sizes_of(labels, count) * cells.cell_ml
    large = np.flatnonzero((volumes >= least_ml) & (volumes <= most_ml))
    boxes = ndimage.find_objects(labels) if len(large) else []
    for n in map(int, large):
        box = _grown(boxes[n - 1], cells, _RING_MM)
        mask = labels[box] == n
        with_wall = _grow(mask, cells, _WALL_MM)
        ring = _grow(mask, cells, _RING_MM) & ~with_wall
        heights, _, columns = (indices.mean() for indices in np.nonzero(mask))
        yield _Piece(
            box=box,
            mask=mask,
            with_wall=with_wall,
            height=(heights + box[0].start - levels[0]) / tall,
            top=(boxes[n - 1][0].stop - levels[0]) / tall,
            lung_around=float(lungs[box][ring].mean()) if ring.any() else 0.0,
            beside_mm=abs(columns + box[2].start - middle) * cells.spacing_mm[2],
            widest_cm2=float(np.count_nonzero(mask, axis=(1, 2)).max()) * cells.cell_cm2,
        )


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
