"""Converts encoded frames to stored values, and stored values to Hounsfield units.

Compressed frames are decoded in another process, see `decoder_pool`. Every stream's own header, size and end are
checked first. Decoders return unsigned words for most syntaxes, so the sign is restored here from Bits Stored and
High Bit.
"""

import struct

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.reasons import ReasonCode
from inference.errors import CorruptInstance, EndsDecoder, UnsuitableSeries
from inference.volume.codestream import (
    JPEG_LOSSLESS_FRAME,
    JPEG_LS_FRAME,
    Codestream,
    CutOff,
    read_jpeg,
    read_jpeg_2000,
    strips,
)
from inference.volume.decoder_pool import POOL, DecoderFailed
from inference.volume.decoding_process import FIRST_PLANE, JPEG_2000, JPEG_LOSSLESS, JPEG_LS, RLE
from inference.volume.instances import Frame, PixelFormat
from inference.volume.part10 import BIG_ENDIAN, EXPLICIT_LE, IMPLICIT_LE

NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE})
# JPEG-LS and JPEG 2000 each have a general syntax, in which the stream says whether it is lossless.
_CODECS = {
    "1.2.840.10008.1.2.5": RLE,
    "1.2.840.10008.1.2.4.57": JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.70": JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.80": JPEG_LS,
    "1.2.840.10008.1.2.4.81": JPEG_LS,
    "1.2.840.10008.1.2.4.90": JPEG_2000,
    "1.2.840.10008.1.2.4.91": JPEG_2000,
    "1.2.840.10008.1.2.4.201": JPEG_2000,  # HTJ2K lossless, RPCL, and general
    "1.2.840.10008.1.2.4.202": JPEG_2000,
    "1.2.840.10008.1.2.4.203": JPEG_2000,
}
SUPPORTED = NATIVE | frozenset(_CODECS)

_LOSSY = frozenset(
    f"1.2.840.10008.1.2.4.{number}"
    for number in (50, 51, 53, 55, 93, 100, 101, 102, 103, 104, 105, 106, 107, 108, 110, 112)
)

AIR_HU = -1024
# Every window and every threshold used on lungs takes padding at or below this for air. Above it, padding would
# read as lung or tissue.
PADDING_IS_AIR_BELOW_HU = -900


def check_format(pixels: PixelFormat) -> None:
    """Raises UnsuitableSeries for pixels that are not CT values, or not in an encoding that this node reads."""
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
            ReasonCode.UNSUPPORTED_TRANSFER_SYNTAX, "The images' transfer syntax is not one that this node reads."
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

    Raises CorruptInstance, naming the instance, if the bytes are cut off or are not such an image, EndsDecoder if they
    also cost the decoder its process, and UnsuitableSeries if the stream turns out to be lossy.
    """
    pixels = frame.instance.pixels
    if pixels.transfer_syntax_uid in NATIVE:
        words = np.frombuffer(encoded, "<u2", count=pixels.rows * pixels.columns).reshape(pixels.rows, pixels.columns)
        return _restore_sign(words, pixels, 16)
    kind = CorruptInstance
    try:
        return _restore_sign(*_decompress(encoded, pixels))
    except _Damaged as damage:
        said = str(damage)
    except CutOff:
        said = "its pixel data is cut off"
    except (ValueError, IndexError, struct.error):
        said = "its pixel data cannot be decoded"
    except DecoderFailed as failure:
        kind = EndsDecoder if failure.died else CorruptInstance
        said = "its pixel data cannot be decoded" + (": it ends the decoder" if failure.died else "")
    # Without the cause: it may quote the stream.
    raise kind(f"instance {frame.instance.sop_instance_uid}: {said}")


class _Damaged(Exception):
    """What is wrong with an instance, as the end of a sentence."""


def most_encoded_bytes(pixels: PixelFormat) -> int:
    """The most bytes that a frame is decoded from: lossless compression hardly enlarges even noise."""
    return 4 * 2 * pixels.rows * pixels.columns + (1 << 20)


def _decompress(encoded: bytes, pixels: PixelFormat) -> tuple[npt.NDArray[np.uint16], PixelFormat, int]:
    """Words as stored, and for `_restore_sign` the number of bits that carry them, which the stream itself states."""
    codec, rows, columns = _CODECS[pixels.transfer_syntax_uid], pixels.rows, pixels.columns
    if codec == RLE:
        return POOL.decode(RLE, _planes(encoded), rows, columns), pixels, 16
    stream = _read_stream(codec, encoded)
    if (stream.rows, stream.columns, stream.components) != (rows, columns, 1) or not 2 <= stream.precision <= 16:
        raise _Damaged("its compressed image is not of the size its header says")
    if not stream.lossless:
        raise UnsuitableSeries(ReasonCode.LOSSY_TRANSFER_SYNTAX, "The images are compressed with loss of detail.")
    if codec == JPEG_LOSSLESS and stream.restart_rows:
        starts = range(0, rows, stream.restart_rows)
        heights = [min(stream.restart_rows, rows - start) for start in starts]
        parts = [POOL.decode(codec, [s], n, columns) for s, n in zip(strips(stream), heights, strict=True)]
        return np.concatenate(parts), pixels, stream.precision
    return POOL.decode(codec, [stream.data], rows, columns), pixels, stream.precision


def _read_stream(codec: int, encoded: bytes) -> Codestream:
    if codec == JPEG_2000:
        return read_jpeg_2000(encoded)
    return read_jpeg(encoded, JPEG_LS_FRAME if codec == JPEG_LS else JPEG_LOSSLESS_FRAME)


def _planes(encoded: bytes) -> list[bytes]:
    """The byte count of the first plane, then both byte planes of run-length data, high byte first."""
    if len(encoded) < 64 or struct.unpack_from("<L", encoded)[0] != 2:
        raise _Damaged("its run-length data does not hold two byte planes")
    high, low = struct.unpack_from("<2L", encoded, 4)
    if not 64 <= high <= low <= len(encoded):
        raise _Damaged("its run-length planes lie outside its pixel data")
    return [FIRST_PLANE.pack(low - high), encoded[high:low], encoded[low:]]


def _restore_sign(
    words: npt.NDArray[np.uint16], pixels: PixelFormat, precision: int
) -> npt.NDArray[np.int16] | npt.NDArray[np.uint16]:
    """Stored values from words: drops the bits above High Bit and extends the sign bit of signed pixels."""
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

    Only padding that reaches the image's edge is set, as the surround of a round field of view does. A padding value
    of 0 in a series whose tissue also holds 0 must not punch holes in the patient.
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
