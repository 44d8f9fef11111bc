"""Counts and proportions at a threshold, curves, operating points and calibration.

A case is called positive if its probability is at or above the threshold, as in the node's report.
scikit-learn computes the curves and areas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inference.evaluation.extra import load
from inference.evaluation.intervals import Bools, Floats, Interval, wilson

PAPER_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of its Table 2
TARGET = 0.95  # the paper's high-sensitivity and high-specificity points
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class ThresholdRow:
    """The results at one threshold. A proportion of no cases is None, such as the PPV if no case is called positive."""

    threshold: float
    accuracy: float
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None
    balanced_accuracy: float | None
    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int
    intervals: dict[str, Interval | None]  # of accuracy, sensitivity, specificity, ppv, npv


@dataclass(frozen=True)
class Curve:
    """Points of a curve, x and y of equal length, and the threshold of each point (None past the last threshold)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    thresholds: tuple[float | None, ...]


@dataclass(frozen=True)
class CalibrationBin:
    """Cases with a probability from low to high: the mean probability, and the share that is positive."""

    low: float
    high: float
    cases: int
    mean_probability: float
    positive_share: float
    interval: Interval | None


def threshold_row(label: Bools, probability: Floats, threshold: float) -> ThresholdRow:
    """Counts, proportions and Wilson intervals at one threshold. label, probability: (N,), N at least 1."""
    called = probability >= threshold
    true_positive, false_positive = int((called & label).sum()), int((called & ~label).sum())
    false_negative, true_negative = int((~called & label).sum()), int((~called & ~label).sum())
    shares = {
        "accuracy": (true_positive + true_negative, len(label)),
        "sensitivity": (true_positive, true_positive + false_negative),
        "specificity": (true_negative, true_negative + false_positive),
        "ppv": (true_positive, true_positive + false_positive),
        "npv": (true_negative, true_negative + false_negative),
    }
    values = {name: part / whole if whole else None for name, (part, whole) in shares.items()}
    sensitivity, specificity = values["sensitivity"], values["specificity"]
    both = sensitivity is not None and specificity is not None
    return ThresholdRow(
        threshold=threshold,
        accuracy=(true_positive + true_negative) / len(label),
        sensitivity=sensitivity,
        specificity=specificity,
        ppv=values["ppv"],
        npv=values["npv"],
        balanced_accuracy=((sensitivity or 0.0) + (specificity or 0.0)) / 2 if both else None,
        true_positive=true_positive,
        false_positive=false_positive,
        true_negative=true_negative,
        false_negative=false_negative,
        intervals={name: wilson(part, whole) for name, (part, whole) in shares.items()},
    )


def roc_curve(label: Bools, probability: Floats) -> Curve:
    """False positive rate (x) and sensitivity (y) at every threshold that changes something. Needs both classes."""
    false_positive, sensitivity, thresholds = _sklearn().roc_curve(label, probability, drop_intermediate=False)
    finite = [float(value) if np.isfinite(value) else None for value in thresholds]
    return Curve(tuple(map(float, false_positive)), tuple(map(float, sensitivity)), tuple(finite))


def pr_curve(label: Bools, probability: Floats) -> Curve:
    """Recall (x) and precision (y), from the highest recall to the point (0, 1). Needs both classes."""
    precision, recall, thresholds = _sklearn().precision_recall_curve(label, probability)
    return Curve(tuple(map(float, recall)), tuple(map(float, precision)), (*map(float, thresholds), None))


def roc_auc(label: Bools, probability: Floats) -> float:
    """Area under the ROC curve; ties count one half. Needs both classes."""
    return float(_sklearn().roc_auc_score(label, probability))


def average_precision(label: Bools, probability: Floats) -> float:
    """Area under the precision-recall curve as a sum of steps, which does not interpolate between points."""
    return float(_sklearn().average_precision_score(label, probability))


def trapezoid_pr_auc(curve: Curve) -> float:
    """Area under the precision-recall curve with straight lines between its points; too optimistic with few points."""
    return float(_sklearn().auc(curve.x, curve.y))


def brier(label: Bools, probability: Floats) -> float:
    """Mean squared difference between probability and truth: 0 is perfect, always predicting one half gives 0.25."""
    return float(np.mean(np.square(probability - label)))


def operating_points(label: Bools, probability: Floats, target: float = TARGET) -> dict[str, ThresholdRow]:
    """Points of the ROC curve worth choosing, each named after its rule. Needs both classes.

    high_sensitivity, high_specificity: nearest to the target, the paper's "approximately 0.95"; among equal ones,
        the highest threshold, which gives the paper's 0.786 specificity and 0.880 sensitivity.
    balanced: the lower of sensitivity and specificity is as high as possible; the paper's 0.907 and 0.911.
    youden: the greatest sum of both.
    sensitivity_at_least_0.95, specificity_at_least_0.95: not just near 0.95; left out if no threshold reaches it.
    """
    curve = roc_curve(label, probability)
    # The first point calls nothing positive, which no threshold that a site can set does. Rounded, because 1 - fpr is.
    threshold = np.array(curve.thresholds[1:], dtype=np.float64)
    sensitivity, specificity = np.round(curve.y[1:], 12), np.round(1.0 - np.array(curve.x[1:]), 12)
    rules: dict[str, tuple[npt.NDArray[Any], ...]] = {
        "high_sensitivity": (-np.round(abs(sensitivity - target), 12), threshold),
        "high_specificity": (-np.round(abs(specificity - target), 12), threshold),
        "balanced": (np.minimum(sensitivity, specificity), sensitivity + specificity),
        "youden": (sensitivity + specificity,),
    }
    if sensitivity.max() >= target:
        rules[f"sensitivity_at_least_{target:g}"] = (sensitivity >= target, specificity, sensitivity)
    if specificity.max() >= target:
        rules[f"specificity_at_least_{target:g}"] = (specificity >= target, sensitivity, specificity)
    best = {name: int(np.lexsort(keys[::-1])[-1]) for name, keys in rules.items()}
    return {name: threshold_row(label, probability, float(threshold[index])) for name, index in best.items()}


def calibration(label: Bools, probability: Floats, bins: int = CALIBRATION_BINS) -> list[CalibrationBin]:
    """Equal bins of probability, except empty ones; the last bin includes 1."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    result = []
    for number in np.unique(index):
        inside = index == number
        positives, cases = int(label[inside].sum()), int(inside.sum())
        result.append(
            CalibrationBin(
                low=float(number / bins),
                high=float((number + 1) / bins),
                cases=cases,
                mean_probability=float(probability[inside].mean()),
                positive_share=positives / cases,
                interval=wilson(positives, cases),
            )
        )
    return result


def calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Expected calibration error: the mean gap between predicted and observed, weighted by cases."""
    gaps = sum(entry.cases * abs(entry.mean_probability - entry.positive_share) for entry in bins)
    return gaps / sum(entry.cases for entry in bins)


def _sklearn() -> Any:
    return load("sklearn.metrics")
