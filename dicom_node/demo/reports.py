"""The reports of the demonstration as they came back to the PACS: what they say, and whether that is true."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from config.coding import BILATERAL
from dicom_node.report import codes
from inference.densitometry.codes import LAA_PERCENT

MEASUREMENT_GROUP, FINDING_SITE, DERIVATION = "125007", "363698007", "121401"
FILE_NAMES = {"SR": "report", "SEG": "segmentation", "OT": "summary", "KO": "key-images"}
WITHIN_POINTS = 0.5
"""How far a measured share of low attenuation may be from the known one, in percentage points."""


@dataclass(frozen=True)
class Truth:
    """What is in the images of a series. low_percent: share of the lung below -950 HU."""

    lesions: bool
    low_percent: float


@dataclass(frozen=True)
class Verdict:
    """What a report says, what it should say, and whether the two agree."""

    said: str
    known: str
    is_right: bool


def judge(report: Dataset, truth: Truth) -> Verdict:
    """A report beside the truth: the share of low attenuation if the model measured it, otherwise its finding."""
    low = _number(report, LAA_PERCENT.value)
    if low is not None:
        right = abs(low - truth.low_percent) <= WITHIN_POINTS
        return Verdict(f"{low:.1f} % low attenuation", f"{truth.low_percent:.1f} % low attenuation", right)
    known = "lesions" if truth.lesions else "no lesions"
    certainty = _number(report, codes.CERTAINTY.value)
    if certainty is None:
        return Verdict("nothing", known, is_right=False)
    positive = "Positive" in {_meaning(item) for _, item in _whole_lung(report)}
    return Verdict(f"{'positive' if positive else 'negative'}, {certainty:.2f} %", known, positive == truth.lesions)


def lines(report: Dataset) -> list[str]:
    """What a report says of both lungs together, a line for each subject."""
    said: dict[str, list[str]] = {}
    for subject, item in _whole_lung(report):
        said.setdefault(subject, []).append(_in_words(item))
    return [f"{subject}: {', '.join(parts)}" for subject, parts in said.items()]


def write(found: Dataset, folder: Path) -> None:
    """Put an object into a folder, a picture as PNG too."""
    file = folder / f"{FILE_NAMES.get(found.Modality, found.Modality.lower())}.dcm"
    found.save_as(file)
    if found.SOPClassUID == SecondaryCaptureImageStorage:
        pixels = np.frombuffer(found.PixelData, np.uint8)[: found.Rows * found.Columns * 3]
        Image.fromarray(pixels.reshape(found.Rows, found.Columns, 3)).save(file.with_suffix(".png"))


def _number(report: Dataset, concept: str) -> float | None:
    """The first number of a concept that is about both lungs; None if there is none."""
    for _, item in _whole_lung(report):
        if item.ValueType == "NUM" and _concept(item).CodeValue == concept:
            return float(item.MeasuredValueSequence[0].NumericValue)
    return None


def _whole_lung(report: Dataset) -> Iterator[tuple[str, Dataset]]:
    """Numbers and interpretations about both lungs together, each with the finding of its measurement group."""
    for group in (item for item in _below(report) if _concept(item).CodeValue == MEASUREMENT_GROUP):
        places = _places(group)
        subject = next((_meaning(item) for item in _named(group, codes.FINDING.value)), "Both lungs")
        for item in group.ContentSequence:
            told = item.ValueType == "NUM" or _concept(item).CodeValue == codes.INTERPRETATION.value
            if told and (_places(item) or places) == [BILATERAL.value]:
                yield subject, item


def _places(item: Dataset) -> list[str]:
    """Codes of the laterality and the part of the finding site that an item names for itself."""
    below = (one for site in _named(item, FINDING_SITE) for one in _below(site))
    return [str(one.ConceptCodeSequence[0].CodeValue) for one in below]


def _named(item: Dataset, concept: str) -> list[Dataset]:
    """The items right below one that have this concept name."""
    return [one for one in item.get("ContentSequence", []) if _concept(one).CodeValue == concept]


def _below(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from _below(child)


def _concept(item: Dataset) -> Dataset:
    concept: Dataset = item.ConceptNameCodeSequence[0]
    return concept


def _meaning(item: Dataset) -> str:
    return str(item.ConceptCodeSequence[0].CodeMeaning) if item.ValueType == "CODE" else ""


def _in_words(item: Dataset) -> str:
    if item.ValueType == "CODE":
        return _meaning(item)
    measured = item.MeasuredValueSequence[0]
    unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue).replace("[hnsf'U]", "HU")
    derived = "".join(f"{_meaning(one)} " for one in _named(item, DERIVATION))
    return f"{derived}{_concept(item).CodeMeaning} {measured.NumericValue} {unit}"
