"""What the scanner shows for air, measured in the windpipe: it should be -1000 HU."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.regions import Air
from inference.densitometry.lungs import box_around

# Wall and partial volume have more; the rim of what is left is taken away as well.
_LUMEN_BELOW_HU, _RIM_MM = -880, 2.0
# Fewer voxels than this give no dependable median.
_FEWEST_VOXELS, _LEAST_ML = 50, 0.5


@dataclass(frozen=True)
class AirSample:
    """Air in the middle of the windpipe. hu: its median.  ml: how much of it."""

    hu: float
    ml: float


def sample_air(hu: npt.NDArray[np.int16], spacing_mm: tuple[float, float, float], air: Air) -> AirSample | None:
    """The air in windpipe and main bronchi of a volume (Z, Y, X); None if too little of it is seen."""
    if not air.airways.any():
        return None
    box = box_around(air.airways, air.cells, margin=0)
    inside = air.cells.to_voxels(air.airways)[box]
    lumen = inside & (hu[box] < _LUMEN_BELOW_HU)
    rows, columns = (2 * max(1, round(_RIM_MM / mm)) + 1 for mm in spacing_mm[1:])
    values = hu[box][ndimage.minimum_filter(lumen, (1, rows, columns))]
    ml = len(values) * float(np.prod(spacing_mm)) / 1000.0
    if len(values) < _FEWEST_VOXELS or ml < _LEAST_ML:
        return None
    return AirSample(float(np.median(values)), ml)
