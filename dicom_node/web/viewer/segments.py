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
from dicom_node.web.viewer.encode import RGB, rgb_of_lab
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


def read_segmentation(part10: bytes) -> Segmentation:
    """A segmentation that this node stored. Raises ValueError if it is not a binary one."""
    with quiet():
        dataset = pydicom.dcmread(io.BytesIO(part10))
        if dataset.get("SegmentationType") != "BINARY":
            raise ValueError("not a binary segmentation")
        frames = {_frame_key(item): place for place, item in enumerate(dataset.PerFrameFunctionalGroupsSequence)}
        segments = tuple(_segment(item) for item in dataset.SegmentSequence)
        bits = np.frombuffer(dataset.PixelData, np.uint8)
        return Segmentation(segments, int(dataset.Rows), int(dataset.Columns), bits, frames)


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
