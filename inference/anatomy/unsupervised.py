"""Both lungs by a threshold and connected parts: the mask that needs no network and no labels.

Source: Zheng et al. 2020, "Proposed DeCoVNet", and their reference 20 (Liao et al.): take everything darker
than -320 HU, remove what is connected to the outside, keep the largest components and fill them.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.arrays import Mask

Labels = npt.NDArray[np.integer]

AIR_BELOW_HU = -320
HOLE_MM2 = 600.0  # oblique cross-section of the largest vessels of the lung
_SECOND_LUNG_SHARE = 0.2
TRACHEA_MM2 = (40.0, 900.0)  # cross-section of an adult's trachea, with a margin on both sides


def unsupervised_mask(
    hu: npt.NDArray[np.int16],
    spacing_mm: tuple[float, float, float],
    *,
    below_hu: float = AIR_BELOW_HU,
    airways: bool = False,
) -> Mask:
    """Both lungs, with the vessels in them.

    hu: (Z, Y, X), z towards the head.  spacing_mm: (z, y, x).
    airways: keep the trachea and what is connected to it, as the authors' masks do; otherwise the
        lungs end where a radiologist would end them.
    Returns bool (Z, Y, X); all False if nothing remains.
    """
    air = _without_outside(hu < below_hu)
    if not airways:
        air &= ~_trachea(air, spacing_mm)
    box = ndimage.find_objects(air.astype(np.uint8))
    lungs = np.zeros(hu.shape, bool)
    if not box:
        return lungs
    inside, sizes = _largest_lungs(air[box[0]])
    inside = _fill(inside, spacing_mm[1] * spacing_mm[2])
    # What was filled touches the lungs around it: only a lung that is then too small for the other could go.
    grown = int(np.count_nonzero(inside)) - sum(sizes)
    if min(sizes) < _SECOND_LUNG_SHARE * (max(sizes) + grown):
        inside, _ = _largest_lungs(inside)
    lungs[box[0]] = inside
    return lungs


def label_volume(mask: Mask) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Connected components (26 neighbours), and the voxel count of each label from 0."""
    try:
        import cc3d
    except ImportError:  # scipy gives the same components, more slowly
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3, 3), bool))
    else:
        labels = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=26)
    return labels, np.bincount(labels.reshape(-1))


def _without_outside(air: Mask) -> Mask:
    """Air that is not connected to the sides of the image."""
    labels, counts = label_volume(air)
    sides = (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1])
    keep = np.ones(len(counts), bool)
    keep[0] = False
    for side in sides:
        keep[np.unique(side)] = False
    inner: Mask = keep[labels]
    return inner


def _largest_lungs(air: Mask) -> tuple[Mask, tuple[int, ...]]:
    """The largest component, and the second if it is large enough to be the other lung; and the voxels of each."""
    labels, counts = label_volume(air)
    if len(counts) < 2:
        return np.zeros(air.shape, bool), (0,)
    order = 1 + np.argsort(counts[1:])[::-1]
    lungs: Mask = labels == order[0]
    if len(order) > 1 and counts[order[1]] >= _SECOND_LUNG_SHARE * counts[order[0]]:
        lungs |= labels == order[1]
        return lungs, (int(counts[order[0]]), int(counts[order[1]]))
    return lungs, (int(counts[order[0]]),)


def _fill(mask: Mask, pixel_mm2: float) -> Mask:
    """Vessels and lesions in the lung: whatever it encloses on all sides, and small holes in single slices.

    A large hole in one slice is not lung: the dome of the diaphragm, or the heart between lungs that touch in front.
    """
    filled: Mask = ndimage.binary_fill_holes(mask)
    for plane in filled:
        if plane.any():
            labels, _ = ndimage.label(ndimage.binary_fill_holes(plane) & ~plane)
            areas = np.bincount(labels.reshape(-1)) * pixel_mm2
            small = areas <= HOLE_MM2
            small[0] = False
            plane |= small[labels]
    return filled


def _trachea(air: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """The trachea and the main bronchi, followed down from the top while they stay narrow.

    air: bool (Z, Y, X) inside the body.
    """
    found = np.zeros(air.shape, bool)
    pixel_mm2 = spacing_mm[1] * spacing_mm[2]
    start = _trachea_start(air, pixel_mm2)
    if start is None:
        return found
    top, previous = start
    found[top] = previous
    for index in range(top - 1, -1, -1):
        labels, count = ndimage.label(air[index])
        areas = np.bincount(labels.reshape(-1), minlength=count + 1) * pixel_mm2
        touched = np.unique(labels[previous])
        narrow = [label for label in touched if label and areas[label] <= TRACHEA_MM2[1]]
        if not narrow:
            break
        previous = np.isin(labels, narrow)
        found[index] = previous
    # The wall is one or two voxels of partial volume, which are not lung either.
    return ndimage.binary_dilation(found, np.ones((1, 3, 3), bool))  # type: ignore[no-any-return]


def _trachea_start(air: Mask, pixel_mm2: float) -> tuple[int, Mask] | None:
    """The highest slice with a roughly round hole of the right size near the middle of the lungs, and that hole."""
    columns = np.flatnonzero(air.any(axis=(0, 1)))
    if not len(columns):
        return None
    middle, reach = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0]) * 0.15
    for index in range(len(air) - 1, len(air) // 3, -1):
        labels, _ = ndimage.label(air[index])
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            hole = labels[box] == label
            area = hole.sum() * pixel_mm2
            centre = (box[1].start + box[1].stop) / 2
            if TRACHEA_MM2[0] <= area <= TRACHEA_MM2[1] and hole.mean() > 0.5 and abs(centre - middle) < reach:
                return index, labels == label
    return None
