"""A phantom as DICOM files, with the headers that a scanner writes.

pydicom and imagecodecs are imported only when they are used, because phantoms for training are also made on machines
that have neither.
"""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from inference.phantom.chest import Phantom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2.1"
IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"
JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
UNCOMPRESSED = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG)
TRANSFER_SYNTAXES = (*UNCOMPRESSED, RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1, JPEG_LS, JPEG_2000)

INTERCEPT_HU = -1024
_NAMESPACE = uuid.UUID("6a0f6c2e-51f0-5d0c-9b0a-3d1f6f1f5a55")
Stored = npt.NDArray[np.uint16] | npt.NDArray[np.int16]


def _uid(phantom_key: str, part: str) -> str:
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'{phantom_key}/{part}').int}"


def write_series(
    phantom: Phantom,
    folder: Path,
    *,
    transfer_syntax: str = EXPLICIT_LITTLE,
    bits: int = 16,
    patient_name: str | None = None,
    patient_id: str | None = None,
    study_date: str = "20200124",
) -> list[Path]:
    """Write one CT Image Storage file per slice and return their paths, from the feet up.

    folder: created if necessary; the files are called 0001.dcm and so on.
    transfer_syntax: one of TRANSFER_SYNTAXES.  bits: 12 or 16 stored.
    patient_name: None gives PHANTOM^POSITIVE or PHANTOM^NEGATIVE.  study_date: YYYYMMDD.
    Raises ValueError if `bits` or `transfer_syntax` is not one of these, or if 12 bits cannot hold the values.
    """
    stored = _stored_values(phantom, bits)
    key = _key(phantom)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, position in enumerate(positions_mm(phantom)):
        dataset = _common_header(phantom, key, bits, stored, patient_name, patient_id, study_date)
        dataset.SOPClassUID = CT_IMAGE_STORAGE
        dataset.SOPInstanceUID = _uid(key, f"slice/{index}")
        dataset.InstanceNumber = len(phantom.hu) - index  # scanners count from the head down
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [_decimal(value) for value in position]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.SliceLocation = _decimal(position[2])
        dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimal(phantom.spacing_mm[0])
        dataset.PixelSpacing = [_decimal(mm) for mm in phantom.spacing_mm[1:]]
        dataset.KVP = 120
        dataset.ConvolutionKernel = phantom.scanner.kernel
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = INTERCEPT_HU, 1, "HU"
        dataset.WindowCenter, dataset.WindowWidth = -600, 1500
        path = folder / f"{index + 1:04d}.dcm"
        _save(dataset, stored[index : index + 1], transfer_syntax, bits, path)
        paths.append(path)
    return paths


def write_multiframe(
    phantom: Phantom,
    path: Path,
    *,
    transfer_syntax: str = EXPLICIT_LITTLE,
    bits: int = 16,
    patient_name: str | None = None,
    patient_id: str | None = None,
    study_date: str = "20200124",
) -> Path:
    """Write the phantom as one Enhanced CT Image Storage file; arguments as for `write_series`."""
    stored = _stored_values(phantom, bits)
    key = _key(phantom)
    dataset = _common_header(phantom, key, bits, stored, patient_name, patient_id, study_date)
    dataset.SOPClassUID = ENHANCED_CT_IMAGE_STORAGE
    dataset.SOPInstanceUID = _uid(key, "multiframe")
    dataset.SeriesInstanceUID = _uid(key, "multiframe series")
    dataset.InstanceNumber = 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(stored)
    _add_functional_groups(dataset, phantom, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(dataset, stored, transfer_syntax, bits, path)
    return path


def positions_mm(phantom: Phantom) -> list[tuple[float, float, float]]:
    """ImagePositionPatient (x, y, z) of each slice, LPS mm, ascending z."""
    z_mm, y_mm, x_mm = phantom.spacing_mm
    _, rows, columns = phantom.hu.shape
    first = (-(columns - 1) / 2 * x_mm, -(rows - 1) / 2 * y_mm, -1000.0 - (phantom.seed % 97))
    return [
        (round(first[0], 4), round(first[1], 4), round(first[2] + index * z_mm, 4)) for index in range(len(phantom.hu))
    ]


def _key(phantom: Phantom) -> str:
    voxels = hashlib.sha256(np.ascontiguousarray(phantom.hu).data).hexdigest()
    return f"{phantom.seed}/{voxels}/{phantom.spacing_mm}"


def _stored_values(phantom: Phantom, bits: int) -> Stored:
    """Pixel values before rescale: unsigned, or signed if the padding lies below the intercept."""
    raw = phantom.hu.astype(np.int32) - INTERCEPT_HU
    if bits not in (12, 16):
        raise ValueError(f"{bits} bits stored: a scanner writes 12 or 16")
    if bits == 12 and (raw.min() < 0 or raw.max() > 4095):
        raise ValueError("12 bits cannot hold these values: choose 16, or padding_hu of -1024 or above")
    return raw.astype(np.int16) if raw.min() < 0 else raw.astype(np.uint16)


def _decimal(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _common_header(
    phantom: Phantom,
    key: str,
    bits: int,
    stored: Stored,
    patient_name: str | None,
    patient_id: str | None,
    study_date: str,
) -> Dataset:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = study_date
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "101500"
    dataset.AccessionNumber = f"SYN{phantom.seed}"
    dataset.Modality = "CT"
    dataset.Manufacturer = "SYNTHETIC"
    dataset.ManufacturerModelName = "Synthetic chest"
    dataset.InstitutionName = "Synthetic data, no patient"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "CT CHEST"
    dataset.SeriesDescription = "CHEST LUNG"
    dataset.PatientName = patient_name or ("PHANTOM^POSITIVE" if phantom.covid else "PHANTOM^NEGATIVE")
    dataset.PatientID = patient_id or f"SYNTHETIC-{phantom.seed}"
    dataset.PatientBirthDate = "19700101"
    dataset.PatientSex = "O"
    dataset.PatientAge = "050Y"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.ProtocolName = "CHEST ROUTINE"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", "1"
    dataset.StudyInstanceUID = _uid(key, "study")
    dataset.SeriesInstanceUID = _uid(key, "series")
    dataset.FrameOfReferenceUID = _uid(key, "frame of reference")
    dataset.PositionReferenceIndicator = ""
    dataset.StudyID, dataset.SeriesNumber, dataset.AcquisitionNumber = "1", 2, 1
    _describe_pixels(dataset, bits, stored, phantom)
    return dataset


def _describe_pixels(dataset: Dataset, bits: int, stored: Stored, phantom: Phantom) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    _, dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(stored.dtype, np.signedinteger))
    padding_hu = phantom.scanner.padding_hu
    if padding_hu is not None:
        dataset.add_new("PixelPaddingValue", "SS" if dataset.PixelRepresentation else "US", padding_hu - INTERCEPT_HU)
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"


def _add_functional_groups(dataset: Dataset, phantom: Phantom, key: str) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    def item(**elements: object) -> Dataset:
        made = Dataset()
        for name, value in elements.items():
            setattr(made, name, value)
        return made

    dataset.PixelPresentation, dataset.VolumetricProperties = "MONOCHROME", "VOLUME"
    dataset.VolumeBasedCalculationTechnique = "NONE"
    dataset.PresentationLUTShape = "IDENTITY"
    dataset.ContentQualification = "RESEARCH"
    dataset.AcquisitionDateTime = f"{dataset.AcquisitionDate}{dataset.AcquisitionTime}"
    spacing = [_decimal(mm) for mm in phantom.spacing_mm[1:]]
    thickness = _decimal(phantom.spacing_mm[0])
    measures = item(PixelSpacing=spacing, SliceThickness=thickness, SpacingBetweenSlices=thickness)
    rescale = item(RescaleIntercept=INTERCEPT_HU, RescaleSlope=1, RescaleType="HU")
    frame_type = item(
        FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"],
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )
    shared = item(
        PixelMeasuresSequence=Items([measures]),
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        PixelValueTransformationSequence=Items([rescale]),
        CTImageFrameTypeSequence=Items([frame_type]),
        CTReconstructionSequence=Items([item(ConvolutionKernel=phantom.scanner.kernel)]),
        CTXRayDetailsSequence=Items([item(KVP=120)]),
    )
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for index, position in enumerate(positions_mm(phantom)):
        content = item(StackID="1", InStackPositionNumber=index + 1, DimensionIndexValues=[1, index + 1])
        place = item(ImagePositionPatient=[_decimal(value) for value in position])
        frames.append(item(FrameContentSequence=Items([content]), PlanePositionSequence=Items([place])))
    dataset.PerFrameFunctionalGroupsSequence = Items(frames)
    organisation = _uid(key, "dimensions")
    dataset.DimensionOrganizationSequence = Items([item(DimensionOrganizationUID=organisation)])
    dataset.DimensionIndexSequence = Items(
        item(DimensionOrganizationUID=organisation, DimensionIndexPointer=tag, FunctionalGroupPointer=0x00209111)
        for tag in (0x00209056, 0x00209057)
    )


def _save(dataset: Dataset, frames: Stored, transfer_syntax: str, bits: int, path: Path) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    if transfer_syntax not in TRANSFER_SYNTAXES:
        raise ValueError(f"transfer syntax {transfer_syntax} is not one of {TRANSFER_SYNTAXES}")
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    dataset.file_meta.TransferSyntaxUID = UID(transfer_syntax)
    if transfer_syntax in UNCOMPRESSED:
        ordered = frames.astype(frames.dtype.newbyteorder("big" if transfer_syntax == EXPLICIT_BIG else "little"))
        dataset.PixelData = ordered.tobytes()
        dataset["PixelData"].VR = "OW"
    elif transfer_syntax == RLE:
        dataset.PixelData = encapsulate([_rle(dataset, frame) for frame in frames])
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = encapsulate(_compress(frames, transfer_syntax, bits))
        dataset["PixelData"].VR = "OB"
    dataset.save_as(
        path,
        implicit_vr=transfer_syntax == IMPLICIT_LITTLE,
        little_endian=transfer_syntax != EXPLICIT_BIG,
        enforce_file_format=True,
    )


def _rle(dataset: Dataset, frame: Stored) -> bytes:
    from pydicom.pixels.encoders.base import RLELosslessEncoder

    options: dict[str, object] = {
        "rows": dataset.Rows,
        "columns": dataset.Columns,
        "samples_per_pixel": 1,
        "bits_allocated": 16,
        "bits_stored": dataset.BitsStored,
        "pixel_representation": dataset.PixelRepresentation,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
    }
    return RLELosslessEncoder.encode(np.ascontiguousarray(frame), encoding_plugin="pydicom", **options)  # type: ignore[arg-type]


def _compress(frames: Stored, transfer_syntax: str, bits: int) -> list[bytes]:
    import imagecodecs

    def encode(frame: Stored) -> bytes:
        # JPEG has no signed values: the decoder's 16 bits are read as PixelRepresentation says.
        unsigned = np.ascontiguousarray(frame).view(np.uint16)
        if transfer_syntax in (JPEG_LOSSLESS, JPEG_LOSSLESS_SV1):
            return bytes(imagecodecs.ljpeg_encode(unsigned, bitspersample=16))
        if transfer_syntax == JPEG_LS:
            return bytes(imagecodecs.jpegls_encode(unsigned))
        return bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True, level=0, bitspersample=16))

    return [encode(frame) for frame in frames]
