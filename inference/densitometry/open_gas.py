"""Gas that the anatomy took for stomach or bowel, and that is open to the lung: emphysema on the diaphragm."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells, Floats
from inference.anatomy.parts import label, sizes_of
from inference.anatomy.regions import Air
from inference.arrays import Mask

# A filter in plane finds the middle of the gas; cells around it that are still gas complete it, step by step.
_MIDDLE_BELOW_HU, _GAS_BELOW_HU, _LEAST_ML = -965.0, -930.0, 1.5
_STEPS = 3
# Two cells away from the gas, this share of its surroundings is lung that no wall divides from it. It is 0.34 to 0.58
# for clusters on the diaphragm of phantoms, and at most 0.03 for stomach, bowel and hiatal hernia, in a real scan too.
_LUNG_BELOW_HU, _OPEN_SHARE = -800.0, 0.15
_AROUND_MM = 6.0
_NEXT = ndimage.generate_binary_structure(3, 1)


def with_open_gas(air: Air) -> Air:
    """The same air, with the gas that is open to the lung counted as lung."""
    cells, found = air.cells, np.zeros(air.lungs.shape, bool)
    middle = air.other & (ndimage.uniform_filter(cells.hu, (1, 3, 3)) < _MIDDLE_BELOW_HU)
    labels, count = label(middle)
    boxes = ndimage.find_objects(labels)
    steps = [round(_AROUND_MM / mm) + 2 for mm in cells.spacing_mm]
    for n in map(int, np.flatnonzero(sizes_of(labels, count) * cells.cell_ml >= _LEAST_ML)):
        sides = zip(boxes[n - 1], steps, strict=True)
        box = tuple(slice(max(0, side.start - step), side.stop + step) for side, step in sides)
        gas = ndimage.binary_dilation(labels[box] == n, _NEXT, _STEPS, mask=cells.hu[box] < _GAS_BELOW_HU)
        near = _grown(gas, cells)
        if (near & air.lungs[box]).any() and _open_share(gas, cells.hu[box]) >= _OPEN_SHARE:
            found[box] |= near & air.other[box]
    return replace(air, lungs=air.lungs | found, other=air.other & ~found) if found.any() else air


def _grown(gas: Mask, cells: Cells) -> Mask:
    size = [2 * round(_AROUND_MM / mm) + 1 for mm in cells.spacing_mm]
    grown: npt.NDArray[np.bool_] = ndimage.maximum_filter(gas, size)
    return grown


def _open_share(gas: Mask, hu: Floats) -> float:
    """Share of the cells two steps away from gas that are reached from it through lung alone."""
    lung = hu < _LUNG_BELOW_HU
    next_to = ndimage.binary_dilation(gas, _NEXT)
    second = ndimage.binary_dilation(next_to, _NEXT) & ~next_to
    reached = ndimage.binary_dilation(gas | (next_to & lung), _NEXT) & lung & second
    return float(np.count_nonzero(reached)) / max(1, int(np.count_nonzero(second)))
