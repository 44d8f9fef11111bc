"""Who is in which part of the data: labels, and splits by patient."""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from inference.errors import InferenceError


class UnusableLabels(InferenceError):
    """The labels file cannot be used as it is; the message names the line."""


@dataclass(frozen=True)
class LabelledCase:
    """One line of labels.csv.

    case: name of a folder of DICOM files, or a Series Instance UID.  patient: whoever shares it goes to one part.
    """

    case: str
    patient: str
    covid: bool
    date: date


@dataclass(frozen=True)
class Split:
    """Parts that no patient is in two of."""

    training: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]

    def __post_init__(self) -> None:
        parts = [{case.patient for case in part} for part in (self.training, self.validation, self.test)]
        if parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]:
            raise UnusableLabels("a patient is in two parts of the split")


def read_labels(path: Path) -> list[LabelledCase]:
    """Read `case,label,date` and, optionally, `patient`; label is 0 or 1, date YYYY-MM-DD.

    Without a patient column every case is its own patient.
    Raises UnusableLabels for a missing column, another label, a wrong date or a case named twice.
    """
    cases: dict[str, LabelledCase] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = {"case", "label", "date"} - set(reader.fieldnames or ())
        if missing:
            raise UnusableLabels(f"labels lack the column {', '.join(sorted(missing))}")
        for row in reader:
            case = _parse(row, reader.line_num)
            if case.case in cases:
                raise UnusableLabels(f"line {reader.line_num}: a case is named twice")
            cases[case.case] = case
    return list(cases.values())


def _parse(row: dict[str, str], line: int) -> LabelledCase:
    label = (row["label"] or "").strip()
    if label not in ("0", "1"):
        raise UnusableLabels(f"line {line}: label is 0 or 1")
    try:
        day = date.fromisoformat((row["date"] or "").strip())
    except ValueError as error:
        raise UnusableLabels(f"line {line}: date is YYYY-MM-DD") from error
    case = row["case"].strip()
    return LabelledCase(case, (row.get("patient") or case).strip(), label == "1", day)


def split_by_date(
    cases: Sequence[LabelledCase], first_test_date: date, *, validation_share: float = 0.15, seed: int = 0
) -> Split:
    """Test on everything from `first_test_date` on, as the paper does; the rest trains and validates.

    Raises UnusableLabels where a patient has cases on both sides of the date.
    """
    before = [case for case in cases if case.date < first_test_date]
    after = [case for case in cases if case.date >= first_test_date]
    both = {case.patient for case in before} & {case.patient for case in after}
    if both:
        raise UnusableLabels(f"{len(both)} patients have cases before and after {first_test_date}: leave one side out")
    training, validation = _hold_out(before, validation_share, seed)
    return Split(tuple(training), tuple(validation), tuple(after))


def split_by_seed(
    cases: Sequence[LabelledCase], *, test_share: float = 0.2, validation_share: float = 0.15, seed: int = 0
) -> Split:
    """Draw the test patients, then the validation patients among the rest."""
    rest, test = _hold_out(cases, test_share, seed)
    training, validation = _hold_out(rest, validation_share, seed + 1)
    return Split(tuple(training), tuple(validation), tuple(test))


def _hold_out(cases: Sequence[LabelledCase], share: float, seed: int) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Draw patients of each class, so that both parts hold both."""
    held: set[str] = set()
    sick = {case.patient for case in cases if case.covid}
    well = {case.patient for case in cases} - sick
    for patients in (sick, well):
        ordered = sorted(patients)
        random.Random(seed).shuffle(ordered)
        held.update(ordered[: round(share * len(ordered))])
    return [c for c in cases if c.patient not in held], [c for c in cases if c.patient in held]
