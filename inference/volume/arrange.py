"""The images of a series in the order in which a person looks through them, from headers alone.

The order is that of the analysis if the images form a volume. Otherwise every image that can be read is there all the
same: a person who asks why a series was refused wants to see it.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.errors import CorruptInstance, InferenceError, UnsuitableSeries
from inference.volume.decode import SUPPORTED
from inference.volume.geometry import Stack, find_stacks, shows_conflict, split_conflicting
from inference.volume.instances import Frame, PixelFormat, read_frames
from inference.volume.load import decode_slice, extent_mm, preferred

# One image in memory. Detectors of digital radiography stay below it, CT far below it.
_MAX_PIXELS = 32 << 20


@dataclass(frozen=True)
class Arrangement:
    """The images of a series, from foot to head.

    stack: the volume that they form; None if they form none.  why_not: the reason in a sentence, if there is none.
    unreadable: files whose header cannot be read, or that hold no image.
    """

    frames: tuple[Frame, ...]
    stack: Stack | None
    why_not: str = ""
    unreadable: tuple[Path, ...] = ()


def arrange(paths: Sequence[Path]) -> Arrangement:
    """The images of the files of one series. Never raises because of what a file holds."""
    frames: list[Frame] = []
    unreadable = []
    for path in paths:
        found = _images_of(path)
        frames += found
        if not found:
            unreadable.append(path)
    if not frames:
        return Arrangement((), None, "There is no image.", tuple(unreadable))
    try:
        stack = _stack_of(frames)
    except UnsuitableSeries as error:
        return Arrangement(tuple(_by_place(frames)), None, error.sentence, tuple(unreadable))
    kept = tuple(preferred(candidates) for candidates in stack.candidates)
    return Arrangement(kept, stack, unreadable=tuple(unreadable))


def _images_of(path: Path) -> list[Frame]:
    try:
        return [frame for frame in read_frames(path) if frame.spans]
    except (InferenceError, OSError):
        return []


def _stack_of(frames: Sequence[Frame]) -> Stack:
    stacks = find_stacks(frames)
    if any(shows_conflict(stack) for stack in stacks):
        stacks = _split(frames) or stacks
    return max(stacks, key=lambda one: round(extent_mm(one)))


def _split(frames: Sequence[Frame]) -> list[Stack]:
    """Several volumes at one place, as far as headers tell them apart."""
    try:
        return split_conflicting(frames)
    except UnsuitableSeries:
        return []


def _by_place(frames: Sequence[Frame]) -> list[Frame]:
    """By height along the first image's normal if all have a place; else by instance number."""
    normal = normal_of(frames[0])
    if normal is None or any(frame.position_mm is None for frame in frames):
        return sorted(frames, key=lambda frame: (frame.instance.number or 0, str(frame.instance.path), frame.index))
    return sorted(frames, key=lambda frame: (height_mm(frame, normal), frame.instance.sop_instance_uid, frame.index))


def normal_of(frame: Frame) -> npt.NDArray[np.float64] | None:
    """The direction across an image, towards the head; None if the header does not say or contradicts itself."""
    if frame.orientation is None:
        return None
    normal = np.cross(frame.orientation[:3], frame.orientation[3:])
    length = float(np.linalg.norm(normal))
    if not math.isfinite(length) or length < 0.5:
        return None
    upward = normal[np.argmax(np.abs(normal))] >= 0
    return np.asarray((normal if upward else -normal) / length, dtype=np.float64)


def height_mm(frame: Frame, normal: npt.NDArray[np.float64]) -> float:
    """How far along a direction an image lies, mm; 0 if it has no place."""
    return 0.0 if frame.position_mm is None else float(np.dot(frame.position_mm, normal))


def decode_shown(frame: Frame) -> npt.NDArray[np.int16]:
    """The pixels of an image to look at, (Y, X): HU if it is CT, else whatever its own rescale makes of it.

    Raises CorruptInstance or UnsuitableSeries with a sentence if it cannot be shown.
    """
    pixels = frame.instance.pixels
    if not 0 < pixels.rows * pixels.columns <= _MAX_PIXELS:
        raise CorruptInstance("The image has no size that can be shown.")
    if math.isnan(frame.slope) or math.isnan(frame.intercept):
        frame = dataclasses.replace(frame, slope=1.0, intercept=0.0)
    if not _decodes(pixels):
        raise CorruptInstance("The image is in a form that this node does not decode, such as colour or lossy JPEG.")
    return decode_slice(frame)


def _decodes(pixels: PixelFormat) -> bool:
    words = pixels.bits_allocated == 16 and 0 < pixels.bits_stored <= pixels.high_bit + 1 <= 16
    return words and pixels.samples == 1 and pixels.transfer_syntax_uid in SUPPORTED
