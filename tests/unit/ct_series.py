"""Small CT series for the tests of loading, geometry and suitability, written as files."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, generate_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def noise(slices: int = 6, rows: int = 32, columns: int = 40, low: int = 0, high: int = 4096) -> np.ndarray:
    """Stored values as unlike one another as they can be, int32 (Z, Y, X)."""
    return np.random.default_rng(slices * rows * columns + high).integers(low, high, (slices, rows, columns))


def slice_dataset(stored: np.ndarray, z: float, *, signed: bool = False, bits: int = 16, **values: Any) -> Dataset:
    """One classic CT slice, not yet saved; `values` override elements by keyword, None removes one."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, generate_uid()
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientName, dataset.PatientID = "NOBODY", "0"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
    dataset.FrameOfReferenceUID = "2.25.3"
    dataset.SliceThickness, dataset.PixelSpacing = 2, [0.75, 0.5]
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [-100, -120, z], [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = (np.asarray(stored) & 0xFFFF).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    change(dataset, values)
    return dataset


def change(dataset: Dataset, values: dict[str, Any]) -> None:
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)


def save(
    dataset: Dataset, path: Path, syntax: str = EXPLICIT, encode: Callable[[np.ndarray], bytes] | None = None
) -> Path:
    """Write with file meta. encode: makes a compressed frame of the stored words, uint16 (Y, X)."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    dataset.file_meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    if encode is not None:
        words = np.frombuffer(dataset.PixelData, "<u2").reshape(-1, dataset.Rows, dataset.Columns)
        dataset.PixelData = encapsulate([encode(frame) for frame in words])
        dataset["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, implicit_vr=syntax == IMPLICIT, little_endian=True, enforce_file_format=True)
    return path


def write_series(
    folder: Path, stored: np.ndarray, heights: Iterable[float] | None = None, *, signed: bool = False, **values: Any
) -> list[Path]:
    """One file per slice; heights in mm, 2 apart unless told. Overrides may be functions of the slice's index."""
    heights = list(heights) if heights is not None else [2.0 * index for index in range(len(stored))]
    paths = []
    for index, (plane, z) in enumerate(zip(stored, heights, strict=True)):
        given = {name: value(index) if callable(value) else value for name, value in values.items()}
        paths.append(save(slice_dataset(plane, z, signed=signed, **given), folder / f"{index:03d}.dcm"))
    return paths


def item(**values: Any) -> Dataset:
    made = Dataset()
    change(made, values)
    return made


def enhanced_dataset(
    stored: np.ndarray, heights: Iterable[float], *, sop_class: str = ENHANCED_CT, signed: bool = False
) -> Dataset:
    """The enhanced multi-frame twin of `write_series`, its rescale per frame and the rest shared."""
    dataset = slice_dataset(stored, 0, signed=signed, SOPClassUID=sop_class, NumberOfFrames=len(stored))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        delattr(dataset, keyword)
    shared = item(
        PixelMeasuresSequence=Items([item(PixelSpacing=[0.75, 0.5], SliceThickness=2)]),
        PlaneOrientationSequence=Items([item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]),
        CTImageFrameTypeSequence=Items([item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])]),
    )
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    rescale = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    dataset.PerFrameFunctionalGroupsSequence = Items(
        item(
            PlanePositionSequence=Items([item(ImagePositionPatient=[-100, -120, z])]),
            PixelValueTransformationSequence=Items([rescale]),
        )
        for z in heights
    )
    return dataset
