"""Reading a header out of encoded bytes."""

import io
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicom_node.receiver.errors import Unreadable
from dicom_node.receiver.headers import Header, NeedsMore, read_header
from dicom_node.receiver.uids import parse_uid
from tests.attacker import data_set, element
from tests.receiving import ct_slice

UNDEFINED = 0xFFFFFFFF


def encode(dataset: Dataset, implicit: bool = False) -> bytes:
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, True
    write_dataset(stream, dataset, parent_encoding="ascii")
    return stream.getvalue()


def read(data: bytes, implicit: bool = False) -> Header:
    return read_header(data, len(data), implicit)


@pytest.mark.parametrize("implicit", [True, False])
def test_what_the_index_needs_is_read(implicit: bool) -> None:
    sent = ct_slice(7)
    header = read(encode(sent, implicit), implicit)
    assert header.sop_instance_uid.rstrip(b"\0").decode() == sent.SOPInstanceUID
    assert header.series_instance_uid.rstrip(b"\0").decode() == sent.SeriesInstanceUID
    assert header.indexed.patient_name == "Planted^Patient"
    assert (header.indexed.modality, header.indexed.instance_number) == ("CT", "7")


@pytest.mark.parametrize("implicit", [True, False])
def test_sequences_of_undefined_length_are_stepped_over(implicit: bool) -> None:
    sent, inner, outer = ct_slice(), Dataset(), Dataset()
    inner.SOPInstanceUID = "9.9.9"
    inner.is_undefined_length_sequence_item = True
    outer.ReferencedImageSequence = Sequence([inner, inner])
    outer["ReferencedImageSequence"].is_undefined_length = True
    sent.ReferencedStudySequence = Sequence([outer, inner])
    sent["ReferencedStudySequence"].is_undefined_length = True
    header = read(encode(sent, implicit), implicit)
    assert header.sop_instance_uid.rstrip(b"\0").decode() == sent.SOPInstanceUID
    assert header.indexed.instance_number == "1"


def test_a_private_sequence_of_unknown_vr_and_length_is_implicit_inside() -> None:
    item = b"\xfe\xff\x00\xe0\x0c\0\0\0" + b"\x09\x00\x02\x10\x04\0\0\0abcd"
    private = element(0x00091001, b"UN", item + b"\xfe\xff\xdd\xe0\0\0\0\0", length=UNDEFINED)
    assert read(data_set(extra=private)).series_instance_uid == b"1.2.3.4\0"


def test_encapsulated_pixel_data_are_walked_to_their_end() -> None:
    fragments = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x04\0\0\0jpeg" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    whole = data_set()[: -(12 + 100)] + element(0x7FE00010, b"OB", fragments, length=UNDEFINED)
    assert read(whole).sop_instance_uid == b"1.2.3.4.5\0"
    with pytest.raises(Unreadable, match="cut short"):
        read(whole[:-8])


@pytest.mark.parametrize(
    ("character_set", "encoded", "text"),
    [
        ("", "M\xfcller^J\xf6rg".encode("latin_1"), "Müller^Jörg"),
        ("ISO_IR 100", "M\xfcller".encode("latin_1"), "Müller"),
        ("ISO_IR 192", "Łódź^山田".encode(), "Łódź^山田"),
        ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5"), "Люкceмбypг"),
        ("GB18030", "王^小东".encode("gb18030"), "王^小东"),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        ("ISO_IR 192", b"broken \xff utf-8", "broken � utf-8"),
        ("NO SUCH SET", b"plain", "plain"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_names_are_text_whatever_their_character_set(character_set: str, encoded: bytes, text: str) -> None:
    start = element(0x00080005, b"CS", character_set.encode()) if character_set else b""
    data = start + data_set().replace(
        element(0x00100010, b"PN", b"Planted^Patient"), element(0x00100010, b"PN", encoded)
    )
    assert read(data).indexed.patient_name == text


def test_a_header_longer_than_the_bytes_at_hand_asks_for_more() -> None:
    data = data_set(extra=element(0x00091001, b"OB", bytes(70000)))
    with pytest.raises(NeedsMore):
        read_header(data[:65536], len(data), implicit=False)
    assert read(data).sop_instance_uid == b"1.2.3.4.5\0"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"not dicom at all, just text", "not in its transfer syntax"),
        (data_set()[:-1], "cut short"),
        (data_set() + b"\x08\x00", "cut short"),
        (data_set(extra=element(0x00080018, b"UI", b"1.2.9")), "occurs twice"),
        (data_set(extra=element(0x00081140, b"LO", b"", length=0xFFFF)), "cut short"),
        (data_set(extra=element(0x00091001, b"UT", b"", length=UNDEFINED)), "has no length"),
        (data_set(extra=element(0x00081140, b"SQ", b"", length=UNDEFINED)), "other than items"),
    ],
)
def test_what_cannot_be_understood_is_named(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        read(data)


def test_up_to_eight_zero_bytes_at_the_end_are_padding() -> None:
    assert read(data_set() + bytes(8)).sop_instance_uid == b"1.2.3.4.5\0"


@pytest.mark.parametrize("uid", [b"1.2.840.10008.1\0", b"1.2.003", b"2.25." + b"9" * 39])
def test_uids_of_digits_and_dots_are_accepted(uid: bytes) -> None:
    assert parse_uid(uid, "UID") == uid.rstrip(b"\0").decode()


@pytest.mark.parametrize(
    ("uid", "why"),
    [
        (b"", "missing"),
        (b"../../x", "not a valid UID"),
        (b"1.2\n3", "not a valid UID"),
        (b"1..2", "not a valid UID"),
        (b"12345", "not a valid UID"),
        (b"1." + b"2" * 63, "not a valid UID"),
        ("1.٢".encode(), "not a valid UID"),
        (b"F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6", "UUID string"),
    ],
)
def test_other_uids_are_refused_by_what_is_wrong_with_them(uid: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        parse_uid(uid, "UID")


def test_real_headers_are_read_as_pydicom_reads_them(shared: Path) -> None:
    folders = [folder for folder in (shared / "data" / "dicom").iterdir() if folder.is_dir()]
    assert folders
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file())[::10]:
            content = path.read_bytes()
            expected = dcmread(io.BytesIO(content))
            start = 144 + int.from_bytes(content[140:144], "little")
            header = read_header(content[start:], len(content) - start, expected.is_implicit_VR)
            assert parse_uid(header.sop_instance_uid, "UID") == expected.SOPInstanceUID
            assert header.indexed.patient_id == str(expected.get("PatientID", "")).strip()
            assert header.indexed.manufacturer == str(expected.get("Manufacturer", "")).strip()
            assert header.indexed.instance_number == str(expected.InstanceNumber)
