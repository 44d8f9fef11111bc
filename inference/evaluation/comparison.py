"""Two models on the same cases: a second version that ran as a shadow of the one in use."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from inference.evaluation import metrics
from inference.evaluation.errors import EvaluationError
from inference.evaluation.intervals import Floats, Interval, Z, delong_components
from inference.evaluation.predictions import Predictions


@dataclass(frozen=True)
class Comparison:
    """The second model (shadow) against the first, on the cases that both have.

    difference: ROC AUC of the shadow minus that of the first, with DeLong's interval and p-value for paired curves.
    only_first_right, only_shadow_right: cases that only one of the two classifies correctly at the threshold; the
        p-value of their difference is from McNemar's exact test.
    mean_difference, largest_difference: of the probabilities, shadow minus first; the largest is of either sign.
    """

    source: str
    sha256: str
    cases: int
    only_in_first: int
    only_in_shadow: int
    threshold: float
    roc_auc: float | None
    shadow_roc_auc: float | None
    difference: float | None
    difference_interval: Interval | None
    difference_p: float | None
    agree: int
    only_first_right: int
    only_shadow_right: int
    mcnemar_p: float
    mean_difference: float
    largest_difference: float


def compare(first: Predictions, shadow: Predictions, threshold: float) -> Comparison:
    """Compare two models' probabilities case by case.

    Raises EvaluationError if either does not name its cases, if they share none, or if the truth of a case differs.
    """
    one, two = _shared_cases(first, shadow)
    label, before, after = first.label[one], first.probability[one], shadow.probability[two]
    if not np.array_equal(label, shadow.label[two]):
        raise EvaluationError(f"{first.source} and {shadow.source} give different labels to the same case")
    right, shadow_right = (before >= threshold) == label, (after >= threshold) == label
    only_first, only_shadow = int((right & ~shadow_right).sum()), int((shadow_right & ~right).sum())
    disagreeing = only_first + only_shadow
    both = bool(label.any() and not label.all())
    difference = after - before
    interval, p_value = _paired_delong(label, before, after)
    area, shadow_area = (metrics.roc_auc(label, values) if both else None for values in (before, after))
    return Comparison(
        source=shadow.source,
        sha256=shadow.sha256,
        cases=len(label),
        only_in_first=len(first) - len(label),
        only_in_shadow=len(shadow) - len(label),
        threshold=threshold,
        roc_auc=area,
        shadow_roc_auc=shadow_area,
        difference=shadow_area - area if area is not None and shadow_area is not None else None,
        difference_interval=interval,
        difference_p=p_value,
        agree=len(label) - disagreeing,
        only_first_right=only_first,
        only_shadow_right=only_shadow,
        mcnemar_p=float(binomtest(only_first, disagreeing).pvalue) if disagreeing else 1.0,
        mean_difference=float(difference.mean()),
        largest_difference=float(difference[np.argmax(np.abs(difference))]),
    )


def _shared_cases(first: Predictions, shadow: Predictions) -> tuple[list[int], list[int]]:
    for predictions in (first, shadow):
        if not predictions.case:
            raise EvaluationError(f"{predictions.source} has no case column; two models are compared case by case")
    places = {case: index for index, case in enumerate(shadow.case)}
    pairs = [(index, places[case]) for index, case in enumerate(first.case) if case in places]
    if not pairs:
        raise EvaluationError(f"{first.source} and {shadow.source} have no case in common")
    return [one for one, _ in pairs], [two for _, two in pairs]


def _paired_delong(label: np.ndarray, before: Floats, after: Floats) -> tuple[Interval | None, float | None]:
    """DeLong's interval and two-sided p-value of the difference of two areas on the same cases."""
    if label.sum() < 2 or (~label).sum() < 2:
        return None, None
    area, above, below = delong_components(label, before)
    shadow_area, shadow_above, shadow_below = delong_components(label, after)
    variance = (shadow_above - above).var(ddof=1) / len(above) + (shadow_below - below).var(ddof=1) / len(below)
    difference = shadow_area - area
    if variance == 0.0:
        return None, None
    deviation = math.sqrt(variance)
    interval = Interval(difference - Z * deviation, difference + Z * deviation, "DeLong, paired")
    return interval, float(2 * norm.sf(abs(difference) / deviation))
