"""Changes to what the images hold: the field of view, the lungs' filling, the scale, the order of slices."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from benchmarks.degradations import Change, Image, Images, spacing_mm, to_hu, to_stored

Planes = Callable[[np.ndarray, np.ndarray], np.ndarray]
_LEAST_LUNG_PIXELS_CM2 = 8.0


def lung_of(image: Image, hu: np.ndarray) -> np.ndarray:
    """Air inside the body in one image, except regions as small as a trachea: bool (Y, X)."""
    labels, _ = ndimage.label(hu < -500)
    sizes = np.bincount(labels.ravel()) * float(np.prod([float(mm) for mm in image.header.PixelSpacing])) / 100.0
    keep = sizes >= _LEAST_LUNG_PIXELS_CM2
    keep[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = False
    keep[0] = False
    return keep[labels]


def in_lungs(change: Planes) -> Change:
    """New HU from the HU and the lungs of each image."""

    def changed(images: Images) -> Images:
        made = []
        for image in images:
            hu = to_hu(image)
            made.append(replace(image, stored=to_stored(image, change(hu, lung_of(image, hu)))))
        return made

    return changed


def denser(by_hu: float) -> Change:
    """Both lungs denser, as if they held hardly any air."""
    return in_lungs(lambda hu, lung: hu + by_hu * lung)


def _half_fluid(hu: np.ndarray, lung: np.ndarray) -> np.ndarray:
    if not lung.any():
        return hu
    rows = np.flatnonzero(lung.any(axis=1))
    wet = lung & (np.arange(hu.shape[0])[:, None] > np.median(np.nonzero(lung)[0]))
    noise = np.random.default_rng(int(rows[0])).normal(12, 15, hu.shape)
    return np.where(wet, noise, hu)


effusions = in_lungs(_half_fluid)
"""The lower half of both lungs, of a patient on the back, filled with fluid."""


def narrow_field(share: float) -> Change:
    """Reconstructed to a field of view that is a share of the lungs' width, with the same matrix."""

    def change(images: Images) -> Images:
        widest = max(images, key=lambda image: int(lung_of(image, to_hu(image)).sum()))
        rows, columns = np.nonzero(lung_of(widest, to_hu(widest)))
        side = int(share * (columns.max() - columns.min()))
        top, left = int(rows.mean()) - side // 2, int(columns.min() + columns.max() - side) // 2
        grown = widest.stored.shape[0] / side
        made = []
        for image in images:
            part = to_hu(image)[max(0, top) : top + side, max(0, left) : left + side]
            hu = ndimage.zoom(part, [size / n for size, n in zip(image.stored.shape, part.shape, strict=True)], order=1)
            pixel = [round(float(mm) / grown, 5) for mm in image.header.PixelSpacing]
            made.append(replace(image.with_values(PixelSpacing=pixel), stored=to_stored(image, hu)))
        return made

    return change


def shifted(share: float) -> Change:
    """The patient moved sideways by a share of the field of view; air fills the gap."""

    def change(images: Images) -> Images:
        made = []
        for image in images:
            hu, by = to_hu(image), int(share * image.stored.shape[1])
            moved = np.full_like(hu, -1000.0)
            moved[:, by:] = hu[:, :-by]
            made.append(replace(image, stored=to_stored(image, moved)))
        return made

    return change


def table_only(images: Images) -> Images:
    """Air, and a table."""
    random = np.random.default_rng(2)
    made = []
    for image in images:
        hu = random.normal(-1000, 8, image.stored.shape)
        rows = image.stored.shape[0]
        for row in (int(0.8 * rows), int(0.88 * rows)):
            hu[row : row + max(2, rows // 100), rows // 6 : -rows // 6] = -250
        made.append(replace(image, stored=to_stored(image, hu)))
    return made


def spacing_of_one(images: Images) -> Images:
    """A Pixel Spacing of 1, as anonymisers write it, while the true field of view is still stated."""
    pixel, columns = float(images[0].header.PixelSpacing[0]), images[0].stored.shape[1]
    stated = round(pixel * columns, 1) if abs(pixel - 1) > 0.15 else round(0.7 * columns, 1)
    return [image.with_values(PixelSpacing=[1, 1], ReconstructionDiameter=stated) for image in images]


def larger(times: float) -> Change:
    """A pixel spacing that makes a giant of the patient."""

    def change(images: Images) -> Images:
        pixel = [round(times * float(mm), 5) for mm in images[0].header.PixelSpacing]
        return [image.with_values(PixelSpacing=pixel) for image in images]

    return change


def off_scale(by_hu: float, where: Callable[[int, int], bool]) -> Change:
    """Another rescale intercept in some slices. where: called with a slice's index and the number of slices."""

    def change(images: Images) -> Images:
        return [
            image.with_values(RescaleIntercept=float(image.header.RescaleIntercept) + by_hu)
            if where(index, len(images))
            else image
            for index, image in enumerate(images)
        ]

    return change


def swapped(at: float) -> Change:
    """Two neighbouring slices swapped, at a share of the height."""

    def change(images: Images) -> Images:
        index = int(at * len(images))
        below, above = images[index], images[index + 1]
        changed = list(images)
        changed[index] = above.at(below.position[2])
        changed[index + 1] = below.at(above.position[2])
        return changed

    return change


def overlapping_breaths(at: float, mm: float = 12.0) -> Change:
    """Two breath-holds: at a share of the height, the slices of the last `mm` are repeated with different noise."""

    def change(images: Images) -> Images:
        step = spacing_mm(images)
        index, again = int(at * len(images)), max(2, round(mm / step))
        noise = np.random.default_rng(11)
        upper = []
        for number, image in enumerate(images[index - again : len(images) - again]):
            copied = image.copied(f"breath{number:04d}.dcm").at(images[index].position[2] + number * step)
            upper.append(
                replace(copied, stored=to_stored(image, to_hu(image) + noise.normal(0, 12, image.stored.shape)))
            )
        return images[:index] + upper

    return change
