"""What a viewer can draw of a finding: each lung, and each connected part of what drove the model, on one slice."""

from dataclasses import dataclass
from enum import StrEnum

import cc3d
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dicom_node.report.planes import mask_of, turn_of
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume

MOST_FINDINGS = 8
"""Regions of the localisation that are shown, the largest first."""


class Side(StrEnum):
    """The patient's side."""

    RIGHT = "right"
    LEFT = "left"


@dataclass(frozen=True)
class Region:
    """One connected region.

    voxels: of all of it. z: the slice it is drawn on. mask: (Y, X), its largest connected part there.
    """

    side: Side
    voxels: int
    z: int
    mask: npt.NDArray[np.bool_]


def regions_of(finding: Finding, volume: CTVolume) -> tuple[list[Region], list[Region]]:
    """The parts of the localisation, the largest first, and the lungs, the right one first.

    Each is on a slice of its own as long as there are slices, so that no label covers another.
    """
    taken: set[int] = set()
    both = mask_of(finding, "anatomy", volume)
    middle = _Middle(both, volume)
    found = _parts(mask_of(finding, "finding", volume))
    shown = [_region(part, middle.side_of(part), taken) for part in found[:MOST_FINDINGS]]
    lungs = ((side, middle.half(both, side)) for side in Side)
    return shown, [_region(lung, side, taken) for side, lung in lungs if lung.any()]


def outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """A closed line around one connected region (Y, X), as far as its rows reach on both sides.

    Returns (N, 2): column and row from the image's upper left corner, pixels.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    left = mask[rows].argmax(axis=1)
    right = mask.shape[1] - mask[rows, ::-1].argmax(axis=1)
    heights = np.concatenate([[rows[0]], rows + 0.5, [rows[-1] + 1]])
    left, right = (np.concatenate([[edge[0]], edge, [edge[-1]]]) for edge in (left, right))
    line = np.concatenate([np.stack([right, heights], 1), np.stack([left, heights], 1)[::-1]])
    return np.concatenate([line, line[:1]]).astype(np.float64)


class _Middle:
    """The plane between the lungs: halfway between the outermost voxels of both."""

    def __init__(self, lungs: npt.NDArray[np.bool_], volume: CTVolume) -> None:
        self._turn = turn_of(volume.affine)
        across = np.flatnonzero(self._turn.view(lungs).any(axis=(0, 1)))
        self._at = (across[0] + across[-1]) / 2 if across.size else self._turn.view(lungs).shape[2] / 2

    def side_of(self, part: npt.NDArray[np.bool_]) -> Side:
        """The side on which most of a part lies."""
        counts = np.count_nonzero(self._turn.view(part), axis=(0, 1))
        on_left = np.arange(counts.size) > self._at
        return Side.LEFT if counts[on_left].sum() > counts[~on_left].sum() else Side.RIGHT

    def half(self, lungs: npt.NDArray[np.bool_], side: Side) -> npt.NDArray[np.bool_]:
        """The part of the lungs on one side (Z, Y, X)."""
        half = lungs.copy()
        on_left = np.arange(self._turn.view(half).shape[2]) > self._at
        # A view: what is cleared in it is cleared in the copy.
        self._turn.view(half)[:, :, on_left if side is Side.RIGHT else ~on_left] = False
        return half


def _parts(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """The connected parts of a mask, the largest first, no more than are shown."""
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    return [labels == number + 1 for number in np.argsort(-sizes, kind="stable")[:MOST_FINDINGS]]


def _region(part: npt.NDArray[np.bool_], side: Side, taken: set[int]) -> Region:
    areas = np.count_nonzero(part, axis=(1, 2))
    order = [int(z) for z in np.argsort(-areas, kind="stable") if areas[z]]
    z = next((z for z in order if z not in taken), order[0])
    taken.add(z)
    labels, _ = ndimage.label(part[z], structure=np.ones((3, 3)))
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return Region(side, int(areas.sum()), z, largest)
