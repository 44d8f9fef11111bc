"""Predictions with labels; every value is checked before any figure is computed from it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inference.evaluation.errors import EvaluationError, Problem, UnusablePredictions
from inference.evaluation.tables import ColumnNames, Row, Table, number, read_table

POSITIVE_WORDS = frozenset({"1", "1.0", "true", "yes", "positive", "pos", "covid", "covid-19", "ncov"})
NEGATIVE_WORDS = frozenset({"0", "0.0", "false", "no", "negative", "neg", "normal"})
SUM_TOLERANCE = 1e-3  # how far P(normal) + P(COVID) may be from 1; if further, the columns are not what they seem


@dataclass(frozen=True)
class Predictions:
    """Cases with a probability and a true label.

    source, sha256: the file's name without its folder, and the digest of its bytes.
    probability: (N,) float64, 0 to 1.  label: (N,) bool, True is COVID-19.
    case: N names, or empty if the file has no such column.  patient: likewise; series of one patient share it.
    columns: every other column of the CSV by normalised name, N values each, "" where empty.
    left_out: lines that could not be used, if skipping them was allowed.
    notes: what readers of the result should know about the input.
    """

    source: str
    sha256: str
    probability: npt.NDArray[np.float64]
    label: npt.NDArray[np.bool_]
    case: tuple[str, ...] = ()
    patient: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.probability)


@dataclass(frozen=True)
class _Labelled:
    row: Row
    probability: float
    label: bool


def read_predictions(
    path: Path,
    *,
    names: ColumnNames | None = None,
    labels: Path | None = None,
    skip_unusable: bool = False,
) -> Predictions:
    """Read predictions and labels from a CSV or from the published text form.

    labels: a CSV of case and label, if the predictions do not carry the label themselves; its other columns
        (sex, age, scanner ...) are kept.
    skip_unusable: skip lines that lack a value or hold an impossible one, and list them in `left_out`.
        A case that occurs twice with different values is still refused.
    Raises UnusablePredictions, which names file, line and column; EvaluationError if the file cannot be read or
    no case is left.
    """
    table = read_table(path, names or ColumnNames(), required=("probability",) if labels else ("probability", "label"))
    notes = list(table.notes)
    problems: list[Problem] = []
    if labels is not None:
        label_table = read_table(labels, ColumnNames(), required=("case", "label"))
        table, unmatched = _join(table, label_table, problems)
        notes += [f"{unmatched} labelled cases have no prediction and are not in the figures"] if unmatched else []
    accepted = _without_repeats(table, list(_judged(table, problems)), problems, skip_unusable)
    if problems and not skip_unusable:
        raise UnusablePredictions(sorted(problems, key=lambda problem: (problem.file, problem.line)))
    if not accepted:
        raise EvaluationError(f"{path.name} holds no usable case")
    return _assemble(table, accepted, problems, notes)


@dataclass(frozen=True)
class Labels:
    """A labels file. rows: by case, in the file's order, each with a valid label.  column: the case column's title."""

    file: str
    column: str
    rows: Mapping[str, Row]


def read_labels(path: Path) -> Labels:
    """Read a CSV of case and label. Raises as `read_predictions` does, for every line that cannot be used."""
    table = read_table(path, ColumnNames(), required=("case", "label"))
    problems: list[Problem] = []
    rows, _ = _by_case(table, problems)
    if problems:
        raise UnusablePredictions(problems)
    if not rows:
        raise EvaluationError(f"{path.name} holds no usable case")
    return Labels(table.file, table.titles["case"], rows)


def _assemble(
    table: Table, accepted: Sequence[_Labelled], problems: Sequence[Problem], notes: Sequence[str]
) -> Predictions:
    others = sorted({name for entry in accepted for name in entry.row.others})
    return Predictions(
        source=table.file,
        sha256=table.sha256,
        probability=np.array([entry.probability for entry in accepted], dtype=np.float64),
        label=np.array([entry.label for entry in accepted], dtype=np.bool_),
        case=_role(accepted, "case") if "case" in table.titles else (),
        patient=_role(accepted, "patient") if "patient" in table.titles else (),
        columns={name: tuple(entry.row.others.get(name, "") for entry in accepted) for name in others},
        left_out=tuple(problems),
        notes=tuple(notes),
    )


def _role(accepted: Sequence[_Labelled], role: str) -> tuple[str, ...]:
    return tuple(entry.row.roles.get(role, "") for entry in accepted)


# Judging values


def _judged(table: Table, problems: list[Problem]) -> Iterator[_Labelled]:
    for row in table.rows:
        if row.problem is not None:
            problems.append(Problem(table.file, row.line, *row.problem))
            continue
        try:
            yield _Labelled(row, *_values(row, table.titles))
        except _Unusable as unusable:
            problems.append(Problem(table.file, row.line, unusable.column, unusable.reason))


class _Unusable(Exception):
    """A value cannot be used."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(column, reason)
        self.column, self.reason = column, reason


def _values(row: Row, titles: Mapping[str, str]) -> tuple[float, bool]:
    for role in ("case", "patient"):
        if role in titles and not row.roles.get(role, ""):
            raise _Unusable(titles[role], "is empty")
    probability = _probability(row.roles.get("probability", ""), titles["probability"])
    if "normal" in titles:
        total = _probability(row.roles["normal"], titles["normal"]) + probability
        if abs(total - 1.0) > SUM_TOLERANCE:
            raise _Unusable(
                titles["probability"], f"{titles['normal']} and {titles['probability']} add up to {total:.4f}, not to 1"
            )
    return probability, _label(row.roles.get("label", ""), titles["label"])


def _probability(text: str, column: str) -> float:
    if not text:
        raise _Unusable(column, "is empty")
    value = number(text)
    if value is None:
        raise _Unusable(column, "is not a number")
    if math.isnan(value):
        raise _Unusable(column, "is NaN, not a probability")
    if not 0.0 <= value <= 1.0:
        raise _Unusable(column, f"{value:g} is not a probability between 0 and 1")
    return value


def _label(text: str, column: str) -> bool:
    word = text.lower()
    if word in POSITIVE_WORDS:
        return True
    if word in NEGATIVE_WORDS:
        return False
    raise _Unusable(column, "is not a label; use 1 and 0, or positive and negative" if word else "the label is missing")


def _without_repeats(
    table: Table, entries: list[_Labelled], problems: list[Problem], skip_unusable: bool
) -> list[_Labelled]:
    """Keep the first row of each case. Two different answers for one case are always refused."""
    if "case" not in table.titles:
        return entries
    first: dict[str, _Labelled] = {}
    for entry in entries:
        known = first.setdefault(entry.row.roles["case"], entry)
        if known is entry:
            continue
        same = (known.probability, known.label) == (entry.probability, entry.label)
        difference = "" if same else " with another value"
        problem = Problem(
            table.file, entry.row.line, table.titles["case"], f"the same case as in line {known.row.line}{difference}"
        )
        if skip_unusable and not same:
            raise UnusablePredictions([problem])
        problems.append(problem)
    return list(first.values())


def _join(table: Table, labels: Table, problems: list[Problem]) -> tuple[Table, int]:
    """Give each prediction its label and the label file's other columns. Returns the number of unmatched labels."""
    if "case" not in table.titles:
        raise UnusablePredictions(
            [Problem(table.file, 1, "case", "is needed to find each case's label; none was found")]
        )
    known, unusable = _by_case(labels, problems)
    joined = []
    for row in table.rows:
        case = row.roles.get("case", "")
        match = known.get(case)
        if match is not None:
            roles = {**match.roles, **row.roles, "label": match.roles["label"]}
            joined.append(Row(row.line, roles, {**match.others, **row.others}))
        elif row.problem is not None or not case:
            joined.append(row)
        elif case not in unusable:  # those are already reported, by their line in the labels file
            problems.append(Problem(table.file, row.line, table.titles["case"], f"has no label in {labels.file}"))
    titles = {**labels.titles, **table.titles, "label": labels.titles["label"]}
    unmatched = len(known.keys() - {row.roles.get("case", "") for row in table.rows})
    return Table(table.file, table.sha256, titles, tuple(joined), table.notes), unmatched


def _by_case(labels: Table, problems: list[Problem]) -> tuple[dict[str, Row], set[str]]:
    """The usable rows of a labels file by case, and the cases whose row cannot be used."""
    known: dict[str, Row] = {}
    unusable: set[str] = set()
    for row in labels.rows:
        case = row.roles.get("case", "")
        try:
            _judge_label_row(labels, row, known.get(case))
        except _Unusable as error:
            problems.append(Problem(labels.file, row.line, error.column, error.reason))
            if case not in known:
                unusable.add(case)
        else:
            known.setdefault(case, row)
    return known, unusable


def _judge_label_row(labels: Table, row: Row, earlier: Row | None) -> None:
    titles = labels.titles
    if row.problem is not None:
        raise _Unusable(*row.problem)
    if not row.roles["case"]:
        raise _Unusable(titles["case"], "is empty")
    label = _label(row.roles["label"], titles["label"])
    if earlier is None:
        return
    reason = f"the same case as in line {earlier.line}"
    if _label(earlier.roles["label"], titles["label"]) != label:
        # Nothing here can tell which of the two is true.
        raise UnusablePredictions([Problem(labels.file, row.line, titles["case"], f"{reason} with another label")])
    raise _Unusable(titles["case"], reason)
