"""What a scan itself tells of the scanner that made it: HU of known things, noise, volume. For watching, no report.

All of it is measured on cells that the suitability rules have found already, or on a few slices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.coding import BILATERAL, LUNG, VOLUME
from inference.anatomy.regions import Air, air_in, beyond_field
from inference.arrays import Mask
from inference.densitometry.calibration import sample_air
from inference.densitometry.lungs import PARENCHYMA_BELOW_HU
from inference.densitometry.noise import noise_of
from inference.plug import Output
from inference.volume.ct_volume import CTVolume, upright

# Scanners see nothing beyond the field, and write padding there; cells are clipped to -1024.
_FIELD_SHARE, _PADDING_HU = 0.95, -1023.5
_PURE_BELOW_HU = -900.0
_FEWEST_CELLS, _LEVELS_FOR_AIR = 500, 24
_NEIGHBOURS = (1, 5, 5)
_SLICES_FOR_NOISE = 12


@dataclass(frozen=True)
class Measured:
    """What the pixels of one scan tell; None if they do not show it.

    hu_air: median of the air around the patient.  hu_trachea: median in the middle of the windpipe.  hu_lung: mean of
    the air-filled lungs.  noise_hu: see `densitometry.noise`.  lung_volume_ml: as the model measured it, or else of the
    air-filled lungs.
    """

    hu_air: float | None = None
    hu_trachea: float | None = None
    hu_lung: float | None = None
    noise_hu: float | None = None
    lung_volume_ml: float | None = None


def measure(volume: CTVolume, output: Output) -> Measured:
    """The facts of a volume that was analysed. output: what the model made of it."""
    turned = upright(volume)
    air = air_in(turned)
    sample = sample_air(turned.hu, turned.spacing_mm, air)
    lung = air.cells.hu[air.lungs]
    return Measured(
        hu_air=_outside(air),
        hu_trachea=None if sample is None else sample.hu,
        hu_lung=float(lung.mean()) if lung.size else None,
        noise_hu=noise_of(_planes(turned.hu, air), turned.spacing_mm[1:]),
        lung_volume_ml=_volume_ml(output) or float(lung.size * air.cells.cell_ml) or None,
    )


def _outside(air: Air) -> float | None:
    """The median of pure air around the patient, away from skin, table and the edge of the field."""
    some = slice(None, None, max(1, len(air.outside) // _LEVELS_FOR_AIR))
    cells, outside = air.cells.hu[some], air.outside[some]
    pure = outside & ~beyond_field(cells.shape[1:], _FIELD_SHARE) & (cells < _PURE_BELOW_HU)
    hu = cells[ndimage.minimum_filter(pure.view(np.uint8), _NEIGHBOURS).view(np.bool_)]
    hu = hu[hu > _PADDING_HU]
    return float(np.median(hu)) if hu.size >= _FEWEST_CELLS else None


def _planes(hu: npt.NDArray[np.int16], air: Air) -> Iterator[tuple[npt.NDArray[np.int16], Mask]]:
    """HU and parenchyma of some slices, evenly through the lungs, within their box."""
    found = ndimage.find_objects(air.lungs.view(np.uint8))
    if not found:
        return
    levels, rows, columns = found[0]
    _, down, across = air.cells.factors
    box = slice(rows.start * down, rows.stop * down), slice(columns.start * across, columns.stop * across)
    for level in np.unique(np.linspace(levels.start, levels.stop - 1, _SLICES_FOR_NOISE).round().astype(int)):
        plane = hu[air.cells.slice_of(int(level))][box]
        lungs = air.lungs[level, rows, columns].repeat(down, axis=0).repeat(across, axis=1)
        inside = lungs[: plane.shape[0], : plane.shape[1]] & (plane < PARENCHYMA_BELOW_HU)
        yield plane, np.ascontiguousarray(inside)


def _volume_ml(output: Output) -> float | None:
    """The volume of both lungs, if the model measured it."""
    lungs = [one for one in output.measurements if one.concept == VOLUME and one.site == LUNG]
    return next((one.value for one in lungs if one.laterality == BILATERAL), None)
