"""The positions of a phantom's voxels in millimetres, and smooth random fields over them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Grid:
    """Voxel centres in phantom millimetres: x to the patient's left, y to the back, z to the head.

    shape: (Z, Y, X).  spacing_mm: (z, y, x).  first_mm: (z, y, x) of voxel (0, 0, 0).
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    first_mm: tuple[float, float, float]

    def axis(self, which: int) -> Floats:
        """Coordinates in mm along axis 0 (z), 1 (y) or 2 (x)."""
        steps = np.arange(self.shape[which], dtype=np.float64) * self.spacing_mm[which]
        return (self.first_mm[which] + steps).astype(np.float32)

    def box(self, low_mm: Floats, high_mm: Floats) -> tuple[slice, slice, slice] | None:
        """Index ranges of the voxels within low..high (z, y, x), or None if there are none."""
        ranges = []
        for which in range(3):
            low = (float(low_mm[which]) - self.first_mm[which]) / self.spacing_mm[which]
            high = (float(high_mm[which]) - self.first_mm[which]) / self.spacing_mm[which]
            start, stop = max(0, int(np.ceil(low))), min(self.shape[which], int(np.floor(high)) + 1)
            if start >= stop:
                return None
            ranges.append(slice(start, stop))
        return ranges[0], ranges[1], ranges[2]

    def inside(self, box: tuple[slice, slice, slice]) -> tuple[Floats, Floats, Floats]:
        """Coordinates (z, y, x) of a box, shaped to broadcast against each other."""
        z, y, x = (self.axis(which)[part] for which, part in enumerate(box))
        return z[:, None, None], y[None, :, None], x[None, None, :]


def _interpolation(length: int, knots: int) -> Floats:
    """Matrix (length, knots) of linear interpolation from evenly spaced knots."""
    at = np.linspace(0, knots - 1, length)
    left = np.minimum(at.astype(int), knots - 2)
    matrix = np.zeros((length, knots), np.float32)
    rows = np.arange(length)
    matrix[rows, left] = 1 - (at - left)
    matrix[rows, left + 1] = at - left
    return matrix


class SmoothField:
    """Random numbers with mean 0 and spread 1 that vary over `scale_mm`, computed slice by slice."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], extent_mm: Floats, scale_mm: float):
        knots = [max(2, round(float(mm) / scale_mm) + 1) for mm in extent_mm]
        self._knots = rng.standard_normal(knots, dtype=np.float32)
        self._z, self._y, self._x = (_interpolation(length, n) for length, n in zip(shape, knots, strict=True))

    def slice(self, index: int) -> Floats:
        """The field on slice `index`: (Y, X)."""
        plane = np.tensordot(self._z[index], self._knots, axes=1)
        values: Floats = self._y @ plane @ self._x.T
        return values

    def volume(self) -> Floats:
        """The field on every voxel: (Z, Y, X)."""
        planes = np.tensordot(self._z, self._knots, axes=1)
        values: Floats = self._y @ planes @ self._x.T
        return values
