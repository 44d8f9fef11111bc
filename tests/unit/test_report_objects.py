"""A result's objects come together, and a report can be sent in a class that the destination takes."""

import copy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.uid import ComprehensiveSRStorage, EnhancedSRStorage, SegmentationStorage

from config.coding import LUNG, MILLILITRE, VOLUME, Code
from config.reasons import Refusal
from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.lower_classes import CLASSES, in_class, in_lower_classes
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.regions import MOST_FINDINGS, outline
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from dicom_node.report.uids import result_uid
from dicom_node.report.wording import series_description
from inference.finding import Spread
from inference.plug import Finding, Measurement, Output, Segment
from inference.volume.ct_volume import CTVolume
from storage.object_kinds import ObjectKind
from tests.factories import SERIES_UID, Grid, finding_on, lesion, lungs, model, volume_of, write_enhanced, write_series
from tests.validators import evidence, rows

ORGAN = Code("91723000", "SCT", "Anatomical Structure")
CONTEXT = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC))


@pytest.fixture
def volume(tmp_path: Path) -> CTVolume:
    write_series(tmp_path / "series")
    return volume_of(tmp_path / "series")


def test_report_comes_first_and_refers_to_the_segmentation(volume: CTVolume) -> None:
    objects = build_all(finding_on(volume), volume, read_sources(volume), CONTEXT)
    assert [kind for kind, _ in objects] == ["report", "segmentation", "summary"]
    by_kind = dict(objects)
    assert evidence(by_kind["report"])[by_kind["segmentation"].SOPInstanceUID] == SegmentationStorage
    uids = [dataset.SOPInstanceUID for _, dataset in objects] + [dataset.SeriesInstanceUID for _, dataset in objects]
    assert len(set(uids)) == 6
    assert {dataset.StudyInstanceUID for _, dataset in objects} == {volume.study_instance_uid}


def test_a_model_that_finds_none_of_what_it_looks_for_reports_that(volume: CTVolume) -> None:
    found = finding_on(volume)
    nodules = Segment("Nodules", np.zeros(volume.hu.shape, bool), ORGAN, LUNG, "finding")
    measured = Measurement(VOLUME, 0.0, MILLILITRE, segment="Nodules")
    output = Output(measurements=(measured,), segments=(nodules,), algorithms=found.output.algorithms)
    (kind, report), *_ = build_all(replace(found, output=output), volume, read_sources(volume), CONTEXT)
    assert kind == "report"
    stated = [row for row in rows(report) if row[2] == "NUM"]
    assert [(row[3], row[4]) for row in stated] == [("118565006,SCT", "0.0 mL,UCUM")]
    assert ("121071,DCM", "39607008,SCT") in [(row[3], row[4]) for row in rows(report)]


def test_only_the_kinds_asked_for_are_built(volume: CTVolume) -> None:
    sources = read_sources(volume)
    (report,) = build_all(finding_on(volume), volume, sources, CONTEXT, ["report"])
    assert report[0] == "report" and "121191,DCM" not in [row[3] for row in rows(report[1])]
    with pytest.raises(ValueError, match="sculpture"):
        build_all(finding_on(volume), volume, sources, CONTEXT, ["sculpture"])
    assert set(KINDS) == {"report", "segmentation", "summary", "display-report", "key-images"}


def test_rebuild_gives_the_same_uids_for_every_object(volume: CTVolume) -> None:
    sources = read_sources(volume)
    first, again = (build_all(finding_on(volume), volume, sources, CONTEXT) for _ in range(2))
    assert [d.SOPInstanceUID for _, d in first] == [d.SOPInstanceUID for _, d in again]


def localised(volume: CTVolume) -> Finding:
    return finding_on(volume, localisation=lesion(Grid()))


def test_key_images_are_the_slices_with_most_of_the_localisation(tmp_path: Path) -> None:
    grid = Grid(shape=(30, 16, 20), spacing_mm=(4.0, 2.0, 1.5))
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    region = np.zeros(grid.shape, bool)
    for z in range(5, 25):
        region[z, 4:8, 2 : 3 + z // 3] = True
    objects = dict(build_all(finding_on(volume, localisation=region), volume, read_sources(volume), CONTEXT, KINDS))
    selection = pydicom.dcmread(DicomBytesIO(to_part10(objects["key-images"])))
    images = [item for item in selection.ContentSequence if item.ValueType == "IMAGE"]
    shown = [item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in images]
    # Slices are 4 mm apart, so key images at least 10 mm apart differ by 3 or more; z 24 has most voxels.
    assert shown == [f"{SERIES_UID}.{z + 1}" for z in (12, 15, 18, 21, 24)]
    assert set(evidence(selection)) == set(shown)
    assert all("ConceptNameCodeSequence" not in item for item in images)
    assert str(selection.PatientName) == "Doe^Jane" and selection.Modality == "KO"


def test_frames_of_a_multi_frame_source_are_key_images(tmp_path: Path) -> None:
    volume = write_enhanced(tmp_path / "multi.dcm", order=[3, 1, 0, 2, 4, 7, 6, 5])
    objects = dict(build_all(localised(volume), volume, read_sources(volume), CONTEXT, KINDS))
    (image,) = [item for item in objects["key-images"].ContentSequence if item.ValueType == "IMAGE"]
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 5  # z 4


def test_no_localisation_no_key_images(volume: CTVolume) -> None:
    objects = build_all(finding_on(volume), volume, read_sources(volume), CONTEXT, KINDS)
    assert [kind for kind, _ in objects] == ["report", "segmentation", "summary", "display-report"]


def display_of(volume: CTVolume, finding: Finding) -> Dataset:
    """The display report as a reader of the file gets it."""
    objects = dict(build_all(finding, volume, read_sources(volume), CONTEXT, KINDS))
    return pydicom.dcmread(DicomBytesIO(to_part10(objects["display-report"])))


def shown(display: Dataset) -> list[tuple[str, list[str], str]]:
    """What a viewer shows: of each group the name, its numbers as name, value and unit, and on which instance."""
    found = []
    for group in display.ContentSequence[-1].ContentSequence:
        items = group.ContentSequence
        (name,) = [i.TextValue for i in items if i.ConceptNameCodeSequence[0].CodeValue == "112039"]
        numbers = [
            f"{i.ConceptNameCodeSequence[0].CodeMeaning}: {i.MeasuredValueSequence[0].NumericValue}"
            for i in items
            if i.ValueType == "NUM"
        ]
        (line,) = [i for i in items if i.ValueType == "SCOORD"]
        found.append((name, numbers, line.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID))
    return found


def test_display_report_has_a_region_for_each_lung_and_each_connected_finding(volume: CTVolume) -> None:
    grid = Grid()
    region = lesion(grid)
    region[2:4, 14:17, 26:30] = True  # in the other lung, smaller
    display = display_of(volume, finding_on(volume, lung_mask=lungs(grid), localisation=region))
    groups = shown(display)
    assert [name for name, _, _ in groups] == [
        "COVID-19 AI region 1, right lung, RESEARCH",
        "COVID-19 AI region 2, left lung, RESEARCH",
        "COVID-19 AI, right lung, RESEARCH",
        "COVID-19 AI, left lung, RESEARCH",
    ]
    millilitres = [round(voxels * 0.012, 1) for voxels in (lesion(grid).sum(), 24)]
    assert groups[0][1] == [
        "COVID-19 research AI: 91",
        f"Right lung, drove AI: {millilitres[0]}",
    ]
    assert groups[1][1][1] == f"Left lung, drove AI: {millilitres[1]}"
    assert [numbers[1].split(":")[0] for _, numbers, _ in groups[2:]] == ["Right lung", "Left lung"]
    # A viewer writes the numbers beside the line: on slices of their own they cannot cover each other.
    assert len({instance for _, _, instance in groups}) == 4
    assert (display.SeriesNumber, display.Modality) == (9003, "SR")


def test_no_region_of_the_display_report_reaches_over_the_middle(volume: CTVolume) -> None:
    grid = Grid()
    display = display_of(volume, finding_on(volume, lung_mask=lungs(grid), localisation=lesion(grid)))
    middle = grid.shape[2] / 2
    for group in display.ContentSequence[-1].ContentSequence:
        (line,) = [item for item in group.ContentSequence if item.ValueType == "SCOORD"]
        columns, rows_ = line.GraphicData[::2], line.GraphicData[1::2]
        assert max(columns) <= middle or min(columns) >= middle
        assert (columns[0], rows_[0]) == (columns[-1], rows_[-1])


def numbers_of(display: Dataset) -> list[Dataset]:
    """The numbers of all groups of the display report."""
    groups = display.ContentSequence[-1].ContentSequence
    return [item for group in groups for item in group.ContentSequence if item.ValueType == "NUM"]


def test_sites_of_the_display_report_stand_at_its_numbers(volume: CTVolume) -> None:
    grid = Grid()
    display = display_of(volume, finding_on(volume, lung_mask=lungs(grid), localisation=lesion(grid)))
    # OHIF writes the site of a group beside its line, as "363698007: Lung".
    for group in display.ContentSequence[-1].ContentSequence:
        assert "363698007" not in [item.ConceptNameCodeSequence[0].CodeValue for item in group.ContentSequence]
    sides = []
    for number in numbers_of(display):
        (site,) = number.ContentSequence
        assert site.ConceptNameCodeSequence[0].CodeValue == "363698007"
        sides.append(site.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning)
    # The output is one for both lungs; the volume is that of the region.
    assert sides == ["Bilateral", "Right", "Bilateral", "Right", "Bilateral", "Left"]


def test_texts_of_the_display_report_fit_beside_a_left_lung_in_ohif() -> None:
    output = codes.output_shown(model())[0]
    values = {output: "100.00 %", codes.LEFT_LUNG_SHOWN: "9999.00 mL", codes.LEFT_REGION_SHOWN: "999.00 mL"}
    assert [name.meaning for name, value in values.items() if len(f"{name.meaning}: {value}") > 31] == []
    assert output.meaning == "COVID-19 research AI"


def test_small_numbers_of_the_display_report_are_never_zero(volume: CTVolume) -> None:
    # OHIF takes 0 for no number and shows "%" alone.
    speck = np.zeros(volume.hu.shape, bool)
    speck[2, 4, 4] = True
    display = display_of(volume, finding_on(volume, 3.4e-8, lung_mask=speck))
    values = [float(number.MeasuredValueSequence[0].NumericValue) for number in numbers_of(display)]
    assert values == [0.1, 0.01]


def test_display_report_says_that_harmless_changes_decide_the_sign(volume: CTVolume) -> None:
    spread = Spread(0.449, 0.582, ("one row higher", "one row lower"))
    groups = shown(display_of(volume, finding_on(volume, 0.571, lung_mask=lungs(Grid()), spread=spread)))
    # A viewer shows names and values only: three numbers of one name would tell nobody which is which.
    assert groups[0][1][:3] == ["COVID-19 research AI: 57", "Varies from: 45", "Varies to: 58"]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0)])
def test_sides_of_the_display_report_are_the_patient_s(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    grid = Grid(orientation=orientation)
    write_series(tmp_path / "s", grid)
    turned = volume_of(tmp_path / "s")
    lower_columns = lungs(grid)
    lower_columns[:, :, grid.shape[2] // 2 :] = False
    (name, numbers, _) = shown(display_of(turned, finding_on(turned, lung_mask=lungs(grid))))[0]
    # The lower columns are the patient's right in the usual orientation, and the left in the turned one.
    expected = lower_columns if orientation[0] == 1 else lungs(grid) & ~lower_columns
    assert name == "COVID-19 AI, right lung, RESEARCH"
    assert numbers[1] == f"Right lung: {round(expected.sum() * turned.voxel_ml, 1)}"


def test_many_findings_are_shown_the_largest_first(tmp_path: Path) -> None:
    grid = Grid(shape=(24, 64, 64))
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    region = np.zeros(grid.shape, bool)
    for number in range(12):
        row, column = 4 + 12 * (number // 4), 4 + 14 * (number % 4)
        region[10:13, row : row + 3, column : column + 1 + number % 5] = True
    groups = shown(display_of(volume, finding_on(volume, lung_mask=lungs(grid), localisation=region)))
    sizes = [float(numbers[1].split(": ")[1]) for _, numbers, _ in groups[:-2]]
    assert len(sizes) == MOST_FINDINGS and sizes == sorted(sizes, reverse=True)


def test_outline_keeps_to_the_region(volume: CTVolume) -> None:
    mask = np.zeros((8, 9), bool)
    mask[2:5, 1:4] = True
    mask[4, 4:6] = True
    line = outline(mask)
    assert line.min(axis=0).tolist() == [1, 2] and line.max(axis=0).tolist() == [6, 5]
    assert (line[0] == line[-1]).all()
    assert [4.0, 2.5] in line.tolist() and [6.0, 4.5] in line.tolist()


def test_nothing_to_outline_no_display_report(volume: CTVolume) -> None:
    finding = finding_on(volume, lung_mask=np.zeros(volume.hu.shape, bool))
    kinds = [kind for kind, _ in build_all(finding, volume, read_sources(volume), CONTEXT, KINDS)]
    assert kinds == ["report", "summary"]


def test_report_comes_in_every_lower_class_with_the_same_content(volume: CTVolume) -> None:
    report = build_report(finding_on(volume), volume, read_sources(volume), CONTEXT)
    copies = in_lower_classes(to_part10(report))
    assert [(kind, copy.SOPClassUID) for kind, copy in copies] == [
        ("report-comprehensive", ComprehensiveSRStorage),
        ("report-enhanced", EnhancedSRStorage),
    ]
    for _, lower in copies:
        read = pydicom.dcmread(DicomBytesIO(to_part10(lower)))
        assert read.SOPClassUID == read.file_meta.MediaStorageSOPClassUID
        assert read.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID
        assert rows(read) == rows(report)
    assert len({report.SOPInstanceUID, *(copy.SOPInstanceUID for _, copy in copies)}) == 3


def test_every_kind_of_report_has_a_class(volume: CTVolume) -> None:
    assert {kind for kind in ObjectKind if kind.is_report} == set(CLASSES)
    refused = build_not_analysed(Refusal("X", "y"), read_sources(volume), CONTEXT, None)
    assert in_lower_classes(to_part10(refused)) == []


def test_report_in_another_class_has_the_same_uid_each_time_and_names_what_it_replaces(volume: CTVolume) -> None:
    sources = read_sources(volume)
    earlier = build_report(finding_on(volume), volume, sources[1:], CONTEXT)
    report = build_report(finding_on(volume), volume, sources, replace(CONTEXT, predecessor=earlier, revision=2))
    first, again, sent_earlier = (
        in_class(one, ObjectKind.COMPREHENSIVE_REPORT) for one in (report, copy.deepcopy(report), earlier)
    )
    assert first.SOPInstanceUID == again.SOPInstanceUID
    reference = first.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == sent_earlier.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == sent_earlier.SOPClassUID


def test_not_analysed_report_says_why_and_has_no_number(volume: CTVolume) -> None:
    sentence = "Two gaps of 8 mm were seen where slices are 4 mm apart; every slice is needed."
    report = build_not_analysed(Refusal("MISSING_SLICES", sentence), read_sources(volume), CONTEXT, model())
    read = pydicom.dcmread(DicomBytesIO(to_part10(report)))
    assert read.SOPClassUID == EnhancedSRStorage
    assert rows(read)[0] == (0, "", "CONTAINER", "18748-4,LN", "")
    assert read.ContentTemplateSequence[0].TemplateIdentifier == "2000"
    found = [(kind, value) for _, _, kind, name, value in rows(read) if name == "121071,DCM"]
    assert found[:2] == [("CODE", "MISSING_SLICES,99DICOMNODE"), ("TEXT", sentence)]
    assert found[2][1].startswith("Series 2 with 8 readable instance(s)")
    (conclusion,) = [value for _, _, _, name, value in rows(read) if name == "121077,DCM"]
    assert "neither positive nor negative" in conclusion and "Not for diagnosis" in conclusion
    assert "NUM" not in [row[2] for row in rows(read)]
    assert (read.CompletionFlag, read.PreliminaryFlag) == ("COMPLETE", "PRELIMINARY")
    assert len(evidence(read)) == 8


def test_reason_longer_than_a_short_code_is_kept_whole(volume: CTVolume) -> None:
    report = build_not_analysed(Refusal("ALTERNATING_SLICE_THICKNESS", "x"), read_sources(volume), CONTEXT, None)
    assert ("CODE", "ALTERNATING_SLICE_THICKNESS,99DICOMNODE") in [(row[2], row[4]) for row in rows(report)]


def test_sentence_that_quotes_a_header_is_written_without_its_control_characters(volume: CTVolume) -> None:
    refusal = Refusal("BODY_PART", "The header says \x07ABD\x00OMEN\x1b.")
    report = build_not_analysed(refusal, read_sources(volume), CONTEXT, None)
    assert ("TEXT", "The header says ABDOMEN.") in [(row[2], row[4]) for row in rows(report)]


def test_another_reason_is_another_report(volume: CTVolume) -> None:
    sources = read_sources(volume)
    reports = [build_not_analysed(Refusal(code, "x"), sources, CONTEXT, model()) for code in ("A", "B")]
    assert reports[0].SOPInstanceUID != reports[1].SOPInstanceUID


@pytest.mark.parametrize("demonstration", [True, False])
@pytest.mark.parametrize("what", ["report", "segments", "summary", "not analysed", "key images", "display"])
def test_series_description_fits_its_64_characters(what: str, demonstration: bool) -> None:
    description = series_description(what, model(demonstration=demonstration))
    assert len(description) <= 64 and "RESEARCH, not for diagnosis" in description and what in description


def test_uids_are_derived_and_legal() -> None:
    uid = result_uid("report", "1.2", "digest", "model", "1")
    assert uid == result_uid("report", "1.2", "digest", "model", "1")
    assert uid.startswith("2.25.") and len(uid) <= 64 and pydicom.uid.UID(uid).is_valid
    others = {
        result_uid("summary", "1.2", "digest", "model", "1"),
        result_uid("report", "1.3", "digest", "model", "1"),
        result_uid("report", "1.2", "other", "model", "1"),
        result_uid("report", "1.2", "digest", "other", "1"),
        result_uid("report", "1.2", "digest", "model", "2"),
        result_uid("report1.2", "", "digest", "model", "1"),
    }
    assert len(others | {uid}) == 7


def test_made_by_this_implementation(volume: CTVolume) -> None:
    objects = build_all(finding_on(volume), volume, read_sources(volume), CONTEXT)

    def implementation(dataset: Dataset) -> str:
        return str(pydicom.dcmread(DicomBytesIO(to_part10(dataset))).file_meta.ImplementationVersionName)

    assert {implementation(dataset) for _, dataset in objects} == {"DICOM_NODE"}
