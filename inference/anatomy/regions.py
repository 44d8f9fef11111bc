"""Air in a chest CT, told apart: around the patient, in the airways, in the lungs, and in bowel or stomach."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.anatomy.airways import find_airways
from inference.anatomy.cells import Cells, Floats, cells_of
from inference.anatomy.gas import joined_gas, pleural_gas
from inference.anatomy.parts import label, sizes_of
from inference.anatomy.squares import enclosed, shrunk, touching
from inference.arrays import Mask
from inference.volume.ct_volume import CTVolume
from inference.volume.remembered import remembered

AIR_BELOW_HU = -400.0
# Air around the patient is pure; a lung that the image's side cuts is not.
_PURE_BELOW_HU = -920.0
# Gas in bowel or stomach has pure air's -1000 HU and is uniform; lung has -950 to -500 and is full of vessels. A
# pneumothorax or a bulla may be larger than the lung that it adjoins.
_GAS_BELOW_HU, _LEAST_LUNG, _WALL_MM = -965.0, 0.25, 4.0
_SMALLEST_LUNG_ML = 100.0
# Two lungs in separate pieces share at least half their height, and one is not much smaller than the other.
_SECOND_LUNG_SHARE = 0.12
# A piece of lung that consolidation cuts off, in the upper half and to one side.
_ISLAND_ML, _ISLAND_FROM_MIDDLE_MM = 20.0, 40.0
# Chest wall lies before and behind nearly all of a lung.
_TISSUE_ABOVE_HU, _LEAST_BETWEEN = -300.0, 0.7
_POCKET_FROM_MIDDLE_MM = 60.0
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)


@dataclass(frozen=True)
class Air:
    """Where the air is, on cells: bool (z, y, x) each, none in two.

    outside: around the patient, in the field and beyond it.  airways: windpipe and main bronchi, as far as they run
    outside the lungs.  lungs: air-filled lung.  other: in bowel, stomach, gullet, pharynx or soft tissue.
    """

    cells: Cells
    outside: Mask
    airways: Mask
    lungs: Mask
    other: Mask


@remembered
def air_in(volume: CTVolume) -> Air:
    """All air in an upright volume, by kind, see `find_air`."""
    return find_air(cells_of(volume))


def find_air(cells: Cells) -> Air:
    """All air in a volume's cells, by kind; nothing is lung if no lungs are seen."""
    air = cells.hu < AIR_BELOW_HU
    outside = _outside(cells, air)
    inner = air & ~outside
    airways, between = find_airways(cells, inner), _between_tissue(cells.hu)
    lungs = _lungs(cells, inner & ~airways, between)
    gas = joined_gas(cells, lungs)
    if gas.any():
        lungs = _lungs(cells, lungs & ~gas, between)
    lungs |= pleural_gas(cells, inner & ~lungs & ~airways & ~gas & (cells.hu < _PURE_BELOW_HU), lungs)
    airways &= ~lungs
    return Air(cells, outside, airways, lungs, inner & ~airways & ~lungs)


def _outside(cells: Cells, air: Mask) -> Mask:
    """Air that reaches the images' sides in its slice, and pockets that open into it in the next slice.

    Only pure air leads from the side inwards, so that a lung which the side cuts stays lung.
    """
    pure = cells.hu < _PURE_BELOW_HU
    rim = beyond_field(cells.hu.shape[1:], 0.99)
    labels, count = ndimage.label(pure | rim, _IN_PLANE)
    touches = np.zeros(count + 1, bool)
    for face in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1], labels[:, rim]):
        touches[face] = True
    inner = ~touches
    inner[0] = touches[0] = False
    outside: Mask = touches[labels]
    _add_pockets(outside, list(_pockets(cells, labels, inner)))
    # Adds the half-filled cells along the skin.
    return touching(outside) & (air | rim)


@dataclass(frozen=True)
class _Pockets:
    """Pieces of air in one slice.

    places: flat index of each of their cells.  numbers: which piece it is of.  sizes: cells of each piece.
    """

    places: npt.NDArray[np.intp]
    numbers: npt.NDArray[np.intp]
    sizes: npt.NDArray[np.intp]


def _pockets(cells: Cells, labels: npt.NDArray[np.int32], inner: npt.NDArray[np.bool_]) -> Iterator[_Pockets]:
    """The inner pieces of each slice that lie far to one side of the body, as the air between arm and trunk does."""
    tissue = np.count_nonzero(cells.hu > AIR_BELOW_HU, axis=(0, 1))
    middle = float(np.average(np.arange(len(tissue)), weights=np.maximum(tissue, 1e-9)))
    for plane in labels:
        places = np.flatnonzero(inner[plane])
        numbers = plane.ravel()[places].astype(np.intp)
        numbers -= numbers.min(initial=len(inner))
        sizes = np.bincount(numbers)
        centres = np.bincount(numbers, places % plane.shape[1]) / np.maximum(sizes, 1)
        far = (np.abs(centres - middle) * cells.spacing_mm[2] > _POCKET_FROM_MIDDLE_MM)[numbers]
        yield _Pockets(places[far], numbers[far], sizes)


def _add_pockets(outside: Mask, pockets: list[_Pockets]) -> None:
    """Add the pieces between arm and trunk that mostly overlap outside air in the slice beside them, in place.

    A windpipe that opens at the neck's front is not added: it lies in the middle.
    """
    flat = outside.reshape(len(outside), -1)
    for order in (range(1, len(flat)), range(len(flat) - 2, -1, -1)):
        for z in order:
            own = pockets[z]
            if len(own.places):
                beside = flat[z - order.step][own.places]
                over = np.bincount(own.numbers[beside], minlength=len(own.sizes))
                flat[z][own.places[(over > 0.3 * own.sizes)[own.numbers]]] = True


def beyond_field(shape: tuple[int, ...], share: float) -> Mask:
    """Cells outside the image's inscribed circle, scaled by `share`: bool (y, x). Scanners see nothing there."""
    rows, columns = shape
    y, x = np.ogrid[:rows, :columns]
    middle = (rows - 1) / 2, (columns - 1) / 2
    radius = share * max(rows, columns) / 2
    found: Mask = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 > radius**2
    return found


def _lungs(cells: Cells, inner: Mask, between: Mask) -> Mask:
    """Air inside the body that is lung: the largest pieces that hold tissue and lie at one height."""
    labels, count = label(inner)
    volumes = sizes_of(labels, count) * cells.cell_ml
    large = [int(n) for n in np.flatnonzero(volumes >= _SMALLEST_LUNG_ML)]
    boxes = ndimage.find_objects(labels)
    lungs = np.zeros(inner.shape, bool)
    large = [n for n in large if _lung_share(cells, labels, boxes, n) > _LEAST_LUNG]
    large = [n for n in large if _in_body(labels, boxes, n, between)]
    if not large:
        return lungs
    largest = max(large, key=lambda n: volumes[n])
    span = boxes[largest - 1][0]
    keep = np.zeros(count + 1, bool)
    keep[largest] = True
    for n in large:
        shared = min(span.stop, boxes[n - 1][0].stop) - max(span.start, boxes[n - 1][0].start)
        keep[n] |= volumes[n] >= _SECOND_LUNG_SHARE * volumes[largest] and 2 * shared >= span.stop - span.start
    for n in map(int, np.flatnonzero((volumes >= _ISLAND_ML) & ~keep)):
        keep[n] = _is_island(cells, labels, boxes, n, span) and _in_body(labels, boxes, n, between)
    return np.asarray(keep[labels], bool)


def _lung_share(cells: Cells, labels: npt.NDArray[np.integer], boxes: list[tuple[slice, ...]], n: int) -> float:
    """How much of a piece of air is denser than gas, apart from its rim, where air and wall share cells."""
    box = boxes[n - 1]
    piece = labels[box] == n
    core = ndimage.binary_erosion(piece, _IN_PLANE, iterations=cells.in_plane(_WALL_MM))
    hu = ndimage.uniform_filter(cells.hu[box], (1, 3, 3))
    return float((hu[core if core.any() else piece] > _GAS_BELOW_HU).mean())


def _is_island(
    cells: Cells, labels: npt.NDArray[np.integer], boxes: list[tuple[slice, ...]], n: int, span: slice
) -> bool:
    """Whether a small piece of air is lung: in the upper half of the lungs' height, beside the middle, not gas."""
    z, _, x = boxes[n - 1]
    if z.stop > span.stop + 2 or z.start < (span.start + span.stop) / 2:
        return False
    tissue = cells.hu[z] > AIR_BELOW_HU
    middle = float(np.average(np.arange(labels.shape[2]), weights=np.count_nonzero(tissue, axis=(0, 1)) + 1e-9))
    beside_mm = abs((x.start + x.stop) / 2 - middle) * cells.spacing_mm[2]
    return beside_mm > _ISLAND_FROM_MIDDLE_MM and _median(cells.hu, labels, boxes, n) > _GAS_BELOW_HU


def _median(hu: Floats, labels: npt.NDArray[np.integer], boxes: list[tuple[slice, ...]], n: int) -> float:
    box = boxes[n - 1]
    return float(np.median(hu[box][labels[box] == n]))


def _between_tissue(hu: Floats) -> Mask:
    """Cells with thick tissue before and behind them, as the chest wall is; a table's foam has none behind it."""
    # Beyond the round field, padding that no element declares may have any value.
    seen = (hu > _TISSUE_ABOVE_HU) & ~beyond_field(hu.shape[1:], 0.99)
    return enclosed(shrunk(seen, 1))


def _in_body(labels: npt.NDArray[np.integer], boxes: list[tuple[slice, ...]], n: int, between: Mask) -> bool:
    box = boxes[n - 1]
    return float(between[box][labels[box] == n].mean()) > _LEAST_BETWEEN
