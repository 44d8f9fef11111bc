"""Encoded frames to stored values, and stored values to Hounsfield units.

imagecodecs does the decoding because it lets go of the interpreter's lock. It hands out unsigned words for most
syntaxes, so signedness is restored here from Bits Stored and High Bit; and some of its decoders go on past the end
of a truncated stream, so every stream's own header and end marker are checked first.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.reasons import ReasonCode
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.instances import Frame, PixelFormat
from inference.volume.part10 import BIG_ENDIAN, EXPLICIT_LE, IMPLICIT_LE

NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE})
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS = frozenset({"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"})
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_2000_LOSSLESS = frozenset(
    {"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"}  # plain, HTJ2K, HTJ2K RPCL
)
SUPPORTED = NATIVE | {RLE, JPEG_LS_LOSSLESS} | JPEG_LOSSLESS | JPEG_2000_LOSSLESS

_LOSSY = frozenset(
    f"1.2.840.10008.1.2.4.{number}"
    for number in (50, 51, 53, 55, 81, 91, 93, 95, 100, 101, 102, 103, 104, 105, 106, 107, 108, 110, 112, 203)
)
_JPEG_END = b"\xff\xd9"
_CODEC_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    struct.error,
    imagecodecs.PackbitsError,
    imagecodecs.LjpegError,
    imagecodecs.Jpegsof3Error,
    imagecodecs.JpeglsError,
    imagecodecs.Jpeg2kError,
)

AIR_HU = -1024
# Padding at or below this is air to every window and to every threshold used on lungs; above it, it would read
# as lung or tissue.
PADDING_IS_AIR_BELOW_HU = -900


@dataclass(frozen=True)
class Codestream:
    """What a compressed stream says of itself. rows, columns: pixels. precision: bits of a sample."""

    rows: int
    columns: int
    precision: int
    components: int
    lossless: bool = True
    restarts: bool = False
    signed: bool = False


def check_format(pixels: PixelFormat) -> None:
    """Raises UnsuitableSeries for pixels that are no CT values, or not in an encoding this node reads."""
    syntax = pixels.transfer_syntax_uid
    if syntax == BIG_ENDIAN:
        raise UnsuitableSeries(
            ReasonCode.BIG_ENDIAN, "The images are stored in big endian byte order, which is retired."
        )
    if syntax in _LOSSY:
        raise UnsuitableSeries(
            ReasonCode.LOSSY_TRANSFER_SYNTAX, "The images are stored in a transfer syntax that loses detail."
        )
    if syntax not in SUPPORTED:
        raise UnsuitableSeries(
            ReasonCode.UNSUPPORTED_TRANSFER_SYNTAX, "The images' transfer syntax is not one this node reads."
        )
    if pixels.photometric == "MONOCHROME1":
        raise UnsuitableSeries(
            ReasonCode.MONOCHROME1, "The images are stored inverted (MONOCHROME1); CT is MONOCHROME2."
        )
    if pixels.samples != 1 or pixels.photometric != "MONOCHROME2":
        raise UnsuitableSeries(ReasonCode.COLOUR, "The images are not single-channel MONOCHROME2.")
    if pixels.bits_allocated == 8 or pixels.bits_stored < 10:
        raise UnsuitableSeries(
            ReasonCode.EIGHT_BIT, "The images have fewer than 10 bits a pixel, as screenshots do; CT has 12."
        )
    if pixels.bits_allocated != 16 or not pixels.bits_stored <= pixels.high_bit + 1 <= 16:
        raise UnsuitableSeries(ReasonCode.UNSUPPORTED_BITS, "The images' bits per pixel do not fit in 16-bit words.")
    if pixels.rows < 1 or pixels.columns < 1:
        raise UnsuitableSeries(ReasonCode.NO_IMAGES, "The images have no rows or columns.")


def decode_frame(frame: Frame, encoded: bytes) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16]:
    """The stored values of one frame, (Y, X) int16 or uint16.

    Raises CorruptInstance, naming the instance, when the bytes are cut off or are not such an image, and
    UnsuitableSeries when the stream turns out to be a lossy one.
    """
    pixels = frame.instance.pixels
    uid = frame.instance.sop_instance_uid
    try:
        words, precision = _decode(encoded, pixels, uid)
    except _CODEC_ERRORS:
        raise CorruptInstance(f"instance {uid}: its pixel data cannot be decoded") from None
    return _restore_sign(words, pixels, precision)


def _decode(encoded: bytes, pixels: PixelFormat, uid: str) -> tuple[npt.NDArray[np.uint16], int]:
    """Words as stored and the number of bits that carry them."""
    shape = (pixels.rows, pixels.columns)
    syntax = pixels.transfer_syntax_uid
    if syntax in NATIVE:
        return np.frombuffer(encoded, "<u2", count=shape[0] * shape[1]).reshape(shape), 16
    if syntax == RLE:
        return _decode_rle(encoded, shape, uid), 16
    stream = read_codestream(encoded, syntax)
    if (stream.rows, stream.columns, stream.components) != (*shape, 1) or not 2 <= stream.precision <= 16:
        raise CorruptInstance(f"instance {uid}: its compressed image is not of the size its header says")
    if not stream.lossless:
        raise UnsuitableSeries(ReasonCode.LOSSY_TRANSFER_SYNTAX, "The images are compressed with loss of detail.")
    if not encoded[-64:].rstrip(b"\0").endswith(_JPEG_END):
        raise CorruptInstance(f"instance {uid}: its pixel data is cut off")
    words = _codec(syntax, stream)(encoded)
    if words.shape != shape:
        raise CorruptInstance(f"instance {uid}: its compressed image is not of the size its header says")
    return words.astype(np.int16 if words.dtype.kind == "i" else np.uint16, copy=False).view(
        np.uint16
    ), stream.precision


def _codec(syntax: str, stream: Codestream) -> Callable[[bytes], npt.NDArray[np.generic]]:
    if syntax == JPEG_LS_LOSSLESS:
        return lambda data: imagecodecs.jpegls_decode(data)
    if syntax in JPEG_2000_LOSSLESS:
        # OpenJPEG for HTJ2K too: OpenJPH is faster, but decodes a truncated stream without a word.
        return lambda data: imagecodecs.jpeg2k_decode(data, numthreads=1)
    if stream.restarts:
        return lambda data: imagecodecs.jpegsof3_decode(data)  # the faster decoder does not know restart markers
    return lambda data: imagecodecs.ljpeg_decode(data)


def _decode_rle(encoded: bytes, shape: tuple[int, int], uid: str) -> npt.NDArray[np.uint16]:
    """Two byte planes, high byte first, decoded one by one between checked offsets.

    imagecodecs' decoder of whole frames is not used: it reads outside the data where an offset points there.
    """
    if len(encoded) < 64 or struct.unpack_from("<L", encoded)[0] != 2:
        raise CorruptInstance(f"instance {uid}: its run-length data does not hold two byte planes")
    pixels = shape[0] * shape[1]
    high, low = struct.unpack_from("<2L", encoded, 4)
    if not 64 <= high <= low <= len(encoded):
        raise CorruptInstance(f"instance {uid}: its run-length planes lie outside its pixel data")
    words = np.empty((pixels, 2), dtype=np.uint8)
    for plane, column in ((encoded[high:low], 1), (encoded[low:], 0)):
        decoded = imagecodecs.packbits_decode(plane)
        if len(decoded) < pixels:
            raise CorruptInstance(f"instance {uid}: its run-length data is cut off")
        words[:, column] = np.frombuffer(decoded, np.uint8, count=pixels)
    return words.view("<u2").reshape(shape)


def read_codestream(data: bytes, syntax: str) -> Codestream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream. Raises ValueError or struct.error for anything else."""
    if syntax in JPEG_2000_LOSSLESS:
        return _read_jpeg_2000(data)
    return _read_jpeg(data, 0xF7 if syntax == JPEG_LS_LOSSLESS else 0xC3)


def _read_jpeg(data: bytes, frame_marker: int) -> Codestream:
    """Source: ITU-T T.81 annex B (SOF3) and T.87 annex C (SOF55, NEAR in the scan header)."""
    if data[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    offset, found, restarts = 2, None, False
    while True:
        marker_start, marker, length = struct.unpack_from(">BBH", data, offset)
        if marker_start != 0xFF:
            raise ValueError("no marker where one must be")
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        if marker == frame_marker:
            found = struct.unpack_from(">BHHB", data, offset + 4)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise ValueError("another coding process than the transfer syntax says")
        elif marker == 0xDD:
            restarts = struct.unpack_from(">H", data, offset + 4)[0] > 0
        elif marker == 0xDA:
            break
        offset += 2 + length
    if found is None:
        raise ValueError("no frame header")
    precision, rows, columns, components = found
    scan = offset + 5 + 2 * data[offset + 4]
    near_or_shift = data[scan] if frame_marker == 0xF7 else data[scan + 2] & 0x0F  # NEAR, or the point transform
    return Codestream(rows, columns, precision, components, near_or_shift == 0, restarts)


def _read_jpeg_2000(data: bytes) -> Codestream:
    """Source: ITU-T T.800 annex A (SIZ and COD marker segments)."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0:
        raise ValueError("no codestream")
    x1, y1, x0, y0 = struct.unpack_from(">4L", data, start + 8)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    offset = start + 2
    reversible = False
    while True:
        marker, length = struct.unpack_from(">HH", data, offset)
        if marker == 0xFF52:
            reversible = data[offset + 13] == 1
        if marker in (0xFF90, 0xFFD9):
            break
        offset += 2 + length
    return Codestream(y1 - y0, x1 - x0, (depth & 0x7F) + 1, components, lossless=reversible, signed=bool(depth & 0x80))


def _restore_sign(
    words: npt.NDArray[np.uint16], pixels: PixelFormat, precision: int
) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16]:
    """Stored values from words: the bits above High Bit dropped, the sign bit carried up for signed pixels."""
    shift = pixels.high_bit + 1 - pixels.bits_stored
    # A compressed stream of fewer bits than Bits Stored carries the sign in its own top bit.
    bits = min(pixels.bits_stored, precision)
    if bits == 16:
        return words.view(np.int16) if pixels.signed else words
    values = ((words >> np.uint16(shift)) if shift else words) & np.uint16((1 << bits) - 1)
    if not pixels.signed:
        return values
    sign = np.uint16(1 << (bits - 1))
    return ((values ^ sign) - sign).view(np.int16)


def write_hu(stored: npt.NDArray[np.int16] | npt.NDArray[np.uint16], frame: Frame, out: npt.NDArray[np.int16]) -> None:
    """Rescale stored values into `out`, (Y, X) int16 HU, rounded to the nearest and clipped to int16."""
    slope, intercept = frame.slope, frame.intercept
    if slope == 1.0 and intercept == int(intercept) and abs(intercept) < 1 << 24:
        hu = np.add(stored, np.int32(int(intercept)), dtype=np.int32)
    else:
        hu = np.clip(np.rint(stored * slope + intercept), -(1 << 24), 1 << 24).astype(np.int32)
    np.clip(hu, -32768, 32767, out=out, casting="unsafe")
    padding = frame.instance.pixels.padding
    if padding is not None:
        _padding_to_air(stored, padding, frame, out)


def _padding_to_air(
    stored: npt.NDArray[np.int16] | npt.NDArray[np.uint16],
    padding: tuple[int, int],
    frame: Frame,
    out: npt.NDArray[np.int16],
) -> None:
    """Set padding that would read as tissue to air.

    Only where it reaches the image's edge, as the surround of a round field of view does: a padding value of 0 in
    a series whose tissue also holds 0 must not punch holes into the patient.
    """
    words = np.array(padding, dtype=np.uint16)
    first, last = sorted(int(value) for value in _restore_sign(words, frame.instance.pixels, 16))
    if max(first * frame.slope, last * frame.slope) + frame.intercept <= PADDING_IS_AIR_BELOW_HU:
        return
    padded = (stored >= first) & (stored <= last)
    if not padded.any():
        return
    labels, _ = ndimage.label(padded)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    out[np.isin(labels, edge[edge > 0])] = AIR_HU
