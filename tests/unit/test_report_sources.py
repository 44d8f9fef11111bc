"""Sources as scanners write them, with names in any character set and attributes missing, are reported on."""

import struct
import warnings
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from config.headers import quiet
from config.reasons import Refusal
from dicom_node.report.context import ReportContext
from dicom_node.report.copied import MOST_ITEMS
from dicom_node.report.frame import origin_of, to_part10
from dicom_node.report.header_reader import tag_of
from dicom_node.report.naming import slice_name
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import complete, instance_number, read_headers, read_sources
from dicom_node.report.structured_report import build_report
from inference.errors import CorruptInstance
from inference.volume.load import load
from tests.factories import SERIES_UID, Grid, chest, finding_on, slice_dataset, volume_of, write_series
from tests.fuzz.headers import element, nested, rewrite

CONTEXT = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC))
GRID = Grid(shape=(3, 8, 8))
PLACEHOLDER = "Placeholder^For^The^Name^In^Other^Bytes"


def reported(folder: Path) -> Dataset:
    """The report on a folder of slices, as a reader of the file gets it."""
    volume = volume_of(folder)
    report = build_report(finding_on(volume), volume, read_sources(volume), CONTEXT)
    return pydicom.dcmread(DicomBytesIO(to_part10(report)))


def write_with_name(folder: Path, character_set: str | list[str] | None, name: bytes) -> None:
    """A series whose Patient Name and Institution Name are these bytes under this Specific Character Set."""
    write_series(
        folder, GRID, SpecificCharacterSet=character_set, PatientName=PLACEHOLDER, StudyDescription=PLACEHOLDER
    )
    padded = name.ljust(len(PLACEHOLDER) + 1)
    assert len(padded) == len(PLACEHOLDER) + 1
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(PLACEHOLDER.encode() + b" ", padded))


GB2312_NAME = b"Zhang^San=\x1b$)A" + "张".encode("gb2312") + b"^\x1b$)A" + "三".encode("gb2312")


@pytest.mark.parametrize(
    ("character_set", "name", "expected"),
    [
        ("ISO_IR 192", "Zhang^San=张^三".encode(), "Zhang^San=张^三"),
        ("GB18030", "Zhang^San=张^三".encode("gb18030"), "Zhang^San=张^三"),
        ("GBK", "Zhang^San=张^三".encode("gbk"), "Zhang^San=张^三"),
        (["", "ISO 2022 IR 58"], GB2312_NAME, "Zhang^San=张^三"),
        (["ISO 2022 IR 6", "ISO 2022 IR 58"], GB2312_NAME, "Zhang^San=张^三"),
        (["ISO 2022 IR 100", "ISO 2022 IR 58"], GB2312_NAME, "Zhang^San=张^三"),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO 2022 IR 100", "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7", "Hong^Gildong=洪^吉洞"),
        (None, "Zhang^San=张^三".encode(), "Zhang^San=张^三"),
        (None, "Müller^Jörg".encode("latin-1"), "Müller^Jörg"),
        ("ISO_IR 999", b"Doe^Jane", "Doe^Jane"),
        ("ISO_IR 100", b"Cher", "Cher"),
        ("ISO_IR 100", b"", ""),
    ],
)
def test_name_arrives_in_utf_8(
    tmp_path: Path, character_set: str | list[str] | None, name: bytes, expected: str
) -> None:
    write_with_name(tmp_path / "s", character_set, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume_of(tmp_path / "s")
    report = reported(tmp_path / "s")
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert str(report.PatientName) == expected
    assert report.get("StudyDescription", "") == expected
    assert b"\x1b" not in to_part10(report)


def test_character_whose_second_byte_is_a_backslash_does_not_split_the_name(tmp_path: Path) -> None:
    name = "許^功".encode("gbk")
    assert b"\\" in "乗".encode("gbk") + "誠".encode("gbk") + name
    write_with_name(tmp_path / "s", "GB18030", "誠^乗".encode("gbk"))
    report = reported(tmp_path / "s")
    assert str(report.PatientName) == "誠^乗"
    assert report.StudyDescription == "誠^乗"


def test_undecodable_name_does_not_stop_the_report(tmp_path: Path) -> None:
    write_with_name(tmp_path / "s", "ISO_IR 192", "张^三".encode("gbk"))
    assert reported(tmp_path / "s").PatientID == "4711"


TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
OTHERS = ("SpecificCharacterSet", "SliceThickness", "SeriesNumber", "Manufacturer", "FrameOfReferenceUID", "ImageType")


@pytest.mark.parametrize("missing", [None, ""])
def test_missing_and_empty_type_2_attributes_are_present_and_empty(tmp_path: Path, missing: str | None) -> None:
    write_series(tmp_path / "s", GRID, **dict.fromkeys([*TYPE_2, *OTHERS], missing))
    report = reported(tmp_path / "s")
    for keyword in TYPE_2:
        assert keyword in report and not report.get(keyword), keyword
    assert report.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize(
    ("keyword", "value", "expected"),
    [
        ("PatientBirthDate", "00000000", ""),
        ("PatientBirthDate", "unknown", ""),
        ("PatientBirthDate", "19601399", ""),
        ("StudyTime", "12:30:00", ""),
        ("StudyTime", "235960", "235959"),
        ("StudyDate", "2020-03-01", ""),
        ("PatientSex", "U", ""),
        ("PatientSex", "f", ""),
        ("PatientSex", "O", "O"),
    ],
)
def test_value_that_its_representation_forbids_is_left_empty(
    tmp_path: Path, keyword: str, value: str, expected: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path / "s", GRID, **{keyword: "X" * len(value) if keyword != "PatientSex" else value})
    for path in (tmp_path / "s").iterdir():
        path.write_bytes(path.read_bytes().replace(b"X" * len(value), value.encode()))
    assert str(reported(tmp_path / "s").get(keyword) or "") == expected


def test_overlong_equipment_texts_do_not_stop_the_report(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(
            tmp_path / "s",
            GRID,
            Manufacturer="M" * 90,
            InstitutionName="I" * 90,
            StationName="S" * 30,
            DeviceSerialNumber="D" * 70,
        )
    acquisition = reported(tmp_path / "s").ContributingEquipmentSequence[0]
    assert acquisition.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert acquisition.InstitutionName == "I" * 64


def test_patient_s_name_is_in_no_warning(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID, PatientName="Unmistakable", PatientBirthDate="")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reported(tmp_path / "s")
    assert not [w for w in caught if "Unmistakable" in str(w.message)]


def test_completing_twice_changes_nothing() -> None:
    source = slice_dataset(GRID, 0, chest(GRID)[0], PatientName="张^三", SpecificCharacterSet="GB18030", StudyID=None)
    once = complete(source)
    assert complete(once) == once
    assert "PixelData" not in once and source.SpecificCharacterSet == "GB18030"


def test_source_is_left_as_it_was() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = slice_dataset(GRID, 0, chest(GRID)[0], PatientBirthDate="00000000", PatientSex="U", StudyTime="x")
        before = source.to_json()
        complete(source)
        assert source.to_json() == before


def test_text_in_nested_items_is_converted_too(tmp_path: Path) -> None:
    reason = Dataset()
    reason.CodeValue, reason.CodingSchemeDesignator, reason.CodeMeaning = "1", "99X", "胸部"
    write_series(tmp_path / "s", GRID, SpecificCharacterSet="GB18030", ProcedureCodeSequence=[reason])
    assert reported(tmp_path / "s").ProcedureCodeSequence[0].CodeMeaning == "胸部"


def test_sources_come_in_the_order_of_the_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID, order=[2, 0, 1])
    uids = [str(source.SOPInstanceUID) for source in read_sources(volume_of(tmp_path / "s"))]
    assert uids == [f"{SERIES_UID}.{z + 1}" for z in range(3)]


def test_of_other_slices_than_the_first_only_the_number_is_read_once_it_is_asked_for(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID, order=[2, 0, 1])
    volume = volume_of(tmp_path / "s")
    lowest, second, _ = (slice_.path for slice_ in volume.slices)
    first, *others = sources = read_sources(volume)
    assert "InstanceNumber" in first and not any("InstanceNumber" in source for source in others)
    origin = origin_of(finding_on(volume), volume, sources, CONTEXT)
    assert [slice_name(volume, origin, z) for z in range(3)] == ["image 2", "image 3", "image 1"]
    assert not any("InstanceNumber" in source for source in others), "a header stays as it was"
    lowest.unlink()
    second.unlink()
    assert slice_name(volume, origin, 0) == "image 2" and slice_name(volume, origin, 2) == "image 1"
    with pytest.raises(CorruptInstance):
        slice_name(volume, origin, 1)
    with pytest.raises(CorruptInstance):
        instance_number(others[0])
    with pytest.raises(CorruptInstance):
        read_sources(volume)


def test_a_number_that_is_none_names_no_slice(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID)
    volume = volume_of(tmp_path / "s")
    for slice_, stored in zip(volume.slices, (b"", b"1.5 ", b"12345678901234"), strict=True):
        rewrite(slice_.path, {tag_of("InstanceNumber"): element(tag_of("InstanceNumber"), "IS", stored)})
    origin = origin_of(finding_on(volume), volume, read_sources(volume), CONTEXT)
    assert [slice_name(volume, origin, z) for z in range(3)] == [f"slice {z} from below" for z in (1, 2, 3)]


def test_headers_that_can_be_read_are_enough_to_say_why_nothing_was_analysed(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID)
    (tmp_path / "s" / "0000.dcm").write_bytes(b"no DICOM at all")
    (tmp_path / "s" / "0001.dcm").write_bytes(b"")
    headers = read_headers(sorted((tmp_path / "s").iterdir()))
    assert len(headers) == 1
    assert build_not_analysed(Refusal("CORRUPT_INSTANCE", "Two files."), headers, CONTEXT, None).PatientID == "4711"


def test_damaged_headers_are_reported_on_or_refused_and_nothing_else(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID, PatientAge="045Y", PatientWeight="70", InstitutionName="Hospital")
    whole = (tmp_path / "s" / "0000.dcm").read_bytes()
    random = Random(4711)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(random.choice([1, 2, 5])):
            damaged[random.randrange(132, len(whole) - 140)] = random.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            headers = read_headers([tmp_path / "damaged"])
        except CorruptInstance:
            outcomes.add("refused")
            continue
        to_part10(build_not_analysed(Refusal("X", "y"), headers, CONTEXT, None))
        outcomes.add("reported")
    assert outcomes == {"refused", "reported"}


def test_no_readable_header_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 500)
    with pytest.raises(CorruptInstance):
        read_headers([tmp_path / "a", tmp_path / "absent"])


@pytest.mark.parametrize(
    ("keyword", "stored", "copied"),
    [
        ("PatientID", b"4711\r\n", "4711"),
        ("PatientID", b"47\r\n11", None),
        ("PatientID", b"4711\\4712", None),
        ("PatientID", b"4711\\4711", "4711"),
        ("PatientID", b"4" * 65, None),
        ("AccessionNumber", b"A" * 17, None),
        ("PatientName", b"Doe^Jane\\Roe^Richard", None),
        ("PatientName", b"Doe^Jane^^^^^", "Doe^Jane"),
        ("PatientName", b"D" * 80 + b"^Jane", "D" * 64),
        ("PatientBirthDate", b"19600229\\19600301", None),
        ("PatientBirthDate", b"19600229 ", "19600229"),
        ("PatientBirthDate", b"19600230", None),
        ("StudyTime", b"2460", None),
        ("StudyTime", b"10", "10"),
        ("PatientAge", b"45Y", "045Y"),
        ("PatientAge", b"45", None),
        ("PatientAge", b"045Y", "045Y"),
        ("PatientWeight", b"70.123456789012345678", "70.1234568"),
        ("PatientWeight", b"1e999", None),
        ("PatientWeight", b"70 kg", None),
        ("StudyDescription", b"CT\\CHEST", "CT CHEST"),
        ("StudyDescription", b"C" * 100, "C" * 64),
        ("TypeOfPatientID", b"text", None),
        ("TypeOfPatientID", b"TEXT", "TEXT"),
        ("AcquisitionDateTime", b"20200301101112.5+0100", "20200301101112.5+0100"),
        ("AcquisitionDateTime", b"202002301011", None),
        ("AcquisitionDateTime", b"2020", "2020"),
        ("AcquisitionDateTime", b"20161231235960Z", None),
        ("AcquisitionDateTime", b"20161231235960+0000", "20161231235959+0000"),
        ("SeriesNumber", b"99999999999", None),
        ("PatientComments", b"line\r\nline\x07", "line\r\nline"),
        ("PatientIdentityRemoved", b"YES", None),
    ],
)
def test_value_is_copied_by_the_rules_of_its_representation(
    tmp_path: Path, keyword: str, stored: bytes, copied: str | None
) -> None:
    write_series(tmp_path / "s", Grid(shape=(1, 4, 4)), SeriesNumber=None)
    (path,) = (tmp_path / "s").iterdir()
    rewrite(path, {tag_of(keyword): element(tag_of(keyword), dictionary_VR(tag_of(keyword)), stored)})
    (header,) = read_headers([path])
    assert str(header.get(keyword) or "") == (copied or "")
    assert (keyword in header.emptied) == (copied is None)
    assert (keyword in header.altered) == (copied is not None and copied.encode() != stored.strip(b" "))


@pytest.mark.parametrize("vr", ["FD", "SQ", "US", "OB"])
def test_identifier_in_a_representation_that_is_no_text_is_left_empty(tmp_path: Path, vr: str) -> None:
    write_series(tmp_path / "s", Grid(shape=(3, 8, 8)))
    for path in (tmp_path / "s").iterdir():
        rewrite(path, {tag_of("PatientID"): element(tag_of("PatientID"), vr, b"\0\0\0\0\0\0\xf0\x3f")})
    with quiet():
        volume = load(sorted((tmp_path / "s").iterdir()))
    sources = read_sources(volume)
    assert sources[0].emptied == ("PatientID",)
    assert to_part10(build_report(finding_on(volume), volume, sources, CONTEXT))


def test_sequences_are_copied_as_far_as_they_are_listed_and_no_deeper(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID)
    code = b"".join(
        element(tag, vr, value)
        for tag, vr, value in ((0x00080100, "SH", b"X1"), (0x00080102, "SH", b"99X "), (0x00080104, "LO", b"CT"))
    )
    deep = element(0x00081032, "SQ", nested(300, Random(1)))
    items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(code + deep)) + code + deep for _ in range(5))
    for path in (tmp_path / "s").iterdir():
        rewrite(path, {tag_of("ProcedureCodeSequence"): element(tag_of("ProcedureCodeSequence"), "SQ", items)})
    report = reported(tmp_path / "s")
    assert len(report.ProcedureCodeSequence) == 5
    assert [one.keyword for one in report.ProcedureCodeSequence[0]] == [
        "CodeValue",
        "CodingSchemeDesignator",
        "CodeMeaning",
    ]
    for path in (tmp_path / "s").iterdir():
        items = b"".join(struct.pack("<HHL", 0xFFFE, 0xE000, len(code)) + code for _ in range(500))
        rewrite(path, {tag_of("ProcedureCodeSequence"): element(tag_of("ProcedureCodeSequence"), "SQ", items)})
    assert len(reported(tmp_path / "s").ProcedureCodeSequence) == MOST_ITEMS


def test_uids_with_leading_zeros_are_referred_to_as_they_are(tmp_path: Path) -> None:
    write_series(tmp_path / "s", GRID, StudyInstanceUID="1.2.03.4", SeriesInstanceUID="1.2.3.005")
    for path in (tmp_path / "s").iterdir():
        path.write_bytes(path.read_bytes().replace(f"{SERIES_UID}.".encode(), f"{SERIES_UID[:-3]}.00.".encode()))
    volume = volume_of(tmp_path / "s")
    objects = build_all(finding_on(volume), volume, read_sources(volume), CONTEXT, KINDS)
    for _, dataset in objects:
        assert pydicom.dcmread(DicomBytesIO(to_part10(dataset))).StudyInstanceUID == "1.2.03.4"
    refused = build_not_analysed(Refusal("X", "y"), read_headers(sorted((tmp_path / "s").iterdir())), CONTEXT, None)
    assert b"1.2.3.005" in to_part10(refused)


def test_a_clinical_trial_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    trial = {"ClinicalTrialSponsorName": "S", "ClinicalTrialProtocolID": "P"}
    write_series(tmp_path / "a", GRID, **trial)
    assert "ClinicalTrialProtocolID" not in reported(tmp_path / "a")
    write_series(tmp_path / "b", GRID, **trial, ClinicalTrialSubjectID="7")
    report = reported(tmp_path / "b")
    assert (report.ClinicalTrialSubjectID, report.ClinicalTrialSiteID) == ("7", "")
