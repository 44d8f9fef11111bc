"""The three planes of a volume, as a radiologist sees them: the head above, the patient's right on the left.

Rows and columns of the axial plane are those of the stored images. Coronal: a row for each slice, the highest first;
the columns are those of the images. Sagittal: the same, its columns are the rows of the images, from front to back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.volume.geometry import Stack

Grey = npt.NDArray[np.uint8]
HU = npt.NDArray[np.int16]
_LETTERS = (("R", "L"), ("A", "P"), ("F", "H"))


class Plane(StrEnum):
    """A way to cut a volume. AXIAL is also the name for images that form no volume, each as it is."""

    AXIAL = "axial"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"


@dataclass(frozen=True)
class PlaneShape:
    """How many images a plane has and how they look.

    row_mm, column_mm: distance from one row, or column, to the next.
    sides: where the left, right, upper and lower edge lies in the patient: R, L, A, P, H or F.
    """

    count: int
    rows: int
    columns: int
    row_mm: float
    column_mm: float
    sides: tuple[str, str, str, str]


def shapes_of(stack: Stack, rows: int, columns: int) -> dict[Plane, PlaneShape]:
    """The planes of a volume. rows, columns: of its stored images."""
    count = len(stack.candidates)
    z, y, x = stack.spacing_mm
    across, down, up = (stack.affine[:3, axis] for axis in range(3))
    return {
        Plane.AXIAL: PlaneShape(count, rows, columns, y, x, _sides(across, down)),
        Plane.CORONAL: PlaneShape(rows, count, columns, z, x, _sides(across, -up)),
        Plane.SAGITTAL: PlaneShape(columns, count, rows, z, y, _sides(down, -up)),
    }


def _sides(across: npt.NDArray[np.float64], down: npt.NDArray[np.float64]) -> tuple[str, str, str, str]:
    return _letter(-across), _letter(across), _letter(-down), _letter(down)


def _letter(direction: npt.NDArray[np.float64]) -> str:
    axis = int(np.argmax(np.abs(direction)))
    return _LETTERS[axis][int(direction[axis] > 0)]


def cut(plane: Plane, index: int, count: int, slice_at: Callable[[int], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """One image of a plane. count: slices of the volume.  slice_at: gives slice z, (Y, X)."""
    if plane is Plane.AXIAL:
        return slice_at(index)
    downwards = range(count - 1, -1, -1)
    # Copies: a view would keep its whole slice in memory, so all of the volume until the last line is there.
    if plane is Plane.CORONAL:
        return np.stack([slice_at(z)[index].copy() for z in downwards])
    return np.stack([slice_at(z)[:, index].copy() for z in downwards])


def window_table(centre: float, width: float) -> Grey:
    """The grey value of each HU, by its bits as uint16.

    centre, width: HU, as in DICOM's linear function. Rounded half up, so that a browser gets the same numbers.
    Raises ValueError if the width is below 1.
    Source: PS3.3, C.11.2.1.2.1.
    """
    if not width >= 1:
        raise ValueError("width: a window is at least 1 HU wide")
    hu = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.float64)
    if width == 1:
        return np.where(hu <= centre - 0.5, 0, 255).astype(np.uint8)
    share = (hu - (centre - 0.5)) / (width - 1) + 0.5
    return np.floor(np.clip(share, 0, 1) * 255 + 0.5).astype(np.uint8)


def windowed(hu: HU, centre: float, width: float) -> Grey:
    """8-bit grey values of an image, (Y, X)."""
    return window_table(centre, width)[hu.view(np.uint16)]
