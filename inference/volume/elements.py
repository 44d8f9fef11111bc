"""Values of the DICOM elements that matter here, taken as raw bytes and parsed without pydicom's converters.

In this way no malformed value reaches a warning or an error text, which would carry patient data.
"""

import math

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import Tag

_NUMBERS = {
    "ImageType": 0x00080008,
    "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018,
    "Modality": 0x00080060,
    "Manufacturer": 0x00080070,
    "StudyDescription": 0x00081030,
    "SeriesDescription": 0x0008103E,
    "ManufacturerModelName": 0x00081090,
    "ContributingEquipmentSequence": 0x0018A001,
    "DerivationDescription": 0x00082111,
    "PatientName": 0x00100010,
    "PatientID": 0x00100020,
    "PatientBirthDate": 0x00100030,
    "PatientAge": 0x00101010,
    "ContrastBolusAgent": 0x00180010,
    "BodyPartExamined": 0x00180015,
    "SliceThickness": 0x00180050,
    "KVP": 0x00180060,
    "SpacingBetweenSlices": 0x00180088,
    "SoftwareVersions": 0x00181020,
    "ProtocolName": 0x00181030,
    "ReconstructionDiameter": 0x00181100,
    "GantryDetectorTilt": 0x00181120,
    "Exposure": 0x00181152,
    "ConvolutionKernel": 0x00181210,
    "PatientPosition": 0x00185100,
    "ExposureInmAs": 0x00189332,
    "StudyInstanceUID": 0x0020000D,
    "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012,
    "ImagePositionPatient": 0x00200032,
    "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052,
    "TemporalPositionIdentifier": 0x00200100,
    "TemporalPositionIndex": 0x00209128,
    "NominalPercentageOfCardiacPhase": 0x00209241,
    "InstanceNumber": 0x00200013,
    "ImagesInAcquisition": 0x00201002,
    "ImageComments": 0x00204000,
    "FrameAcquisitionNumber": 0x00209156,
    "FrameType": 0x00089007,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "QualityControlImage": 0x00280300,
    "BurnedInAnnotation": 0x00280301,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "RescaleType": 0x00281054,
    "LossyImageCompression": 0x00282110,
    "SharedFunctionalGroupsSequence": 0x52009229,
    "PerFrameFunctionalGroupsSequence": 0x52009230,
}
# Beyond any length in mm, angle, count or number of an image; sums and products of such numbers are finite.
_LARGEST = 1e9
# Tags are made once: making one costs more than reading most elements.
TAGS = {name: Tag(number) for name, number in _NUMBERS.items()}
_FUNCTIONAL_GROUPS = {
    "PlanePosition": 0x00209113,
    "PlaneOrientation": 0x00209116,
    "FrameContent": 0x00209111,
    "PixelMeasures": 0x00289110,
    "PixelValueTransformation": 0x00289145,
    "CTImageFrameType": 0x00189329,
    "CTReconstruction": 0x00189314,
    "CTExposure": 0x00189321,
    "CTXRayDetails": 0x00189325,
    "TemporalPosition": 0x00209310,
    "CardiacSynchronization": 0x00189118,
    "UnassignedShared": 0x0020A170,
    "UnassignedPerFrame": 0x0020A171,
}


class Elements:
    """Reads values as plain text and numbers from one dataset, or from the first of several that has them."""

    def __init__(self, *datasets: Dataset) -> None:
        self._datasets = datasets

    def raw(self, name: str) -> bytes:
        tag = TAGS[name]
        for dataset in self._datasets:
            if tag in dataset:
                value = dataset.get_item(tag).value
                if isinstance(value, bytes):
                    return value
        return b""

    def texts(self, name: str) -> tuple[str, ...]:
        text = self.raw(name).decode("latin-1").strip(" \0")
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def text(self, name: str) -> str:
        return "\\".join(self.texts(name))

    def numbers(self, name: str) -> tuple[float, ...]:
        """Decimal strings as floats; empty if any of them is not a number or is impossible for a measurement."""
        values = self._floats(name)
        return values if all(abs(value) <= _LARGEST for value in values) else ()

    def number(self, name: str) -> float | None:
        values = self.numbers(name)
        return values[0] if values else None

    def stated(self, name: str, low: float, high: float) -> float | None:
        """A number that must lie between low and high: None if there is none, NaN if it lies outside."""
        values = self._floats(name)
        return None if not values else values[0] if low <= values[0] <= high else math.nan

    def _floats(self, name: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in self.texts(name))
        except ValueError:
            return ()

    def word(self, name: str) -> int | None:
        raw = self.raw(name)
        return int.from_bytes(raw[:2], "little") if len(raw) >= 2 else None

    def key(self, name: str) -> str:
        """A value that is only ever compared: text unchanged, binary as hexadecimal."""
        raw = self.raw(name).strip(b" \0")
        return raw.decode("ascii") if raw.isascii() and raw.decode("ascii").isprintable() else raw.hex()


def functional_groups(items: list[Dataset]) -> list[Dataset]:
    """The datasets inside the functional groups that matter here."""
    return [group for item in items for tag in _FUNCTIONAL_GROUPS.values() for group in _sequence(item, tag)[:1]]


def items(dataset: Dataset, name: str) -> list[Dataset]:
    return _sequence(dataset, TAGS[name])


def _sequence(dataset: Dataset, tag: int) -> list[Dataset]:
    value = dataset[tag].value if tag in dataset else None
    return list(value) if isinstance(value, DicomSequence) else []
