"""Encodings that are legal or harmless but unusual: what can be read without guessing gives the same volume."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from inference.errors import CorruptInstance
from inference.volume.folder import find_series
from inference.volume.load import load
from tests.conftest import require_program
from tests.lossless_jpeg import encode as lossless_jpeg
from tests.unit.ct_series import EXPLICIT, IMPLICIT, enhanced_dataset, noise, save, slice_dataset, write_series

JPEG_LOSSLESS, JPEG_LS, JPEG_2000 = (f"1.2.840.10008.1.2.4.{number}" for number in (70, 80, 90))
ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    JPEG_LOSSLESS: lambda words: imagecodecs.ljpeg_encode(words, bitspersample=16),
    JPEG_LS: imagecodecs.jpegls_encode,
    JPEG_2000: lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True),
}
RLE = "1.2.840.10008.1.2.5"
STORED = noise(4)
HEIGHTS = [0.0, 2.0, 4.0, 6.0]
EXPECTED = STORED - 1024


def run_length(words: np.ndarray) -> bytes:
    high, low = (imagecodecs.packbits_encode((words >> shift).astype(np.uint8)) for shift in (8, 0))
    return struct.pack("<16L", 2, 64, 64 + len(high), *[0] * 13) + high + low


def fragment(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(data)) + data


def even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def halves(data: bytes) -> list[bytes]:
    middle = len(data) // 4 * 2
    return [data[:middle], even(data[middle:])]


def multiframe(path: Path, syntax: str, fragments_of: Callable[[bytes], list[bytes]], table: bytes = b"") -> Path:
    """An enhanced image whose frames are cut into fragments as told, and whose offset table is as given."""
    save(enhanced_dataset(STORED, HEIGHTS), path, syntax, lambda words: b"\0\0")
    whole = path.read_bytes()
    start = whole.index(b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff") + 12
    frames = [ENCODERS[syntax](plane.astype(np.uint16)) for plane in STORED]
    items = b"".join(fragment(piece) for frame in frames for piece in fragments_of(frame))
    path.write_bytes(whole[:start] + fragment(table) + items + b"\xfe\xff\xdd\xe0\0\0\0\0")
    return path


@pytest.mark.parametrize("syntax", ENCODERS)
@pytest.mark.parametrize(
    "fragments_of",
    [
        halves,
        lambda data: [*halves(data), b""],
        lambda data: [even(data), b""],
        lambda data: [data[:2], data[2:] + b"\0" * 40],
    ],
    ids=["two", "two and an empty one", "an empty one", "a short first one, padded"],
)
def test_frames_in_several_fragments_without_an_offset_table_are_told_apart_by_their_streams(
    tmp_path: Path, syntax: str, fragments_of: Callable[[bytes], list[bytes]]
) -> None:
    assert np.array_equal(load([multiframe(tmp_path / "x.dcm", syntax, fragments_of)]).hu, EXPECTED)


def test_an_offset_table_that_is_wrong_gives_way_to_the_streams(tmp_path: Path) -> None:
    wrong = struct.pack("<4L", 0, 12, 24, 36)
    assert np.array_equal(load([multiframe(tmp_path / "x.dcm", JPEG_LS, halves, wrong)]).hu, EXPECTED)


def test_fragments_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    def without_start(data: bytes) -> list[bytes]:
        return [b"\0\0" + data[2:200], even(data[200:])]

    with pytest.raises(CorruptInstance, match="cannot be told apart"):
        load([multiframe(tmp_path / "x.dcm", JPEG_LS, without_start)])


def write_encoded(folder: Path, syntax: str, encode: Callable[[np.ndarray], bytes]) -> list[Path]:
    return [
        save(slice_dataset(plane, z), folder / f"{z:02.0f}.dcm", syntax, encode)
        for plane, z in zip(STORED, HEIGHTS, strict=True)
    ]


ZEROS, OTHERS = [b"\0", b"\0" * 1000], [b"\xff" * 300, b" " * 80]


# Run-length data has no end: only zeros are padding.
@pytest.mark.parametrize(
    ("syntax", "padding"),
    [*((s, padding) for s in ENCODERS for padding in ZEROS + OTHERS), *((RLE, padding) for padding in ZEROS)],
)
def test_padding_after_a_stream_is_passed_over(tmp_path: Path, syntax: str, padding: bytes) -> None:
    encode = {**ENCODERS, RLE: run_length}[syntax]
    assert np.array_equal(load(write_encoded(tmp_path, syntax, lambda words: encode(words) + padding)).hu, EXPECTED)


@pytest.mark.parametrize("rows", [1, 5, 16, 31, 32])
@pytest.mark.parametrize("predictor", [1, 2, 4, 7])
def test_lossless_jpeg_with_restart_intervals_is_read(tmp_path: Path, rows: int, predictor: int) -> None:
    paths = write_encoded(tmp_path, JPEG_LOSSLESS, lambda words: lossless_jpeg(words, rows, predictor))
    assert np.array_equal(load(paths).hu, EXPECTED)


@pytest.mark.parametrize("damage", ["lost", "swapped", "broken rows"])
def test_lossless_jpeg_with_damaged_restart_intervals_is_corrupt(tmp_path: Path, damage: str) -> None:
    def encode(words: np.ndarray) -> bytes:
        stream = lossless_jpeg(words, 8)
        if damage == "lost":
            return stream.replace(b"\xff\xd1", b"")
        if damage == "swapped":
            return stream.replace(b"\xff\xd0", b"\xff\xd2", 1)
        return stream.replace(
            b"\xff\xdd\0\4" + struct.pack(">H", 8 * 40), b"\xff\xdd\0\4" + struct.pack(">H", 8 * 40 + 1)
        )

    with pytest.raises(CorruptInstance):
        load(write_encoded(tmp_path, JPEG_LOSSLESS, encode))


def test_fill_bytes_and_comments_before_a_jpeg_frame_are_passed_over(tmp_path: Path) -> None:
    def encode(words: np.ndarray) -> bytes:
        stream = lossless_jpeg(words)
        return stream[:2] + b"\xff\xfe\0\x06made" + b"\xff\xff" + stream[2:]

    assert np.array_equal(load(write_encoded(tmp_path, JPEG_LOSSLESS, encode)).hu, EXPECTED)


@pytest.mark.peer
@pytest.mark.parametrize("program", ["dcmcjpls", "dcmcjpeg", "dcmcrle"])
@pytest.mark.parametrize("options", [["+fs", "1", "-ot"], ["+fs", "1"], ["-ot"]], ids=lambda options: "".join(options))
def test_dcmtks_fragments_give_the_same_volume(tmp_path: Path, program: str, options: list[str]) -> None:
    stored = noise(4, 64, 64)
    plain = save(enhanced_dataset(stored, HEIGHTS), tmp_path / "plain.dcm")
    packed = tmp_path / "packed.dcm"
    subprocess.run([require_program(program), *options, str(plain), str(packed)], check=True, timeout=60)
    assert load([packed]).digest() == load([plain]).digest()


# Header oddities: each takes the bytes of an explicit or implicit VR file and gives others that say the same.


def element(group: int, number: int, vr: bytes, value: bytes, long: bool = False) -> bytes:
    if long:
        return struct.pack("<HH2sHL", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def insert_before(whole: bytes, tag: tuple[int, int], extra: bytes) -> bytes:
    place = whole.index(struct.pack("<HH", *tag), 132)
    return whole[:place] + extra + whole[place:]


def explicit_items_in_undefined_un(whole: bytes) -> bytes:
    inner = element(0x0008, 0x0100, b"SH", b"T-28000 ") + element(0x0008, 0x0104, b"LO", b"Lung")
    item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(inner)) + inner
    sequence = struct.pack("<HH2sHL", 0x0008, 0x2218, b"UN", 0, 0xFFFFFFFF) + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return insert_before(whole, (0x0010, 0x0010), sequence)


def implicit_items_in_undefined_un(whole: bytes) -> bytes:
    inner = struct.pack("<HHL", 0x0008, 0x0100, 8) + b"T-28000 "
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\0\0\0\0"
    sequence = struct.pack("<HH2sHL", 0x0008, 0x2218, b"UN", 0, 0xFFFFFFFF) + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return insert_before(whole, (0x0010, 0x0010), sequence)


def group_lengths(whole: bytes) -> bytes:
    return insert_before(whole, (0x0010, 0x0010), element(0x0010, 0x0000, b"UL", struct.pack("<L", 24)))


def odd_length(whole: bytes) -> bytes:
    return insert_before(whole, (0x0020, 0x000D), element(0x0018, 0x1030, b"LO", b"Chest"))


def unknown_vr(whole: bytes) -> bytes:
    return insert_before(whole, (0x0020, 0x000D), element(0x0019, 0x1001, b"ZZ", b"private "))


def no_group_length_in_the_meta(whole: bytes) -> bytes:
    return whole[:132] + whole[144:]


def wrong_group_length_in_the_meta(whole: bytes) -> bytes:
    return whole[:140] + struct.pack("<L", 4) + whole[144:]


def no_transfer_syntax(whole: bytes) -> bytes:
    place = whole.index(b"\x02\0\x10\0UI")
    (length,) = struct.unpack_from("<H", whole, place + 6)
    return whole[:place] + whole[place + 8 + length :]


def meta_in_implicit_vr(whole: bytes) -> bytes:
    value = EXPLICIT.encode() + b"\0"
    data_set = whole.index(b"\x08\0\x08\0CS")
    syntax = struct.pack("<HHL", 0x0002, 0x0010, len(value)) + value
    return whole[:132] + struct.pack("<HHLL", 0x0002, 0x0000, 4, len(syntax)) + syntax + whole[data_set:]


def preamble_of_a_tiff(whole: bytes) -> bytes:
    return b"II*\0" + whole[4:]


def trailing_padding(whole: bytes) -> bytes:
    return whole + element(0xFFFC, 0xFFFC, b"OB", bytes(500), long=True)


def zeros_at_the_end(whole: bytes) -> bytes:
    return whole + bytes(512)


def pixel_data_as_ob(whole: bytes) -> bytes:
    return whole.replace(b"\xe0\x7f\x10\0OW", b"\xe0\x7f\x10\0OB")


def pixel_data_as_un(whole: bytes) -> bytes:
    return whole.replace(b"\xe0\x7f\x10\0OW", b"\xe0\x7f\x10\0UN")


def elements_out_of_order(whole: bytes) -> bytes:
    place = whole.index(b"\x28\0\x10\0US")
    rows = whole[place : place + 10]
    return insert_before(whole[:place] + whole[place + 10 :], (0x0020, 0x000D), rows)


def rows_as_un(whole: bytes) -> bytes:
    place = whole.index(b"\x28\0\x10\0US")
    return (
        whole[:place] + element(0x0028, 0x0010, b"UN", whole[place + 8 : place + 10], long=True) + whole[place + 10 :]
    )


def private_undefined_ob(whole: bytes) -> bytes:
    head = struct.pack("<HH2sHL", 0x0009, 0x1001, b"OB", 0, 0xFFFFFFFF)
    return insert_before(
        whole, (0x0010, 0x0010), head + fragment(b"") + fragment(b"data") + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )


def meta_in_the_data_set(whole: bytes) -> bytes:
    extra = element(0x0002, 0x0000, b"UL", struct.pack("<L", 30)) + element(
        0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1.99"
    )
    return insert_before(whole, (0x0008, 0x0008), extra)


ODDITIES = [
    explicit_items_in_undefined_un, implicit_items_in_undefined_un, group_lengths, odd_length, unknown_vr,
    no_group_length_in_the_meta, wrong_group_length_in_the_meta, no_transfer_syntax, meta_in_implicit_vr,
    preamble_of_a_tiff,
    trailing_padding, zeros_at_the_end, pixel_data_as_ob, pixel_data_as_un, elements_out_of_order, rows_as_un,
    private_undefined_ob, meta_in_the_data_set,
]  # fmt: skip


@pytest.mark.parametrize("odd", ODDITIES, ids=lambda odd: odd.__name__)
def test_an_odd_header_that_says_the_same_gives_the_same_volume(tmp_path: Path, odd: Callable[[bytes], bytes]) -> None:
    paths = write_series(tmp_path, STORED)
    digest = load(paths).digest()
    for path in paths:
        path.write_bytes(odd(path.read_bytes()))
    assert find_series(tmp_path) == {"2.25.2": paths}
    assert load(paths).digest() == digest


@pytest.mark.parametrize("labelled", [EXPLICIT, IMPLICIT])
def test_a_vr_encoding_other_than_the_file_says_is_recognised(tmp_path: Path, labelled: str) -> None:
    other = IMPLICIT if labelled == EXPLICIT else EXPLICIT
    paths = write_series(tmp_path, STORED)
    digest = load(paths).digest()
    for plane, z, path in zip(STORED, HEIGHTS, paths, strict=True):
        whole = save(slice_dataset(plane, z), path, other).read_bytes()
        place = whole.index(b"\x02\0\x10\0UI") + 8
        (length,) = struct.unpack_from("<H", whole, place - 2)
        value = labelled.encode().ljust(length, b"\0")
        path.write_bytes(whole[: place - 2] + struct.pack("<H", len(value)) + value + whole[place + length :])
    assert load(paths).digest() == digest


@pytest.mark.parametrize("vr_items", ["explicit", "implicit"])
def test_functional_groups_as_un_are_read(tmp_path: Path, vr_items: str) -> None:
    path = save(enhanced_dataset(STORED, HEIGHTS), tmp_path / "x.dcm")
    digest = load([path]).digest()
    whole = path.read_bytes()
    if vr_items == "implicit":
        implicit = save(enhanced_dataset(STORED, HEIGHTS), tmp_path / "implicit.dcm", IMPLICIT).read_bytes()
        value, length = element_value(implicit, (0x5200, 0x9230), 8)
        start, old = element_value(whole, (0x5200, 0x9230), 12)
        un = struct.pack("<HH2sHL", 0x5200, 0x9230, b"UN", 0, length) + implicit[value : value + length]
        path.write_bytes(whole[: start - 12] + un + whole[start + old :])
    else:
        start, length = element_value(whole, (0x5200, 0x9230), 12)
        un = struct.pack("<HH2sHL", 0x5200, 0x9230, b"UN", 0, 0xFFFFFFFF) + whole[start : start + length]
        path.write_bytes(whole[: start - 12] + un + b"\xfe\xff\xdd\xe0\0\0\0\0" + whole[start + length :])
    assert load([path]).digest() == digest


def element_value(whole: bytes, tag: tuple[int, int], header: int) -> tuple[int, int]:
    place = whole.index(struct.pack("<HH", *tag), 132)
    (length,) = struct.unpack_from("<L", whole, place + header - 4)
    return place + header, length
