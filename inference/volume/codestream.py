"""What a compressed stream says about itself, read from its own headers before any decoder sees it.

Everything here raises ValueError or struct.error for bytes that are not such a stream, and CutOff (a ValueError) if
the stream's end is missing. What follows the end is padding and is left out.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

JPEG_LOSSLESS_FRAME, JPEG_LS_FRAME = 0xC3, 0xF7
_SCAN, _RESTART_INTERVAL = 0xDA, 0xDD

# The first marker after a scan's entropy-coded bytes; restart markers belong to them. T.81 B.1.1.2 and T.87 C.1.
_AFTER_JPEG_SCAN = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_AFTER_JPEG_LS_SCAN = re.compile(rb"\xff+([\x80-\xcf\xd8-\xfe])")
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])")
_END_OF_IMAGE = 0xD9
# A tile costs the decoder several KB whatever its size; 4,096 x 4,096 pixels in tiles of 64 x 64 have 4,096.
_MAX_TILES = 4096


class CutOff(ValueError):
    """The stream has no end."""


@dataclass(frozen=True)
class Codestream:
    """One image.

    data: the stream without what precedes and follows it.  rows, columns: pixels.  precision: bits of a sample.
    lossless: decoding gives back exactly what was encoded.  restart_rows: rows of a restart interval, 0 for none.
    """

    data: bytes
    rows: int
    columns: int
    precision: int
    components: int
    lossless: bool
    restart_rows: int = 0


def read_jpeg(data: bytes, frame_marker: int) -> Codestream:
    """A lossless JPEG or a JPEG-LS stream; comments, application data and fill bytes are left out.

    Source: ITU-T T.81 annex B (SOF3) and T.87 annex C (SOF55, NEAR in the scan header).
    """
    frame, restart, kept = b"", 0, [b"\xff\xd8"]
    segments = list(_jpeg_segments(data, _SCAN))
    for marker, content, _ in segments:
        if 0xC0 <= marker <= 0xCF and marker not in (frame_marker, 0xC4, 0xC8, 0xCC):
            raise ValueError("another coding process than the transfer syntax says")
        if marker == frame_marker:
            frame = content
        elif marker == _RESTART_INTERVAL:
            (restart,) = struct.unpack_from(">H", content)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(_segment(marker, content))
    _, scan, after = segments[-1]
    precision, rows, columns, components = struct.unpack_from(">BHHB", frame)
    at = 1 + 2 * scan[0]
    near_or_shift = scan[at] if frame_marker == JPEG_LS_FRAME else scan[at + 2] & 0x0F  # NEAR, or the point transform
    end = (_AFTER_JPEG_LS_SCAN if frame_marker == JPEG_LS_FRAME else _AFTER_JPEG_SCAN).search(data, after)
    if end is None or end[1][0] != _END_OF_IMAGE:
        raise CutOff
    restart_rows = 0 if restart >= rows * columns else _whole_rows(restart, columns)
    stream = b"".join((*kept, data[after : end.start()], b"\xff\xd9"))
    return Codestream(stream, rows, columns, precision, components, near_or_shift == 0, restart_rows)


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _jpeg_segments(data: bytes, last: int = -1) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content and end offset of each marker segment, up to and including one with the marker `last`."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    offset = 2
    while True:
        marker_start, marker = struct.unpack_from(">BB", data, offset)
        if marker_start != 0xFF:
            raise ValueError("no marker where one must be")
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        after = offset + 2 + length
        if length < 2 or after > len(data):
            raise CutOff
        yield marker, data[offset + 4 : after], after
        if marker == last:
            return
        offset = after


def _whole_rows(restart: int, columns: int) -> int:
    """T.81 H.1.1: the restart interval is an integer multiple of the samples in a row."""
    if restart and restart % (columns or 1):
        raise ValueError("a restart interval of broken rows")
    return restart // (columns or 1)


def strips(stream: Codestream) -> list[bytes]:
    """Split a lossless JPEG stream with restart intervals into one stream for each interval.

    Prediction starts afresh at each interval, and an interval holds whole rows, so each is an image by itself. A
    decoder that does not know restart markers can read it.
    """
    data = stream.data
    segments = list(_jpeg_segments(stream.data, _SCAN))
    after = segments[-1][2]
    frame = next(after - len(content) for marker, content, after in segments if marker == JPEG_LOSSLESS_FRAME)
    data = stream.data
    pieces = _RESTART.split(data[after:-2])
    scans, markers = pieces[::2], pieces[1::2]
    if [marker[0] for marker in markers] != [0xD0 + index % 8 for index in range(len(markers))]:
        raise ValueError("restart markers out of order")
    if len(scans) != -(-stream.rows // stream.restart_rows):
        raise ValueError("restart markers are missing")
    last = stream.rows - stream.restart_rows * (len(scans) - 1)
    heights = [stream.restart_rows] * (len(scans) - 1) + [last]
    head, tail = data[: frame + 1], data[frame + 3 : after]
    return [
        b"".join((head, struct.pack(">H", rows), tail, scan, b"\xff\xd9"))
        for rows, scan in zip(heights, scans, strict=True)
    ]


def read_jpeg_2000(data: bytes) -> Codestream:
    """A JPEG 2000 or HTJ2K stream; lossless if the wavelet is reversible in the whole image.

    Source: ITU-T T.800 annex A (SIZ, COD, COC, SOT).
    """
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise ValueError("no codestream")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0 = struct.unpack_from(">8L", data, start + 8)
    components, depth, step_x, step_y = struct.unpack_from(">HBBB", data, start + 40)
    if (step_x, step_y) != (1, 1) or not (tile_x0 <= x0 < x1 and tile_y0 <= y0 < y1 and tile_x and tile_y):
        raise ValueError("an impossible grid")
    if -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y) > _MAX_TILES:
        raise ValueError("too many tiles")
    transforms, end = _walk_jpeg_2000(data, start + 2)
    lossless = bool(transforms) and all(transform == 1 for transform in transforms)
    return Codestream(data[start:end], y1 - y0, x1 - x0, (depth & 0x7F) + 1, components, lossless)


def _walk_jpeg_2000(data: bytes, offset: int) -> tuple[list[int], int]:
    """The wavelet of each COD and COC in all headers, 1 if reversible; and the offset after the end of codestream."""
    transforms: list[int] = []
    tile_part = 0
    while True:
        if offset + 2 > len(data):
            raise CutOff
        (marker,) = struct.unpack_from(">H", data, offset)
        if marker == 0xFFD9:
            return transforms, offset + 2
        if marker == 0xFF93:  # start of data: the tile-part's bytes
            offset = tile_part
            continue
        if offset + 4 > len(data):
            raise CutOff
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if marker >> 8 != 0xFF or length < 2:
            raise ValueError("no marker where one must be")
        if marker == 0xFF90:
            tile_part = _end_of_tile_part(data, offset)
        elif marker == 0xFF52:
            transforms.append(data[offset + 13])
        elif marker == 0xFF53:
            transforms.append(data[offset + 10])
        offset += 2 + length


def _end_of_tile_part(data: bytes, offset: int) -> int:
    (size,) = struct.unpack_from(">L", data, offset + 6)
    if size == 0:  # the last one, up to the end of codestream
        end = data.rfind(b"\xff\xd9", offset)
        if end < 0:
            raise CutOff
        return end
    if size < 14:
        raise ValueError("an impossible tile-part")
    return int(offset + size)
