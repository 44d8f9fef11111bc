"""Synthetic CT series with chosen attributes, and volumes and findings on them, made without a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from inference.covid.card import WORDS, algorithms_of
from inference.covid.output import output_of
from inference.covid.verdict import Verdict
from inference.finding import ModelIdentity, QualityCheck
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice

STUDY_UID = "1.2.826.0.1.3680043.8.498.1001"
SERIES_UID = "1.2.826.0.1.3680043.8.498.1002"
FRAME_OF_REFERENCE_UID = "1.2.826.0.1.3680043.8.498.1003"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Grid:
    """The geometry of a synthetic series.

    shape: (Z, Y, X). spacing_mm: (z, y, x). orientation: ImageOrientationPatient (row, then column direction).
    """

    shape: tuple[int, int, int] = (8, 32, 40)
    spacing_mm: tuple[float, float, float] = (4.0, 2.0, 1.5)
    orientation: tuple[float, ...] = AXIAL
    origin_mm: tuple[float, float, float] = (-30.0, -40.0, 100.0)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """Voxel index (x, y, z, 1) to LPS millimetres; z ascends towards the head."""
        row, column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        normal = np.cross(row, column)
        normal = normal if normal[2] >= 0 else -normal
        z, y, x = self.spacing_mm
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * x, column * y, normal * z, self.origin_mm
        return affine

    def position(self, z: int) -> tuple[float, float, float]:
        """ImagePositionPatient of slice z."""
        x, y, z_ = (self.affine @ (0, 0, z, 1))[:3]
        return float(x), float(y), float(z_)


def slice_dataset(grid: Grid, z: int, hu: npt.NDArray[np.int16], **attributes: Any) -> Dataset:
    """One CT slice, as a scanner writes it. Attributes given as None are left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"{SERIES_UID}.{z + 1}",
        "StudyInstanceUID": STUDY_UID,
        "SeriesInstanceUID": SERIES_UID,
        "FrameOfReferenceUID": FRAME_OF_REFERENCE_UID,
        "PositionReferenceIndicator": "",
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "PatientBirthDate": "19600229",
        "PatientSex": "F",
        "StudyDate": "20200301",
        "StudyTime": "101112",
        "StudyID": "1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "Roe^Richard",
        "Modality": "CT",
        "Manufacturer": "ACME",
        "SeriesNumber": 2,
        "InstanceNumber": z + 1,
        "SliceThickness": grid.spacing_mm[0],
        "KVP": 120,
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        "ImagePositionPatient": list(grid.position(z)),
        "ImageOrientationPatient": list(grid.orientation),
        "PixelSpacing": [grid.spacing_mm[1], grid.spacing_mm[2]],
        "Rows": hu.shape[0],
        "Columns": hu.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
    } | attributes
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = np.ascontiguousarray(hu, dtype="<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def chest(grid: Grid) -> npt.NDArray[np.int16]:
    """HU (Z, Y, X) of a box of tissue with two boxes of lung, left and right."""
    hu = np.full(grid.shape, -1000, dtype=np.int16)
    hu[:, 2:-2, 2:-2] = 40
    hu[lungs(grid)] = -850
    return hu


def lungs(grid: Grid) -> npt.NDArray[np.bool_]:
    """Two boxes that touch no border and differ in size, so that a flip or a swap is visible."""
    z, y, x = grid.shape
    mask = np.zeros(grid.shape, dtype=bool)
    mask[1 : z - 1, y // 4 : y - y // 4, x // 8 : x // 2 - x // 16] = True
    mask[2 : z - 1, y // 4 : y - y // 3, x // 2 + x // 16 : x - x // 8] = True
    return mask


def lesion(grid: Grid) -> npt.NDArray[np.bool_]:
    """A small box inside the lung of the lower columns."""
    z, y, x = grid.shape
    mask = np.zeros(grid.shape, dtype=bool)
    mask[z // 2 : z // 2 + 2, y // 3 : y // 2, x // 6 : x // 3] = True
    return mask


def write_series(folder: Path, grid: Grid | None = None, order: Sequence[int] | None = None, **attributes: Any) -> None:
    """Write a classic series. order: the z of each file in turn, ascending by default."""
    grid = grid or Grid()
    hu = chest(grid)
    folder.mkdir(parents=True, exist_ok=True)
    for number, z in enumerate(order or range(grid.shape[0])):
        dataset = slice_dataset(grid, z, hu[z], **({"InstanceNumber": number + 1} | attributes))
        pydicom.dcmwrite(folder / f"{number:04d}.dcm", dataset, enforce_file_format=True)


def volume_of(folder: Path) -> CTVolume:
    """The volume of a folder of slices with rescale 0 and 1, read without the node's own loader."""
    headers = {path: pydicom.dcmread(path) for path in sorted(folder.iterdir())}
    first = next(iter(headers.values()))
    row, column = np.array(first.ImageOrientationPatient[:3], float), np.array(first.ImageOrientationPatient[3:], float)
    normal = np.cross(row, column)
    normal = normal if normal[2] >= 0 else -normal
    paths = sorted(headers, key=lambda path: float(np.dot(normal, headers[path].ImagePositionPatient)))
    places = [np.array(headers[path].ImagePositionPatient, float) for path in paths]
    step = (places[-1] - places[0]) / (len(places) - 1)
    y, x = (float(v) for v in first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = row * x, column * y, step, places[0]
    return CTVolume(
        hu=np.stack([headers[path].pixel_array.astype(np.int16) for path in paths]),
        spacing_mm=(float(np.linalg.norm(step)), y, x),
        affine=affine,
        slices=tuple(source_slice(path, headers[path]) for path in paths),
        series_instance_uid=str(first.SeriesInstanceUID),
        study_instance_uid=str(first.StudyInstanceUID),
        header=SeriesHeader(modality="CT", body_part=str(first.get("BodyPartExamined", ""))),
    )


def source_slice(path: Path, header: Dataset) -> SourceSlice:
    """The source of a classic slice."""
    x, y, z = (float(v) for v in header.ImagePositionPatient)
    return SourceSlice(path, str(header.SOPInstanceUID), str(header.SOPClassUID), 0, (x, y, z))


def write_enhanced(
    path: Path,
    grid: Grid | None = None,
    order: Sequence[int] | None = None,
    sop_class_uid: str = EnhancedCTImageStorage,
    number: int = 1,
) -> CTVolume:
    """Write one multi-frame CT instance and return the volume as if the instance held all of it.

    order: the z of each frame in turn; for one part of a concatenation, some of them, with a `number` for each part.
    """
    grid = grid or Grid()
    order = list(order or range(grid.shape[0]))
    hu = chest(grid)
    uid = f"{SERIES_UID}.{number}"
    dataset = slice_dataset(grid, 0, hu[0], SOPClassUID=sop_class_uid, SOPInstanceUID=uid, InstanceNumber=number)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "KVP"):
        delattr(dataset, keyword)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.NumberOfFrames = len(order)
    dataset.ContentDate, dataset.ContentTime = "20200301", "101112"
    dataset.SharedFunctionalGroupsSequence = [_shared_groups(grid)]
    dataset.PerFrameFunctionalGroupsSequence = [_frame_groups(grid, z) for z in order]
    dataset.PixelData = np.ascontiguousarray(hu[order], dtype="<i2").tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    frames = {z: frame for frame, z in enumerate(order)}
    return CTVolume(
        hu=hu,
        spacing_mm=grid.spacing_mm,
        affine=grid.affine,
        slices=tuple(
            SourceSlice(path, str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), frames[z], grid.position(z))
            for z in sorted(order)
        ),
        series_instance_uid=SERIES_UID,
        study_instance_uid=STUDY_UID,
        header=SeriesHeader(modality="CT", body_part="CHEST"),
    )


def _shared_groups(grid: Grid) -> Dataset:
    measures = Dataset()
    measures.SliceThickness = grid.spacing_mm[0]
    measures.PixelSpacing = [grid.spacing_mm[1], grid.spacing_mm[2]]
    orientation = Dataset()
    orientation.ImageOrientationPatient = list(grid.orientation)
    groups = Dataset()
    groups.PixelMeasuresSequence = [measures]
    groups.PlaneOrientationSequence = [orientation]
    return groups


def _frame_groups(grid: Grid, z: int) -> Dataset:
    position = Dataset()
    position.ImagePositionPatient = list(grid.position(z))
    content = Dataset()
    content.DimensionIndexValues = [1, z + 1]
    content.StackID = "1"
    content.InStackPositionNumber = z + 1
    groups = Dataset()
    groups.PlanePositionSequence = [position]
    groups.FrameContentSequence = [content]
    return groups


def model(**changes: Any) -> ModelIdentity:
    """A model of the first kind whose digests are recognisable in an object."""
    values: dict[str, Any] = {
        "name": "covid-ct",
        "version": "1.0",
        "profile": "authors",
        "digest": "d" * 64,
        "unet_sha256": "a1" * 32,
        "decovnet_sha256": "b2" * 32,
        "threshold": 0.5,
        "verified": True,
        "demonstration": False,
    } | changes
    unet, decovnet = values.pop("unet_sha256"), values.pop("decovnet_sha256")
    parts = algorithms_of(values["profile"], values["threshold"], unet, decovnet, values["digest"])
    return ModelIdentity(**values, weights={"unet": unet, "decovnet": decovnet}, algorithms=parts, words=WORDS)


def verdict_on(volume: CTVolume, probability: float = 0.91273, **changes: Any) -> Verdict:
    """A verdict whose lung mask is every voxel below -500 HU inside the body."""
    mask = (volume.hu < -500) & (volume.hu > -950)
    half = volume.hu.shape[2] // 2
    values: dict[str, Any] = {
        "probability": probability,
        "lung_mask": mask,
        "lung_volume_ml": mask.sum() * volume.voxel_ml,
        "left_lung_ml": mask[:, :, half:].sum() * volume.voxel_ml,
        "right_lung_ml": mask[:, :, :half].sum() * volume.voxel_ml,
        "localisation": None,
        "heat": None,
        "threshold": 0.5,
        "device": "cpu",
        "precision": "float32",
        "versions": {"torch": "2.0"},
        "timings_s": {"unet": 1.0},
        "checks": (QualityCheck("SLICE_SPACING", "Slices are evenly spaced."),),
    }
    return Verdict(**(values | changes))


def finding_on(volume: CTVolume, probability: float = 0.91273, **changes: Any) -> Finding:
    """A finding of the first kind of model: `verdict_on` in the form of the plug."""
    made_by = changes.pop("model", None) or model()
    verdict = verdict_on(volume, probability, threshold=made_by.threshold, **changes)
    return Finding(made_by, output_of(verdict, volume, made_by), volume.digest())
