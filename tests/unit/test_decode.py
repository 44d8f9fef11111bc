"""Every accepted transfer syntax gives the same Hounsfield units, and damage is noticed."""

import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import compress
from pydicom.uid import RLELossless

from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.decode import SUPPORTED
from inference.volume.folder import find_series
from inference.volume.load import load
from tests.conftest import require_program
from tests.unit.ct_series import EXPLICIT, IMPLICIT, noise, save, slice_dataset, write_series

ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.57": lambda words: imagecodecs.ljpeg_encode(words, bitspersample=16),
    "1.2.840.10008.1.2.4.70": lambda words: imagecodecs.ljpeg_encode(words, bitspersample=16),
    "1.2.840.10008.1.2.4.80": lambda words: imagecodecs.jpegls_encode(words),
    "1.2.840.10008.1.2.4.81": lambda words: imagecodecs.jpegls_encode(words),
    "1.2.840.10008.1.2.4.90": lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True),
    "1.2.840.10008.1.2.4.91": lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True),
    "1.2.840.10008.1.2.4.201": lambda words: imagecodecs.htj2k_encode(words, reversible=True),
    "1.2.840.10008.1.2.4.202": lambda words: imagecodecs.htj2k_encode(words, reversible=True),
    "1.2.840.10008.1.2.4.203": lambda words: imagecodecs.htj2k_encode(words, reversible=True),
}
LOSSY_ENCODERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.80": lambda words: imagecodecs.jpegls_encode(words, level=3),
    "1.2.840.10008.1.2.4.81": lambda words: imagecodecs.jpegls_encode(words, level=1),
    "1.2.840.10008.1.2.4.90": lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", level=80),
    "1.2.840.10008.1.2.4.91": lambda words: imagecodecs.jpeg2k_encode(words, codecformat="j2k", level=80),
    "1.2.840.10008.1.2.4.201": lambda words: imagecodecs.htj2k_encode(words, level=0.01),
    "1.2.840.10008.1.2.4.203": lambda words: imagecodecs.htj2k_encode(words, level=0.01),
}
# (lowest, highest + 1, bits stored, signed): every width that scanners use, and the ends of 16 bits.
DEPTHS = [
    (0, 4096, 12, False),
    (-2048, 2048, 12, True),
    (0, 16384, 14, False),
    (-32768, 32768, 16, True),
    (0, 65536, 16, False),
]
DCMTK = [("dcmcrle", []), ("dcmcjpls", []), ("dcmcjpeg", ["+e1"])] + [
    ("dcmcjpeg", ["+el", "+sv", str(predictor)]) for predictor in range(1, 8)
]


def expected_hu(stored: np.ndarray, intercept: int = -1024) -> np.ndarray:
    return np.clip(stored + intercept, -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, *ENCODERS])
@pytest.mark.parametrize(("low", "high", "bits", "signed"), DEPTHS)
def test_every_syntax_gives_the_stored_values(
    tmp_path: Path, syntax: str, low: int, high: int, bits: int, signed: bool
) -> None:
    stored = noise(3, low=low, high=high)
    for index, plane in enumerate(stored):
        dataset = slice_dataset(plane, 2.0 * index, signed=signed, bits=bits)
        save(dataset, tmp_path / f"{index}.dcm", syntax, ENCODERS.get(syntax))
    assert np.array_equal(load(sorted(tmp_path.iterdir())).hu, expected_hu(stored))


@pytest.mark.parametrize(("low", "high", "bits", "signed"), DEPTHS)
def test_run_length_gives_the_stored_values(tmp_path: Path, low: int, high: int, bits: int, signed: bool) -> None:
    stored = noise(2, 31, 33, low=low, high=high)  # an odd plane, so that segments are padded
    for index, plane in enumerate(stored):
        dataset = slice_dataset(plane, 2.0 * index, signed=signed, bits=bits)
        save(dataset, tmp_path / f"{index}.dcm")
        compress(dataset, RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        dataset.save_as(tmp_path / f"{index}.dcm", enforce_file_format=True)
    assert np.array_equal(load(sorted(tmp_path.iterdir())).hu, expected_hu(stored))


@pytest.mark.peer
@pytest.mark.parametrize(("program", "options"), DCMTK, ids=lambda value: "".join(value))
@pytest.mark.parametrize(("low", "high", "bits", "signed"), DEPTHS)
def test_dcmtk_compressed_files_give_the_same_volume(
    tmp_path: Path, program: str, options: list[str], low: int, high: int, bits: int, signed: bool
) -> None:
    require_program(program)
    smooth = np.add.outer(np.arange(64), np.arange(48)) * (high - low) // 112 + low  # JPEG needs no noise to fail
    stored = np.stack([smooth, smooth[::-1], noise(1, 64, 48, low, high)[0]])
    plain = write_series(tmp_path / "plain", stored, signed=signed, BitsStored=bits, HighBit=bits - 1)
    packed = []
    for path in plain:
        packed.append(tmp_path / path.name)
        subprocess.run([require_program(program), *options, str(path), str(packed[-1])], check=True, timeout=60)
    volume, twin = load(plain), load(packed)
    assert twin.header.transfer_syntax_uid != volume.header.transfer_syntax_uid
    assert np.array_equal(volume.hu, expected_hu(stored))
    assert twin.digest() == volume.digest()


@pytest.mark.shared
def test_a_real_series_is_the_same_in_every_syntax(tmp_path: Path, shared: Path) -> None:
    (paths,) = find_series(shared / "data/dicom/lungdx_A0002_B40f_30slices").values()
    paths = sorted(paths)[:4]
    digest = load(paths).digest()
    for syntax, encode in ENCODERS.items():
        folder = tmp_path / syntax
        for path in paths:
            save(pydicom.dcmread(path), folder / path.name, syntax, encode)
        assert load(sorted(folder.iterdir())).digest() == digest, syntax


def test_signed_values_of_a_12_bit_stream_get_their_sign_back(tmp_path: Path) -> None:
    stored = noise(2, low=-2048, high=2048)
    for index, plane in enumerate(stored):
        dataset = slice_dataset(plane & 0xFFF, 2.0 * index, signed=True, bits=12)  # high bits left empty
        save(dataset, tmp_path / f"{index}.dcm", "1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode)
    assert np.array_equal(load(sorted(tmp_path.iterdir())).hu, expected_hu(stored))


def test_signed_jpeg_2000_streams_keep_their_sign(tmp_path: Path) -> None:
    stored = noise(2, low=-2000, high=3000)
    encode = lambda words: imagecodecs.jpeg2k_encode(words.view(np.int16), codecformat="j2k", reversible=True)  # noqa: E731
    for index, plane in enumerate(stored):
        save(
            slice_dataset(plane, 2.0 * index, signed=True),
            tmp_path / f"{index}.dcm",
            "1.2.840.10008.1.2.4.90",
            encode,
        )
    assert np.array_equal(load(sorted(tmp_path.iterdir())).hu, expected_hu(stored))


def test_bits_above_high_bit_are_not_part_of_the_value(tmp_path: Path) -> None:
    stored = noise(2)
    paths = write_series(tmp_path, stored | 0xA000, BitsStored=12, HighBit=11)  # old overlays lived there
    assert np.array_equal(load(paths).hu, expected_hu(stored))


def test_frames_in_several_fragments_are_joined(tmp_path: Path) -> None:
    stored = noise(2)
    for index, plane in enumerate(stored):
        dataset = slice_dataset(plane, 2.0 * index)
        path = save(dataset, tmp_path / f"{index}.dcm", "1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame], fragments_per_frame=3)
        dataset.save_as(path, enforce_file_format=True)
    assert np.array_equal(load(sorted(tmp_path.iterdir())).hu, expected_hu(stored))


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, RLELossless, *ENCODERS])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_names_its_instance(tmp_path: Path, syntax: str, kept: float) -> None:
    paths = [damaged_series(tmp_path, syntax, lambda encoded: encoded)[0]]
    uid = pydicom.dcmread(paths[0], specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    whole = paths[0].read_bytes()
    start = whole.index(b"\xe0\x7f\x10\x00")
    paths[0].write_bytes(whole[: start + int((len(whole) - start) * kept)])
    with pytest.raises(CorruptInstance, match=uid.replace(".", r"\.")):
        load([*paths, tmp_path / "1.dcm"])


@pytest.mark.parametrize("syntax", [RLELossless, *ENCODERS])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.99])
def test_a_truncated_stream_in_a_whole_file_names_its_instance(tmp_path: Path, syntax: str, kept: float) -> None:
    paths = damaged_series(tmp_path, syntax, lambda encoded: encoded[: int(len(encoded) * kept)])
    uid = pydicom.dcmread(paths[0], specific_tags=["SOPInstanceUID"]).SOPInstanceUID
    with pytest.raises(CorruptInstance, match=uid.replace(".", r"\.")):
        load(paths)


def damaged_series(folder: Path, syntax: str, damage: Callable[[bytes], bytes]) -> list[Path]:
    """Two slices, the first with its encoded frame damaged."""
    for index, plane in enumerate(noise(2)):
        dataset = slice_dataset(plane, 2.0 * index)
        path = save(dataset, folder / f"{index}.dcm", syntax, ENCODERS.get(syntax)) if syntax in ENCODERS else None
        if path is None:
            path = save(dataset, folder / f"{index}.dcm", EXPLICIT if syntax == RLELossless else syntax)
        if syntax == RLELossless:
            compress(dataset, RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        if index == 0 and syntax not in (IMPLICIT, EXPLICIT):
            (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
            dataset.PixelData = encapsulate([damage(frame)])
        dataset.save_as(path, enforce_file_format=True)
    return sorted(folder.glob("*.dcm"))


def test_a_stream_of_another_size_than_the_header_is_corrupt(tmp_path: Path) -> None:
    wrong = imagecodecs.jpegls_encode(noise(1, 60, 60)[0].astype(np.uint16))
    for index, plane in enumerate(noise(2)):
        save(slice_dataset(plane, 2.0 * index), tmp_path / f"{index}.dcm", "1.2.840.10008.1.2.4.80", lambda _: wrong)
    with pytest.raises(CorruptInstance, match="size"):
        load(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("syntax", LOSSY_ENCODERS)
def test_a_stream_that_loses_detail_is_refused_whatever_its_syntax_promises(tmp_path: Path, syntax: str) -> None:
    for index, plane in enumerate(noise(2)):
        save(slice_dataset(plane, 2.0 * index), tmp_path / f"{index}.dcm", syntax, LOSSY_ENCODERS[syntax])
    with pytest.raises(UnsuitableSeries) as refusal:
        load(sorted(tmp_path.iterdir()))
    assert refusal.value.code == "LOSSY_TRANSFER_SYNTAX"


@pytest.mark.parametrize("place", ["the tile's header", "the component's style"])
def test_a_wavelet_that_loses_detail_is_seen_wherever_it_is_declared(tmp_path: Path, place: str) -> None:
    def irreversible_at(words: np.ndarray) -> bytes:
        stream = imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=True)
        tile, style = stream.index(b"\xff\x90"), stream.index(b"\xff\x52")
        style_end = style + 2 + int.from_bytes(stream[style + 2 : style + 4], "big")
        if place == "the tile's header":
            extra = bytearray(stream[style:style_end])
            extra[13] = 0
            size = int.from_bytes(stream[tile + 6 : tile + 10], "big") + len(extra)
            return (
                stream[: tile + 6]
                + size.to_bytes(4, "big")
                + stream[tile + 10 : tile + 12]
                + extra
                + stream[tile + 12 :]
            )
        component = b"\xff\x53\0\x09\0\0" + stream[style + 9 : style + 13] + b"\0"
        return stream[:tile] + component + stream[tile:]

    for index, plane in enumerate(noise(2)):
        save(slice_dataset(plane, 2.0 * index), tmp_path / f"{index}.dcm", "1.2.840.10008.1.2.4.91", irreversible_at)
    with pytest.raises(UnsuitableSeries) as refusal:
        load(sorted(tmp_path.iterdir()))
    assert refusal.value.code == "LOSSY_TRANSFER_SYNTAX"


@pytest.mark.parametrize(
    ("syntax", "code"),
    [
        ("1.2.840.10008.1.2.2", "BIG_ENDIAN"),
        ("1.2.840.10008.1.2.1.99", "DEFLATED"),
        ("1.2.840.10008.1.2.4.50", "LOSSY_TRANSFER_SYNTAX"),
        ("1.2.840.10008.1.2.4.51", "LOSSY_TRANSFER_SYNTAX"),
        ("1.2.840.10008.1.2.4.95", "DEFLATED"),
        ("1.2.840.10008.1.2.4.94", "UNSUPPORTED_TRANSFER_SYNTAX"),
    ],
)
def test_other_syntaxes_are_refused_with_a_reason(tmp_path: Path, syntax: str, code: str) -> None:
    for index, plane in enumerate(noise(2)):
        dataset = slice_dataset(plane, 2.0 * index)
        if syntax == "1.2.840.10008.1.2.2":
            save(dataset, tmp_path / "little.dcm")
            dataset = pydicom.dcmread(tmp_path / "little.dcm")
            dataset["PixelData"].value = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(
                tmp_path / f"{index}.dcm", dataset, implicit_vr=False, little_endian=False, enforce_file_format=True
            )
            (tmp_path / "little.dcm").unlink()
        elif syntax == "1.2.840.10008.1.2.1.99":
            save(dataset, tmp_path / f"{index}.dcm")
            dataset.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(tmp_path / f"{index}.dcm", dataset, enforce_file_format=True)
        else:
            save(dataset, tmp_path / f"{index}.dcm", syntax, lambda words: words.tobytes())
    with pytest.raises(UnsuitableSeries) as refusal:
        load(sorted(tmp_path.iterdir()))
    assert refusal.value.code == code


def test_workers_and_file_names_change_nothing(tmp_path: Path) -> None:
    paths = write_series(tmp_path, noise(9))
    digest = load(paths, workers=1).digest()
    for number, path in enumerate(reversed(paths)):
        shutil.move(path, tmp_path / f"z{number}")
    assert load(list(tmp_path.iterdir()), workers=4).digest() == digest


@pytest.mark.parametrize("offsets", [(64, 2**31), (2**31, 70), (3, 80), (90, 64), (64, 64), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_run_length_planes_outside_the_data_are_corrupt(tmp_path: Path, offsets: tuple[int, int]) -> None:
    def misplace(encoded: bytes) -> bytes:
        return encoded[:4] + np.array(offsets, "<u4").tobytes() + encoded[12:]

    with pytest.raises(CorruptInstance):
        load(damaged_series(tmp_path, RLELossless, misplace))


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, RLELossless, *ENCODERS])
def test_random_damage_ends_in_a_named_reason_or_a_volume(tmp_path: Path, syntax: str) -> None:
    paths = damaged_series(tmp_path, syntax, lambda encoded: encoded)
    whole, rng = paths[0].read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(132, len(whole), rng.integers(1, 6)):
            damaged[place] = rng.choice([0, 255, rng.integers(256)])
        paths[0].write_bytes(damaged)
        try:
            find_series(tmp_path)
            load(paths)
        except (CorruptInstance, UnsuitableSeries) as reason:
            assert "NOBODY" not in str(reason)


def test_the_receiver_accepts_what_can_be_decoded_and_nothing_else() -> None:
    from dicom_node.receiver.negotiation import TRANSFER_SYNTAXES

    assert TRANSFER_SYNTAXES == SUPPORTED


def test_a_syntax_that_is_lossless_by_its_name_is_agreed_before_one_that_may_be_lossy() -> None:
    from dicom_node.receiver.acse import Proposal
    from dicom_node.receiver.negotiation import negotiate

    proposals = [
        Proposal(1, "1.2.840.10008.5.1.4.1.1.2", ("1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.90", IMPLICIT)),
        Proposal(3, "1.2.840.10008.5.1.4.1.1.2", ("1.2.840.10008.1.2.4.91",)),
    ]
    agreed = [context.transfer_syntax for context in negotiate(proposals)]
    assert agreed == ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"]


@pytest.mark.parametrize("way", ["the file meta", "a late element of a long file meta", "the data set"])
def test_nothing_is_ever_inflated_whatever_a_file_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    deflated = b"1.2.840.10008.1.2.1.99"
    paths = write_series(tmp_path, noise(3))
    whole = paths[0].read_bytes()
    data_set = whole.index(b"\x08\0\x08\0CS")
    bomb = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    inflates_to = bomb.compress(bytes(64 << 20)) + bomb.flush()
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", len(deflated)) + deflated
    if way == "the data set":
        paths[0].write_bytes(whole[:data_set] + syntax + inflates_to)
    else:
        uid = struct.pack("<HH2sH", 2, 3, b"UI", 4000) + b"1.2".ljust(4000, b"\0")
        head = whole[:132] + (uid if "late" in way else struct.pack("<HH2sH", 2, 3, b"UI", 4) + b"1.2\0")
        paths[0].write_bytes(head + syntax + inflates_to)

    def inflate(*arguments: object, **options: object) -> bytes:
        raise AssertionError("something was inflated")

    monkeypatch.setattr(zlib, "decompress", inflate)
    monkeypatch.setattr(zlib, "decompressobj", inflate)
    with pytest.raises((UnsuitableSeries, CorruptInstance)) as refused:
        load(paths)
    if way != "the data set":
        assert isinstance(refused.value, UnsuitableSeries) and refused.value.code == "DEFLATED"
    assert paths[1] in find_series(tmp_path)["2.25.2"]


def test_a_compressed_frame_far_larger_than_its_image_is_not_read(tmp_path: Path) -> None:
    paths = damaged_series(tmp_path, "1.2.840.10008.1.2.4.80", lambda encoded: encoded + bytes(4 << 20))
    with pytest.raises(CorruptInstance, match="larger than an uncompressed one"):
        load(paths)
