"""The lungs that are measured: the unsupervised mask confined to the anatomy, its parenchyma, right and left apart."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells
from inference.anatomy.confine import confine
from inference.anatomy.parts import label, sizes_of
from inference.anatomy.regions import Air
from inference.anatomy.unsupervised import unsupervised_mask
from inference.arrays import Box, Mask
from inference.densitometry.open_gas import with_open_gas

# Halfway between inflated lung and soft tissue: the blurred edge of the lung makes it neither larger nor smaller.
PARENCHYMA_BELOW_HU = -400
# Lungs that touch are connected over a junction of a few cells: taken away layer by layer until it parts.
_JUNCTION_MM = 16.0
# Each lung holds at least this share of both; less is a lobe or a bulla that the layers cut off.
_LUNG_SHARE = 0.15
_MARGIN_CELLS = 3
_CROSS = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True, eq=False)
class Lungs:
    """Both lungs on the grid of the volume: bool (Z, Y, X) each.

    right, left: with the vessels in them; no voxel is in both.
    parenchyma: the part of both whose density is measured: below -400 HU, which leaves out large vessels, walls and
        consolidation. Windpipe and main bronchi are in none of the three; smaller bronchi in the lung are part of it.
    box: around both.
    gas_ml: gas that the unsupervised mask took for lung, and the anatomy for stomach or bowel.
    """

    right: Mask
    left: Mask
    parenchyma: Mask
    box: Box
    gas_ml: float

    @property
    def both(self) -> Mask:
        """Right and left: bool (Z, Y, X)."""
        return self.right | self.left


def find_lungs(hu: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float], air: Air) -> Lungs:
    """The lungs of a volume whose rows run to the patient's left.

    hu: (Z, Y, X), z towards the head.  air: of the same volume; it must have lungs.
    """
    air = with_open_gas(air)
    # What touches the sides of the box counts as outside the body: the margin keeps the lungs away from them.
    box = box_around(air.lungs, air.cells, _MARGIN_CELLS)
    whole = np.zeros(hu.shape, bool)
    # Nothing outside the lungs' box can be lung, and labelling the rest takes most of the time.
    whole[box] = unsupervised_mask(hu[box], spacing_mm)
    gas = np.count_nonzero(whole & air.cells.to_voxels(air.other) & (hu < PARENCHYMA_BELOW_HU))
    whole = confine(whole.view(np.uint8), air)
    right = _right_part(whole, air)
    gas_ml = float(gas * np.prod(spacing_mm)) / 1000.0
    return Lungs(right, whole & ~right, whole & (hu < PARENCHYMA_BELOW_HU), box, gas_ml)


def box_around(mask: Mask, cells: Cells, margin: int) -> Box:
    """The voxels of the box around a mask of cells, which is not empty, and of `margin` cells around that."""
    (box,) = ndimage.find_objects(mask.view(np.uint8))
    z, y, x = (
        slice(max(0, side.start - margin) * factor, min(size, (side.stop + margin) * factor))
        for side, factor, size in zip(box, cells.factors, cells.shape, strict=True)
    )
    return z, y, x


def _right_part(whole: Mask, air: Air) -> Mask:
    """The part of a mask in the right lung: bool (Z, Y, X)."""
    (box,) = ndimage.find_objects(ndimage.maximum_filter(air.lungs, 3).view(np.uint8))
    side = np.zeros(air.lungs.shape, bool)
    side[box] = _right_side(air.cells, air.lungs[box])
    return np.logical_and(whole, air.cells.to_voxels(side))


def _right_side(cells: Cells, lungs: Mask) -> Mask:
    """Cells that are nearer to the right lung than to the left: bool (z, y, x), defined outside the lungs too."""
    cores = _cores(cells, lungs)
    if cores is None:
        return _beside_plane(lungs)
    right, left = cores
    from_right = ndimage.distance_transform_edt(~right, sampling=cells.spacing_mm)
    from_left = ndimage.distance_transform_edt(~left, sampling=cells.spacing_mm)
    nearer: Mask = from_right <= from_left
    return nearer


def _cores(cells: Cells, lungs: Mask) -> tuple[Mask, Mask] | None:
    """What is left of the right and of the left lung once they are apart; None if they do not come apart."""
    rest = lungs
    for _ in range(1 + round(_JUNCTION_MM / max(cells.spacing_mm[1:]))):
        labels, count = label(rest)
        sizes = sizes_of(labels, count)
        large = np.argsort(sizes)[::-1][:2]
        if count >= 2 and sizes[large[1]] >= _LUNG_SHARE * sizes.sum():
            parts = sorted((labels == n for n in large), key=_middle_column)
            if _beside_each_other(parts[0], parts[1]):
                return parts[0], parts[1]
        rest = ndimage.binary_erosion(rest, _CROSS[1:2], border_value=1)
    return None


def _middle_column(part: Mask) -> float:
    columns = part.sum(axis=(0, 1), dtype=np.float64)
    return float(columns @ np.arange(len(columns)) / max(columns.sum(), 1.0))


def _beside_each_other(first: Mask, second: Mask) -> bool:
    """True if two parts share at least half the height of the lower one, as lungs do, and lobes of one lung do not."""
    tall = [np.flatnonzero(part.any(axis=(1, 2))) for part in (first, second)]
    shared = min(int(levels[-1]) for levels in tall) - max(int(levels[0]) for levels in tall) + 1
    return 2 * shared >= min(int(np.ptp(levels)) + 1 for levels in tall)


def _beside_plane(lungs: Mask) -> Mask:
    """Everything to the right of the thinnest sagittal plane between the outer quarters of the lungs."""
    columns = lungs.sum(axis=(0, 1), dtype=np.int64)
    filled = np.flatnonzero(columns)
    start, stop = int(filled[0]), int(filled[-1]) + 1
    quarter = (stop - start) // 4
    middle = columns[start + quarter : stop - quarter]
    plane = start + quarter + int(np.median(np.flatnonzero(middle == middle.min())))
    found = np.zeros(lungs.shape, bool)
    found[:, :, :plane] = True
    return found
