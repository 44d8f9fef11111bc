"""Broken compressed streams. `FUZZ=100000 pytest tests/fuzz` for a long run, FUZZ_SEED for another one.

Whatever comes, it ends in words of the promised size or in a reason, this process lives, and a good frame can be
decoded afterwards. FUZZ_KILLERS names a folder where streams that ended the decoder are kept.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.decode import decode_frame
from inference.volume.decoder_pool import POOL, DecoderFailed
from inference.volume.decoding_process import JPEG_2000, JPEG_LOSSLESS, JPEG_LS
from inference.volume.instances import Frame, read_frames
from tests.fuzz.mutations import EXTREMES, mutate
from tests.lossless_jpeg import encode as encode_with_restarts
from tests.unit.ct_series import noise, save, slice_dataset

ROUNDS = int(os.environ.get("FUZZ", "1000"))
SEED = int(os.environ.get("FUZZ_SEED", "20261129"))
KILLERS = os.environ.get("FUZZ_KILLERS")
PLANE = (np.add.outer(np.arange(64), np.arange(64)) * 16 + noise(1, 64, 64, 0, 30)[0]).astype(np.uint16)

STREAMS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "JPEG Lossless": ("1.2.840.10008.1.2.4.70", lambda: imagecodecs.ljpeg_encode(PLANE, bitspersample=16)),
    "JPEG Lossless with restarts": ("1.2.840.10008.1.2.4.57", lambda: encode_with_restarts(PLANE, 16)),
    "JPEG-LS": ("1.2.840.10008.1.2.4.80", lambda: imagecodecs.jpegls_encode(PLANE)),
    "JPEG 2000": (
        "1.2.840.10008.1.2.4.90",
        lambda: imagecodecs.jpeg2k_encode(PLANE, codecformat="j2k", reversible=True),
    ),
    "HTJ2K": ("1.2.840.10008.1.2.4.201", lambda: imagecodecs.htj2k_encode(PLANE, reversible=True)),
    "RLE": ("1.2.840.10008.1.2.5", lambda: run_length(PLANE)),
}
CODECS = {"JPEG Lossless": JPEG_LOSSLESS, "JPEG-LS": JPEG_LS, "JPEG 2000": JPEG_2000, "HTJ2K": JPEG_2000}


def run_length(plane: np.ndarray) -> bytes:
    low, high = (imagecodecs.packbits_encode((plane >> shift).astype(np.uint8)) for shift in (0, 8))
    return np.array([2, 64, 64 + len(high), *[0] * 13], "<u4").tobytes() + high + low


def broken(stream: bytes, dice: random.Random) -> bytes:
    """Every second time in the headers, where a decoder's tables come from."""
    if dice.random() < 0.5:
        return mutate(stream, dice, [stream])
    data = bytearray(stream)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(min(len(data), 160))
        extreme = dice.choice((*EXTREMES, bytes([dice.randrange(256)])))
        data[place : place + len(extreme)] = extreme
    return bytes(data)


def runs_into_the_limit(stream: bytes) -> bool:
    """True for a JPEG-LS stream of another size than it was, or without an end: its decoder does not stop then.

    The limit of time stops it, but a campaign of such streams takes days.
    """
    place = stream.find(b"\xff\xf7")
    return place >= 0 and (stream[place + 5 : place + 9] != b"\0\x40\0\x40" or b"\xff\xd9" not in stream[place:])


def keep(name: str, number: int, stream: bytes) -> None:
    if KILLERS:
        (Path(KILLERS) / f"{name.replace(' ', '-')}-{number}").write_bytes(stream)


@pytest.fixture
def frame(request: pytest.FixtureRequest, tmp_path: Path) -> Frame:
    syntax, encode = STREAMS[request.param]
    return read_frames(save(slice_dataset(PLANE, 0.0), tmp_path / "x.dcm", syntax, lambda words: encode()))[0]


@pytest.mark.parametrize(("name", "frame"), [(name, name) for name in STREAMS], indirect=["frame"])
def test_a_broken_stream_of_an_instance_ends_in_words_or_a_reason(name: str, frame: Frame) -> None:
    dice, stream = random.Random(SEED), STREAMS[name][1]()
    refused = 0
    for number in range(ROUNDS):
        data = broken(stream, dice)
        try:
            assert decode_frame(frame, data).shape == (64, 64)
        except (CorruptInstance, UnsuitableSeries) as reason:
            refused += 1
            if "ends the decoder" in str(reason):
                keep(name, number, data)
    assert refused > ROUNDS // 10
    assert np.array_equal(decode_frame(frame, stream), PLANE)


@pytest.mark.parametrize("name", CODECS)
def test_a_broken_stream_that_no_check_stops_harms_the_decoding_process_alone(name: str) -> None:
    dice, stream = random.Random(SEED + 1), STREAMS[name][1]()
    for number in range(ROUNDS // 10):
        data = broken(stream, dice)
        if runs_into_the_limit(data):
            continue
        try:
            assert POOL.decode(CODECS[name], [data], 64, 64).shape == (64, 64)
        except DecoderFailed as failure:
            if failure.died:
                keep(f"unchecked {name}", number, data)
    assert np.array_equal(POOL.decode(CODECS[name], [stream], 64, 64), PLANE)
