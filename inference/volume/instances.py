"""Headers of stored CT instances, read without touching a pixel: what each frame is and where its bytes lie.

Nothing is allocated on a header's word alone, and no error text carries the value of an element except UIDs.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset

from config.headers import quiet
from config.reasons import ReasonCode
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.volume.ct_volume import SeriesHeader
from inference.volume.elements import TAGS, Elements, functional_groups, items
from inference.volume.fragments import Layout, Spans, frame_spans
from inference.volume.part10 import (
    DEFLATED,
    EXPLICIT_LE,
    IMPLICIT_LE,
    UNREADABLE,
    FileMeta,
    read_header,
    read_meta,
    safe_uid,
)

# A year in the units of an Age String.
_AGE_UNITS = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
LEGACY_ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.2"

_MAX_FRAMES = 100_000
# The possible range of a length within an image in mm, of a rescale slope and of an intercept; NaN replaces others.
_LENGTH_MM, _SLOPE, _INTERCEPT = (1e-3, 1e3), (1e-4, 1e4), (-1e6, 1e6)


@dataclass(frozen=True)
class PixelFormat:
    """How the stored words of an instance are laid out. rows, columns: pixels. padding: stored values, inclusive."""

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    samples: int
    photometric: str
    transfer_syntax_uid: str
    padding: tuple[int, int] | None


@dataclass(frozen=True)
class Instance:
    """One stored DICOM object.

    patient: a hash that tells patients apart without naming them.  number: Instance Number, never used for ordering.
    """

    path: Path
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    frame_of_reference_uid: str
    patient: str
    pixels: PixelFormat
    header: SeriesHeader
    number: int | None = None


@dataclass(frozen=True)
class Frame:
    """One image of an instance.

    position_mm: (3) LPS of the first pixel's centre, None if absent.  orientation: (6) row and column cosines.
    spacing_mm: (between rows, between columns).  slope, intercept: NaN if the stored value is impossible.
    spans: (offset, bytes) of the encoded frame in the file.
    split_keys: what may tell several volumes of one series apart, by name.
    """

    instance: Instance
    index: int
    position_mm: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    slope: float
    intercept: float
    spans: Spans
    header: SeriesHeader
    split_keys: tuple[tuple[str, str], ...]


def read_frames(path: Path) -> list[Frame]:
    """The frames of one stored instance with a CT header, geometry as stored, pixels not read.

    Raises CorruptInstance if the file is not a readable DICOM object or its pixel data is shorter than its header
    says, UnsuitableSeries if it is deflated. An object without pixel data (a report, say) gives frames without spans.
    """
    meta = FileMeta("", "", "")
    try:
        with quiet(), path.open("rb") as file:
            meta = read_meta(file)
            if meta.transfer_syntax_uid in DEFLATED:
                raise UnsuitableSeries(
                    ReasonCode.DEFLATED, "The images are stored deflated, which this node does not read."
                )
            dataset = read_header(file, meta.transfer_syntax_uid, list(TAGS.values()))
            return _frames_of(file, path, meta, dataset)
    except UNREADABLE:
        # The cause is left out: its text may quote an element's value.
        raise CorruptInstance(f"instance {safe_uid(meta.sop_instance_uid)}: its header cannot be read") from None


def _frames_of(file: BinaryIO, path: Path, meta: FileMeta, dataset: Dataset) -> list[Frame]:
    """The frames of a header. file: positioned at the end of the header."""
    elements = Elements(dataset)
    instance = _instance(path, meta, dataset, elements)
    if not instance.sop_class_uid:
        raise CorruptInstance(f"instance {instance.sop_instance_uid}: its header cannot be read")
    frames = int(elements.number("NumberOfFrames") or 1)
    if not 1 <= frames <= _MAX_FRAMES:
        raise CorruptInstance(f"instance {instance.sop_instance_uid}: impossible number of frames")
    pixels = instance.pixels
    layout = Layout(
        implicit=bool(dataset.original_encoding[0]),
        encapsulated=pixels.transfer_syntax_uid not in (IMPLICIT_LE, EXPLICIT_LE),
        frames=frames,
        frame_bytes=pixels.rows * pixels.columns * pixels.samples * (pixels.bits_allocated // 8),
        uid=instance.sop_instance_uid,
    )
    return list(_frames(dataset, elements, instance, frame_spans(file, layout)))


def _instance(path: Path, meta: FileMeta, dataset: Dataset, elements: Elements) -> Instance:
    implicit = bool(dataset.original_encoding[0])
    syntax = meta.transfer_syntax_uid or (IMPLICIT_LE if implicit else EXPLICIT_LE)
    identity = [elements.raw(name) for name in ("PatientID", "PatientName", "PatientBirthDate")]
    uid = elements.text("SOPInstanceUID") or meta.sop_instance_uid
    return Instance(
        path=path,
        sop_instance_uid=safe_uid(uid),
        sop_class_uid=elements.text("SOPClassUID"),
        series_instance_uid=elements.text("SeriesInstanceUID"),
        study_instance_uid=elements.text("StudyInstanceUID"),
        frame_of_reference_uid=elements.text("FrameOfReferenceUID"),
        patient=hashlib.sha256(repr([value.strip(b" \0^") for value in identity]).encode()).hexdigest(),
        pixels=_pixel_format(elements, syntax),
        header=dataclasses.replace(_header(elements, syntax), equipment=_equipment(dataset, elements)),
        number=None if (number := elements.number("InstanceNumber")) is None else int(number),
    )


def _equipment(dataset: Dataset, elements: Elements) -> frozenset[tuple[str, str]]:
    contributors = map(Elements, items(dataset, "ContributingEquipmentSequence"))
    return frozenset((one.text("Manufacturer"), one.text("ManufacturerModelName")) for one in (elements, *contributors))


def _pixel_format(elements: Elements, syntax: str) -> PixelFormat:
    stored = elements.word("BitsStored") or elements.word("BitsAllocated") or 0
    high = elements.word("HighBit")
    padding, limit = elements.word("PixelPaddingValue"), elements.word("PixelPaddingRangeLimit")
    return PixelFormat(
        rows=elements.word("Rows") or 0,
        columns=elements.word("Columns") or 0,
        bits_allocated=elements.word("BitsAllocated") or 0,
        bits_stored=stored,
        high_bit=stored - 1 if high is None else high,
        signed=elements.word("PixelRepresentation") == 1,
        samples=elements.word("SamplesPerPixel") or 1,
        photometric=elements.text("PhotometricInterpretation"),
        transfer_syntax_uid=syntax,
        padding=None if padding is None else (padding, padding if limit is None else limit),
    )


def _header(elements: Elements, syntax: str) -> SeriesHeader:
    """The header of one frame; `elements` looks into the frame's functional groups first."""
    between = elements.stated("SpacingBetweenSlices", *_LENGTH_MM) or math.nan
    return SeriesHeader(
        modality=elements.text("Modality"),
        image_type=elements.texts("FrameType") or elements.texts("ImageType"),
        body_part=elements.text("BodyPartExamined"),
        manufacturer=elements.text("Manufacturer"),
        manufacturer_model=elements.text("ManufacturerModelName"),
        kernel=elements.text("ConvolutionKernel"),
        slice_thickness_mm=_thickness(elements),
        series_description=elements.text("SeriesDescription"),
        study_description=elements.text("StudyDescription"),
        protocol_name=elements.text("ProtocolName"),
        patient_position=elements.text("PatientPosition"),
        burned_in=elements.text("BurnedInAnnotation") == "YES",
        contrast=bool(elements.text("ContrastBolusAgent")),
        transfer_syntax_uid=syntax,
        has_rescale=bool(elements.numbers("RescaleSlope") and elements.numbers("RescaleIntercept")),
        bits_stored=elements.word("BitsStored") or 0,
        sop_class_uid=elements.text("SOPClassUID"),
        rescale_type=elements.text("RescaleType"),
        spacing_between_slices_mm=None if math.isnan(between) else between,
        tilt_deg=elements.number("GantryDetectorTilt"),
        lossy=elements.text("LossyImageCompression") == "01",
        quality_control=elements.text("QualityControlImage") == "YES",
        derivation=elements.text("DerivationDescription"),
        image_comments=elements.text("ImageComments"),
        acquisition_number=elements.key("FrameAcquisitionNumber") or elements.key("AcquisitionNumber"),
        age_years=age_years(elements.text("PatientAge")),
        reconstruction_diameter_mm=elements.number("ReconstructionDiameter"),
        images_in_acquisition=int(elements.number("ImagesInAcquisition") or 0),
        software=elements.text("SoftwareVersions"),
        kv=elements.number("KVP"),
        mas=_exposure(elements),
    )


def _thickness(elements: Elements) -> float | None:
    """None or 0 if the scanner does not say, NaN if its value is impossible."""
    return 0.0 if elements.number("SliceThickness") == 0 else elements.stated("SliceThickness", *_LENGTH_MM)


def _exposure(elements: Elements) -> float | None:
    """mAs: of an Enhanced CT image, or else of a classic one."""
    found = elements.number("ExposureInmAs")
    return elements.number("Exposure") if found is None else found


def age_years(text: str) -> float | None:
    """An Age String (nnnD, nnnW, nnnM, nnnY) in years; None for any other text and for 0, which anonymisers write."""
    number, unit = text[:-1], text[-1:]
    if not (len(number) == 3 and number.isascii() and number.isdigit() and unit in _AGE_UNITS):
        return None
    return int(number) / _AGE_UNITS[unit] or None


def _frames(dataset: Dataset, elements: Elements, instance: Instance, spans: list[Spans]) -> Iterator[Frame]:
    if instance.sop_class_uid not in (ENHANCED_CT, LEGACY_ENHANCED_CT) or spans == [()]:
        first = _frame(elements, instance, 0, spans[0])
        yield first
        yield from (dataclasses.replace(first, index=index, spans=spans[index]) for index in range(1, len(spans)))
        return
    shared = functional_groups(items(dataset, "SharedFunctionalGroupsSequence")[:1])
    per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
    if len(per_frame) != len(spans):
        raise CorruptInstance(f"instance {instance.sop_instance_uid}: functional groups are missing for some frames")
    for index, (item, span) in enumerate(zip(per_frame, spans, strict=True)):
        yield _frame(Elements(*functional_groups([item]), *shared, dataset), instance, index, span)


def _is_length(mm: float) -> bool:
    return _LENGTH_MM[0] <= mm <= _LENGTH_MM[1]


def _frame(elements: Elements, instance: Instance, index: int, spans: Spans) -> Frame:
    position = elements.numbers("ImagePositionPatient")
    orientation = elements.numbers("ImageOrientationPatient")
    spacing = elements.numbers("PixelSpacing")
    slope, intercept = elements.stated("RescaleSlope", *_SLOPE), elements.stated("RescaleIntercept", *_INTERCEPT)
    enhanced = instance.sop_class_uid in (ENHANCED_CT, LEGACY_ENHANCED_CT)
    header = instance.header
    if enhanced:
        own = _header(elements, instance.pixels.transfer_syntax_uid)
        header = dataclasses.replace(own, equipment=instance.header.equipment)
    names = ("TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase")
    return Frame(
        instance=instance,
        index=index,
        position_mm=(position[0], position[1], position[2]) if len(position) == 3 else None,
        orientation=orientation if len(orientation) == 6 else None,
        spacing_mm=(spacing[0], spacing[1]) if len(spacing) == 2 and all(map(_is_length, spacing)) else None,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        spans=spans,
        header=header,
        split_keys=(
            ("acquisition", header.acquisition_number),
            ("temporal position", "/".join(filter(None, map(elements.key, names)))),
        ),
    )
