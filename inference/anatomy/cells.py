"""A volume in cells of about 2 mm: fine enough for an airway's wall to separate it from the lung, quick to search."""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from inference.arrays import Mask
from inference.volume.ct_volume import CTVolume

Floats = npt.NDArray[np.float32]
Number = TypeVar("Number", np.float32, np.integer[Any])

_CELL_MM = 2.0
# From 9 numbers on, reduceat adds them in another order.
_SUMMED_IN_ORDER = 8


@dataclass(frozen=True)
class Cells:
    """Means over blocks of voxels.

    hu: float32 (z, y, x), HU clipped to -1024..1500.  spacing_mm: of the cells.  factors: voxels per cell (z, y, x).
    shape: (Z, Y, X) of the volume. The last cell of an axis may hold fewer voxels than the others.
    """

    hu: Floats
    spacing_mm: tuple[float, float, float]
    factors: tuple[int, int, int]
    shape: tuple[int, int, int]

    @property
    def cell_ml(self) -> float:
        """Millilitres of a cell."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def cell_cm2(self) -> float:
        """Area of a cell in its slice."""
        return self.spacing_mm[1] * self.spacing_mm[2] / 100.0

    def in_plane(self, mm: float) -> int:
        """A distance in cells of a slice, at least 1."""
        return max(1, round(mm / self.spacing_mm[1]))

    def slice_of(self, z: int) -> int:
        """The lowest slice of the volume in a level of cells."""
        return z * self.factors[0]

    def to_voxels(self, mask: Mask) -> Mask:
        """A mask of cells on the volume's grid: bool (Z, Y, X)."""
        voxels = np.zeros(self.shape, bool)
        step = self.factors[0]
        for level in np.flatnonzero(mask.any(axis=(1, 2))):
            voxels[level * step : (level + 1) * step] = self.to_slice(mask[level])
        return voxels

    def to_slice(self, plane: Mask) -> Mask:
        """One level of such a mask on the volume's pixels: bool (Y, X)."""
        _, down, across = self.factors
        _, y, x = self.shape
        # Columns first, while the array is small: repeating them is the slowest.
        return np.repeat(np.repeat(plane, across, axis=1), down, axis=0)[:y, :x]

    def share_of(self, mask: Mask, box: tuple[slice, ...]) -> Floats:
        """How much of each cell in a box a mask on the volume's grid fills: float32 (z, y, x), 0 to 1."""
        voxels = [slice(side.start * n, side.stop * n) for side, n in zip(box, self.factors, strict=True)]
        return _means(mask[tuple(voxels)], self.factors)


def cells_of(volume: CTVolume) -> Cells:
    """The cells of a volume."""
    factors = tuple(max(1, round(_CELL_MM / mm)) for mm in volume.spacing_mm)
    z, y, x = (factor * mm for factor, mm in zip(factors, volume.spacing_mm, strict=True))
    hu = _means(volume.hu, (factors[0], factors[1], factors[2]), (-1024, 1500))
    return Cells(hu, (z, y, x), (factors[0], factors[1], factors[2]), (len(volume.hu), *volume.hu.shape[1:]))


def _means(
    voxels: npt.NDArray[np.generic], factors: tuple[int, int, int], limits: tuple[int, int] | None = None
) -> Floats:
    """Mean of each block, a few slices at a time; a block at the end holds what is left.

    voxels: a mask, or whole numbers that are clipped to `limits`.
    """
    depth, rows, columns = (-(-size // factor) for size, factor in zip(voxels.shape, factors, strict=True))
    result = np.empty((depth, rows, columns), np.float32)
    down, across = (np.arange(0, size, factor) for size, factor in zip(voxels.shape[1:], factors[1:], strict=True))
    counts = np.outer(
        np.diff(down, append=voxels.shape[1]).astype(np.float32), np.diff(across, append=voxels.shape[2])
    ).astype(np.float32)
    most = 1 if limits is None else max(map(abs, limits))
    for index in range(depth):
        block = voxels[index * factors[0] : (index + 1) * factors[0]]
        block = addable(block if limits is None else np.clip(block, *limits), most, len(block))
        plane = np.add.reduce(block, axis=0, dtype=block.dtype).astype(np.float32)
        plane /= np.float32(len(block))
        result[index] = row_sums(row_sums(plane, factors[1]).T, factors[2]).T / counts
    return result


def addable(voxels: npt.NDArray[np.generic], most: int, count: int) -> npt.NDArray[np.integer]:
    """A mask, or whole numbers from -most to most, in the smallest integers that hold the sum of `count` of them.

    Their sums are exact in any order, and quicker than those of floats.
    """
    numbers = voxels.view(np.int8) if voxels.dtype == bool else voxels
    # One more, because integers reach farther down than up.
    return numbers.astype(np.min_scalar_type(-most * count - 1), copy=False)


def row_sums(plane: npt.NDArray[Number], factor: int) -> npt.NDArray[Number]:
    """Sums of `factor` rows at a time, in the type of the rows; those at the end may be of fewer.

    The same bits as `np.add.reduceat`, which adds a block's first row last.
    """
    if factor == 1:
        return plane
    if factor > _SUMMED_IN_ORDER:
        return np.asarray(np.add.reduceat(plane, np.arange(0, len(plane), factor), axis=0, dtype=plane.dtype))
    total, rest = plane[::factor].copy(), plane[1::factor].copy()
    for row in range(2, factor):
        further = plane[row::factor]
        rest[: len(further)] += further
    total[: len(rest)] += rest
    return total
