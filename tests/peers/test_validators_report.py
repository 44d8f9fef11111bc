"""Every object, from real and synthetic sources, passes every validator, and independent readers get our values."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from config.reasons import Refusal
from dicom_node.report.context import ChangeStatement, EarlierResult, ReportContext, StudyStatement
from dicom_node.report.frame import to_part10
from dicom_node.report.lower_classes import in_lower_classes
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from inference.finding import Spread
from inference.models.cards import OperatingPoint, read_card, shipped_folder
from inference.models.kinds import find_kind, plug_of
from inference.phantom.chest import make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.series import write_series as write_phantom
from inference.plug import DeviceChoice, Finding
from inference.volume.ct_volume import CTVolume
from inference.volume.load import load
from tests.factories import Grid, finding_on, lesion, lungs, model, volume_of, write_enhanced, write_series
from tests.fuzz.headers import KEYWORDS, spoil
from tests.programs import orthanc
from tests.unit.test_report_sources import GB2312_NAME, TYPE_2, write_with_name
from tests.validators import (
    dcentvfy_errors,
    dciodvfy_errors,
    dsrdump_errors,
    evidence,
    pixelmed_errors,
    rows,
    sr_errors,
)

pytestmark = pytest.mark.peer

CONTEXT = ReportContext(
    created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    manufacturer="Node makers",
    institution="Hospital",
    operating_points=(OperatingPoint("published", 0.5, 0.84, 0.982, "131 test cases"),),
)
CODES = ("126000", "840539006")


def localised(volume: CTVolume, **changes: object) -> Finding:
    """A finding with a mask of everything as thin as lung and a box in its middle as the localisation."""
    region = np.zeros(volume.hu.shape, bool)
    z, y, x = (size // 2 for size in region.shape)
    region[z : z + 3, y - y // 4 : y, x // 2 : x] = True
    heat = 255 * region.astype(np.uint8)
    return finding_on(volume, **{"localisation": region, "heat": heat, **changes})


def written(objects: Sequence[tuple[str, Dataset]], folder: Path) -> dict[str, Path]:
    """The objects as files, by kind."""
    folder.mkdir(exist_ok=True)
    paths = {kind: folder / f"{kind}.dcm" for kind, _ in objects}
    for kind, dataset in objects:
        paths[kind].write_bytes(to_part10(dataset))
    return paths


def new_errors(paths: dict[str, Path], sources: Sequence[Path]) -> list[str]:
    """What the validators object to in our objects, and between them and the sources, beyond the sources' own."""
    errors = sr_errors(paths["report"], "TID_1500", CODES)
    for kind in paths.keys() - {"report"}:
        errors += dciodvfy_errors(paths[kind])
    return errors + sorted(set(dcentvfy_errors([*sources, *paths.values()])) - set(dcentvfy_errors(sources)))


@pytest.mark.shared
@pytest.mark.parametrize(
    "series", ["MD04_every2nd", "MD05_every2nd", "lungdx_A0002_B40f_30slices", "cip_ct64_79slices"]
)
def test_objects_of_a_real_series_pass_every_validator(shared: Path, tmp_path: Path, series: str) -> None:
    sources = sorted((shared / "data" / "dicom" / series).iterdir())
    volume = load(sources)
    objects = build_all(localised(volume), volume, read_sources(volume), CONTEXT, KINDS)
    paths = written(objects, tmp_path / "objects")
    with orthanc(tmp_path / "orthanc") as pacs:
        for path in paths.values():
            path.write_bytes(pacs.file(pacs.upload(path)))
    assert new_errors(paths, sources) == []


def test_report_without_segments_and_its_other_classes_pass_every_validator(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    report = build_report(finding_on(volume), volume, read_sources(volume), CONTEXT)
    variants = [report, *(copy for _, copy in in_lower_classes(to_part10(report)))]
    for number, variant in enumerate(variants):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(to_part10(variant))
        assert sr_errors(path, "TID_1500", CODES) == []


def test_a_report_with_a_range_and_an_earlier_series_passes_every_validator_in_every_class(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    sources = read_sources(volume)
    earlier = build_report(finding_on(volume), volume, sources[:-1], CONTEXT)
    named = EarlierResult("1.2.3.4", "3", "Thorax", 0.33, 0.5, report=earlier)
    context = replace(CONTEXT, study=StudyStatement((named,), "1.2.3.4", "it was reported first"))
    finding = localised(volume, probability=0.571, spread=Spread(0.449, 0.582, ("one row higher",)))
    paths = written(build_all(finding, volume, sources, context, KINDS), tmp_path / "objects")
    lower = [in_class for _, in_class in in_lower_classes(paths["report"].read_bytes())]
    assert sr_errors(paths["display-report"], "TID_1500", CODES) == []
    for number, variant in enumerate([pydicom.dcmread(paths["report"]), *lower]):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(to_part10(variant))
        assert sr_errors(path, "TID_1500", ("126000", "840539006", "121401", "112002")) == []
    evidence = lower[0].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    (of_earlier,) = [one for one in evidence if one.SeriesInstanceUID == earlier.SeriesInstanceUID]
    assert of_earlier.ReferencedSOPSequence[0].ReferencedSOPClassUID == lower[0].SOPClassUID


def test_a_densitometry_that_names_an_earlier_scan_passes_every_validator_in_every_class(tmp_path: Path) -> None:
    folder = shipped_folder() / "densitometry"
    card = read_card(folder)
    scanned = make_phantom(12, slices=40, size=256, emphysema=EmphysemaSettings(0.2))
    sources = write_phantom(scanned, tmp_path / "s", patient_name="Doe^Jane", patient_id="4711")
    volume = load(sources)
    output = plug_of(find_kind(card.kind)).load(folder, card, DeviceChoice()).analyse(volume)
    finding = Finding(replace(card.identity(), algorithms=output.algorithms), output, volume.digest())
    earlier = Dataset()
    earlier.StudyInstanceUID, earlier.SeriesInstanceUID, earlier.SOPInstanceUID = "1.2.3", "1.2.3.4", "1.2.3.4.5"
    earlier.SOPClassUID = Comprehensive3DSRStorage
    said = ("Since 2019-01-01 (388 days): low attenuation 10.0 to 20.0 (+10.0 percentage points).", "Another kernel.")
    context = replace(CONTEXT, operating_points=(), change=ChangeStatement(said, earlier))
    objects = build_all(finding, volume, read_sources(volume), context)
    paths = written(objects, tmp_path / "objects")
    codes = ("126000", "LAA_SHARE", "PERC_DENSITY", "112031", "112032", "118565006")
    lower = [in_class for _, in_class in in_lower_classes(paths["report"].read_bytes())]
    for number, variant in enumerate([pydicom.dcmread(paths["report"]), *lower]):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(to_part10(variant))
        assert (dciodvfy_errors(path) if number else sr_errors(path, "TID_1500", codes)) == []
        assert len(evidence(variant)) == len(sources) + 2
        (named,) = variant.PertinentOtherEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert named.ReferencedSOPClassUID == variant.SOPClassUID
    assert [error for kind in ("segmentation", "summary") for error in dciodvfy_errors(paths[kind])] == []
    between = sorted(set(dcentvfy_errors([*sources, *paths.values()])) - set(dcentvfy_errors(sources)))
    assert [error for error in between if "1.2.3.4.5" not in error] == []  # the earlier report is elsewhere
    texts = [row[4] for row in rows(pydicom.dcmread(paths["report"])) if row[2] == "TEXT"]
    assert all(sentence in texts for sentence in (*said, *output.statements, *output.remarks))
    told = {(row[3], row[4]) for row in rows(pydicom.dcmread(paths["report"])) if row[2] == "NUM"}
    share = next(one for one in output.measurements if one.concept.value == "LAA_SHARE")
    assert ("LAA_SHARE,99DICOMNODE", f"{share.value:.1f} %,UCUM") in told
    assert ("112032,DCM", "-950.0 [hnsf'U],UCUM") in told


def test_display_report_and_key_images_pass_every_validator(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    kinds = ["display-report", "key-images"]
    paths = written(build_all(localised(volume), volume, read_sources(volume), CONTEXT, kinds), tmp_path / "objects")
    assert sr_errors(paths["display-report"], "TID_1500", CODES) == []
    assert sr_errors(paths["key-images"], "TID_2010", ["113000"]) == []


def test_not_analysed_report_that_replaces_a_result_passes_every_validator(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    sources = read_sources(volume)
    earlier = build_report(finding_on(volume), volume, sources[:-1], CONTEXT)
    report = build_not_analysed(
        Refusal("ALTERNATING_SLICE_THICKNESS", "Slices of 2 and 5 mm were seen; one thickness is needed."),
        sources,
        replace(CONTEXT, predecessor=earlier, revision=2),
        model(demonstration=True),
    )
    path = tmp_path / "report.dcm"
    path.write_bytes(to_part10(report))
    assert sr_errors(path, "TID_2000", ["18748-4", "ALTERNATING_SLICE_THICKNESS"]) == []


def test_validators_notice_what_is_wrong(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    objects = build_all(localised(volume), volume, read_sources(volume), CONTEXT, ["report", "segmentation"])
    paths = written(objects, tmp_path / "objects")
    report = pydicom.dcmread(paths["report"])
    del report.CompletionFlag
    report.ConceptNameCodeSequence[0].CodeValue = "126001"
    report.PatientID = "another"
    # Device Observer UID, mandatory in TID 1004.
    report.ContentSequence = [i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "121012"]
    report.save_as(paths["report"])
    assert dciodvfy_errors(paths["report"])
    assert dsrdump_errors(paths["report"], CODES)
    assert pixelmed_errors(paths["report"], "TID_1500")
    assert dcentvfy_errors(list(paths.values()))


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("GB18030", "Zhang^San=张^三".encode("gb18030")),
        (["", "ISO 2022 IR 58"], GB2312_NAME),
        ("ISO_IR 192", "张^三".encode()),
        ("ISO_IR 100", "Müller^Jörg".encode("latin-1")),
    ],
)
def test_objects_of_sources_in_any_character_set_are_valid(
    tmp_path: Path, character_set: str | list[str], name: bytes
) -> None:
    write_with_name(tmp_path / "s", character_set, name)
    # dcentvfy compares bytes, so the sources, in their own character set, are left out.
    assert synthetic_errors(volume_of(tmp_path / "s"), tmp_path, with_sources=False) == []


@pytest.mark.parametrize("missing", [None, ""])
def test_objects_of_sources_without_type_2_attributes_are_valid(tmp_path: Path, missing: str | None) -> None:
    more = ("SliceThickness", "BodyPartExamined", "PositionReferenceIndicator", "SeriesNumber", "InstanceNumber")
    write_series(tmp_path / "s", **dict.fromkeys([*TYPE_2, *more], missing))
    assert synthetic_errors(volume_of(tmp_path / "s"), tmp_path) == []


@pytest.mark.parametrize("sop_class_uid", [EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage])
def test_objects_of_a_multi_frame_source_are_valid(tmp_path: Path, sop_class_uid: str) -> None:
    volume = write_enhanced(tmp_path / "multi.dcm", None, [3, 1, 0, 2, 4, 7, 6, 5], sop_class_uid)
    assert synthetic_errors(volume, tmp_path) == []


@pytest.mark.parametrize("seed", range(6))
def test_objects_of_sources_with_hostile_headers_are_valid(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    # A frame of reference is kept as it is, even with the zeros that a validator objects to.
    left = {"FrameOfReferenceUID", "SpecificCharacterSet"}
    spoil(tmp_path / "s", [keyword for keyword in KEYWORDS if keyword not in left], dice)
    errors = synthetic_errors(volume, tmp_path, with_sources=False)
    errors += sr_errors(tmp_path / "objects" / "report.dcm", "TID_1500", CODES)
    # dciodvfy counts the bytes of a text where PS3.5 counts its characters.
    assert [error for error in errors if error.isascii() or "Length invalid" not in error] == []


def test_objects_of_a_revised_result_in_another_time_zone_are_valid(tmp_path: Path) -> None:
    write_series(tmp_path / "s", TimezoneOffsetFromUTC="+0800")
    volume = volume_of(tmp_path / "s")
    earlier = build_report(finding_on(volume), volume, read_sources(volume)[:-1], CONTEXT)
    (tmp_path / "earlier.dcm").write_bytes(to_part10(earlier))
    context = replace(CONTEXT, predecessor=earlier, revision=2)
    assert synthetic_errors(volume, tmp_path, context, [tmp_path / "earlier.dcm"]) == []


def synthetic_errors(
    volume: CTVolume,
    folder: Path,
    context: ReportContext = CONTEXT,
    others: Sequence[Path] = (),
    with_sources: bool = True,
) -> list[str]:
    """Errors that do not take a Java machine to find; the content tree is that of the real series."""
    paths = written(build_all(localised(volume), volume, read_sources(volume), context, KINDS), folder / "objects")
    errors = [error for path in paths.values() for error in dciodvfy_errors(path)]
    if not with_sources:
        found = dcentvfy_errors(list(paths.values()))
        return errors + [error for error in found if "Missing SOPInstanceUID that was referenced" not in error]
    sources = sorted({slice_.path for slice_ in volume.slices})
    found = dcentvfy_errors([*sources, *others, *paths.values()])
    return errors + sorted(set(found) - set(dcentvfy_errors(sources)))


def dcmqi(program: str) -> str:
    path = Path(sys.executable).parent / program
    if not path.is_file():
        pytest.skip(f"{program} is not installed (dcmqi from PyPI)")
    return str(path)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0)])
def test_dcmqi_gets_our_voxels(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    grid = Grid(shape=(8, 33, 41), orientation=orientation)
    write_series(tmp_path / "s", grid, [3, 1, 0, 2, 4, 7, 6, 5])
    volume = volume_of(tmp_path / "s")
    finding = finding_on(volume, lung_mask=lungs(grid), localisation=lesion(grid))
    paths = written(build_all(finding, volume, read_sources(volume), CONTEXT, ["segmentation"]), tmp_path / "o")
    command = [dcmqi("segimage2itkimage"), "--inputDICOM", str(paths["segmentation"]), "-t", "nrrd"]
    subprocess.run([*command, "--outputDirectory", str(tmp_path)], check=True, capture_output=True, timeout=60)
    for number, mask in ((1, lungs(grid)), (2, lesion(grid))):
        image = SimpleITK.ReadImage(str(tmp_path / f"{number}.nrrd"))
        places = {
            tuple(np.round(image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]), 3) + 0.0)
            for index in np.argwhere(SimpleITK.GetArrayFromImage(image))
        }
        ours = {tuple((grid.affine @ (x, y, z, 1))[:3].round(3) + 0.0) for z, y, x in np.argwhere(mask)}
        assert places == ours


def test_dcmqi_gets_our_values_and_units(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    finding = finding_on(volume, lung_mask=lungs(grid), localisation=lesion(grid))
    paths = written(build_all(finding, volume, read_sources(volume), CONTEXT), tmp_path / "o")
    out = tmp_path / "report.json"
    command = [dcmqi("tid1500reader"), "--inputDICOM", str(paths["report"]), "--outputMetadata", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    groups = json.loads(out.read_text())["Measurements"]
    measured = [
        (item["quantity"]["CodeValue"], float(item["value"]), item["units"]["CodeValue"])
        for group in groups
        for item in group["measurementItems"]
    ]
    assert measured == [
        ("111012", 91.0, "%"),
        ("118565006", 25.9, "mL"),
        ("118565006", 10.9, "mL"),
        ("118565006", 15.0, "mL"),
        ("118565006", round(lesion(grid).sum() * 12 / 1000, 1), "mL"),
        ("LUNG_SHARE", round(100 * (lesion(grid) & lungs(grid)).sum() / lungs(grid).sum(), 2), "%"),
    ]
    assert [group["ReferencedSegment"] for group in groups] == [1, 1, 2]
    segmentation = pydicom.dcmread(paths["segmentation"])
    assert {group["segmentationSOPInstanceUID"] for group in groups} == {segmentation.SOPInstanceUID}


def test_objects_come_back_from_orthanc_as_they_went(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    paths = written(build_all(localised(volume), volume, read_sources(volume), CONTEXT), tmp_path / "objects")
    with orthanc(tmp_path / "orthanc") as pacs:
        for path in paths.values():
            assert pacs.file(pacs.upload(path)) == path.read_bytes()
