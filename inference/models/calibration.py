"""What a site's calibration makes of a model's output: a mapping that a card carries, fitted on local labelled scans.

A calibration never falls where the output rises: it changes what a number means, and never which of two scans scores
higher.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

SMALLEST = 1e-6
"""Outputs nearer to 0 or 1 count as this far from it: a network that is surer than that has rounded."""
Method = Literal["threshold", "platt", "isotonic"]


@dataclass(frozen=True)
class Calibration:
    """How a site reads a model's output.

    method: "threshold": the output stays as it is, and only the threshold is the site's.
        "platt": log odds of the probability = intercept + slope * log odds of the output (Platt 1999).
        "isotonic": straight lines between `outputs` and `probabilities`, ascending (Zadrozny and Elkan 2002).
    site, date: where and when (ISO date) it was fitted.  base_digest: of the model that it was fitted for.
    cases, positives: how many scans it was fitted on.  data_sha256: of their outputs and labels.
    """

    method: Method
    site: str
    date: str
    base_digest: str
    cases: int
    positives: int
    data_sha256: str
    slope: float = 1.0
    intercept: float = 0.0
    outputs: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in ("threshold", "platt", "isotonic"):
            raise ValueError('method: expected "threshold", "platt" or "isotonic"')
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope > 0):
            raise ValueError("slope, intercept: expected finite numbers, the slope above 0")
        if self.method == "isotonic":
            _require_ascending(self.outputs, self.probabilities)

    def apply(self, output: float) -> float:
        """The probability that the site reads from an output, both 0 to 1."""
        return float(self.apply_all(np.array([output], dtype=np.float64))[0])

    def apply_all(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The same for (N,) outputs."""
        if self.method == "platt":
            return logistic(self.intercept + self.slope * log_odds(outputs))
        if self.method == "isotonic":
            return np.interp(outputs, self.outputs, self.probabilities)
        return outputs

    def apply_log_odds(self, score: float) -> float:
        """The log odds of the probability that the site reads from an output with these log odds."""
        if self.method == "platt":
            return self.intercept + self.slope * score
        return float(log_odds(self.apply_all(logistic(np.array([score]))))[0]) if self.method == "isotonic" else score

    def sentence(self) -> str:
        """Where it comes from, for reports."""
        return f"{self.site}, {self.date}: {self.cases} cases, {self.positives} positive"


def log_odds(outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Natural logarithm of the odds of (N,) outputs, 0 and 1 counting as SMALLEST away from themselves."""
    clipped = np.clip(outputs, SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def logistic(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The probability of log odds."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * scores)))


def _require_ascending(outputs: tuple[float, ...], probabilities: tuple[float, ...]) -> None:
    if len(outputs) < 2 or len(outputs) != len(probabilities):
        raise ValueError("outputs, probabilities: expected two or more of each, as many of one as of the other")
    if not all(low < high for low, high in pairwise(outputs)):
        raise ValueError("outputs: expected ascending numbers")
    if not all(low <= high for low, high in pairwise(probabilities)):
        raise ValueError("probabilities: expected numbers that never fall")
    if not all(0 <= value <= 1 for value in (*outputs, *probabilities)):
        raise ValueError("outputs, probabilities: expected numbers from 0 to 1")
