"""The windpipe and the main bronchi, followed down from the lungs' top while they stay narrow."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.cells import Cells
from inference.anatomy.parts import label
from inference.arrays import Mask

# The lumen has pure air's -1000 HU; cells beside its wall, or in a thick slice, have more.
_LUMEN_BELOW_HU = -880.0
# Cross-sections: of a windpipe at the slice that shows it first, and the most for windpipe and bronchi in one slice.
_START_CM2, _MOST_CM2 = (0.5, 7.0), 9.0
_FROM_MIDDLE_MM = 40.0
# A slice with this share of the air in the slice that has most lies beside the lungs.
_LUNG_SHARE = 0.15
_WALL_MM = 2.0
# A bronchus within the lung is surrounded by lung; windpipe and main bronchi mostly by mediastinum.
_RING_MM, _SURROUNDED_BY_LUNG = 6.0, 0.6


def find_airways(cells: Cells, inner: Mask) -> Mask:
    """The lumen and its wall: bool (z, y, x); empty if no windpipe is seen.

    inner: air inside the body.
    """
    found = np.zeros(inner.shape, bool)
    lumen = inner & (cells.hu < _LUMEN_BELOW_HU)
    areas = np.count_nonzero(inner, axis=(1, 2)) * cells.cell_cm2
    beside = np.flatnonzero(areas > _LUNG_SHARE * areas.max(initial=0.0))
    if not len(beside):
        return found
    columns = np.flatnonzero(inner[beside].any(axis=(0, 1)))
    middle = float(columns[0] + columns[-1]) / 2
    # From the top down, and again below a gap: a cannula, or mucus in the windpipe, interrupts it.
    z, lowest = int(beside[-1]), int(beside[0] + beside[-1]) // 2
    while z > lowest:
        first = _hole(cells, lumen[z], middle)
        if first is None:
            z -= 1
            continue
        _follow(cells, inner, lumen, z, first, found, up=z == int(beside[-1]))
        empty = np.flatnonzero(~found[:z].any(axis=(1, 2)))
        z = int(empty[-1]) if len(empty) else 0
    disc = _disc(cells.in_plane(_WALL_MM))
    for level in np.flatnonzero(found.any(axis=(1, 2))):
        box = _box_around(found[level], len(disc) // 2)
        found[level][box] = ndimage.binary_dilation(found[level][box], disc)
    return found


def _follow(cells: Cells, inner: Mask, lumen: Mask, z: int, first: Mask, found: Mask, *, up: bool) -> None:
    """Mark the lumen in `found`, downwards from a piece of it in slice z, and upwards too if asked."""
    for order in (range(z, -1, -1), range(z, len(inner) if up else z)):
        piece = first
        for level in order:
            piece = _next(cells, inner[level], lumen[level], piece)
            if not piece.any():
                break
            found[level] |= piece


def _hole(cells: Cells, lumen: Mask, middle: float) -> Mask | None:
    """A round hole of a windpipe's size in one slice; the nearest to a column if there are several."""
    labels, _ = ndimage.label(lumen)
    best: tuple[float, int] | None = None
    areas = np.bincount(labels.ravel()) * cells.cell_cm2
    boxes = ndimage.find_objects(labels)
    for n in map(int, np.flatnonzero((areas >= _START_CM2[0]) & (areas <= _START_CM2[1]))):
        if n == 0:
            continue
        rows, columns = boxes[n - 1]
        hole = labels[rows, columns] == n
        off = abs((columns.start + columns.stop - 1) / 2 - middle)
        round_enough = hole.mean() > 0.55 and max(hole.shape) < 2.5 * min(hole.shape)
        near = off * cells.spacing_mm[2] < _FROM_MIDDLE_MM
        if round_enough and near:
            best = min(best or (off, n), (off, n))
    return labels == best[1] if best else None


def _next(cells: Cells, inner: Mask, lumen: Mask, previous: Mask) -> Mask:
    """The lumen in a slice, given the lumen in the next one: what touches it, stays narrow and is not in the lung."""
    most = _MOST_CM2 / cells.cell_cm2
    if not previous.any():
        return previous
    box = _box_around(previous, cells.in_plane(2.0))
    near = ndimage.binary_dilation(previous[box], _disc(cells.in_plane(2.0)))
    labels, count = label(lumen)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    touched = np.unique(labels[box][near & lumen[box]])
    keep = np.zeros(count + 1, bool)
    narrow = [n for n in touched if n and sizes[n] <= most]
    keep[[n for n in narrow if not _in_lung(cells, inner, labels == n)]] = True
    found: Mask = keep[labels]
    return found


def _in_lung(cells: Cells, inner: Mask, piece: Mask) -> bool:
    reach = cells.in_plane(_RING_MM)
    box = _box_around(piece, reach)
    piece, inner = piece[box], inner[box]
    wall = ndimage.binary_dilation(piece, _disc(cells.in_plane(_WALL_MM)))
    ring = ndimage.binary_dilation(piece, _disc(reach)) & ~wall
    return bool(inner[ring].mean() > _SURROUNDED_BY_LUNG) if ring.any() else False


def _box_around(mask: Mask, reach: int) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty, and `reach` more on all sides of it."""
    lines = (np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0)))
    return tuple(slice(max(0, int(found[0]) - reach), int(found[-1]) + reach + 1) for found in lines)


def _disc(radius: int) -> Mask:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    found: npt.NDArray[np.bool_] = y**2 + x**2 <= radius**2 + 0.5
    return found
