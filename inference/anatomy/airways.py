"""The windpipe and the main bronchi, followed down from the lungs' top while they stay narrow."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells
from inference.arrays import Mask

# The lumen is air's own -1000 HU; in a cell beside its wall, or in a thick slice, less so.
_LUMEN_BELOW_HU = -880.0
# Cross-sections: of a windpipe where it is found, and the most that windpipe and bronchi may have in one slice.
_START_CM2, _MOST_CM2 = (0.5, 7.0), 9.0
_FROM_MIDDLE_MM = 40.0
_WALL_MM = 2.0
# Around a bronchus within the lung lies lung; around windpipe and main bronchi mostly mediastinum.
_RING_MM, _SURROUNDED_BY_LUNG = 6.0, 0.6


def find_airways(cells: Cells, inner: Mask) -> Mask:
    """The lumen and its wall: bool (z, y, x); empty if no windpipe is seen.

    inner: air inside the body.
    """
    found = np.zeros(inner.shape, bool)
    lumen = inner & (cells.hu < _LUMEN_BELOW_HU)
    start = _start(cells, inner, lumen)
    if start is None:
        return found
    z, first = start
    for order in (range(z, len(inner)), range(z, -1, -1)):
        piece = first
        for level in order:
            piece = _next(cells, inner[level], lumen[level], piece)
            if not piece.any():
                break
            found[level] |= piece
    wall = cells.in_plane(_WALL_MM)
    return ndimage.binary_dilation(found, _disc(wall)[None])  # type: ignore[no-any-return]


def _start(cells: Cells, inner: Mask, lumen: Mask) -> tuple[int, Mask] | None:
    """The highest slice beside the lungs with a round hole of a windpipe's size near their middle, and the hole."""
    areas = np.count_nonzero(inner, axis=(1, 2)) * cells.cell_cm2
    beside = np.flatnonzero(areas > 0.15 * areas.max(initial=0.0))
    if not len(beside):
        return None
    columns = np.flatnonzero(inner[beside].any(axis=(0, 1)))
    middle, reach = (columns[0] + columns[-1]) / 2, _FROM_MIDDLE_MM / cells.spacing_mm[2]
    top, bottom = beside[-1], beside[0]
    for z in range(top, bottom + (top - bottom) // 2, -1):
        labels, _ = ndimage.label(lumen[z])
        best = None
        for n, box in enumerate(ndimage.find_objects(labels), start=1):
            hole = labels[box] == n
            area = hole.sum() * cells.cell_cm2
            centre = (box[1].start + box[1].stop - 1) / 2
            round_enough = hole.mean() > 0.55 and max(hole.shape) < 2.5 * min(hole.shape)
            if _START_CM2[0] <= area <= _START_CM2[1] and round_enough and abs(centre - middle) < reach:
                rank = abs(centre - middle)
                if best is None or rank < best[0]:
                    best = rank, labels == n
        if best:
            return z, best[1]
    return None


def _next(cells: Cells, inner: Mask, lumen: Mask, previous: Mask) -> Mask:
    """The lumen in a slice, from that in the slice beside it: what touches it, stays narrow and is not in the lung."""
    most = _MOST_CM2 / cells.cell_cm2
    if not previous.any():
        return previous
    near = ndimage.binary_dilation(previous, _disc(cells.in_plane(2.0)))
    labels, count = ndimage.label(lumen)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    touched = np.unique(labels[near & lumen])
    keep = np.zeros(count + 1, bool)
    narrow = [n for n in touched if n and sizes[n] <= most]
    keep[[n for n in narrow if not _in_lung(cells, inner, labels == n)]] = True
    found: Mask = keep[labels]
    return found


def _in_lung(cells: Cells, inner: Mask, piece: Mask) -> bool:
    wall = ndimage.binary_dilation(piece, _disc(cells.in_plane(_WALL_MM)))
    ring = ndimage.binary_dilation(piece, _disc(cells.in_plane(_RING_MM))) & ~wall
    return bool(inner[ring].mean() > _SURROUNDED_BY_LUNG) if ring.any() else False


def _disc(radius: int) -> Mask:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    found: npt.NDArray[np.bool_] = y**2 + x**2 <= radius**2 + 0.5
    return found
