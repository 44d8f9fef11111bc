"""Turns the U-Net's raw mask into the reported mask: connected components, and the two lungs separated."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from inference.anatomy.parts import bounding_box, sizes_of
from inference.arrays import Grey, Mask

# A separate smaller lung is kept if it has at least this share of the larger; less is bowel gas or noise.
_SECOND_LUNG_SHARE = 0.1
_SPECK_ML = 1.0


def clean(raw: Grey) -> Mask:
    """The one or two largest connected parts of a raw mask.

    raw: uint8 (Z, Y, X), not 0 where the network saw lung.
    Returns bool (Z, Y, X). Parts are connected by faces. The second largest part stays if it may be a lung.
    """
    result = np.zeros(raw.shape, bool)
    box = bounding_box(raw)
    if box is None:
        return result
    labels, count = label(raw[box])
    sizes = sizes_of(labels, count)
    largest = np.argsort(sizes, kind="stable")[::-1][:2]
    keep = np.zeros(len(sizes), bool)
    keep[[part for part in largest if sizes[part] > _SECOND_LUNG_SHARE * sizes[largest[0]]]] = True
    result[box] = keep[labels]
    return result


def without_specks(mask: Mask, voxel_ml: float) -> Mask:
    """A mask without its smallest connected parts, which noise leaves along an edge: bool (Z, Y, X)."""
    result = np.zeros(mask.shape, bool)
    box = bounding_box(mask)
    if box is None:
        return result
    labels, count = label(mask[box].view(np.uint8))
    keep = sizes_of(labels, count) * voxel_ml >= _SPECK_ML
    for numbers, kept in zip(labels, result[box], strict=True):
        kept[:] = keep.take(numbers)
    return result


def sides(mask: Mask, x_to_left: bool) -> tuple[int, int]:
    """Voxels of the left and of the right lung.

    mask: bool (Z, Y, X), cleaned.  x_to_left: the column index increases towards the patient's left.
    Two parts side by side are the two lungs. Anything else is split at the thinnest sagittal plane through its large
    parts: a speck beside joined lungs is not a lung.
    """
    box = bounding_box(mask)
    if box is None:
        return 0, 0
    inside = mask[box]
    labels, count = label(inside.view(np.uint8))
    sizes = sizes_of(labels, count)
    large = sizes > _SECOND_LUNG_SHARE * sizes.max()
    per_column = _per_column(inside)
    if count == 2 and large.sum() == 2:
        first = _per_column(plane == 1 for plane in labels)
        low, high = _parted(first, per_column - first)
    else:
        low, high = _split(per_column, per_column if large[1:].all() else _per_column(large.take(p) for p in labels))
    return (high, low) if x_to_left else (low, high)


def _per_column(mask: Iterable[npt.NDArray[np.bool_]]) -> npt.NDArray[np.int64]:
    """Voxels of a mask's slices in each column."""
    counts = (np.add.reduce(plane.view(np.uint8), axis=0, dtype=np.uint16) for plane in mask)
    return np.asarray(sum(count.astype(np.int64) for count in counts))


def _parted(*parts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Voxels of the part with the lower and of the part with the higher columns, of two. parts: voxels by column."""
    columns = np.arange(len(parts[0]))
    found = [(float(part @ columns) / int(part.sum()), int(part.sum())) for part in parts]
    (_, low), (_, high) = sorted(found)
    return low, high


def _split(per_column: npt.NDArray[np.int64], of_lungs: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Voxels below and above the thinnest plane between the outer quarters of the lungs' columns.

    per_column, of_lungs: voxels by column, of the whole mask and of its large parts.
    """
    filled = np.flatnonzero(of_lungs)
    start, stop = int(filled[0]), int(filled[-1]) + 1
    quarter = (stop - start) // 4
    middle = of_lungs[start + quarter : stop - quarter]
    # The middle one of equally thin planes, so that a wide empty gap is cut halfway.
    plane = start + quarter + int(np.median(np.flatnonzero(middle == middle.min())))
    return int(per_column[:plane].sum()), int(per_column[plane:].sum())


def label(mask: Grey) -> tuple[npt.NDArray[np.integer], int]:
    """Number the parts of a mask from 1, connected by faces; and how many there are."""
    try:
        import cc3d
    except ImportError:  # a bare machine that only runs the benchmark
        from scipy import ndimage

        labels, count = ndimage.label(mask)
        return labels, int(count)
    labels, count = cc3d.connected_components(mask, connectivity=6, return_N=True)
    return labels, int(count)
