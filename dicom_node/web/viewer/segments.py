"""Stored segmentations as overlays: which segments there are, and their pixels in each plane.

The bits stay packed in memory, an eighth of a mask. Frames are found by the image that they were made from, so an
overlay lies on the slice that its model saw, whatever order the images are shown in.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from config.headers import quiet
from dicom_node.report.heat import STEP
from dicom_node.web.viewer.encode import RGB, heat_png, mask_png, rgb_of_lab
from dicom_node.web.viewer.planes import Plane

Mask = npt.NDArray[np.bool_]
ImageKey = tuple[str, int]
"""SOP Instance UID and 0-based frame of an image."""
_DEFAULT_COLOUR = (230, 180, 60)


@dataclass(frozen=True)
class Segment:
    """One segment of a stored segmentation."""

    number: int
    label: str
    colour: RGB


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A binary segmentation. bits: packed, little end first.  frames: by segment number and image, their place."""

    segments: tuple[Segment, ...]
    rows: int
    columns: int
    bits: npt.NDArray[np.uint8]
    frames: dict[tuple[int, ImageKey], int]

    def fits(self, rows: int, columns: int) -> bool:
        """Whether it was made of images of this size."""
        return (rows, columns) == (self.rows, self.columns)

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return self.bits.nbytes + 300 * len(self.frames) + 1000

    def mask(self, number: int, plane: Plane, index: int, images: Sequence[ImageKey]) -> Mask:
        """A segment in one image of a plane. images: of the slices of the volume, from foot to head."""
        if plane is Plane.AXIAL:
            return self._frame(self._starts(number, images[index : index + 1])[0])
        starts = self._starts(number, images[::-1])
        rows, columns = np.arange(self.rows), np.arange(self.columns)
        line = index * self.columns + columns if plane is Plane.CORONAL else rows * self.columns + index
        return self._bits(starts, line)

    def png(self, number: int, plane: Plane, index: int, images: Sequence[ImageKey]) -> bytes:
        """The segment in one image of a plane, as a transparent picture."""
        colour = next(one.colour for one in self.segments if one.number == number)
        return mask_png(self.mask(number, plane, index, images), colour)

    def largest(self, number: int, images: Sequence[ImageKey]) -> int | None:
        """The slice in which a segment has most pixels; None if it has none."""
        counts = [self._count(start) for start in self._starts(number, images)]
        return int(np.argmax(counts)) if any(counts) else None

    def _count(self, start: int) -> int:
        return int(np.count_nonzero(self._frame(start)))

    def _frame(self, start: int) -> Mask:
        """The mask of one whole frame, by its first bit; empty without one."""
        if start < 0:
            return np.zeros((self.rows, self.columns), dtype=bool)
        size = self.rows * self.columns
        packed = self.bits[start // 8 : (start + size + 7) // 8]
        unpacked = np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size]
        return unpacked.reshape(self.rows, self.columns).view(bool)

    def _starts(self, number: int, images: Sequence[ImageKey]) -> list[int]:
        """The first bit of the segment's frame for each image, -1 without one."""
        size = self.rows * self.columns
        places = (self.frames.get((number, image), -1) for image in images)
        return [place * size if place >= 0 else -1 for place in places]

    def _bits(self, starts: Sequence[int], offsets: npt.NDArray[np.int64]) -> Mask:
        """For each start the bits at these offsets; False without a frame."""
        found = np.zeros((len(starts), *offsets.shape), dtype=bool)
        for place, start in enumerate(starts):
            if start >= 0:
                at = start + offsets
                found[place] = (self.bits[at >> 3] >> (at & 7).astype(np.uint8)) & 1
        return found


@dataclass(frozen=True, eq=False)
class HeatMap:
    """What drove a model, 0 to 255. values: uint8 (frames, rows, columns), coarse; rows, columns: of the images."""

    segments: tuple[Segment, ...]
    values: npt.NDArray[np.uint8]
    frames: dict[tuple[int, ImageKey], int]

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return self.values.nbytes + 300 * len(self.frames) + 1000

    def fits(self, rows: int, columns: int) -> bool:
        """Whether it was made of images of this size."""
        return self.values.shape[1:] == (-(-rows // STEP), -(-columns // STEP))

    def png(self, number: int, plane: Plane, index: int, images: Sequence[ImageKey]) -> bytes:
        """The map in one image of a plane, as a transparent picture; finer than the map, coarser than the images."""
        if plane is Plane.AXIAL:
            return heat_png(self._slice(number, images[index]), STEP, STEP)
        line = index // STEP
        slices = [self._slice(number, image) for image in images[::-1]]
        lines = [one[line] if plane is Plane.CORONAL else one[:, line] for one in slices]
        return heat_png(np.stack(lines), 1, STEP)

    def largest(self, number: int, images: Sequence[ImageKey]) -> int | None:
        """The slice with most heat; None if there is none."""
        sums = [int(self._slice(number, image).sum()) for image in images]
        return int(np.argmax(sums)) if any(sums) else None

    def _slice(self, number: int, image: ImageKey) -> npt.NDArray[np.uint8]:
        place = self.frames.get((number, image))
        return np.zeros(self.values.shape[1:], np.uint8) if place is None else self.values[place]


def read_segmentation(part10: bytes) -> Segmentation | HeatMap:
    """A segmentation that this node stored. Raises ValueError if it is neither a binary one nor a heat map."""
    with quiet():
        dataset = pydicom.dcmread(io.BytesIO(part10))
        kind = dataset.get("SegmentationType")
        if kind not in ("BINARY", "FRACTIONAL"):
            raise ValueError("not a segmentation that is shown")
        frames = {_frame_key(item): place for place, item in enumerate(dataset.PerFrameFunctionalGroupsSequence)}
        segments = tuple(_segment(item) for item in dataset.SegmentSequence)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        stored = np.frombuffer(dataset.PixelData, np.uint8)
    if kind == "BINARY":
        return Segmentation(segments, rows, columns, stored, frames)
    values = stored[: len(frames) * rows * columns].reshape(len(frames), rows, columns)
    return HeatMap(segments, values, frames)


def _frame_key(item: Dataset) -> tuple[int, ImageKey]:
    number = int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
    image = item.DerivationImageSequence[0].SourceImageSequence[0]
    return number, (str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1) - 1)


def _segment(item: Dataset) -> Segment:
    stored = item.get("RecommendedDisplayCIELabValue")
    if stored is None or len(stored) != 3:
        return Segment(int(item.SegmentNumber), str(item.SegmentLabel), _DEFAULT_COLOUR)
    lightness, a, b = (float(value) for value in stored)
    lab = lightness * 100 / 65535, a * 255 / 65535 - 128, b * 255 / 65535 - 128
    return Segment(int(item.SegmentNumber), str(item.SegmentLabel), rgb_of_lab(*lab))
