"""Every kind of object that the node writes, made of invented images by the same code that makes those of patients.

A statement about objects that was written by hand would be wrong sooner or later. These are walked instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
)

from config.coding import BILATERAL, LUNG, NEGATIVE, Code
from config.headers import quiet
from config.reasons import ReasonCode, Refusal
from dicom_node.report import copied
from dicom_node.report.context import ReportContext
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.objects import KINDS, build_all
from dicom_node.report.sources import UTF_8, Source, read_sources
from dicom_node.report.structured_report import build_report
from inference.covid.card import WORDS, algorithms_of
from inference.covid.output import output_of
from inference.covid.verdict import Verdict
from inference.finding import Algorithm, ModelIdentity, QualityCheck, Words
from inference.plug import Finding, FindingByCode, Measurement, Output, Segment
from inference.volume.ct_volume import CTVolume, SeriesHeader, SourceSlice

NOT_ANALYSED = "not analysed"
"""What the report on a series without a finding is called here; it is of the kind "report"."""
NEGATIVE_REPORT = "negative report"
MULTI_FRAME = 3
"""The number of the specimen that is made of one multi-frame instance."""
_BY_VR: Mapping[str, tuple[str, str]] = {
    "DA": ("20260102", "20260304"),
    "TM": ("101112", "131415"),
    "DT": ("20260102101112", "20260304131415"),
    "PN": ("Doe^Jane", "Roe^Richard"),
    "AS": ("061Y", "042Y"),
    "DS": ("1.25", "2.5"),
    "IS": ("4", "7"),
    "UI": ("2.25.111", "2.25.222"),
    "CS": ("ISO", "DNS"),
}
_MEASURED = Code("112031", "DCM", "Attenuation Coefficient")
_UNIT = Code("[hnsf'U]", "UCUM", "Hounsfield unit")


@dataclass(frozen=True)
class Specimen:
    """The objects that were made of one invented series, by kind. source: the header that they took values from."""

    objects: Mapping[str, Dataset]
    source: Source
    context: ReportContext

    def of(self, kind: str) -> Dataset:
        """The object of a kind."""
        return self.objects[kind]


@cache
def specimens() -> tuple[Specimen, Specimen, Specimen, Specimen]:
    """Two of series, models and settings that differ in every value.

    The third is of a series that says next to nothing, the fourth of one with all its frames in one instance.
    """
    return _specimen(0, _attributes(0)), _specimen(1, _attributes(1)), _specimen(2, {}), _specimen(MULTI_FRAME, {})


def _specimen(number: int, attributes: Mapping[str, Any]) -> Specimen:
    with TemporaryDirectory(prefix="dicom-node-") as folder, quiet():
        volume = _volume(Path(folder), number, attributes)
        sources, context = read_sources(volume), _context(number)
        finding = _other_finding(volume) if number == 1 else _finding(volume, number, 0.9 + number / 100)
        built = {str(kind): made for kind, made in build_all(finding, volume, sources, context, KINDS)}
        segmentation = built["segmentation"]
        negative = _finding(volume, number, 0.1)
        built[NEGATIVE_REPORT] = build_report(negative, volume, sources, context, segmentation)
        refusal = Refusal(ReasonCode.NOT_CT, "The series is not CT.")
        built[NOT_ANALYSED] = build_not_analysed(refusal, sources, context, finding.model)
    return Specimen(built, sources[0], context)


def _attributes(which: int) -> dict[str, Any]:
    """A value for everything that objects take from a header."""
    simple = {keyword: _value(keyword, which) for keyword in copied.SIMPLE}
    items = {keyword: [_item(keyword, which)] for keyword in copied.ITEMS}
    # Values with a pattern of their own, and one that makes others required.
    special = {
        "TimezoneOffsetFromUTC": ("+0100", "-0500")[which],
        "LossyImageCompressionMethod": ("ISO_10918_1", "ISO_14495_1")[which],
        "PatientIdentityRemoved": "YES",
    }
    return {**simple, **items, **special}


def _value(keyword: str, which: int) -> str:
    allowed = copied.ENUMERATED.get(keyword)
    if allowed:
        return allowed[which]
    texts = _BY_VR.get(dictionary_VR(keyword))
    return texts[which] if texts else f"{keyword[:12]} {which}"


def _item(keyword: str, which: int) -> Dataset:
    item = Dataset()
    for name in copied.ITEMS[keyword][0]:
        setattr(item, name, _value(name, which))
    return item


def _volume(folder: Path, number: int, attributes: Mapping[str, Any]) -> CTVolume:
    """The invented series, whose headers are in files as those of received ones are. No two have the same geometry."""
    shape = (8 + number, 32 + 2 * number, 40 + 2 * number)
    z_mm, y_mm, x_mm = 4.0 + number, 2.0 + number / 4, 1.5 + number / 4
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 2:-2, 2:-2] = 40
    hu[_lungs(shape)] = -850
    uid = f"2.25.{1000 + number}"
    many = number != MULTI_FRAME
    sop_class = str(CTImageStorage if many else EnhancedCTImageStorage)
    slices = []
    for z in range(shape[0]):
        position = (-30.0 - number, -40.0 - number, 100.0 + number + z * z_mm)
        file = z if many else 0
        path = folder / f"{file}.dcm"
        dcmwrite(path, _header(uid, sop_class, file, attributes), enforce_file_format=True)
        slices.append(SourceSlice(path, f"{uid}.3.{file + 1}", sop_class, 0 if many else z, position))
    turned = -1.0 if number == 1 else 1.0
    affine = np.diag((turned * x_mm, turned * y_mm, z_mm, 1.0))
    affine[:3, 3] = slices[0].position_mm
    return CTVolume(hu, (z_mm, y_mm, x_mm), affine, tuple(slices), f"{uid}.2", f"{uid}.1", SeriesHeader(modality="CT"))


def _header(uid: str, sop_class: str, z: int, attributes: Mapping[str, Any]) -> Dataset:
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SpecificCharacterSet = UTF_8
    for keyword, value in attributes.items():
        setattr(header, keyword, value)
    header.SOPClassUID, header.SOPInstanceUID = sop_class, f"{uid}.3.{z + 1}"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    header.InstanceNumber = z + 1
    return header


def _lungs(shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    z, y, x = shape
    mask = np.zeros(shape, dtype=bool)
    mask[1 : z - 1, y // 4 : y - y // 4, x // 8 : x // 2 - x // 16] = True
    mask[2 : z - 1, y // 4 : y - y // 3, x // 2 + x // 16 : x - x // 8] = True
    return mask


def _region(shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    z, y, x = shape
    mask = np.zeros(shape, dtype=bool)
    mask[z // 2 : z // 2 + 2, y // 3 : y // 2, x // 6 : x // 3] = True
    return mask


def _finding(volume: CTVolume, number: int, probability: float) -> Finding:
    """A finding of the two networks; positive from 0.5 on."""
    digest = f"{number + 1}" * 64
    parts = algorithms_of("profile", 0.5, f"{number + 3}" * 64, f"{number + 5}" * 64, digest)
    model = ModelIdentity(
        "networks", "1.0", digest, threshold=0.5, algorithms=parts, words=WORDS, weights={}, verified=True
    )
    lungs, half = _lungs(volume.hu.shape), volume.hu.shape[2] // 2
    verdict = Verdict(
        probability=probability,
        lung_mask=lungs,
        lung_volume_ml=float(lungs.sum() * volume.voxel_ml),
        left_lung_ml=float(lungs[:, :, half:].sum() * volume.voxel_ml),
        right_lung_ml=float(lungs[:, :, :half].sum() * volume.voxel_ml),
        localisation=_region(volume.hu.shape),
        heat=None,
        threshold=0.5,
        device="cpu",
        precision="float32",
        versions={},
        timings_s={},
        checks=(QualityCheck("SLICE_SPACING", "Slices are evenly spaced."),),
    )
    return Finding(model, output_of(verdict, volume, model), digest)


def _other_finding(volume: CTVolume) -> Finding:
    """A finding of a model that says everything otherwise."""
    part = Algorithm("Part", "Measures something")
    model = ModelIdentity("other", "2.0", "f" * 64, algorithms=(part,), words=Words("Specimen"), verified=True)
    structure, place = Code("113343008", "SCT", "Organ"), Code("44029006", "SCT", "Left lung")
    outside = np.zeros(volume.hu.shape, dtype=bool)
    outside[2:4, 3:5, 3:5] = True
    lungs = Segment(
        "Organ", _lungs(volume.hu.shape), structure, LUNG, "anatomy", algorithm="Part", colour_lab=(50, 1, 2)
    )
    found = Segment("Spot", outside, structure, _MEASURED, "finding", label="A spot")
    output = Output(
        measurements=(Measurement(_MEASURED, -700.5, _UNIT, LUNG, BILATERAL, segment="Organ"),),
        findings=(FindingByCode("Sign", place, NEGATIVE, certainty=0.2, threshold=0.4, segment="Organ"),),
        segments=(lungs, found),
        algorithms=(part,),
        statements=("A statement.",),
    )
    return Finding(model, output, "e" * 64)


def _context(number: int) -> ReportContext:
    """Settings of a site; the third one names no institution and has no result before this one."""
    return ReportContext(
        created_at=datetime(2026, 3 + number, 1 + number, 12 + number, 30 + number, 10 + number, 7000, tzinfo=UTC),
        manufacturer=f"Maker {number}",
        device_name=f"Node {number}",
        device_serial=f"N{number}",
        software_version=f"Release {number}",
        institution="" if number > 1 else f"Site {number}",
        predecessor=None if number > 1 else _predecessor(number),
        revision=2 + number,
        series_numbers=9000 + 10 * number,
    )


def _predecessor(number: int) -> Dataset:
    earlier = Dataset()
    earlier.SOPClassUID = (Comprehensive3DSRStorage, EnhancedSRStorage)[number]
    earlier.StudyInstanceUID, earlier.SeriesInstanceUID, earlier.SOPInstanceUID = (
        f"2.25.{900 + 10 * number + place}" for place in range(3)
    )
    return earlier


def of_kind(kind: str, those: Sequence[Specimen]) -> list[Dataset]:
    """The object of this kind of each specimen."""
    return [one.of(kind) for one in those]
