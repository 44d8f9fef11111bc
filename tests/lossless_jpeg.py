"""An encoder for lossless JPEG with restart intervals, which no program at hand writes. Source: ITU-T T.81 annex H."""

import struct

import numpy as np

CODE_BITS = 5
"""Every one of the 17 difference categories has a code of five bits: simple, and a legal table."""


def encode(words: np.ndarray, restart_rows: int = 0, predictor: int = 1) -> bytes:
    """One frame of uint16 (Y, X) as a stream of process 14. restart_rows: rows between restart markers; 0 for none."""
    rows, columns = words.shape
    segments = [
        _segment(0xC4, bytes([0, *(17 if bits == CODE_BITS else 0 for bits in range(1, 17)), *range(17)])),
        _segment(0xC3, struct.pack(">BHHBBBB", 16, rows, columns, 1, 1, 0x11, 0)),
    ]
    if restart_rows:
        segments.append(_segment(0xDD, struct.pack(">H", restart_rows * columns)))
    segments.append(_segment(0xDA, bytes([1, 1, 0, predictor, 0, 0])))
    step = restart_rows or rows
    parts = [_entropy_coded(words[first : first + step].astype(int), predictor) for first in range(0, rows, step)]
    scan = parts[0] + b"".join(bytes([0xFF, 0xD0 + index % 8]) + part for index, part in enumerate(parts[1:]))
    return b"\xff\xd8" + b"".join(segments) + scan + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _entropy_coded(words: np.ndarray, predictor: int) -> bytes:
    bits = []
    for y, row in enumerate(words):
        for x, value in enumerate(row):
            difference = (int(value) - _predicted(words, y, x, predictor) + 32768) % 65536 - 32768
            size = 16 if difference == -32768 else abs(difference).bit_length()
            bits.append(f"{size:0{CODE_BITS}b}")
            if 0 < size < 16:
                bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def _predicted(words: np.ndarray, y: int, x: int, predictor: int) -> int:
    if y == 0:
        return int(words[0, x - 1]) if x else 32768
    if x == 0:
        return int(words[y - 1, 0])
    left, above, corner = int(words[y, x - 1]), int(words[y - 1, x]), int(words[y - 1, x - 1])
    return {1: left, 2: above, 4: left + above - corner, 7: (left + above) // 2}[predictor]
