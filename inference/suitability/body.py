"""What the pixels say about the body: where the air-filled lungs are, and which way up they lie.

Everything is measured on a coarse copy of the volume (cells of about 4 mm, noise averaged out). This takes a fraction
of a second and no network, so that a series can be refused before any model sees it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.anatomy.cells import Cells, addable, row_sums
from inference.anatomy.regions import Air
from inference.arrays import Mask
from inference.volume.ct_volume import CTVolume
from inference.volume.remembered import remembered

Floats = npt.NDArray[np.float32]

_CELL_MM = 4.0
_SLICE_MM = 2.5
_LIMITS_HU = (-1024, 1500)
_BONE_ABOVE_HU = 200.0
# The lowest and highest eighth of the lungs by volume.
_END_SHARE = 0.125


@dataclass(frozen=True)
class Coarse:
    """A coarse copy of a volume.

    hu: float32 (z, y, x), cell means.  spacing_mm: of the cells.  levels: z taken.  factors: rows, columns per cell.
    every: float32 (Z, cells), all slices of the volume as vectors of mean 0 and length 1.  slice_mm: their spacing.
    """

    hu: Floats
    spacing_mm: tuple[float, float, float]
    levels: tuple[int, ...]
    factors: tuple[int, int]
    every: Floats
    slice_mm: float

    @property
    def cell_ml(self) -> float:
        z, y, x = self.spacing_mm
        return z * y * x / 1000.0

    def areas_cm2(self, mask: Mask) -> npt.NDArray[np.float64]:
        """Area of a mask in each slice."""
        counts = np.count_nonzero(mask, axis=(1, 2)).astype(np.float64)
        areas: npt.NDArray[np.float64] = counts * (self.spacing_mm[1] * self.spacing_mm[2] / 100.0)
        return areas

    def shrink_mask(self, mask: Mask) -> Mask:
        """Bring a mask from the volume's own grid to the coarse one: cells that lie at least half inside it."""
        return np.stack([self._shrunk(mask[z]) for z in self.levels])

    def shrink_cells(self, mask: Mask, cells: Cells) -> Mask:
        """The same for a mask of the volume's cells."""
        return np.stack([self._shrunk(cells.to_slice(mask[z // cells.factors[0]])) for z in self.levels])

    def _shrunk(self, plane: Mask) -> Mask:
        rows, columns = self.hu.shape[1:]
        if not plane.any():
            return np.zeros((rows, columns), bool)
        down, across = self.factors
        inside = addable(plane[: rows * down, : columns * across], 1, down * across)
        counts = row_sums(row_sums(inside, down).T, across).T
        return np.asarray(counts >= (down * across + 1) // 2)


@dataclass(frozen=True)
class Chest:
    """The air-filled lungs on the coarse grid.

    volume_ml, height_mm: of the lungs.  first_cm2, last_cm2: their area in the volume's lowest and highest slice.
    base_to_apex_width: lateral extent of the lowest eighth over that of the highest.
    base_offset_mm: how far the lowest eighth lies behind the centre.
    bone_offset_mm: how far midline bone lies behind the lungs' centre.  width_to_depth: of the lungs' box.
    """

    lungs: Mask
    volume_ml: float
    height_mm: float
    first_cm2: float
    last_cm2: float
    base_to_apex_width: float
    base_offset_mm: float
    bone_offset_mm: float
    width_to_depth: float


@remembered
def shrink(volume: CTVolume) -> Coarse:
    """The coarse copy, with padding and metal clipped to -1024..1500 HU."""
    depth, rows, columns = volume.hu.shape
    spacing_z, spacing_y, spacing_x = volume.spacing_mm
    factors = (max(1, round(_CELL_MM / spacing_y)), max(1, round(_CELL_MM / spacing_x)))
    count = max(2, min(depth, 1 + round((depth - 1) * spacing_z / max(_SLICE_MM, spacing_z))))
    levels = tuple(int(level) for level in np.unique(np.rint(np.linspace(0, depth - 1, count)).astype(int)))
    kept_rows, kept_columns = rows // factors[0], columns // factors[1]
    planes = np.stack([_cells(hu, factors, kept_rows, kept_columns) for hu in volume.hu])
    step = (levels[-1] - levels[0]) / max(1, len(levels) - 1) * spacing_z
    spacing = (step, spacing_y * factors[0], spacing_x * factors[1])
    return Coarse(planes[list(levels)], spacing, levels, factors, _normalised(planes), spacing_z)


def _cells(plane: npt.NDArray[np.int16], factors: tuple[int, int], rows: int, columns: int) -> Floats:
    """Means of a plane. The sums are exact in float32 up to 10,000 pixels a cell."""
    kept = addable(np.clip(plane[: rows * factors[0], : columns * factors[1]], *_LIMITS_HU), _LIMITS_HU[1], factors[0])
    sums = row_sums(row_sums(kept, factors[0]).astype(np.float32).T, factors[1]).T
    return np.asarray(sums / np.float32(factors[0] * factors[1]))


def measure_chest(coarse: Coarse, air: Air) -> Chest | None:
    """The lungs' measures, or None if nothing in the volume is a lung. air: of the same volume."""
    lungs = coarse.shrink_cells(air.lungs, air.cells)
    if not lungs.any():
        return None
    areas = coarse.areas_cm2(lungs)
    present = np.flatnonzero(areas > 0)
    low, high = _ends(lungs, areas)
    spacing_z, spacing_y, spacing_x = coarse.spacing_mm
    middle_y = float(indices_along(lungs, 1).mean())
    return Chest(
        lungs=lungs,
        volume_ml=float(lungs.sum()) * coarse.cell_ml,
        height_mm=float(present[-1] - present[0] + 1) * spacing_z,
        first_cm2=float(areas[0]),
        last_cm2=float(areas[-1]),
        base_to_apex_width=_spread(low, 2) / max(_spread(high, 2), 1.0),
        base_offset_mm=(float(indices_along(low, 1).mean()) - middle_y) * spacing_y,
        bone_offset_mm=_bone_offset(coarse, lungs) * spacing_y,
        width_to_depth=_spread(lungs, 2) * spacing_x / max(_spread(lungs, 1) * spacing_y, 1.0),
    )


def _ends(lungs: Mask, areas: npt.NDArray[np.float64]) -> tuple[Mask, Mask]:
    """The lowest and highest eighth of the lungs by volume, whole slices."""
    share = np.cumsum(areas) / areas.sum()
    low, high = lungs.copy(), lungs.copy()
    low[share > max(_END_SHARE, float(share[share > 0][0]))] = False
    high[share < min(1 - _END_SHARE, float(share[-2]) if share.size > 1 else 1.0)] = False
    return low, high


def indices_along(mask: Mask, axis: int) -> npt.NDArray[np.intp]:
    """The index along an axis of each cell of a mask, in rising order."""
    others = tuple({0, 1, 2} - {axis})
    return np.repeat(np.arange(mask.shape[axis]), np.count_nonzero(mask, axis=others))


def _spread(mask: Mask, axis: int) -> float:
    """Cells between the 3rd and 97th percentile along an axis."""
    low, high = np.percentile(indices_along(mask, axis), (3, 97))
    return float(high - low) + 1.0


def _bone_offset(coarse: Coarse, lungs: Mask) -> float:
    """Cells from the lungs' centre back to the centre of midline bone; 0 if there is none."""
    middle = float(np.median(indices_along(lungs, 2)))
    reach = max(1, round(30.0 / coarse.spacing_mm[2]))
    levels = lungs.any(axis=(1, 2))
    strip = coarse.hu[levels, :, max(0, round(middle) - reach) : round(middle) + reach + 1] > _BONE_ABOVE_HU
    bone_rows = indices_along(strip, 1)
    return float(bone_rows.mean() - indices_along(lungs, 1).mean()) if bone_rows.size else 0.0


def _normalised(planes: Floats) -> Floats:
    """Each slice as a vector of mean 0 and length 1: float32 (slices, cells)."""
    flat = np.clip(planes, -1000, 200).reshape(len(planes), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return flat
