"""The Structured Report says what the finding says, in the codes that the design names."""

import copy
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pydicom
import pytest
from highdicom.sr.utils import collect_evidence
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from config.reasons import Refusal
from dicom_node.report.context import EarlierResult, ReportContext, StudyStatement
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.segmentation import build_segmentation
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from inference.finding import Spread
from inference.models.cards import OperatingPoint
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume
from tests.factories import SERIES_UID, finding_on, model, volume_of, write_enhanced, write_series
from tests.validators import Row, evidence, report_problems, rows

NOW = datetime(2026, 3, 1, 23, 30, 15, 250000, tzinfo=UTC)
CONTEXT = ReportContext(
    created_at=NOW, manufacturer="Node makers", device_name="node", device_serial="S1", software_version="0.1.0"
)


@pytest.fixture
def volume(tmp_path: Path) -> CTVolume:
    write_series(tmp_path / "series")
    return volume_of(tmp_path / "series")


def expected_rows(report: Dataset) -> list[Row]:
    """The tree of the report on the factory's finding; UIDs that are derived are taken from the report itself."""
    uids = [value for _, _, kind, name, value in rows(report) if kind == "UIDREF" and name != "121232,DCM"]
    assert len(set(uids)) == 3 and all(uid.startswith("2.25.") for uid in uids)
    device, classification, lungs = uids
    context, modifier, contains = "HAS OBS CONTEXT", "HAS CONCEPT MOD", "CONTAINS"
    lung_site = [
        (3, modifier, "CODE", "363698007,SCT", "39607008,SCT"),
        (4, modifier, "CODE", "272741003,SCT", "51440002,SCT"),
    ]
    return [
        (0, "", "CONTAINER", "126000,DCM", ""),
        (1, modifier, "CODE", "121049,DCM", "en-US,RFC5646"),
        (1, context, "CODE", "121005,DCM", "121007,DCM"),
        (1, context, "UIDREF", "121012,DCM", device),
        (1, context, "TEXT", "121013,DCM", "node"),
        (1, context, "TEXT", "121014,DCM", "Node makers"),
        (1, context, "TEXT", "121015,DCM", "node"),
        (1, context, "TEXT", "121016,DCM", "S1"),
        (1, modifier, "CODE", "121058,DCM", "25045-6,LN"),
        (2, modifier, "CODE", "363704007,SCT", "816094009,SCT"),
        (1, contains, "CONTAINER", "126010,DCM", ""),
        (2, contains, "CONTAINER", "125007,DCM", ""),
        (3, context, "TEXT", "112039,DCM", "COVID-19 classification"),
        (3, context, "UIDREF", "112040,DCM", classification),
        (3, contains, "CODE", "276214006,SCT", "64572001,SCT"),
        (3, contains, "CODE", "121071,DCM", "840539006,SCT"),
        *lung_site,
        (3, modifier, "TEXT", "111001,DCM", "covid-ct DeCoVNet"),
        (3, modifier, "TEXT", "111003,DCM", "1.0+b2b2b2b2b2b2"),
        (3, modifier, "TEXT", "122405,DCM", "Node makers"),
        (3, modifier, "TEXT", "111002,DCM", "threshold=0.50"),
        (3, modifier, "TEXT", "111002,DCM", "profile=authors"),
        (3, modifier, "TEXT", "111002,DCM", "weights_sha256=" + "b2" * 32),
        (3, modifier, "TEXT", "111002,DCM", "lung_mask_weights_sha256=" + "a1" * 32),
        (3, modifier, "TEXT", "111002,DCM", "model_digest=" + "d" * 64),
        (3, modifier, "CODE", "111000,DCM", "123110,DCM"),
        (3, contains, "NUM", "111012,DCM", "91 %,UCUM"),
        (3, contains, "CODE", "363713009,SCT", "10828004,SCT"),
        (3, contains, "UIDREF", "121232,DCM", SERIES_UID),
        (3, contains, "TEXT", "121106,DCM", "..."),
        (3, contains, "TEXT", "121106,DCM", "..."),
        (3, contains, "TEXT", "121106,DCM", "..."),
        (3, contains, "TEXT", "121106,DCM", "Checks passed: SLICE_SPACING: Slices are evenly spaced."),
        (2, contains, "CONTAINER", "125007,DCM", ""),
        (3, context, "TEXT", "112039,DCM", "Lungs"),
        (3, context, "UIDREF", "112040,DCM", lungs),
        (3, contains, "CODE", "276214006,SCT", "91723000,SCT"),
        (3, contains, "CODE", "121071,DCM", "39607008,SCT"),
        *lung_site,
        (3, modifier, "TEXT", "111001,DCM", "covid-ct U-Net"),
        (3, modifier, "TEXT", "111003,DCM", "1.0+a1a1a1a1a1a1"),
        (3, modifier, "TEXT", "122405,DCM", "Node makers"),
        (3, modifier, "TEXT", "111002,DCM", "profile=authors"),
        (3, modifier, "TEXT", "111002,DCM", "weights_sha256=" + "a1" * 32),
        (3, modifier, "CODE", "111000,DCM", "123110,DCM"),
        (3, contains, "NUM", "118565006,SCT", "25.9 mL,UCUM"),
        (3, contains, "NUM", "118565006,SCT", "10.9 mL,UCUM"),
        (4, modifier, "CODE", "363698007,SCT", "39607008,SCT"),
        (5, modifier, "CODE", "272741003,SCT", "7771000,SCT"),
        (3, contains, "NUM", "118565006,SCT", "15.0 mL,UCUM"),
        (4, modifier, "CODE", "363698007,SCT", "39607008,SCT"),
        (5, modifier, "CODE", "272741003,SCT", "24028007,SCT"),
        (3, contains, "UIDREF", "121232,DCM", SERIES_UID),
    ]


def written(report: Dataset) -> Dataset:
    """The report as a reader of the file gets it."""
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(to_part10(report)))


def texts(report: Dataset) -> str:
    return "\n".join(value for _, _, kind, _, value in rows(report) if kind == "TEXT")


def value_of(report: Dataset, name: str) -> str:
    (value,) = [value for _, _, _, concept, value in rows(report) if concept == name]
    return value


def test_tree_holds_exactly_the_finding(volume: CTVolume) -> None:
    sources = read_sources(volume)
    report = written(build_report(finding_on(volume), volume, sources, CONTEXT))
    assert report_problems(report, expected_rows(report), sources) == []
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in _groups(report)] == ["1501", "1501"]
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"


def _groups(report: Dataset) -> Sequence:
    return report.ContentSequence[-1].ContentSequence


def test_report_is_preliminary_unverified_and_complete(volume: CTVolume) -> None:
    report = written(build_report(finding_on(volume), volume, read_sources(volume), CONTEXT))
    assert (report.PreliminaryFlag, report.VerificationFlag, report.CompletionFlag) == (
        "PRELIMINARY",
        "UNVERIFIED",
        "COMPLETE",
    )
    assert (report.Modality, report.SeriesNumber, report.InstanceNumber) == ("SR", 9001, 1)
    assert report.SOPClassUID == pydicom.uid.Comprehensive3DSRStorage


@pytest.mark.parametrize(
    ("probability", "percent", "interpretation", "text"),
    [
        (0.25611900, "26 %,UCUM", "260385009,SCT", "26 %, below the threshold of 50 %: negative"),
        (0.5, "50 %,UCUM", "10828004,SCT", "50 %, at or above the threshold of 50 %: positive"),
        (0.49996, "49.996 %,UCUM", "260385009,SCT", "49.996 %, below the threshold of 50 %: negative"),
        (0.0, "0.1 %,UCUM", "260385009,SCT", "<1 %"),
        (1.0, "99.9 %,UCUM", "10828004,SCT", ">99 %"),
    ],
)
def test_number_interpretation_and_sentence_agree(
    volume: CTVolume, probability: float, percent: str, interpretation: str, text: str
) -> None:
    report = written(build_report(finding_on(volume, probability), volume, read_sources(volume), CONTEXT))
    assert value_of(report, "111012,DCM") == percent
    assert value_of(report, "363713009,SCT") == interpretation
    assert text in texts(report)


def unstable(volume: CTVolume) -> Finding:
    """A finding of 57 %, which harmless changes move from 44.9 to 58.2 %."""
    return finding_on(volume, 0.571, spread=Spread(0.449, 0.582, ("one row higher", "one row lower")))


def test_the_range_of_an_unstable_output_is_said_and_coded(volume: CTVolume) -> None:
    report = written(build_report(unstable(volume), volume, read_sources(volume), CONTEXT))
    said = "The sign is uncertain: harmless changes of the input move the output from 45 to 58 %, to both sides of the"
    assert f"{said} threshold (one row higher, one row lower)." in texts(report)
    table = rows(report)
    found = [(row[4], table[at + 1][3:]) for at, row in enumerate(table) if row[3] == "111012,DCM"]
    assert [value for value, _ in found] == ["57 %,UCUM", "45 %,UCUM", "58 %,UCUM"]
    assert [modifier for _, modifier in found[1:]] == [("121401,DCM", "255605001,SCT"), ("121401,DCM", "56851009,SCT")]


def test_a_range_on_one_side_of_the_threshold_is_no_part_of_the_report(volume: CTVolume) -> None:
    finding = finding_on(volume, 0.8, spread=Spread(0.6, 0.9, ("one row higher",)))
    report = written(build_report(finding, volume, read_sources(volume), CONTEXT))
    assert "uncertain" not in texts(report)
    assert value_of(report, "111012,DCM") == "80 %,UCUM"


EARLIER = EarlierResult("1.2.3.4", "3", "Thorax B30f", 0.33, 0.5, "other 1.0")


@pytest.mark.parametrize(
    ("rests_on", "probability", "together", "basis"),
    [
        (SERIES_UID, 0.79, "THEY DIFFER: one is positive and another negative, so neither is certain.", "this series"),
        ("1.2.3.4", 0.79, "THEY DIFFER", 'series 3 "Thorax B30f" (negative)'),
        (SERIES_UID, 0.1, "All are negative.", "this series"),
    ],
)
def test_results_of_one_study_are_one_statement(
    volume: CTVolume, rests_on: str, probability: float, together: str, basis: str
) -> None:
    context = replace(CONTEXT, study=StudyStatement((EARLIER,), rests_on, "its kernel is made for lungs"))
    text = texts(build_report(finding_on(volume, probability), volume, read_sources(volume), context))
    assert f"{together}" in text
    assert 'series 3 "Thorax B30f", reported before: 33 %, negative, by model other 1.0; this series: ' in text
    assert f"The statement of the study rests on {basis}, because its kernel is made for lungs." in text


@pytest.mark.parametrize("segmented", [False, True])
def test_evidence_is_what_highdicom_would_collect(volume: CTVolume, segmented: bool) -> None:
    sources, finding = read_sources(volume), finding_on(volume)
    segmentation = build_segmentation(finding, volume, sources, CONTEXT) if segmented else None
    earlier = build_report(finding, volume, sources[1:], CONTEXT)
    statement = StudyStatement((replace(EARLIER, report=earlier),), "1.2.3.4", "its kernel is made for lungs")
    context = replace(CONTEXT, study=statement)
    report = written(build_report(finding, volume, [*sources, sources[2]], context, segmentation))
    named = [*sources, *([] if segmentation is None else [segmentation]), earlier]
    expected, others = collect_evidence(named, report, report.StudyInstanceUID)
    assert report.CurrentRequestedProcedureEvidenceSequence == Sequence(expected)
    assert not others and "PertinentOtherEvidenceSequence" not in report


@pytest.mark.parametrize("probability", [float("nan"), -0.1, 1.1, float("inf")])
def test_what_is_no_probability_is_refused(volume: CTVolume, probability: float) -> None:
    with pytest.raises(ValueError, match="certainty"):
        build_report(finding_on(volume, probability), volume, read_sources(volume), CONTEXT)


def test_research_wording_is_in_the_series_description_and_in_the_text(volume: CTVolume) -> None:
    report = written(build_report(finding_on(volume), volume, read_sources(volume), CONTEXT))
    assert report.SeriesDescription == "COVID-19 CT AI report, RESEARCH, not for diagnosis"
    assert "For research use only. Not for diagnosis" in texts(report)
    assert "DEMO" not in report.SeriesDescription and "DEMONSTRATION" not in texts(report)


def test_demonstration_model_says_so_in_title_and_text(volume: CTVolume) -> None:
    finding = finding_on(volume, model=model(demonstration=True))
    report = written(build_report(finding, volume, read_sources(volume), CONTEXT))
    assert report.SeriesDescription == "DEMO MODEL report: COVID-19, RESEARCH, not for diagnosis"
    assert "COVID-19 classification (DEMONSTRATION MODEL)" in texts(report)
    assert "trained on synthetic phantoms only" in texts(report)


def test_weights_that_no_card_pins_are_named_unverified(volume: CTVolume) -> None:
    finding = finding_on(volume, model=model(verified=False))
    assert "No model card pins these weights" in texts(build_report(finding, volume, read_sources(volume), CONTEXT))


def test_operating_points_carry_the_right_names_and_the_site_s_predictive_values(volume: CTVolume) -> None:
    point = OperatingPoint("published", 0.5, 0.84, 0.982, "131 cases, 57 % with COVID-19")
    context = replace(CONTEXT, operating_points=(point,), prevalence=0.1)
    text = texts(build_report(finding_on(volume), volume, read_sources(volume), context))
    assert "at threshold 0.50 sensitivity 0.840, specificity 0.982 (131 cases, 57 % with COVID-19)" in text
    # 0.084 / (0.084 + 0.0162) and 0.8838 / (0.8838 + 0.016), by hand.
    assert "prevalence of 10 %" in text and "value of 0.838 " in text and "value of 0.982." in text
    assert "depend on how common" in text


def test_series_kernel_and_thickness_are_named(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SeriesDescription="Thorax 1.0 B70f", ConvolutionKernel="B70f", SliceThickness=1)
    volume = volume_of(tmp_path / "s")
    said = texts(build_report(finding_on(volume), volume, read_sources(volume), CONTEXT))
    assert 'Series "Thorax 1.0 B70f", kernel B70f, slice thickness 1 mm.' in said


def test_series_that_states_neither_kernel_nor_thickness_is_said_to(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SliceThickness=None)
    volume = volume_of(tmp_path / "s")
    said = texts(build_report(finding_on(volume), volume, read_sources(volume), CONTEXT))
    assert "Series without description, kernel not stated, slice thickness not stated." in said


def test_no_operating_point_no_word_of_one(volume: CTVolume) -> None:
    context = replace(CONTEXT, prevalence=0.1)
    assert "redictive" not in texts(build_report(finding_on(volume), volume, read_sources(volume), context))


def test_sides_that_could_not_be_told_apart_are_left_out(volume: CTVolume) -> None:
    finding = finding_on(volume, left_lung_ml=0.0, right_lung_ml=0.0)
    report = build_report(finding, volume, read_sources(volume), CONTEXT)
    assert [row[4] for row in rows(report) if row[3] == "118565006,SCT"] == ["25.9 mL,UCUM"]


def test_times_are_stated_in_the_zone_of_the_source(tmp_path: Path) -> None:
    write_series(tmp_path / "s", TimezoneOffsetFromUTC="+0800")
    volume = volume_of(tmp_path / "s")
    report = written(build_report(finding_on(volume), volume, read_sources(volume), CONTEXT))
    assert report.TimezoneOffsetFromUTC == "+0800"
    assert (report.ContentDate, report.ContentTime) == ("20260302", "073015.250000")
    assert (report.InstanceCreationDate, report.InstanceCreationTime) == ("20260302", "073015.250000")
    assert (report.SeriesDate, report.SeriesTime) == ("20260302", "073015.250000")
    contributions = [item.get("ContributionDateTime") for item in report.ContributingEquipmentSequence]
    assert contributions.count("20260302073015.250000") == 2


def test_source_without_zone_gets_the_node_s_local_times_and_its_offset(volume: CTVolume) -> None:
    context = replace(CONTEXT, created_at=NOW.astimezone(timezone(timedelta(hours=1))))
    report = written(build_report(finding_on(volume), volume, read_sources(volume), context))
    assert report.TimezoneOffsetFromUTC == "+0100"
    assert (report.ContentDate, report.ContentTime) == ("20260302", "003015.250000")


@pytest.mark.parametrize("offset", ["0800", "+2500", "-1300", "+08:00", "garbage"])
def test_malformed_zone_of_a_source_is_ignored(tmp_path: Path, offset: str) -> None:
    write_series(tmp_path / "s", TimezoneOffsetFromUTC=offset)
    volume = volume_of(tmp_path / "s")
    report = build_report(finding_on(volume), volume, read_sources(volume), CONTEXT)
    assert report.TimezoneOffsetFromUTC == "+0000"


def test_rebuild_has_the_same_uids_and_another_model_or_input_has_others(volume: CTVolume) -> None:
    sources = read_sources(volume)
    first = build_report(finding_on(volume), volume, sources, CONTEXT)
    again = build_report(finding_on(volume), volume, sources, replace(CONTEXT, created_at=NOW + timedelta(days=1)))
    assert (again.SOPInstanceUID, again.SeriesInstanceUID) == (first.SOPInstanceUID, first.SeriesInstanceUID)
    others = [
        build_report(finding_on(volume, model=model(digest="e" * 64)), volume, sources, CONTEXT),
        build_report(finding_on(volume), volume, sources[1:], CONTEXT),
        build_report(finding_on(volume), replace(volume, dropped=("1.2.3",)), sources, CONTEXT),
        build_report(finding_on(volume), volume, sources, replace(CONTEXT, instances_digest="f" * 64)),
    ]
    uids = [report.SOPInstanceUID for report in [first, *others]]
    assert len(set(uids)) == len(uids)


def test_revision_names_its_predecessor(volume: CTVolume) -> None:
    sources = read_sources(volume)
    earlier = build_report(finding_on(volume), volume, sources[1:], CONTEXT)
    report = written(
        build_report(finding_on(volume), volume, sources, replace(CONTEXT, predecessor=earlier, revision=2))
    )
    (study,) = report.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (instance,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == earlier.StudyInstanceUID
    assert series.SeriesInstanceUID == earlier.SeriesInstanceUID
    assert instance.ReferencedSOPInstanceUID == earlier.SOPInstanceUID != report.SOPInstanceUID
    assert instance.ReferencedSOPClassUID == earlier.SOPClassUID
    assert report.InstanceNumber == 2


def test_rebuild_of_a_report_is_not_its_own_predecessor(volume: CTVolume) -> None:
    sources = read_sources(volume)
    first = build_report(finding_on(volume), volume, sources, CONTEXT)
    again = build_report(finding_on(volume), volume, sources, replace(CONTEXT, predecessor=first))
    assert "PredecessorDocumentsSequence" not in again


def test_not_analysed_report_can_follow_a_result_and_a_result_it(volume: CTVolume) -> None:
    sources = read_sources(volume)
    refused = build_not_analysed(Refusal("MISSING_SLICES", "One gap."), sources[1:], CONTEXT, model())
    result = build_report(finding_on(volume), volume, sources, replace(CONTEXT, predecessor=refused, revision=2))
    (study,) = result.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPClassUID == refused.SOPClassUID


def test_device_uid_of_an_algorithm_changes_with_its_weights_alone(volume: CTVolume) -> None:
    sources = read_sources(volume)

    def devices(**changes: str) -> dict[str, str]:
        report = written(build_report(finding_on(volume, model=model(**changes)), volume, sources, CONTEXT))
        return {
            item.ManufacturerModelName: item.DeviceUID
            for item in report.ContributingEquipmentSequence
            if "DeviceUID" in item
        }

    before, after = devices(), devices(decovnet_sha256="c3" * 32)
    assert set(before) == {"covid-ct U-Net", "covid-ct DeCoVNet"}
    assert before["covid-ct U-Net"] == after["covid-ct U-Net"]
    assert before["covid-ct DeCoVNet"] != after["covid-ct DeCoVNet"]


def test_multi_frame_source_is_one_piece_of_evidence(tmp_path: Path) -> None:
    volume = write_enhanced(tmp_path / "multi.dcm", order=[3, 1, 0, 2, 4, 7, 6, 5])
    sources = read_sources(volume)
    assert len(sources) == 1
    report = written(build_report(finding_on(volume), volume, sources, CONTEXT))
    assert evidence(report) == {f"{SERIES_UID}.1": "1.2.840.10008.5.1.4.1.1.2.1"}


def _mutated(report: Dataset, change: Callable[[Dataset], None]) -> Dataset:
    mutant = copy.deepcopy(report)
    change(mutant)
    return written(mutant)


def _group(report: Dataset) -> Dataset:
    return _groups(report)[0]


def _certainty(report: Dataset) -> Dataset:
    (item,) = [item for item in _group(report).ContentSequence if item.ValueType == "NUM"]
    return item


def _wrong_relationship(report: Dataset) -> None:
    _certainty(report).RelationshipType = "HAS PROPERTIES"


def _missing_evidence(report: Dataset) -> None:
    del report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[3]


def _unit_percent_in_words(report: Dataset) -> None:
    _certainty(report).MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue = "percent"


def _value_ten_times_too_large(report: Dataset) -> None:
    _certainty(report).MeasuredValueSequence[0].NumericValue = "913"


def _no_device_observer(report: Dataset) -> None:
    report.ContentSequence = Sequence(
        [i for i in report.ContentSequence if not i.ConceptNameCodeSequence[0].CodeValue.startswith("12101")]
    )


def _wrong_root_code(report: Dataset) -> None:
    report.ConceptNameCodeSequence[0].CodeValue = "126001"


def _wrong_order(report: Dataset) -> None:
    items = list(report.ContentSequence)
    report.ContentSequence = Sequence([items[-1], *items[:-1]])


@pytest.mark.parametrize(
    "change",
    [
        _wrong_relationship,
        _missing_evidence,
        _unit_percent_in_words,
        _value_ten_times_too_large,
        _no_device_observer,
        _wrong_root_code,
        _wrong_order,
    ],
)
def test_mutated_report_does_not_pass(volume: CTVolume, change: Callable[[Dataset], None]) -> None:
    sources = read_sources(volume)
    report = build_report(finding_on(volume), volume, sources, CONTEXT)
    expected = expected_rows(report)
    assert report_problems(written(report), expected, sources) == []
    assert report_problems(_mutated(report, change), expected, sources) != []
