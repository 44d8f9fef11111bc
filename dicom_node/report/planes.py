"""Planes of a volume as a radiologist expects to see them, whatever the orientation of the source.

Head up, the patient's right on the left of axial and coronal planes, the front on the left of sagittal ones.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion

from inference.plug import Finding
from inference.volume.ct_volume import CTVolume

WINDOW_HU = (-1350.0, 150.0)
"""Lung window: centre -600, width 1500 HU."""
MARGIN_MM = 15.0
"""Shown around the lungs on each side."""
LUNG_COLOUR = (64, 200, 255)
REGION_COLOUR = (255, 150, 0)
_AREA_OPACITY = 0.7
_LEAST_HEAT = 0.15
"""Share of the heat's maximum that is shown: what the first model's localisation is cut at."""

Array = npt.NDArray[np.generic]
Box = tuple[slice, slice, slice]
"""A part of a volume."""


@dataclass(frozen=True)
class Anatomy:
    """A finding's arrays as views that ascend (towards the head, towards the back, to the patient's left).

    spacing_mm: in that order. region, heat (0 to 255): None if nothing is localised.
    focus: voxel that the planes go through.  area: what is drawn as an area and not as an outline, or None.
    """

    hu: npt.NDArray[np.int16]
    lungs: npt.NDArray[np.bool_]
    region: npt.NDArray[np.bool_] | None
    heat: npt.NDArray[np.uint8] | None
    spacing_mm: tuple[float, float, float]
    focus: tuple[int, int, int]
    turn: "Turn"
    area: npt.NDArray[np.bool_] | None = None

    @property
    def shows_finding(self) -> bool:
        """Whether anything that the model found is drawn."""
        return self.region is not None or self.area is not None

    @property
    def shows_hottest(self) -> bool:
        """Whether the planes go through a voxel that is as hot as any."""
        return self.heat is not None and self.heat[self.focus] == self.heat.max()


@dataclass(frozen=True)
class Turn:
    """From an array (Z, Y, X) to (head, back, left): which axis goes where, and which are reversed."""

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]

    def view(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The array's view in the new order."""
        return array.transpose(self.axes)[tuple(slice(None, None, -1 if r else 1) for r in self.reversed)]

    def source_slice(self, plane: int, count: int) -> int:
        """z of the source slice that axial plane `plane` of `count` shows; only if slices are axial."""
        return count - 1 - plane if self.reversed[0] else plane


def turn_of(affine: npt.NDArray[np.float64]) -> Turn:
    """How to turn an array (Z, Y, X) whose voxel index (x, y, z) the affine maps to LPS millimetres."""
    # Columns of the affine by array axis: z, y, x; rows by what we want: head, back, left.
    directions = affine[:3, [2, 1, 0]][[2, 1, 0]]
    directions = directions / np.linalg.norm(directions, axis=0)
    axes = max(permutations(range(3)), key=lambda order: sum(abs(directions[i, order[i]]) for i in range(3)))
    return Turn(
        (axes[0], axes[1], axes[2]),
        (bool(directions[0, axes[0]] < 0), bool(directions[1, axes[1]] < 0), bool(directions[2, axes[2]] < 0)),
    )


def mask_of(finding: Finding, purpose: str, volume: CTVolume, drawn: str = "") -> npt.NDArray[np.bool_]:
    """All segments of a purpose together, bool (Z, Y, X); only those that are drawn in this way, if it is given."""
    segments = [one for one in finding.output.segments if one.purpose == purpose and drawn in ("", one.drawn)]
    masks = [segment.mask for segment in segments]
    if len(masks) == 1:
        return masks[0]
    together = np.zeros(volume.hu.shape, bool)
    for mask in masks:
        together |= mask
    return together


def anatomy_of(finding: Finding, volume: CTVolume) -> Anatomy:
    """The finding's arrays turned for display, and the voxel to show."""
    turn = turn_of(volume.affine)
    lungs = turn.view(mask_of(finding, "anatomy", volume)).astype(bool, copy=False)
    region, area = (_turned(turn, mask_of(finding, "finding", volume, drawn)) for drawn in ("outline", "area"))
    given = finding.output.heat
    heat = turn.view(given).astype(np.uint8, copy=False) if given is not None and given.any() else None
    spacing = tuple(volume.spacing_mm[axis] for axis in turn.axes)
    return Anatomy(
        hu=turn.view(volume.hu).astype(np.int16, copy=False),
        lungs=lungs,
        region=region,
        heat=heat,
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        focus=_focus(lungs, region, heat) if area is None or region is not None else _focus_of_spots(area, lungs),
        turn=turn,
        area=area,
    )


def _turned(turn: "Turn", mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    return turn.view(mask).astype(bool, copy=False) if mask.any() else None


def _focus(
    lungs: npt.NDArray[np.bool_], region: npt.NDArray[np.bool_] | None, heat: npt.NDArray[np.uint8] | None
) -> tuple[int, int, int]:
    """The hottest voxel of the region, or of the lungs if all is hottest there; else the middle of region or lung."""
    place = lungs if region is None else region
    box = box_of(place)
    inside = place[box]
    if not inside.size:
        return lungs.shape[0] // 2, lungs.shape[1] // 2, lungs.shape[2] // 2
    if heat is not None:
        # Of equally hot voxels the middle one: saturated maps have many.
        hot = heat[box]
        hottest = (hot == (heat.max() if region is None else hot[inside].max())) & inside
        if hottest.any():
            return _middle(hottest, box)
    if region is not None:
        return _middle(inside, box)
    # Of the side with more lung: halfway between both there is little lung to see.
    columns = inside.sum(axis=0, dtype=np.int64).sum(axis=0)
    split = box[2].start + int(columns @ np.arange(len(columns)) / columns.sum()) + 1
    on_right = columns[: split - box[2].start].sum() >= columns.sum() / 2
    half = (box[0], box[1], slice(box[2].start, split) if on_right else slice(split, box[2].stop))
    return _middle(lungs[half], half)


def _focus_of_spots(area: npt.NDArray[np.bool_], lungs: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """The middle of many small spots, in the lung that has more: between both there is little to see."""
    columns = lungs.sum(axis=(0, 1), dtype=np.int64)
    split = int(columns @ np.arange(len(columns)) / columns.sum()) + 1 if columns.any() else 0
    halves = (area[:, :, :split], area[:, :, split:])
    right = np.count_nonzero(halves[0]) >= np.count_nonzero(halves[1])
    half, offset = (halves[0], 0) if right else (halves[1], split)
    planes = half.sum(axis=(1, 2), dtype=np.int64)
    filled, middle = np.flatnonzero(planes), planes @ np.arange(len(planes)) / planes.sum()
    z = int(filled[np.abs(filled - middle).argmin()])
    spots = np.argwhere(half[z])
    y, x = spots[np.abs(spots - spots.mean(axis=0)).sum(axis=1).argmin()]
    return z, int(y), int(x) + offset


def _middle(mask: npt.NDArray[np.bool_], box: Box) -> tuple[int, int, int]:
    """The voxel of a mask that is nearest to the centre of all.  box: the part of the volume that the mask covers."""
    voxels = np.argwhere(mask) + [side.start for side in box]
    nearest = voxels[np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
    return int(nearest[0]), int(nearest[1]), int(nearest[2])


def box_of(mask: npt.NDArray[np.bool_]) -> Box:
    """The smallest part of a volume that holds all of a mask; empty if the mask is."""
    # Whole planes are left out first, and the others laid over each other: a volume is looked at only twice.
    first = _reach(mask.any(axis=(1, 2)))
    shadow = np.asarray(mask[first].any(axis=0))
    return first, _reach(shadow.any(axis=1)), _reach(shadow.any(axis=0))


def _reach(filled: npt.ArrayLike) -> slice:
    found = np.flatnonzero(filled)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)


def lung_box(anatomy: Anatomy) -> Box:
    """The part of the volume worth showing: the lungs and a margin, or all of it if there are none."""
    ranges = []
    for side, size, spacing_mm in zip(box_of(anatomy.lungs), anatomy.lungs.shape, anatomy.spacing_mm, strict=True):
        margin = round(MARGIN_MM / spacing_mm)
        found = side.stop > side.start
        ranges.append(slice(max(side.start - margin, 0), min(side.stop + margin, size)) if found else slice(size))
    return ranges[0], ranges[1], ranges[2]


def axial(anatomy: Anatomy, plane: int, box: Box, size: tuple[int, int]) -> Image.Image:
    """One axial plane cropped to `box`, fitted into `size` (width, height)."""
    return _render(anatomy, (plane, box[1], box[2]), (1, 2), False, size)


def coronal(anatomy: Anatomy, plane: int, box: Box, size: tuple[int, int]) -> Image.Image:
    """One coronal plane, head up."""
    return _render(anatomy, (box[0], plane, box[2]), (0, 2), True, size)


def sagittal(anatomy: Anatomy, plane: int, box: Box, size: tuple[int, int]) -> Image.Image:
    """One sagittal plane, head up, the front on the left."""
    return _render(anatomy, (box[0], box[1], plane), (0, 1), True, size)


def _render(
    anatomy: Anatomy,
    index: tuple[int | slice, int | slice, int | slice],
    axes: tuple[int, int],
    head_up: bool,
    size: tuple[int, int],
) -> Image.Image:
    """Grey values in the lung window, heat and areas over them, outlines of lungs and region on top."""

    def plane(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        cut = array[index]
        return cut[::-1] if head_up else cut

    hu = plane(anatomy.hu).astype(np.float32)
    fitted = _fitted(hu.shape, (anatomy.spacing_mm[axes[0]], anatomy.spacing_mm[axes[1]]), size)
    low, high = WINDOW_HU
    grey = _resized(np.clip((hu - low) / (high - low), 0, 1), fitted)
    rgb = np.repeat(255 * grey[..., None], 3, axis=2)
    if anatomy.heat is not None:
        _blend(rgb, _resized(plane(anatomy.heat).astype(np.float32) * np.float32(1 / 255), fitted))
    if anatomy.area is not None:
        _tint(rgb, _resized(plane(anatomy.area).astype(np.float32), fitted))
    _outline(rgb, plane(anatomy.lungs), fitted, LUNG_COLOUR)
    if anatomy.region is not None:
        _outline(rgb, plane(anatomy.region), fitted, REGION_COLOUR)
    return Image.fromarray(rgb.round().astype(np.uint8))


def _fitted(shape: tuple[int, ...], spacing_mm: tuple[float, float], size: tuple[int, int]) -> tuple[int, int]:
    """Largest (width, height) inside `size` with the plane's proportions in millimetres."""
    height_mm, width_mm = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    scale = min(size[0] / width_mm, size[1] / height_mm)
    return max(1, round(width_mm * scale)), max(1, round(height_mm * scale))


def _resized(values: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)


def _blend(rgb: npt.NDArray[np.float32], heat: npt.NDArray[np.float32]) -> None:
    """Lay the heat over the grey values: red where it is low, orange where it is high, nothing below the least."""
    strength = np.clip((heat - _LEAST_HEAT) / (1 - _LEAST_HEAT), 0, 1)[..., None]
    colour = np.concatenate([np.full_like(strength, 255), 170 * strength, np.zeros_like(strength)], axis=2)
    alpha = np.where(strength > 0, 0.1 + 0.4 * strength, 0)
    rgb += alpha * (colour - rgb)


def _tint(rgb: npt.NDArray[np.float32], share: npt.NDArray[np.float32]) -> None:
    """Colour pixels as finding by how much of each is one: the grey below still shows through."""
    alpha = _AREA_OPACITY * share[..., None]
    rgb += alpha * (np.array(REGION_COLOUR, np.float32) - rgb)


def _outline(
    rgb: npt.NDArray[np.float32], mask: npt.NDArray[np.generic], size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    shown = _resized(mask.astype(np.float32), size) >= 0.5
    rgb[shown & ~binary_erosion(shown)] = colour
