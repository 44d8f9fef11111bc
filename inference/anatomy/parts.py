"""Connected parts of a mask, and the box around it."""

import numpy as np
import numpy.typing as npt

from inference.arrays import Mask


def label(mask: Mask) -> tuple[npt.NDArray[np.integer], int]:
    """Number the parts of a mask from 1, connected by faces; and how many there are."""
    try:
        import cc3d
    except ImportError:  # a bare machine that only runs a benchmark
        from scipy import ndimage

        labels, count = ndimage.label(mask)
        return labels, int(count)
    labels, count = cc3d.connected_components(mask, connectivity=6, return_N=True)
    return labels, int(count)


def sizes_of(labels: npt.NDArray[np.integer], count: int) -> npt.NDArray[np.intp]:
    """Cells of each part; 0 for the background."""
    sizes = np.zeros(count + 1, np.intp)
    for plane in labels:
        # By runs of equal numbers, which are far fewer than cells.
        line = plane.ravel()
        ends = np.append(np.flatnonzero(line[1:] != line[:-1]), len(line) - 1)
        found = np.bincount(line[ends], np.diff(ends, prepend=-1))
        sizes[: len(found)] += found.astype(np.intp)
    sizes[0] = 0
    return sizes


def bounding_box(mask: npt.NDArray[np.generic]) -> tuple[slice, slice, slice] | None:
    """The smallest box (z, y, x) around all values other than 0; None if there are none."""
    across = np.asarray(mask.any(axis=0))
    found = [np.flatnonzero(lines) for lines in (mask.any(axis=(1, 2)), across.any(axis=1), across.any(axis=0))]
    if not len(found[0]):
        return None
    z, y, x = (slice(int(axis[0]), int(axis[-1]) + 1) for axis in found)
    return z, y, x
