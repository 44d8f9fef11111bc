"""Do two files of one SOP Instance UID hold the same image, whatever their encodings?

The same image reaches a node by several routes: uncompressed from the scanner, compressed from the archive, or with
its sequences rewritten. Two images are the same if person, study, geometry and every pixel agree.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inference.errors import InferenceError
from inference.volume.instances import Frame, PixelFormat, read_frames
from inference.volume.load import decode
from inference.volume.part10 import EXPLICIT_LE, IMPLICIT_LE

_SAME: tuple[tuple[str, Callable[[Frame], object]], ...] = (
    ("another patient", lambda frame: frame.instance.patient),
    ("another SOP instance", lambda frame: (frame.instance.sop_instance_uid, frame.instance.sop_class_uid)),
    ("another series", lambda frame: frame.instance.series_instance_uid),
    ("another study", lambda frame: frame.instance.study_instance_uid),
    ("another modality", lambda frame: frame.header.modality),
    ("another frame of reference", lambda frame: frame.instance.frame_of_reference_uid),
    ("another matrix", lambda frame: (frame.instance.pixels.rows, frame.instance.pixels.columns)),
    ("another position or orientation", lambda frame: (frame.position_mm, frame.orientation)),
    ("another pixel spacing", lambda frame: frame.spacing_mm),
    ("another rescale", lambda frame: (frame.slope, frame.intercept)),
)


def difference(first: Path, second: Path, max_bytes: int) -> str | None:
    """How two files differ, in a few words without patient data; None if they hold the same image.

    max_bytes: most memory that the pixels of each may take.
    """
    try:
        one, other = read_frames(first), read_frames(second)
    except InferenceError:
        return "a file that cannot be read"
    if not one or not all(frame.spans for frame in (*one, *other)):
        return "not images"
    if len(one) != len(other):
        return "another number of frames"
    for what, of in _SAME:
        if any(of(a) != of(b) for a, b in zip(one, other, strict=True)):
            return what
    return None if _same_bytes(one, other) else _pixel_difference(first, second, max_bytes)


def _same_bytes(one: list[Frame], other: list[Frame]) -> bool:
    """True for the same encoded pixels in the same format, even one that cannot be decoded here."""
    pairs = list(zip(one, other, strict=True))
    return all(_format(a) == _format(b) for a, b in pairs) and all(_encoded(a) == _encoded(b) for a, b in pairs)


def _format(frame: Frame) -> PixelFormat:
    """How the pixels are laid out; explicit and implicit VR do not differ in this."""
    pixels = frame.instance.pixels
    syntax = EXPLICIT_LE if pixels.transfer_syntax_uid == IMPLICIT_LE else pixels.transfer_syntax_uid
    return dataclasses.replace(pixels, transfer_syntax_uid=syntax)


def _encoded(frame: Frame) -> bytes:
    with frame.instance.path.open("rb") as file:
        parts = []
        for offset, length in frame.spans:
            file.seek(offset)
            parts.append(file.read(length))
    return b"".join(parts)


def _pixel_difference(first: Path, second: Path, max_bytes: int) -> str | None:
    try:
        one, other = (decode(path, max_bytes).planes for path in (first, second))
    except InferenceError:
        return "pixels that cannot be compared"
    return None if all(map(np.array_equal, one, other)) else "other pixels"
