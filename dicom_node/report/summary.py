"""One Secondary Capture image that any viewer shows: a result with its picture, or why there is none."""

from collections.abc import Sequence

import numpy as np
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from config.reasons import Refusal
from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import Kind, Origin, new_object, origin_of
from dicom_node.report.page import draw_page
from dicom_node.report.planes import Anatomy, anatomy_of
from dicom_node.report.refusal_page import draw_refusal_page, refused_anatomy
from dicom_node.report.sources import complete
from inference.errors import Evidence
from inference.finding import ModelIdentity
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume, upright

_KIND = "summary"


def build_summary(finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext) -> Dataset:
    """The summary as an RGB Secondary Capture of 1024 x 768 pixels."""
    origin = origin_of(finding, volume, sources, context)
    anatomy = anatomy_of(finding, volume)
    page = draw_page(finding, volume, anatomy, origin)
    shown = "with localisation" if anatomy.shows_finding else "without localisation"
    kind = Kind(f"{_KIND} {shown}", 4, "summary")
    capture = new_object(SecondaryCaptureImageStorage, "OT", kind, origin)
    _add_image(capture, page)
    _add_context(capture, volume, anatomy, origin, "Summary of an automatic analysis.")
    return capture


def build_refusal_summary(
    refusal: Refusal,
    evidence: Evidence,
    volume: CTVolume,
    sources: Sequence[Dataset],
    context: ReportContext,
    model: ModelIdentity | None,
) -> Dataset:
    """Why a series was not analysed, with the slice that shows it, as a Secondary Capture like a result's summary."""
    origin = Origin([complete(sources[0]), *sources[1:]], context, model, (*volume.dropped, *volume.passed_over))
    volume = upright(volume)
    anatomy = refused_anatomy(evidence, volume)
    # Another reason is another picture, even of the same instances.
    kind = Kind(f"{_KIND} not analysed: {refusal.code}: {refusal.sentence}", 4, "not analysed")
    capture = new_object(SecondaryCaptureImageStorage, "OT", kind, origin)
    _add_image(capture, draw_refusal_page(refusal, evidence, volume, anatomy, origin))
    _add_context(capture, volume, anatomy, origin, "Why an automatic analysis was refused.")
    return capture


def _add_image(capture: Dataset, page: Image.Image) -> None:
    pixels = np.asarray(page.convert("RGB"), dtype=np.uint8)
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    capture.ConversionType = "WSD"
    capture.Rows, capture.Columns = pixels.shape[:2]
    capture.SamplesPerPixel = 3
    capture.PhotometricInterpretation = "RGB"
    capture.PlanarConfiguration = 0
    capture.BitsAllocated = capture.BitsStored = 8
    capture.HighBit = 7
    capture.PixelRepresentation = 0
    capture.PixelData = pixels.tobytes()
    capture["PixelData"].VR = "OB"
    capture.LossyImageCompression = "00"
    # The patient's name and the result are part of the picture.
    capture.BurnedInAnnotation = "YES"
    capture.RecognizableVisualFeatures = "NO"


def _add_context(capture: Dataset, volume: CTVolume, anatomy: Anatomy, origin: Origin, what: str) -> None:
    created = origin.context.created_in_zone_of(origin.first)
    capture.DateOfSecondaryCapture = created.strftime("%Y%m%d")
    capture.TimeOfSecondaryCapture = created.strftime("%H%M%S.%f")
    capture.PatientOrientation = None
    # What was analysed or should have been, whatever name the source gives it.
    capture.BodyPartExamined = "CHEST"
    capture.DerivationDescription = f"{what} Research only, not for diagnosis."
    source = volume.slices[anatomy.turn.source_slice(anatomy.focus[0], anatomy.hu.shape[0])]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.sop_class_uid
    reference.ReferencedSOPInstanceUID = source.sop_instance_uid
    reference.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.SOURCE_IMAGE)]
    capture.SourceImageSequence = [reference]
