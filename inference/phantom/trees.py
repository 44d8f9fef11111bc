"""Blood vessels and airways: branching trees, drawn as tapering tubes into a volume."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.phantom.anatomy import Anatomy
from inference.phantom.grid import Floats, Grid

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tube:
    """A straight piece from `start` to `end` (z, y, x), mm, with one radius."""

    start: Floats
    end: Floats
    radius_mm: float


def grow_tree(rng: np.random.Generator, root: Floats, tips: Floats, *, tip_radius_mm: float) -> list[Tube]:
    """A tree of tubes from `root` to each of `tips`, (N, 3), mm.

    Each tip joins the nearest point that is already part of the tree, nearest tips first, which gives
    short branches on long stems. A stem's radius follows from the tips that it feeds (Murray's law).
    """
    order = np.argsort(np.linalg.norm(tips - root, axis=1))
    nodes, parents = [root.astype(np.float32)], [-1]
    for tip in tips[order]:
        known = np.stack(nodes)
        cost = np.linalg.norm(known - tip, axis=1) + 0.25 * np.linalg.norm(known - root, axis=1)
        parent = int(np.argmin(cost))
        reach = float(np.linalg.norm(tip - nodes[parent]))
        bend = rng.normal(0, 0.06 * reach, 3)
        nodes.append(((nodes[parent] + tip) / 2 + bend).astype(np.float32))
        parents.append(parent)
        nodes.append(tip.astype(np.float32))
        parents.append(len(nodes) - 2)
    fed = np.zeros(len(nodes))
    fed[2::2] = 1
    for node in range(len(nodes) - 1, 0, -1):
        fed[parents[node]] += fed[node]
    return [
        Tube(nodes[parents[node]], nodes[node], tip_radius_mm * float(fed[node]) ** (1 / 2.9))
        for node in range(1, len(nodes))
    ]


def airways(rng: np.random.Generator, anatomy: Anatomy, tips: dict[int, Floats]) -> list[Tube]:
    """The lumen of the trachea, the main bronchi and their first branches.

    tips: by side (-1 right, 1 left), points (N, 3) in the lungs towards which the branches run.
    """
    y = float(rng.uniform(-4, 6))
    carina = np.array([anatomy.carina_z, y, 0], np.float32)
    top = np.array([anatomy.lung_height + 90, y - 8, rng.uniform(-3, 3)], np.float32)
    tubes = [Tube(top, carina, anatomy.trachea)]
    for side, points in tips.items():
        hilum = hilum_of(anatomy, side)
        tubes.append(Tube(carina, hilum, anatomy.trachea * 0.72))
        for point in points:
            middle = hilum + 0.45 * (point - hilum)
            tubes.append(Tube(hilum, middle, anatomy.trachea * 0.36))
            tubes.append(Tube(middle, hilum + 0.7 * (point - hilum), anatomy.trachea * 0.2))
    return tubes


def main_airways(tubes: list[Tube]) -> list[Tube]:
    """The windpipe and the two main bronchi among the tubes that `airways` gave, or those around them."""
    carina = tubes[0].end
    return [tubes[0], *(tube for tube in tubes[1:] if np.array_equal(tube.start, carina))]


def hilum_of(anatomy: Anatomy, side: int) -> Floats:
    """Where vessels and airways enter the lung of `side` (-1 right, 1 left): (z, y, x) mm."""
    return np.array([anatomy.carina_z - 24, 6.0, side * (anatomy.mediastinum + 13)], np.float32)


def draw_tubes(grid: Grid, tubes: list[Tube], into: Bytes) -> None:
    """Raise `into` (Z, Y, X), 0..255, to the share of each voxel that the tubes fill."""
    pixel, step = grid.spacing_mm[2], grid.spacing_mm[0]
    for tube in tubes:
        margin = np.array([tube.radius_mm + step / 2, tube.radius_mm + pixel, tube.radius_mm + pixel], np.float32)
        low, high = np.minimum(tube.start, tube.end) - margin, np.maximum(tube.start, tube.end) + margin
        box = grid.box(low, high)
        if box is None:
            continue
        distance = _distance(grid.inside(box), tube, step)
        # A tube thinner than the slice fills only part of it.
        filled = min(1.0, 2 * tube.radius_mm / step)
        share = np.clip((tube.radius_mm - distance) / pixel + 0.5, 0, 1) * (255 * filled)
        np.maximum(into[box], share.astype(np.uint8), out=into[box])


def _distance(at: tuple[Floats, Floats, Floats], tube: Tube, step: float) -> Floats:
    """Distance in mm to the tube's axis, with half a slice of tolerance along z."""
    along = tube.end - tube.start
    length2 = max(float(along @ along), 1e-6)
    offsets = [axis - float(start) for axis, start in zip(at, tube.start, strict=True)]
    t = np.clip(sum(offset * float(part) for offset, part in zip(offsets, along, strict=True)) / length2, 0, 1)
    dz, dy, dx = (offset - t * float(part) for offset, part in zip(offsets, along, strict=True))
    dz = np.maximum(np.abs(dz) - step / 2, 0)
    distance: Floats = np.sqrt(dz * dz + dy * dy + dx * dx)
    return distance
