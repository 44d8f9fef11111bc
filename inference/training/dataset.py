"""Which patient is in which part of the data: labels, and splits by patient."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from inference.errors import InferenceError
from inference.evaluation.errors import EvaluationError
from inference.evaluation.predictions import NEGATIVE_WORDS, POSITIVE_WORDS
from inference.evaluation.tables import ColumnNames, Row, read_table


class UnusableLabels(InferenceError):
    """The labels file cannot be used as it is; the message names the line."""


@dataclass(frozen=True)
class LabelledCase:
    """One line of labels.csv.

    case: SeriesInstanceUID, StudyInstanceUID, AccessionNumber, PatientID, or the name of a folder of the case's files.
    patient: cases with the same patient go to the same part; the case itself if the file names no patient.
    line: its number in the file, from 1; 0 if it has none.
    """

    case: str
    patient: str
    covid: bool
    date: date
    line: int = 0


@dataclass(frozen=True)
class Split:
    """The parts of the data. No patient is in more than one."""

    training: tuple[LabelledCase, ...]
    validation: tuple[LabelledCase, ...]
    test: tuple[LabelledCase, ...]

    def __post_init__(self) -> None:
        parts = [{case.patient for case in part} for part in (self.training, self.validation, self.test)]
        if parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]:
            raise UnusableLabels("a patient is in two parts of the split")


def read_labels(path: Path) -> list[LabelledCase]:
    """Read `case,label,date` and, optionally, `patient`; label is 0 or 1 (or a word for it), date YYYY-MM-DD.

    Without a patient column every case is its own patient.
    Raises UnusableLabels for a missing column, an unknown label, an invalid date, a case named twice or no case at all.
    """
    cases: dict[str, LabelledCase] = {}
    try:
        table = read_table(path, ColumnNames(), required=("case", "label"))
    except EvaluationError as error:
        raise UnusableLabels(str(error)) from error
    if table.rows and "date" not in table.rows[0].others:
        raise UnusableLabels("labels lack the column date")
    for row in table.rows:
        if row.problem is not None:
            raise UnusableLabels(f"line {row.line}, column {row.problem[0]}: {row.problem[1]}")
        case = _parse(row)
        if case.case in cases:
            raise UnusableLabels(f"line {row.line}: the case of line {cases[case.case].line} is named again")
        cases[case.case] = case
    if not cases:
        raise UnusableLabels(f"{path.name} names no case")
    return list(cases.values())


def _parse(row: Row) -> LabelledCase:
    label, case = row.roles["label"].lower(), row.roles["case"]
    if label not in POSITIVE_WORDS | NEGATIVE_WORDS:
        raise UnusableLabels(f"line {row.line}: label is 0 or 1")
    if not case:
        raise UnusableLabels(f"line {row.line}: the case is empty")
    try:
        day = date.fromisoformat(row.others["date"])
    except ValueError as error:
        raise UnusableLabels(f"line {row.line}: date is YYYY-MM-DD") from error
    return LabelledCase(case, row.roles.get("patient") or case, label in POSITIVE_WORDS, day, row.line)


def split_by_date(
    cases: Sequence[LabelledCase], first_test_date: date, *, validation_share: float = 0.15, seed: int = 0
) -> Split:
    """Test on everything from `first_test_date` on, as the paper does; the rest trains and validates.

    Raises UnusableLabels if a patient has cases on both sides of the date.
    """
    before = [case for case in cases if case.date < first_test_date]
    after = [case for case in cases if case.date >= first_test_date]
    both = {case.patient for case in before} & {case.patient for case in after}
    if both:
        lines = [", ".join(str(case.line) for case in cases if case.patient == patient) for patient in sorted(both)]
        shown = "; ".join(sorted(lines)[:10])
        raise UnusableLabels(
            f"{len(both)} patients have cases before and after {first_test_date} (lines {shown} of the labels): leave "
            "one side out"
        )
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
    """Draw patients of each class, at least one if the class has two or more, so that both parts hold both classes."""
    held: set[str] = set()
    sick = {case.patient for case in cases if case.covid}
    well = {case.patient for case in cases} - sick
    for patients in (sick, well):
        ordered = sorted(patients)
        random.Random(seed).shuffle(ordered)
        fewest = 1 if share > 0 and len(ordered) > 1 else 0
        held.update(ordered[: max(fewest, round(share * len(ordered)))])
    return [c for c in cases if c.patient not in held], [c for c in cases if c.patient in held]
