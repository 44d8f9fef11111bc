"""Everything that `inference.evaluation` raises on purpose."""

from collections.abc import Sequence
from dataclasses import dataclass

from inference.errors import InferenceError

SHOWN_PROBLEMS = 10


class EvaluationError(InferenceError):
    """The evaluation cannot be made from the input."""


class MissingExtra(EvaluationError):
    """scikit-learn or matplotlib is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"{package} is not installed; evaluation needs: pip install 'dicom-node[evaluate]'")


@dataclass(frozen=True)
class Problem:
    """One problem in a file. Of the file's values it holds only numbers, because text may name a patient.

    line: 1-based.  column: as named in the file's header or in the description of the published form.
    """

    file: str
    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}, column {self.column}: {self.reason}"


class UnusablePredictions(EvaluationError):
    """A predictions or labels file has lines that cannot be used; the message names file, line and column."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        shown = [str(problem) for problem in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            shown.append(f"... and {len(problems) - SHOWN_PROBLEMS} more")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)
