"""Where the bytes of each frame lie in a DICOM file, found without reading them."""

import io
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from inference.errors import CorruptInstance

# (offset in the file, bytes) of every piece of one frame, in order.
Spans = tuple[tuple[int, int], ...]

_PIXEL_DATA = struct.pack("<HH", 0x7FE0, 0x0010)
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
# JPEG and JPEG-LS, JPEG 2000; both end alike. Zeros may follow, as padding to an even length or to a block.
_STREAM_STARTS, _STREAM_END, _PADDING_BYTES = (b"\xff\xd8", b"\xff\x4f"), b"\xff\xd9", 64

# A run-length header: two planes, the first right after the header; PS3.5 G.5.
_TWO_PLANES = struct.pack("<2L", 2, 64)


@dataclass(frozen=True)
class Layout:
    """What the header promises. frame_bytes: of one uncompressed frame. uid: SOP Instance UID, for error texts."""

    implicit: bool
    encapsulated: bool
    frames: int
    frame_bytes: int
    uid: str


def frame_spans(file: BinaryIO, layout: Layout) -> list[Spans]:
    """The spans of every frame, from a file positioned at its Pixel Data element.

    Gives one frame without spans if there is no Pixel Data, or if the header says that it holds no pixels: nothing is
    allocated for frames whose bytes are missing. Raises CorruptInstance if the file holds less than promised.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    head = file.read(12)
    if len(head) < 12 or head[:4] != _PIXEL_DATA or not layout.frame_bytes:
        return [()]
    length = struct.unpack_from("<L", head, 4 if layout.implicit else 8)[0]
    first = start + (8 if layout.implicit else 12)
    if (length == _UNDEFINED) != layout.encapsulated:
        raise CorruptInstance(f"instance {layout.uid}: its pixel data is not in the form its transfer syntax asks for")
    if layout.encapsulated:
        return _encapsulated_spans(file, first, size, layout)
    needed = layout.frames * layout.frame_bytes
    if not needed <= length <= size - first:
        raise CorruptInstance(
            f"instance {layout.uid}: its header asks for {needed} bytes of pixel data, "
            f"{min(length, size - first)} are there"
        )
    return [((first + index * layout.frame_bytes, layout.frame_bytes),) for index in range(layout.frames)]


def _encapsulated_spans(file: BinaryIO, first: int, size: int, layout: Layout) -> list[Spans]:
    items = _item_spans(file, first, size, layout.uid)
    table, fragments = items[:1], [span for span in items[1:] if span[1]]  # an empty fragment holds nothing
    if len(fragments) < layout.frames:
        raise CorruptInstance(
            f"instance {layout.uid}: {len(fragments)} fragments of pixel data for {layout.frames} frames"
        )
    if layout.frames == 1:
        return [tuple(fragments)]
    if len(fragments) == layout.frames:
        return [(fragment,) for fragment in fragments]
    starts = _starts_by_table(file, table[0], fragments)
    if len(starts) != layout.frames:
        starts = _starts_by_stream(file, fragments)
    if len(starts) != layout.frames:
        raise CorruptInstance(f"instance {layout.uid}: its frames cannot be told apart in its fragments")
    return [tuple(fragments[start:end]) for start, end in pairwise([*starts, len(fragments)])]


def _starts_by_table(file: BinaryIO, table: tuple[int, int], fragments: list[tuple[int, int]]) -> list[int]:
    """Indices of the fragments that begin a frame according to the Basic Offset Table."""
    offset, length = table
    file.seek(offset)
    offsets = set(struct.unpack(f"<{length // 4}L", file.read(length // 4 * 4)))
    return [0] + [n for n, (start, _) in enumerate(fragments) if n and start - fragments[0][0] in offsets]


def _starts_by_stream(file: BinaryIO, fragments: list[tuple[int, int]]) -> list[int]:
    """Indices of the fragments that begin an image: each follows a fragment that ends one, by the streams' own marks.

    Run-length data has no mark at its end, but begins with 64 bytes that look like nothing else.
    """
    starts, ended = [], True
    for index, (offset, length) in enumerate(fragments):
        file.seek(offset)
        head = file.read(min(length, 64))
        planes = len(head) == 64 and head[:8] == _TWO_PLANES and not any(head[12:])
        if planes or (ended and head[:2] in _STREAM_STARTS):
            starts.append(index)
        file.seek(offset + max(0, length - _PADDING_BYTES))
        ended = file.read(min(length, _PADDING_BYTES)).rstrip(b"\0").endswith(_STREAM_END)
    return starts


def _item_spans(file: BinaryIO, first: int, size: int, uid: str) -> list[tuple[int, int]]:
    """The offset table and every fragment, up to the end of the sequence."""
    spans: list[tuple[int, int]] = []
    offset = first
    while True:
        file.seek(offset)
        head = file.read(8)
        if len(head) < 8:
            break
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return spans
        if tag != _ITEM or offset + 8 + length > size:
            break
        spans.append((offset + 8, length))
        offset += 8 + length
    raise CorruptInstance(f"instance {uid}: its pixel data is cut off")
