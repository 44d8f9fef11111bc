"""Where the bytes of each frame lie in a DICOM file, found without reading them."""

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from inference.errors import CorruptInstance

# (offset in the file, bytes) of every piece of one frame, in order.
Spans = tuple[tuple[int, int], ...]

_PIXEL_DATA = struct.pack("<HH", 0x7FE0, 0x0010)
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Layout:
    """What the header promises. frame_bytes: of one uncompressed frame. uid: SOP Instance UID, for error texts."""

    implicit: bool
    encapsulated: bool
    frames: int
    frame_bytes: int
    uid: str


def frame_spans(file: BinaryIO, layout: Layout) -> list[Spans]:
    """The spans of every frame, from a file that stands at its Pixel Data element.

    Frames without spans when no Pixel Data is there. Raises CorruptInstance where less is there than promised.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(start)
    head = file.read(12)
    if len(head) < 12 or head[:4] != _PIXEL_DATA:
        return [()] * layout.frames
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
    table, fragments = items[:1], items[1:]
    if len(fragments) < layout.frames:
        raise CorruptInstance(
            f"instance {layout.uid}: {len(fragments)} fragments of pixel data for {layout.frames} frames"
        )
    if layout.frames == 1:
        return [tuple(fragments)]
    if len(fragments) == layout.frames:
        return [(fragment,) for fragment in fragments]
    offset, length = table[0]
    file.seek(offset)
    starts = set(struct.unpack(f"<{length // 4}L", file.read(length // 4 * 4)))
    frames: list[list[tuple[int, int]]] = []
    for fragment in fragments:
        if not frames or fragment[0] - fragments[0][0] in starts:
            frames.append([])
        frames[-1].append(fragment)
    if len(frames) != layout.frames:
        raise CorruptInstance(f"instance {layout.uid}: its frames cannot be told apart in its fragments")
    return [tuple(frame) for frame in frames]


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
