"""A process that does nothing but decode: `python -m inference.volume.decoding_process FD`.

A decoder is C code that reads untrusted bytes. If it crashes, this process ends, which costs the node one frame.
Each frame has its own limits on memory and processor time. The process ends with its parent, which holds the other
end of the socket. It imports only what decoding needs, so that it starts in a fifth of a second.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import struct
import sys

import imagecodecs
import numpy as np
import numpy.typing as npt

RLE, JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = range(4)
DECODED, UNDECODABLE = range(2)
READY = b"R"

REQUEST = struct.Struct("<BLLQ")
"""Codec, rows, columns, and the bytes of the encoded frame that follows; for RLE the first plane's bytes before it."""
FIRST_PLANE = struct.Struct("<Q")

# On top of what the idle process uses, for all of a frame's decoding. OpenJPEG takes 14 bytes a pixel.
_MEMORY_BYTES, _MEMORY_BYTES_A_PIXEL = 64 << 20, 40
# Decoders take 0.02 to 0.3 microseconds a pixel.
_CPU_S, _CPU_S_A_PIXEL = 2.0, 5e-6
_LOOK_AT_PARENT_S = 5.0

Words = npt.NDArray[np.uint16]


def main() -> None:
    """Answer requests until the parent closes its end or is gone."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Stopping the node stops the parent, and this process ends with it. Until then a frame under way is still wanted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = os.getppid()
    # Loaded before the first frame's limits count.
    _ = imagecodecs.packbits_decode, imagecodecs.ljpeg_decode, imagecodecs.jpegls_decode, imagecodecs.jpeg2k_decode
    with channel, contextlib.suppress(EOFError, OSError):
        channel.sendall(READY)
        while _has_request(channel, parent):
            _answer(channel)


def _has_request(channel: socket.socket, parent: int) -> bool:
    """False once the parent is gone, even if a process that it forked still holds the other end open."""
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    while not waiting.poll(_LOOK_AT_PARENT_S * 1000):
        if os.getppid() != parent:
            return False
    return True


def _answer(channel: socket.socket) -> None:
    codec, rows, columns, size = REQUEST.unpack(receive(channel, REQUEST.size))
    _limit(rows * columns, size)
    encoded = bytes(receive(channel, size))
    try:
        words = decode(codec, encoded, rows, columns)
    except Exception:  # noqa: BLE001 - whatever a decoder raises, the frame cannot be decoded
        channel.sendall(bytes([UNDECODABLE]))
        return
    channel.sendall(bytes([DECODED]))
    channel.sendall(words.view(np.uint8).reshape(-1).data)


def receive(channel: socket.socket, size: int) -> bytearray:
    """Receive exactly this many bytes. Raises EOFError if the other side closes first."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return data


def _limit(pixels: int, size: int) -> None:
    """Set the memory and time limits for one frame of this many encoded bytes, on top of what is used so far."""
    with contextlib.suppress(FileNotFoundError), open("/proc/self/statm", encoding="ascii") as file:  # Linux only
        held = int(file.read().split()[0]) * resource.getpagesize()
        _set_soft(resource.RLIMIT_AS, held + _MEMORY_BYTES + _MEMORY_BYTES_A_PIXEL * pixels + 2 * size)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_soft(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime + cpu_limit_s(pixels)) + 1)


def _set_soft(limit: int, value: int) -> None:
    hard = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def cpu_limit_s(pixels: int) -> float:
    """Processor time that one frame may take, seconds."""
    return _CPU_S + _CPU_S_A_PIXEL * pixels


def decode(codec: int, encoded: bytes, rows: int, columns: int) -> Words:
    """Words as stored, uint16 (Y, X). Raises ValueError, or whatever the decoder raises."""
    if codec == RLE:
        return _decode_rle(encoded, rows, columns)
    if codec == JPEG_LOSSLESS:
        decoded = imagecodecs.ljpeg_decode(encoded)
    elif codec == JPEG_LS:
        decoded = imagecodecs.jpegls_decode(encoded)
    else:
        # OpenJPEG for HTJ2K too: OpenJPH is faster, but decodes a truncated stream without an error.
        decoded = imagecodecs.jpeg2k_decode(encoded, numthreads=1)
    if decoded.shape != (rows, columns) or decoded.dtype.kind not in "iu" or decoded.dtype.itemsize > 2:
        raise ValueError("an image of another size")
    words = decoded.astype(np.int16 if decoded.dtype.kind == "i" else np.uint16, copy=False)
    return np.ascontiguousarray(words).view(np.uint16)


def _decode_rle(encoded: bytes, rows: int, columns: int) -> Words:
    """Two byte planes, high byte first, each decoded into a buffer of its own size.

    imagecodecs' decoder of whole frames is not used: it reads outside the data if an offset points there.
    """
    (first,) = FIRST_PLANE.unpack_from(encoded)
    pixels = rows * columns
    words = np.empty((pixels, 2), dtype=np.uint8)
    # Encoders pad a plane, and the padding decodes to something too.
    plane = bytearray(pixels + (64 << 10))
    start = FIRST_PLANE.size
    for data, column in ((encoded[start : start + first], 1), (encoded[start + first :], 0)):
        decoded = imagecodecs.packbits_decode(data, out=memoryview(plane))
        if len(decoded) < pixels:
            raise ValueError("a plane is cut off")
        words[:, column] = np.frombuffer(decoded, np.uint8, count=pixels)
    return words.view("<u2").reshape(rows, columns)


if __name__ == "__main__":
    main()
