"""Slices of a series that still arrives, in the places that they will probably have in its volume.

Nothing here decides anything: where a guess is wrong, what was computed on its ground is not used. The series that is
reported on is loaded anew once it is closed (`inference.volume.load`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.agreement import common_axes, common_grid
from inference.volume.ct_volume import CTVolume, SourceSlice
from inference.volume.geometry import SAME_POSITION_MM
from inference.volume.instances import Frame
from inference.volume.load import DecodedFile, preferred, usable

# Steps up to this much longer than the shortest are the usual ones; a missing slice doubles one.
_USUAL_STEP = 1.3


@dataclass(frozen=True)
class Arrived:
    """The slices that are there of a volume that may not be whole.

    places: of each slice in the whole volume, ascending: intp (k,).  whole: how many slices that has.
    keys: what names each slice.
    """

    places: npt.NDArray[np.intp]
    whole: int
    keys: tuple[tuple[str, int], ...]
    spacing_mm: tuple[float, float, float]
    _affine: npt.NDArray[np.float64]
    _frames: tuple[Frame, ...]
    _planes: tuple[npt.NDArray[np.int16], ...]

    def volume(self, chosen: Sequence[int] | npt.NDArray[np.intp]) -> CTVolume:
        """Some of the slices as if they were a volume, turned as stored.  chosen: ascending indices into `places`."""
        frames = [self._frames[index] for index in chosen]
        first = frames[0]
        return CTVolume(
            hu=np.stack([self._planes[index] for index in chosen]),
            spacing_mm=self.spacing_mm,
            affine=self._affine,
            slices=tuple(_source(frame) for frame in frames),
            series_instance_uid=first.instance.series_instance_uid,
            study_instance_uid=first.instance.study_instance_uid,
            header=first.header,
            rescale=tuple((frame.slope, frame.intercept) for frame in frames),
        )


def arrived(decoded: Mapping[str, DecodedFile], expected: int | None = None) -> Arrived | None:
    """The slices of some files as a part of one volume; None as long as they show none.

    decoded: by any name of the file.  expected: how many slices there will be, if somebody else knows.
    """
    planes = {
        (one.instance.sop_instance_uid, one.index): plane
        for file in decoded.values()
        for one, plane in zip(file.frames, file.planes, strict=True)
    }
    frames = [frame for file in decoded.values() for frame in file.frames]
    try:
        usable(frames)
        return _arranged(frames, planes, expected)
    except (UnsuitableSeries, CorruptInstance):
        return None


def _arranged(
    frames: Sequence[Frame], planes: Mapping[tuple[str, int], npt.NDArray[np.int16]], expected: int | None
) -> Arrived | None:
    if len(frames) < 2 or any(frame.position_mm is None or frame.orientation is None for frame in frames):
        return None
    rows, columns, normal = common_axes(frames)
    spacing_y, spacing_x = common_grid(frames)
    heights = np.array([frame.position_mm for frame in frames], dtype=np.float64) @ normal
    kept, heights = _one_per_place(frames, heights)
    if len(kept) < 2:
        return None
    steps = np.diff(heights)
    usual = float(np.median(steps[steps <= _USUAL_STEP * steps.min()]))
    places = np.rint((heights - heights[0]) / usual).astype(np.intp)
    spacing = round(float(heights[-1] - heights[0]) / int(places[-1]), 6)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = rows * spacing_x, columns * spacing_y, normal * spacing
    affine[:3, 3] = kept[0].position_mm
    first, whole = _surroundings(kept, int(places[-1]) + 1, expected)
    keys = tuple((frame.instance.sop_instance_uid, frame.index) for frame in kept)
    return Arrived(
        places + first,
        whole,
        keys,
        (spacing, spacing_y, spacing_x),
        affine,
        tuple(kept),
        tuple(planes[key] for key in keys),
    )


def _one_per_place(
    frames: Sequence[Frame], heights: npt.NDArray[np.float64]
) -> tuple[list[Frame], npt.NDArray[np.float64]]:
    """Frames in ascending order of height, the preferred one of those that share a position; and their heights."""
    order = np.argsort(heights, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(heights[order]) > SAME_POSITION_MM) + 1)
    kept = [preferred([frames[index] for index in run]) for run in runs]
    return kept, np.array([heights[run].mean() for run in runs])


def _surroundings(kept: Sequence[Frame], span: int, expected: int | None) -> tuple[int, int]:
    """How many slices lie below the lowest of those that are there, and how many there are in all.

    As far as that is expected, or else the scanner says how many images it made. Which end came first is seen from the
    instance numbers.
    """
    whole = max(span, expected or kept[0].header.images_in_acquisition)
    low, high = kept[0].instance.number, kept[-1].instance.number
    if low is None or high is None:
        return 0, span
    below = low - 1 if low < high else whole - low
    return (below, whole) if 0 <= below <= whole - span else (0, span)


def _source(frame: Frame) -> SourceSlice:
    instance = frame.instance
    position = frame.position_mm or (0.0, 0.0, 0.0)
    return SourceSlice(instance.path, instance.sop_instance_uid, instance.sop_class_uid, frame.index, position)
