"""Finding -> one Secondary Capture image that any viewer shows: the result, its picture and what it rests on."""

from collections.abc import Sequence

import numpy as np
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import Kind, Origin, new_object, origin_of
from dicom_node.report.page import draw_page
from dicom_node.report.planes import Anatomy, anatomy_of
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

_KIND = "summary"


def build_summary(finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext) -> Dataset:
    """The summary as an RGB Secondary Capture of 1024 x 768 pixels."""
    origin = origin_of(finding, volume, sources, context)
    anatomy = anatomy_of(finding, volume)
    page = draw_page(finding, volume, anatomy, origin)
    shown = "with localisation" if anatomy.region is not None else "without localisation"
    kind = Kind(f"{_KIND} {shown}", 9004, "summary")
    capture = new_object(SecondaryCaptureImageStorage, "OT", kind, origin)
    _add_image(capture, page)
    _add_context(capture, volume, anatomy, origin)
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


def _add_context(capture: Dataset, volume: CTVolume, anatomy: Anatomy, origin: Origin) -> None:
    created = origin.context.created_in_zone_of(origin.first)
    capture.DateOfSecondaryCapture = created.strftime("%Y%m%d")
    capture.TimeOfSecondaryCapture = created.strftime("%H%M%S.%f")
    capture.PatientOrientation = None
    # What was analysed, whatever name the source gives it.
    capture.BodyPartExamined = "CHEST"
    capture.DerivationDescription = "Summary of an automatic analysis. Research only, not for diagnosis."
    source = volume.slices[anatomy.turn.source_slice(anatomy.focus[0], anatomy.hu.shape[0])]
    reference = Dataset()
    reference.ReferencedSOPClassUID = source.sop_class_uid
    reference.ReferencedSOPInstanceUID = source.sop_instance_uid
    reference.PurposeOfReferenceCodeSequence = [CodedConcept.from_code(codes.SOURCE_IMAGE)]
    capture.SourceImageSequence = [reference]
