"""A finding's segments -> DICOM Segmentation, registered to the source frames.

Written frame by frame rather than through highdicom's constructor, which cannot refer to several multi-frame
sources or to frames in another order, insists that every header states the orientation in the same digits, and
takes several seconds for two segments.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, SegmentationStorage
from pydicom.valuerep import DSfloat

from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.encoded import element, elements, put_encoded, reference_to, sequence
from dicom_node.report.equipment import algorithm_name, algorithm_of, algorithm_version, family_of
from dicom_node.report.frame import Kind, Origin, new_object, origin_of
from dicom_node.report.planes import box_of
from inference.plug import Finding, Output, Segment
from inference.volume.ct_volume import CTVolume, SourceSlice

_COLOURS = ((70.0, -25.0, -25.0), (65.0, 45.0, 60.0), (75.0, -40.0, 50.0), (60.0, 50.0, -40.0), (85.0, 0.0, 70.0))
"""CIELab of segments whose model gives none."""


def segments_of(output: Output) -> list[Segment]:
    """The segments that have voxels, in the model's order."""
    return [segment for segment in output.segments if segment.mask.any()]


def build_segmentation(
    finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext
) -> Dataset:
    """The finding's masks as a BINARY Segmentation with a frame per segment and slice that is not empty.

    Raises ValueError when no mask has a voxel, or one is not on the grid of the volume.
    """
    origin = origin_of(finding, volume, sources, context)
    segments = segments_of(finding.output)
    if not segments:
        raise ValueError("segments: there is nothing to segment")
    for segment in segments:
        if segment.mask.shape != volume.hu.shape:
            raise ValueError(f"{segment.title}: the mask is not on the grid of the volume")
    planes = [np.flatnonzero(segment.mask.any(axis=(1, 2))) for segment in segments]
    # Other segments make another instance, under a UID of its own.
    kind = Kind(f"segmentation of {', '.join(segment.title for segment in segments)}", 2, "segments")
    seg = new_object(SegmentationStorage, "SEG", kind, origin, content_qualification="RESEARCH")
    _describe(seg, segments, origin)
    add_frame_of_reference(seg, origin)
    _add_pixels(seg, segments, planes)
    add_dimensions(seg, origin)
    seg.SharedFunctionalGroupsSequence = [shared_groups(volume, origin.first)]
    put_encoded(seg, "PerFrameFunctionalGroupsSequence", frame_groups(volume, planes))
    add_referenced_series(seg, origin)
    add_compression_history(seg, volume, origin.first)
    return seg


def _describe(seg: Dataset, segments: Sequence[Segment], origin: Origin) -> None:
    model = origin.model
    assert model is not None  # noqa: S101 - origin_of always names it
    shown = model.words.segmentation or ", ".join(segment.title for segment in segments)
    seg.ImageType = ["DERIVED", "PRIMARY"]
    seg.SegmentationType = "BINARY"
    seg.SegmentsOverlap = "YES" if _overlap(segments) else "NO"
    seg.ContentLabel = f"{codes.label(model)}_CT_AI"
    seg.ContentDescription = f"Research only: {shown}"[:64]
    seg.ContentCreatorName = ""
    with quiet():
        seg.SegmentSequence = [_segment_item(number, segment, origin) for number, segment in enumerate(segments, 1)]


def _overlap(segments: Sequence[Segment]) -> bool:
    """Whether any voxel is in two segments."""
    masks = [(segment.mask, box_of(segment.mask)) for segment in segments]
    # Findings come after the anatomy that they are in, and are smaller.
    return any((one[box] & other[box]).any() for (one, _), (other, box) in combinations(masks, 2))


def _segment_item(number: int, segment: Segment, origin: Origin) -> SegmentDescription:
    model = origin.model
    assert model is not None  # noqa: S101 - origin_of always names it
    title, algorithm = wording.titled(segment.title, model), algorithm_of(model, segment.algorithm)
    return SegmentDescription(
        segment_number=number,
        segment_label=(segment.label or segment.title)[:64],
        segmented_property_category=codes.concept(segment.category),
        segmented_property_type=codes.concept(segment.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm_name(model, algorithm)[:64],
            family=family_of(algorithm),
            version=algorithm_version(model, algorithm.sha256)[:64],
            source=origin.context.manufacturer[:64],
        ),
        tracking_uid=origin.tracking_uid(segment.title),
        tracking_id=title,
        display_color=CIELabColor(*(segment.colour_lab or _COLOURS[(number - 1) % len(_COLOURS)])),
    )


def add_frame_of_reference(seg: Dataset, origin: Origin) -> None:
    """That of the sources."""
    # An old source without one still has positions; the frames refer to its images all the same.
    seg.FrameOfReferenceUID = origin.first.get("FrameOfReferenceUID") or origin.uid("frame of reference")
    seg.PositionReferenceIndicator = origin.first.get("PositionReferenceIndicator") or ""


def _add_pixels(seg: Dataset, segments: Sequence[Segment], planes: Sequence[npt.NDArray[np.intp]]) -> None:
    frames = [segment.mask[z] for segment, filled in zip(segments, planes, strict=True) for z in filled]
    seg.SamplesPerPixel = 1
    seg.PhotometricInterpretation = "MONOCHROME2"
    seg.NumberOfFrames = sum(len(z) for z in planes)
    seg.Rows, seg.Columns = segments[0].mask.shape[1:]
    seg.BitsAllocated = seg.BitsStored = 1
    seg.HighBit = 0
    seg.PixelRepresentation = 0
    # Frames follow each other bit by bit, without padding between them (PS3.5, 8.1.1 and annex D).
    packed = np.packbits(np.concatenate(frames), axis=None, bitorder="little").tobytes()
    seg.PixelData = packed + b"\0" * (len(packed) % 2)
    seg["PixelData"].VR = "OB"


def add_dimensions(seg: Dataset, origin: Origin) -> None:
    """Frames are ordered by segment and position."""
    uid = origin.uid("segmentation dimensions")
    organisation = Dataset()
    organisation.DimensionOrganizationUID = uid
    seg.DimensionOrganizationSequence = [organisation]
    pointers = (
        (0x0062000B, 0x0062000A, "Segment Number"),
        (0x00200032, 0x00209113, "Image Position Patient"),
    )
    seg.DimensionIndexSequence = [_dimension(uid, *pointer) for pointer in pointers]


def _dimension(uid: str, attribute: int, group: int, label: str) -> Dataset:
    item = Dataset()
    item.DimensionOrganizationUID = uid
    item.DimensionIndexPointer = attribute
    item.FunctionalGroupPointer = group
    item.DimensionDescriptionLabel = label
    return item


def shared_groups(volume: CTVolume, first: Dataset) -> Dataset:
    """Spacing and orientation of every frame. first: header of a source."""
    z, y, x = volume.spacing_mm
    measures = Dataset()
    thickness = volume.header.slice_thickness_mm or _number(first.get("SliceThickness"))
    measures.SliceThickness = _decimal(thickness if thickness and thickness > 0 else z)
    measures.SpacingBetweenSlices = _decimal(z)
    measures.PixelSpacing = [_decimal(y), _decimal(x)]
    orientation = Dataset()
    # Columns of the affine over their lengths, free of the division's rounding.
    cosines = np.concatenate([volume.affine[:3, 0] / x, volume.affine[:3, 1] / y])
    orientation.ImageOrientationPatient = [_decimal(cosine) for cosine in np.round(cosines, 10) + 0.0]
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    groups.PlaneOrientationSequence = [orientation]
    return groups


def frame_groups(volume: CTVolume, planes: Sequence[npt.NDArray[np.intp]]) -> Iterator[bytes]:
    """Functional groups of each frame, encoded: all slices of the first segment upwards, then those of the next."""
    places = {int(z): place for place, z in enumerate(sorted(set(np.concatenate(planes).tolist())), 1)}
    sources = {z: _source_groups(volume.slices[z]) for z in places}
    for number, slices in enumerate(planes, 1):
        named = element("ReferencedSegmentNumber", "US", struct.pack("<H", number))
        segment = sequence("SegmentIdentificationSequence", named)
        for z in map(int, slices):
            derivation, position = sources[z]
            index = element("DimensionIndexValues", "UL", struct.pack("<LL", number, places[z]))
            # In the order of their tags.
            yield derivation + sequence("FrameContentSequence", index) + position + segment


def _source_groups(source: SourceSlice) -> tuple[bytes, bytes]:
    """The groups that depend on the source alone: derivation and position."""
    position = "\\".join(str(_decimal(coordinate)) for coordinate in source.position_mm).encode()
    placed = element("ImagePositionPatient", "DS", position)
    return sequence("DerivationImageSequence", _derivation(source)), sequence("PlanePositionSequence", placed)


def _derivation(source: SourceSlice) -> bytes:
    frame = b""
    if is_multi_frame(source.sop_class_uid):
        frame = element("ReferencedFrameNumber", "IS", str(source.frame + 1).encode())
    preserved = element("SpatialLocationsPreserved", "CS", b"YES")
    purpose = sequence("PurposeOfReferenceCodeSequence", _code(codes.SOURCE_IMAGE))
    # In the order of their tags.
    reference = reference_to(source.sop_class_uid, source.sop_instance_uid) + frame + preserved + purpose
    return sequence("SourceImageSequence", reference) + sequence("DerivationCodeSequence", _code(codes.SEGMENTATION))


@cache
def _code(code: Code) -> bytes:
    return elements(CodedConcept.from_code(code))


def is_multi_frame(sop_class_uid: str) -> bool:
    """True for Enhanced CT and Legacy Converted Enhanced CT, whose references name a frame."""
    return sop_class_uid in (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)


def add_referenced_series(seg: Dataset, origin: Origin) -> None:
    """All sources."""
    references = [reference_to(source.SOPClassUID, source.SOPInstanceUID) for source in origin.sources]
    series = element("SeriesInstanceUID", "UI", str(origin.first.SeriesInstanceUID).encode())
    # In the order of their tags.
    put_encoded(seg, "ReferencedSeriesSequence", [sequence("ReferencedInstanceSequence", *references) + series])


def add_compression_history(seg: Dataset, volume: CTVolume, first: Dataset) -> None:
    """Whether the sources went through lossy compression."""
    seg.LossyImageCompression = "01" if volume.header.lossy else "00"
    if volume.header.lossy:
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if first.get(keyword):
                setattr(seg, keyword, first.get(keyword))


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None


def _decimal(value: float) -> DSfloat:
    """A number as a decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)
