"""Turns stored CT instances into one volume in Hounsfield units, or gives a named reason why not.

The headers are read and the geometry is settled first: a series that is not a volume costs no decoding and no memory.
Then parallel threads decode the frames straight into their places.
"""

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from config.reasons import ReasonCode
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice
from inference.volume.decode import check_format, decode_frame, most_encoded_bytes, write_hu
from inference.volume.geometry import Stack, find_stacks, shows_conflict, split_conflicting
from inference.volume.instances import (
    CT_IMAGE,
    ENHANCED_CT,
    LEGACY_ENHANCED_CT,
    Frame,
    read_frames,
)

DEFAULT_WORKERS = min(8, os.cpu_count() or 1)
# Voxels of one series in memory: 4,000 slices of 512 x 512. The longest clinical chest series has about 1,500.
DEFAULT_MAX_BYTES = 2 << 30

# The HU of each frame of one file: (Y, X) int16.
Planes = list[npt.NDArray[np.int16]]


@dataclass(frozen=True)
class DecodedFile:
    """One file that was decoded by itself: its frames, and the HU of each."""

    frames: tuple[Frame, ...]
    planes: Planes

    def frames_at(self, path: Path) -> list[Frame]:
        """Its frames if the same file now lies at another path, as one that is fetched anew does."""
        return [
            frame
            if frame.instance.path == path
            else dataclasses.replace(frame, instance=dataclasses.replace(frame.instance, path=path))
            for frame in self.frames
        ]


Decoded = Mapping[Path, DecodedFile]
_NOTHING: Decoded = {}

_CT_CLASSES = frozenset({CT_IMAGE, ENHANCED_CT, LEGACY_ENHANCED_CT})
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def load(
    paths: Sequence[Path],
    *,
    workers: int = DEFAULT_WORKERS,
    max_bytes: int = DEFAULT_MAX_BYTES,
    decoded: Decoded = _NOTHING,
) -> CTVolume:
    """The volume of one series.

    paths: every stored instance of the series, in any order and under any names.
    workers: decoding threads.  max_bytes: most memory the voxels may take.
    decoded: what `decode` gave for some of the files; the volume is the same with or without it.
    If a series splits into several clean volumes, the one with the largest extent along z is loaded (the first
    acquisition if several are equal); `part` says which, and `passed_over` holds the others' instances.
    Raises UnsuitableSeries with a stable code, or CorruptInstance naming the SOP Instance UID.
    """
    frames, stacks = _plan(paths, decoded)
    stack = max(stacks, key=lambda one: round(extent_mm(one)))
    try:
        return _assemble(stack, stacks, workers, max_bytes, decoded)
    except _Conflict:
        stacks = split_conflicting(frames)
        stack = max(stacks, key=lambda one: round(extent_mm(one)))
        return _settled(stack, stacks, workers, max_bytes, decoded)


def decode(path: Path, max_bytes: int) -> DecodedFile:
    """The slices of one file, for `load`. Raises UnsuitableSeries or CorruptInstance if it has none.

    max_bytes: most memory that the slices may take.
    """
    frames = read_frames(path)
    usable(frames)
    if sum(frame.instance.pixels.rows * frame.instance.pixels.columns * 2 for frame in frames) > max_bytes:
        raise UnsuitableSeries(ReasonCode.TOO_LARGE, f"The instance needs more than {max_bytes >> 20} MiB of memory.")
    return DecodedFile(tuple(frames), [decode_slice(frame) for frame in frames])


def decode_slice(frame: Frame) -> npt.NDArray[np.int16]:
    """The HU of one frame, (Y, X). Raises CorruptInstance, or UnsuitableSeries if its stream is lossy."""
    out = np.empty((frame.instance.pixels.rows, frame.instance.pixels.columns), np.int16)
    _decode_into(frame, out)
    return out


def outline(paths: Sequence[Path]) -> CTVolume:
    """The volume that `load` would give, from headers alone: its voxels are all 0 and take no memory.

    Doubled positions are taken for duplicates, because only pixels could tell. Errors as for `load`.
    """
    _, stacks = _plan(paths)
    stack = max(stacks, key=lambda one: round(extent_mm(one)))
    kept = [preferred(frames) for frames in stack.candidates]
    pixels = kept[0].instance.pixels
    return _volume(stack, stacks, kept, np.broadcast_to(np.int16(0), (len(kept), pixels.rows, pixels.columns)), ())


class _Conflict(Exception):
    """Frames at one position differ in their pixels."""


def _plan(paths: Sequence[Path], decoded: Decoded = _NOTHING) -> tuple[list[Frame], list[Stack]]:
    """All frames of a series and the stacks they form, from headers alone."""
    before = {path: file.frames_at(path) for path, file in decoded.items()}
    frames = [frame for path in paths for frame in before.get(path) or read_frames(path)]
    if not frames:
        raise UnsuitableSeries(ReasonCode.NO_IMAGES, "The series holds no images.")
    usable(frames)
    _one_place_per_uid(frames)
    return frames, find_stacks(frames)


def usable(frames: Sequence[Frame]) -> None:
    """Check that every frame is a CT image that can be decoded and rescaled to HU. Raises UnsuitableSeries, or
    CorruptInstance."""
    _only_ct(frames)
    for frame in frames:
        check_format(frame.instance.pixels)
        if not frame.spans:
            raise CorruptInstance(f"instance {frame.instance.sop_instance_uid}: it has no pixel data")
        if math.isnan(frame.slope) or math.isnan(frame.intercept):
            raise UnsuitableSeries(
                ReasonCode.BAD_RESCALE, "The rescale slope or intercept is not a number that CT images can have."
            )
        if frame.header.slice_thickness_mm is not None and math.isnan(frame.header.slice_thickness_mm):
            raise UnsuitableSeries(
                ReasonCode.SLICE_THICKNESS, "The slice thickness in the header is not a length that a slice can have."
            )


def _only_ct(frames: Sequence[Frame]) -> None:
    others = [frame for frame in frames if frame.instance.sop_class_uid not in _CT_CLASSES]
    if not others:
        return
    if all(frame.instance.sop_class_uid.startswith(_SECONDARY_CAPTURE) for frame in others):
        raise UnsuitableSeries(
            ReasonCode.SECONDARY_CAPTURE,
            f"{len(others)} of {len(frames)} images are secondary captures, not CT images.",
        )
    raise UnsuitableSeries(ReasonCode.NOT_CT, f"{len(others)} of {len(frames)} objects are not CT images.")


def _one_place_per_uid(frames: Sequence[Frame]) -> None:
    """A folder may hold a file twice, but one SOP Instance UID cannot stand for two places."""
    seen: dict[tuple[str, int], Frame] = {}
    for frame in frames:
        key = (frame.instance.sop_instance_uid, frame.index)
        first = seen.setdefault(key, frame)
        if first is not frame and (first.position_mm, first.orientation) != (frame.position_mm, frame.orientation):
            raise UnsuitableSeries(
                ReasonCode.CONFLICTING_SLICES,
                "Two files carry the same SOP Instance UID but lie at different positions.",
            )


def extent_mm(stack: Stack) -> float:
    """How much of the patient a stack covers: of several, the analysis takes the one that covers most."""
    return stack.spacing_mm[0] * len(stack.candidates)


def _settled(stack: Stack, stacks: Sequence[Stack], workers: int, max_bytes: int, decoded: Decoded) -> CTVolume:
    try:
        return _assemble(stack, stacks, workers, max_bytes, decoded)
    except _Conflict:
        raise UnsuitableSeries(
            ReasonCode.CONFLICTING_SLICES,
            "Several images lie at one position but differ, and nothing tells them apart.",
        ) from None


def _assemble(stack: Stack, stacks: Sequence[Stack], workers: int, max_bytes: int, decoded: Decoded) -> CTVolume:
    kept = [preferred(frames) for frames in stack.candidates]
    pixels = kept[0].instance.pixels
    needed = len(kept) * pixels.rows * pixels.columns * 2
    if needed > max_bytes:
        raise UnsuitableSeries(
            ReasonCode.TOO_LARGE, f"The series needs {needed >> 20} MiB of memory; {max_bytes >> 20} MiB are allowed."
        )
    hu = np.empty((len(kept), pixels.rows, pixels.columns), dtype=np.int16)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for _ in pool.map(lambda frame, out: _decode_into(frame, out, decoded), kept, hu):
            pass
    dropped = _drop_duplicates(stack, kept, hu) if shows_conflict(stack) else ()
    return _volume(stack, stacks, kept, hu, dropped)


def _volume(
    stack: Stack, stacks: Sequence[Stack], kept: Sequence[Frame], hu: npt.NDArray[np.int16], dropped: tuple[str, ...]
) -> CTVolume:
    others = {frame.instance.sop_instance_uid for one in stacks if one is not stack for frame in _frames_of(one)}
    return CTVolume(
        hu=hu,
        spacing_mm=stack.spacing_mm,
        affine=stack.affine,
        slices=tuple(_source(frame) for frame in kept),
        series_instance_uid=kept[0].instance.series_instance_uid,
        study_instance_uid=kept[0].instance.study_instance_uid,
        header=_merged_header(kept),
        dropped=dropped,
        rescale=tuple((frame.slope, frame.intercept) for frame in kept),
        part=stack.part,
        passed_over=tuple(sorted(others - {frame.instance.sop_instance_uid for frame in _frames_of(stack)})),
    )


def _frames_of(stack: Stack) -> list[Frame]:
    return [frame for frames in stack.candidates for frame in frames]


def preferred(frames: Sequence[Frame]) -> Frame:
    """Which of several duplicates stays: the smallest UID, so that arrival order and file names do not matter."""
    return min(frames, key=lambda frame: (frame.instance.sop_instance_uid, frame.index, str(frame.instance.path)))


def _decode_into(frame: Frame, out: npt.NDArray[np.int16], decoded: Decoded = _NOTHING) -> None:
    before = decoded.get(frame.instance.path)
    if before is not None:
        out[:] = before.planes[frame.index]
        return
    write_hu(decode_frame(frame, _read_spans(frame)), frame, out)


def _read_spans(frame: Frame) -> bytes:
    if sum(length for _, length in frame.spans) > most_encoded_bytes(frame.instance.pixels):
        raise CorruptInstance(
            f"instance {frame.instance.sop_instance_uid}: its compressed image is larger than an uncompressed one"
        )
    try:
        with frame.instance.path.open("rb", buffering=0) as file:
            parts = []
            for offset, length in frame.spans:
                file.seek(offset)
                parts.append(file.read(length))
    except OSError as error:
        raise CorruptInstance(f"instance {frame.instance.sop_instance_uid}: {error.strerror}") from None
    if any(len(part) != length for part, (_, length) in zip(parts, frame.spans, strict=True)):
        raise CorruptInstance(f"instance {frame.instance.sop_instance_uid}: its pixel data is cut off")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _drop_duplicates(stack: Stack, kept: Sequence[Frame], hu: npt.NDArray[np.int16]) -> tuple[str, ...]:
    """UIDs of the frames whose voxels equal the kept ones'. Raises _Conflict when any differ."""
    dropped = set()
    other = np.empty(hu.shape[1:], dtype=np.int16)
    for z, frames in enumerate(stack.candidates):
        for frame in frames:
            if frame is kept[z]:
                continue
            _decode_into(frame, other)
            if not np.array_equal(other, hu[z]):
                raise _Conflict
            dropped.add(frame.instance.sop_instance_uid)
    return tuple(sorted(dropped - {frame.instance.sop_instance_uid for frame in kept}))


def _source(frame: Frame) -> SourceSlice:
    position = frame.position_mm or (math.nan,) * 3
    instance = frame.instance
    return SourceSlice(instance.path, instance.sop_instance_uid, instance.sop_class_uid, frame.index, position)


def _merged_header(frames: Sequence[Frame]) -> SeriesHeader:
    """The lowest slice's header, with every flag that any slice sets and the image type most slices share."""
    headers = [frame.header for frame in frames]
    exposures = [header.mas for header in headers if header.mas is not None]
    return dataclasses.replace(
        headers[0],
        image_type=Counter(header.image_type for header in headers).most_common(1)[0][0],
        burned_in=any(header.burned_in for header in headers),
        contrast=any(header.contrast for header in headers),
        lossy=any(header.lossy for header in headers),
        quality_control=any(header.quality_control for header in headers),
        has_rescale=all(header.has_rescale for header in headers),
        bits_stored=min(header.bits_stored for header in headers),
        number_step=_number_step(frames),
        equipment=frozenset().union(*(header.equipment for header in headers)),
        mas=fmean(exposures) if exposures else None,
    )


def _number_step(frames: Sequence[Frame]) -> int:
    """The instance numbers' constant step from slice to slice, up or down; 0 if it is not constant."""
    numbers = [frame.instance.number for frame in frames]
    steps = {abs(b - a) if a is not None and b is not None else 0 for a, b in pairwise(numbers)}
    return steps.pop() if len(steps) == 1 else 0
