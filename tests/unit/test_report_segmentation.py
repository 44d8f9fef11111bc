"""The Segmentation carries exactly the masks of the finding, on the frames that they were made from."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.segmentation import build_segmentation
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume
from tests.factories import SERIES_UID, Grid, finding_on, lesion, lungs, model, volume_of, write_enhanced, write_series
from tests.unit.test_report_sr import _mutated
from tests.validators import Row, report_problems, rows

CONTEXT = ReportContext(created_at=datetime(2026, 3, 1, 12, tzinfo=UTC), manufacturer="Node makers")
TILTED = (0.99862953, 0.0, -0.05233596, 0.0, 1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
FLIPPED_ROWS = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
ROTATED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)


def made_from(volume: CTVolume, grid: Grid, localised: bool = True, **changes: object) -> Finding:
    region = lesion(grid) if localised else None
    return finding_on(volume, **{"lung_mask": lungs(grid), "localisation": region, **changes})


def written(volume: CTVolume, finding: Finding) -> Dataset:
    """The Segmentation as a reader of the file gets it."""
    built = build_segmentation(finding, volume, read_sources(volume), CONTEXT)
    return pydicom.dcmread(DicomBytesIO(to_part10(built)))


def frames_by_hand(seg: Dataset) -> npt.NDArray[np.bool_]:
    """The frames unpacked from the bytes as PS3.5 says, without any library's idea of it."""
    shape = (int(seg.NumberOfFrames), seg.Rows, seg.Columns)
    bits = np.unpackbits(np.frombuffer(seg.PixelData, dtype=np.uint8), bitorder="little")
    return bits[: np.prod(shape)].reshape(shape).astype(bool)


def points(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sorted LPS millimetres of the mask's voxels."""
    z, y, x = np.nonzero(mask)
    places = (affine @ np.stack([x, y, z, np.ones_like(x)]))[:3].T.round(3) + 0.0
    return places[np.lexsort(places.T)]


def points_of_segment(seg: Dataset, number: int) -> npt.NDArray[np.float64]:
    """Where the voxels of a segment lie, from each frame's own geometry."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    row, column = np.split(np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), 2)
    y_mm, x_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    found = []
    for frame, groups in zip(frames_by_hand(seg), seg.PerFrameFunctionalGroupsSequence, strict=True):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            origin = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
            y, x = np.nonzero(frame)
            found.append(origin + np.outer(x, row * x_mm) + np.outer(y, column * y_mm))
    places = np.concatenate(found).round(3) + 0.0
    return places[np.lexsort(places.T)]


@pytest.mark.parametrize("orientation", [(1.0, 0.0, 0.0, 0.0, 1.0, 0.0), TILTED, PRONE, FLIPPED_ROWS, ROTATED])
@pytest.mark.parametrize("order", [None, [7, 6, 5, 4, 3, 2, 1, 0], [3, 1, 0, 2, 4, 7, 6, 5]])
def test_voxels_lie_where_the_finding_s_do(
    tmp_path: Path, orientation: tuple[float, ...], order: list[int] | None
) -> None:
    # 33 x 41 pixels: frames do not end at whole bytes.
    grid = Grid(shape=(8, 33, 41), orientation=orientation)
    write_series(tmp_path / "s", grid, order)
    volume = volume_of(tmp_path / "s")
    seg = written(volume, made_from(volume, grid))
    assert len(seg.PixelData) % 2 == 0
    np.testing.assert_allclose(points_of_segment(seg, 1), points(lungs(grid), grid.affine), atol=2e-3)
    np.testing.assert_allclose(points_of_segment(seg, 2), points(lesion(grid), grid.affine), atol=2e-3)


@pytest.mark.parametrize("order", [None, [3, 1, 0, 2, 4, 7, 6, 5]])
def test_each_frame_refers_to_the_slice_it_was_made_from(tmp_path: Path, order: list[int] | None) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid, order)
    volume = volume_of(tmp_path / "s")
    seg = written(volume, made_from(volume, grid))
    headers = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, (tmp_path / "s").iterdir())}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
        source = headers[reference.ReferencedSOPInstanceUID]
        assert groups.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        assert "ReferencedFrameNumber" not in reference
    listed = seg.ReferencedSeriesSequence[0]
    assert listed.SeriesInstanceUID == SERIES_UID
    assert {item.ReferencedSOPInstanceUID for item in listed.ReferencedInstanceSequence} == set(headers)


def test_frames_of_a_multi_frame_source_are_named_by_number(tmp_path: Path) -> None:
    order = [3, 1, 0, 2, 4, 7, 6, 5]
    grid = Grid()
    volume = write_enhanced(tmp_path / "multi.dcm", grid, order)
    seg = written(volume, made_from(volume, grid))
    source = pydicom.dcmread(tmp_path / "multi.dcm")
    for groups in seg.PerFrameFunctionalGroupsSequence:
        number = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        place = source.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence[0].ImagePositionPatient
        assert groups.PlanePositionSequence[0].ImagePositionPatient == place
    np.testing.assert_allclose(points_of_segment(seg, 2), points(lesion(grid), grid.affine), atol=2e-3)


def test_volume_of_several_multi_frame_instances_refers_to_each(tmp_path: Path) -> None:
    grid = Grid()
    upper = write_enhanced(tmp_path / "upper.dcm", grid, [7, 5, 6, 4], number=2)
    lower = write_enhanced(tmp_path / "lower.dcm", grid, [3, 0, 1, 2], number=1)
    volume = replace(lower, slices=(*lower.slices, *upper.slices))
    seg = written(volume, made_from(volume, grid))
    referred = {
        round(float(groups.PlanePositionSequence[0].ImagePositionPatient[2])): (
            reference.ReferencedSOPInstanceUID,
            reference.ReferencedFrameNumber,
        )
        for groups in seg.PerFrameFunctionalGroupsSequence
        for reference in groups.DerivationImageSequence[0].SourceImageSequence
    }
    # z 1 lies at 104 mm, z 6 at 124 mm.
    assert referred[104] == (f"{SERIES_UID}.1", 3)
    assert referred[124] == (f"{SERIES_UID}.2", 3)
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 2
    np.testing.assert_allclose(points_of_segment(seg, 1), points(lungs(grid), grid.affine), atol=2e-3)


def test_an_independent_reader_gets_the_same_volume(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    built = build_segmentation(made_from(volume, grid), volume, read_sources(volume), CONTEXT)
    (tmp_path / "seg.dcm").write_bytes(to_part10(built))
    read = hd.seg.segread(tmp_path / "seg.dcm")
    uids = [source.sop_instance_uid for source in volume.slices]
    pixels = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    assert np.array_equal(pixels[..., 0].astype(bool), lungs(grid))
    assert np.array_equal(pixels[..., 1].astype(bool), lesion(grid))


def test_segments_say_what_they_are_and_who_made_them(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    seg = written(volume, made_from(volume, grid))
    first, second = seg.SegmentSequence
    assert (first.SegmentLabel, second.SegmentLabel) == ("Lungs", "What drove the model, no lesion boundary")
    assert [s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in (first, second)] == ["39607008", "130401"]
    assert [s.SegmentAlgorithmType for s in (first, second)] == ["AUTOMATIC", "AUTOMATIC"]
    versions = [s.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion for s in (first, second)]
    assert versions == ["1.0+a1a1a1a1a1a1", "1.0+b2b2b2b2b2b2"]
    assert seg.ContentQualification == "RESEARCH" and "RESEARCH" in seg.SeriesDescription
    assert (seg.SegmentationType, seg.SegmentsOverlap, seg.SeriesNumber) == ("BINARY", "YES", 9002)
    assert seg.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, list(measures.PixelSpacing)) == (4.0, [2.0, 1.5])


def test_finding_without_localisation_has_one_segment_under_another_uid(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    both = written(volume, made_from(volume, grid))
    alone = written(volume, made_from(volume, grid, localised=False))
    empty = written(volume, made_from(volume, grid, localisation=np.zeros(grid.shape, bool)))
    assert len(alone.SegmentSequence) == len(empty.SegmentSequence) == 1
    assert alone.SOPInstanceUID == empty.SOPInstanceUID != both.SOPInstanceUID
    assert (alone.SegmentsOverlap, int(alone.NumberOfFrames)) == ("NO", grid.shape[0] - 2)


@pytest.mark.parametrize(("last", "said"), [((2, 2, 2), "YES"), ((5, 5, 5), "YES"), ((2, 5, 5), "NO")])
def test_segments_overlap_if_any_two_share_a_voxel(tmp_path: Path, last: tuple[int, int, int], said: str) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    output = finding_on(volume).output
    segments = []
    for number, corners in enumerate(([(2, 2, 2)], [(5, 5, 5), (1, 6, 6)], [(1, 1, 1), last])):
        mask = np.zeros(volume.hu.shape, bool)
        mask[tuple(zip(*corners, strict=True))] = True
        segments.append(replace(output.segments[0], title=f"Part {number}", mask=mask))
    found = replace(finding_on(volume), output=replace(output, segments=tuple(segments)))
    assert written(volume, found).SegmentsOverlap == said


def test_source_without_frame_of_reference_gets_one_that_stays_the_same(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid, FrameOfReferenceUID=None)
    volume = volume_of(tmp_path / "s")
    first, again = (written(volume, made_from(volume, grid)) for _ in range(2))
    assert first.FrameOfReferenceUID == again.FrameOfReferenceUID
    assert first.FrameOfReferenceUID.startswith("2.25.")


def test_masks_that_cannot_be_segments_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s")
    volume = volume_of(tmp_path / "s")
    sources = read_sources(volume)
    nothing = finding_on(volume, lung_mask=np.zeros(volume.hu.shape, bool))
    with pytest.raises(ValueError, match="nothing to segment"):
        build_segmentation(nothing, volume, sources, CONTEXT)
    elsewhere = finding_on(volume, lung_mask=np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match="grid of the volume"):
        build_segmentation(elsewhere, volume, sources, CONTEXT)


def expected_rows(report: Dataset, seg: Dataset) -> list[Row]:
    """The groups of a report on two segments, below "Imaging Measurements"."""
    tracking = [value for _, _, _, name, value in rows(report) if name == "112040,DCM"]
    contains, context, modifier = "CONTAINS", "HAS OBS CONTEXT", "HAS CONCEPT MOD"

    def head(title: str, number: int, category: str, finding: str, bilateral: bool) -> list[Row]:
        site: list[Row] = [(3, modifier, "CODE", "363698007,SCT", "39607008,SCT")]
        if bilateral:
            site.append((4, modifier, "CODE", "272741003,SCT", "51440002,SCT"))
        return [
            (2, contains, "CONTAINER", "125007,DCM", ""),
            (3, context, "TEXT", "112039,DCM", title),
            (3, context, "UIDREF", "112040,DCM", tracking[number]),
            (3, contains, "CODE", "276214006,SCT", category),
            (3, contains, "CODE", "121071,DCM", finding),
            *site,
        ]

    def algorithm(name: str, parameters: int) -> list[Row]:
        return [
            (3, modifier, "TEXT", "111001,DCM", name),
            (3, modifier, "TEXT", "111003,DCM", "..."),
            (3, modifier, "TEXT", "122405,DCM", "Node makers"),
            *[(3, modifier, "TEXT", "111002,DCM", "...")] * parameters,
            (3, modifier, "CODE", "111000,DCM", "123110,DCM"),
        ]

    def segment(number: int) -> list[Row]:
        return [
            (3, contains, "IMAGE", "121191,DCM", f"{seg.SOPInstanceUID} {number}"),
            (3, contains, "UIDREF", "121232,DCM", SERIES_UID),
        ]

    sided = [(code, value) for code, value in (("7771000,SCT", "10.9 mL,UCUM"), ("24028007,SCT", "15.0 mL,UCUM"))]
    return [
        *head("COVID-19 classification", 0, "64572001,SCT", "840539006,SCT", True),
        *algorithm("covid-ct DeCoVNet", 5),
        (3, contains, "NUM", "111012,DCM", "91 %,UCUM"),
        (3, contains, "CODE", "363713009,SCT", "10828004,SCT"),
        *segment(1),
        *[(3, contains, "TEXT", "121106,DCM", "...")] * 4,
        *head("Lungs", 1, "91723000,SCT", "39607008,SCT", True),
        *algorithm("covid-ct U-Net", 2),
        (3, contains, "NUM", "118565006,SCT", "25.9 mL,UCUM"),
        *[
            row
            for code, value in sided
            for row in (
                (3, contains, "NUM", "118565006,SCT", value),
                (4, modifier, "CODE", "363698007,SCT", "39607008,SCT"),
                (5, modifier, "CODE", "272741003,SCT", code),
            )
        ],
        *segment(1),
        *head("What drove the model", 2, "309825002,SCT", "130401,DCM", False),
        *algorithm("covid-ct DeCoVNet", 5),
        # 2 x 6 x 7 voxels of 12 mm3, of 2160 in the lungs, by hand.
        (3, contains, "NUM", "118565006,SCT", "1.0 mL,UCUM"),
        (3, contains, "NUM", "LUNG_SHARE,99DICOMNODE", "..."),
        *segment(2),
        (
            3,
            contains,
            "TEXT",
            "121106,DCM",
            "This region is the dense part of the lungs that drove the model's output, from its class "
            "activation map. It is not the boundary of a lesion, and its volume is not that of one.",
        ),
    ]


@pytest.fixture
def on_segments(tmp_path: Path) -> tuple[Dataset, Dataset, list[Dataset]]:
    """A report on two segments, its segmentation and the sources."""
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    sources = read_sources(volume)
    finding = made_from(volume, grid)
    seg = build_segmentation(finding, volume, sources, CONTEXT)
    report = build_report(finding, volume, sources, CONTEXT, seg)
    return pydicom.dcmread(DicomBytesIO(to_part10(report))), seg, sources


def test_report_on_segments_holds_exactly_the_finding(on_segments: tuple[Dataset, Dataset, list[Dataset]]) -> None:
    report, seg, sources = on_segments
    expected = [*rows(report)[:11], *expected_rows(report, seg)]
    assert report_problems(report, expected, sources, seg) == []
    groups = report.ContentSequence[-1].ContentSequence
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1411"] * 3
    tracked = {item.TrackingUID for item in seg.SegmentSequence}
    assert tracked == {value for _, _, _, name, value in rows(report) if name == "112040,DCM"} - {rows(report)[13][4]}
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99DICOMNODE"


def test_volume_and_share_of_the_localisation_are_those_of_its_voxels(
    on_segments: tuple[Dataset, Dataset, list[Dataset]],
) -> None:
    report, seg, _ = on_segments
    region, lung = lesion(Grid()), lungs(Grid())
    frames = frames_by_hand(seg)
    numbers = [g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in seg.PerFrameFunctionalGroupsSequence]
    voxels = sum(int(f.sum()) for f, n in zip(frames, numbers, strict=True) if n == 2)
    assert voxels == region.sum()
    values = [value for _, _, kind, _, value in rows(report) if kind == "NUM"]
    assert values[-2] == f"{voxels * 12 / 1000:.1f} mL,UCUM"
    assert values[-1] == f"{round(100 * (region & lung).sum() / lung.sum(), 2)} %,UCUM"


def _no_such_segment(report: Dataset) -> None:
    group = report.ContentSequence[-1].ContentSequence[2]
    (item,) = [item for item in group.ContentSequence if item.ValueType == "IMAGE"]
    item.ReferencedSOPSequence[0].ReferencedSegmentNumber = 3


def _no_reference_to_a_segment(report: Dataset) -> None:
    group = report.ContentSequence[-1].ContentSequence[0]
    group.ContentSequence = [item for item in group.ContentSequence if item.ValueType != "IMAGE"]


def _segmentation_is_no_evidence(report: Dataset) -> None:
    study = report.CurrentRequestedProcedureEvidenceSequence[0]
    study.ReferencedSeriesSequence = study.ReferencedSeriesSequence[:1]


@pytest.mark.parametrize("change", [_no_such_segment, _no_reference_to_a_segment, _segmentation_is_no_evidence])
def test_mutated_report_on_segments_does_not_pass(
    on_segments: tuple[Dataset, Dataset, list[Dataset]], change: Callable[[Dataset], None]
) -> None:
    report, seg, sources = on_segments
    expected = [*rows(report)[:11], *expected_rows(report, seg)]
    assert report_problems(_mutated(report, change), expected, sources, seg) != []


def test_demonstration_model_s_segments_say_so(tmp_path: Path) -> None:
    grid = Grid()
    write_series(tmp_path / "s", grid)
    volume = volume_of(tmp_path / "s")
    seg = written(volume, made_from(volume, grid, model=model(demonstration=True)))
    assert seg.SeriesDescription.startswith("DEMO MODEL")
    assert "DEMONSTRATION" in seg.SegmentSequence[0].TrackingID
