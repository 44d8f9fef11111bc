"""What a positive or a negative result means if the disease is rarer or more common. Plain Python only."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class PredictiveValues(NamedTuple):
    """ppv: the share of positive results that are right.  npv: the share of negative results that are right.

    None if no result of that sign can occur.
    """

    ppv: float | None
    npv: float | None


class PredictiveRow(NamedTuple):
    """Predictive values at one prevalence, all 0 to 1."""

    prevalence: float
    ppv: float | None
    npv: float | None


def ppv_npv(sensitivity: float, specificity: float, prevalence: float) -> PredictiveValues:
    """Positive and negative predictive value by Bayes' theorem.

    sensitivity, specificity, prevalence: 0 to 1; the prevalence is that of the people who are scanned.
    Returns both values, 0 to 1, or None if no result of that sign can occur.
    Raises ValueError if an argument is not a number from 0 to 1.
    Source: Altman and Bland 1994, "Diagnostic tests 2: predictive values", BMJ 309:102.
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise ValueError(f"{name} must be between 0 and 1, not {value}")
    true_positive = sensitivity * prevalence
    false_negative = (1.0 - sensitivity) * prevalence
    true_negative = specificity * (1.0 - prevalence)
    false_positive = (1.0 - specificity) * (1.0 - prevalence)
    return PredictiveValues(
        _share(true_positive, true_positive + false_positive),
        _share(true_negative, true_negative + false_negative),
    )


def predictive_table(sensitivity: float, specificity: float, prevalences: Sequence[float]) -> list[PredictiveRow]:
    """Predictive values of one operating point at several prevalences, in the order given."""
    return [PredictiveRow(value, *ppv_npv(sensitivity, specificity, value)) for value in prevalences]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0.0 else None
