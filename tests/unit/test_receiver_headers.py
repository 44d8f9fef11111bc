"""Reading a header out of encoded bytes."""

import io
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicom_node.receiver.errors import Unreadable
from dicom_node.receiver.headers import Header, read_header, read_identity
from dicom_node.receiver.uids import parse_uid
from dicom_node.receiver.walk import NeedsMore
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


ITEM_START, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"


def test_a_sequence_of_unknown_vr_may_have_its_items_in_explicit_vr_too() -> None:
    inner = element(0x00091002, b"LO", b"abcd") + element(0x00091003, b"UN", bytes(6))
    item = ITEM_START + b"\xff" * 4 + inner + ITEM_END + bytes(4)
    private = element(0x00091001, b"UN", item + SEQUENCE_END + bytes(4), length=UNDEFINED)
    nested = element(0x00091001, b"UN", ITEM_START + b"\xff" * 4 + private + ITEM_END + bytes(4), length=UNDEFINED)
    for extra in (private, nested + SEQUENCE_END + bytes(4)):
        assert read(data_set(extra=extra)).series_instance_uid == b"1.2.3.4\0"


def test_nested_sequences_of_unknown_vr_have_the_same_limit_of_depth() -> None:
    value = b""
    for _ in range(40):
        item = ITEM_START + b"\xff" * 4 + value + ITEM_END + bytes(4) + SEQUENCE_END + bytes(4)
        value = element(0x00091001, b"UN", item, length=UNDEFINED)
    with pytest.raises(Unreadable):
        read(data_set(extra=value))


def test_a_delimiter_ends_its_sequence_whatever_length_it_says_it_has() -> None:
    item = ITEM_START + b"\xff" * 4 + element(0x00081150, b"UI", b"1.2\0") + ITEM_END + b"\4\0\0\0"
    sequence = element(0x00081140, b"SQ", item + SEQUENCE_END + b"\x08\0\0\0", length=UNDEFINED)
    assert read(data_set(extra=sequence)).series_instance_uid == b"1.2.3.4\0"


def test_a_delimiter_too_many_at_the_end_is_passed_over_and_elsewhere_refused() -> None:
    assert read(data_set() + SEQUENCE_END + bytes(4)).series_instance_uid == b"1.2.3.4\0"
    with pytest.raises(Unreadable, match="outside a sequence"):
        read(data_set(extra=ITEM_END + bytes(4)))


FILE_META = element(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (FILE_META + data_set(), "below group 0008"),
        (data_set(extra=FILE_META), "below group 0008"),
        (data_set() + FILE_META, "below group 0008"),
        (element(0x00000002, b"UI", b"1.2") + data_set(), "below group 0008"),
        (element(0x00041130, b"CS", b"DISK") + data_set(), "below group 0008"),
        (element(0x00060010, b"CS", b"DISK") + data_set(), "below group 0008"),
        (bytes(128) + b"DICM" + FILE_META + data_set(), "a whole file"),
        (b"II*\0" + bytes(124) + b"DICM" + FILE_META + data_set(), "a whole file"),
    ],
)
def test_file_meta_and_other_elements_below_group_0008_are_refused_and_the_series_is_still_known(
    data: bytes, why: str
) -> None:
    with pytest.raises(Unreadable, match=why) as refused:
        read(data)
    assert len(str(refused.value)) <= 64
    assert read_identity(data, False).series_instance_uid == b"1.2.3.4\0"


def test_the_group_is_looked_at_in_implicit_vr_too() -> None:
    sent = encode(ct_slice(), implicit=True)
    with pytest.raises(Unreadable, match="below group 0008"):
        read(b"\2\0\x10\0\6\0\0\0" + b"1.2.3\0" + sent, implicit=True)


@pytest.mark.parametrize("agreed_implicit", [True, False])
def test_the_identity_of_a_data_set_in_the_other_encoding_is_found(agreed_implicit: bool) -> None:
    sent = ct_slice()
    data = encode(sent, implicit=not agreed_implicit)
    with pytest.raises(Unreadable):
        read(data, agreed_implicit)
    identity = read_identity(data, agreed_implicit)
    assert identity.series_instance_uid.rstrip(b"\0").decode() == sent.SeriesInstanceUID
    assert identity.indexed.patient_id == sent.PatientID


def test_the_identity_of_a_data_set_that_is_cut_short_or_senseless_is_what_can_be_read() -> None:
    cut = data_set()[:-50]
    assert read_identity(cut, False).sop_instance_uid == b"1.2.3.4.5\0"
    for nothing in (b"", b"x", b"not dicom at all, just text", bytes(128) + b"DICM\2\0"):
        assert read_identity(nothing, False).series_instance_uid == b""


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
