"""The same figures for subgroups of the cases: by scanner, slice thickness, sex, age, or any other column."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inference.evaluation import metrics
from inference.evaluation.errors import EvaluationError
from inference.evaluation.intervals import Interval, delong
from inference.evaluation.metrics import threshold_row
from inference.evaluation.predictions import Predictions
from inference.evaluation.tables import normalised

# The name of each subgroup, and the names that its column may have, DICOM keywords among them.
KNOWN = {
    "scanner": ("scanner", "scanner_model", "manufacturer_model_name", "manufacturermodelname", "model"),
    "manufacturer": ("manufacturer", "vendor"),
    "kernel": ("kernel", "convolution_kernel", "convolutionkernel"),
    "slice thickness": ("slice_thickness", "slice_thickness_mm", "slicethickness", "thickness", "thickness_mm"),
    "sex": ("sex", "gender", "patient_sex", "patientsex"),
    "age": ("age", "age_years", "patient_age", "patientage"),
    "site": ("site", "hospital", "institution", "centre", "center"),
}
THICKNESS_EDGES_MM = (1.0, 2.0, 3.0, 5.0)
AGE_EDGES_YEARS = (18.0, 40.0, 60.0, 75.0)
MAX_GROUPS = 30  # a column with more values holds names or measurements, not groups
FEW = 10  # fewer cases of a class prove little, and the table says so
NOT_GIVEN = "not given"
SEXES = {"m": "male", "male": "male", "man": "male", "f": "female", "female": "female", "woman": "female", "o": "other"}


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup's figures. None if a class is missing. few: a class has fewer than ten cases."""

    value: str
    cases: int
    positives: int
    roc_auc: float | None
    roc_auc_interval: Interval | None
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None
    few: bool


def subgroup_rows(
    predictions: Predictions, threshold: float, asked: Sequence[str] = ()
) -> dict[str, list[SubgroupRow]]:
    """Figures for each known column in the file, and for each requested column.

    Raises EvaluationError if a requested column does not exist or has more than 30 values.
    """
    result = {}
    for title, column in _columns(predictions.columns, asked).items():
        values = _grouped(title, predictions.columns[column])
        found = sorted(set(values), key=_order)
        if len(found) > MAX_GROUPS:
            if title in asked:
                raise EvaluationError(f"column {column} has {len(found)} different values: no subgroups")
            continue
        result[title] = [_row(predictions, threshold, np.array(values) == value, value) for value in found]
    return result


def grouped(values: Mapping[str, str]) -> dict[str, str]:
    """The subgroups that one scan is in. values: by title of `KNOWN`, as headers or the index write them."""
    return {title: _grouped(title, [text])[0] for title, text in values.items()}


def figure_name(title: str) -> str:
    """The name of a subgroup's figure: only letters, digits, _ and -, because it becomes a file's name."""
    return "subgroups-" + re.sub(r"[^\w-]+", "-", title)


def _columns(columns: Mapping[str, Sequence[str]], asked: Sequence[str]) -> dict[str, str]:
    found = {}
    for title, names in KNOWN.items():
        present = [name for name in names if name in columns and any(columns[name])]
        if present:
            found[title] = present[0]
    for name in asked:
        if normalised(name) not in columns:
            raise EvaluationError(f"there is no column {name} to make subgroups of")
        if normalised(name) not in found.values():
            found[name] = normalised(name)
    return found


def _row(predictions: Predictions, threshold: float, inside: np.ndarray, value: str) -> SubgroupRow:
    label, probability = predictions.label[inside], predictions.probability[inside]
    at = threshold_row(label, probability, threshold)
    positives, negatives = int(label.sum()), int((~label).sum())
    both = positives > 0 and negatives > 0
    return SubgroupRow(
        value=value,
        cases=len(label),
        positives=positives,
        roc_auc=metrics.roc_auc(label, probability) if both else None,
        roc_auc_interval=delong(label, probability) if both else None,
        sensitivity=at.sensitivity,
        sensitivity_interval=at.intervals["sensitivity"],
        specificity=at.specificity,
        specificity_interval=at.intervals["specificity"],
        few=min(positives, negatives) < FEW,
    )


def _grouped(title: str, texts: Sequence[str]) -> list[str]:
    if title == "slice thickness":
        return [_band(_millimetres(text), THICKNESS_EDGES_MM, "mm", upper_inside=True) for text in texts]
    if title == "age":
        return [_band(_years(text), AGE_EDGES_YEARS, "years", upper_inside=False) for text in texts]
    if title == "sex":
        return [SEXES.get(text.lower(), text or NOT_GIVEN) for text in texts]
    return [text or NOT_GIVEN for text in texts]


def _millimetres(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*(?:mm)?", text.strip(), re.IGNORECASE)
    return float(match[1].replace(",", ".")) if match else None


def _years(text: str) -> float | None:
    """Age in years from a number or a DICOM age string: 045Y, 018M, 006W, 010D."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([YMWD]?)", text.strip().upper())
    if not match:
        return None
    return float(match[1]) / {"": 1.0, "Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}[match[2]]


def _band(value: float | None, edges: Sequence[float], unit: str, *, upper_inside: bool) -> str:
    """The name of the band that contains a value. A thickness band includes its upper edge, an age band its lower."""
    if value is None:
        return NOT_GIVEN
    index = int(np.searchsorted(edges, value, side="left" if upper_inside else "right"))
    most, least = ("up to", "over") if upper_inside else ("under", "from")
    if index == 0:
        return f"{most} {edges[0]:g} {unit}"
    if index == len(edges):
        return f"{least} {edges[-1]:g} {unit}"
    low, high = edges[index - 1], edges[index]
    return f"over {low:g} to {high:g} {unit}" if upper_inside else f"{low:g} to under {high:g} {unit}"


def _order(value: str) -> tuple[int, float, str]:
    """Sort key: bands by number, other names alphabetically, missing values last."""
    first = re.search(r"\d+(?:\.\d+)?", value)
    below = value.startswith(("up to", "under"))
    number = float(first[0]) if first and value.endswith((" mm", " years")) else 0.0
    return (1 if value == NOT_GIVEN else 0), -1.0 if below else number, value
