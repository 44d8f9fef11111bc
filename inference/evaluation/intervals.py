"""95% intervals: Wilson's for proportions, DeLong's for the area under the ROC curve, the bootstrap for the rest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEVEL = 0.95
Z = 1.959963984540054  # 97.5% point of the normal distribution
BATCH_ELEMENTS = 4_000_000  # resamples are taken in blocks of about this many numbers, 32 MB

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Weights = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval and the method that gave it."""

    low: float
    high: float
    method: str
    level: float = LEVEL


@dataclass(frozen=True)
class Bootstrapped:
    """Percentile intervals from one bootstrap; None if every resample gave the same value."""

    roc_auc: Interval | None
    pr_auc: Interval | None
    brier: Interval | None


def wilson(successes: int, total: int) -> Interval | None:
    """Wilson's score interval of a proportion, or None if there are no cases.

    Source: Wilson 1927; recommended for small numbers by Brown, Cai and DasGupta 2001.
    """
    if total == 0:
        return None
    share = successes / total
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == total else min(1.0, centre + half)
    return Interval(low, high, "Wilson")


def delong_components(label: Bools, probability: Floats) -> tuple[float, Floats, Floats]:
    """The area and its structural components, one for each positive and each negative case.

    Returns the area, (P,) and (N,) floats: how often each positive case lies above the negatives, and each negative
    below the positives, ties counting one half.
    Source: DeLong et al. 1988, Biometrics 44:837; computed from midranks as Sun and Xu 2014 do.
    """
    # Here, not at the top: it costs a second, and the watch needs only the proportions.
    from scipy.stats import rankdata

    positive, negative = probability[label], probability[~label]
    ranks = rankdata(np.concatenate((positive, negative)))
    above = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    below = 1.0 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return float(above.mean()), above, below


def delong(label: Bools, probability: Floats) -> Interval | None:
    """DeLong's interval of the area under the ROC curve, cut at 0 and 1.

    None if it cannot be computed: a class has fewer than two cases, or the classes do not overlap. Without overlap the
    method's variance is zero, and its interval would be a single point.
    """
    if label.sum() < 2 or (~label).sum() < 2:
        return None
    area, above, below = delong_components(label, probability)
    deviation = math.sqrt(above.var(ddof=1) / len(above) + below.var(ddof=1) / len(below))
    if deviation == 0.0:
        return None
    return Interval(max(0.0, area - Z * deviation), min(1.0, area + Z * deviation), "DeLong")


def bootstrap(
    label: Bools, probability: Floats, *, groups: npt.NDArray[np.int64] | None, resamples: int, seed: int
) -> Bootstrapped:
    """Percentile bootstrap of ROC AUC, PR AUC (average precision) and Brier score.

    groups: (N,) patient number of each case, if patients have several; then patients are drawn, not cases.
        Without it, cases are drawn within each class, so that the prevalence stays the same.
    Both classes must be present. The same seed gives the same interval.
    """
    generator = np.random.default_rng(seed)
    draws: list[tuple[Floats, Floats, Floats]] = []
    blocks = _by_class(label, resamples, generator) if groups is None else _by_group(groups, resamples, generator)
    order = np.argsort(-probability, kind="stable")
    error = np.square(probability - label)
    for weights in blocks:
        both = (weights[:, label].sum(axis=1) > 0) & (weights[:, ~label].sum(axis=1) > 0)
        weights = weights[both]
        roc, average_precision = _areas(weights[:, order], label[order], probability[order])
        draws.append((roc, average_precision, weights @ error / weights.sum(axis=1)))
    method = "bootstrap of cases within class" if groups is None else "bootstrap of patients"
    intervals = [_percentiles(np.concatenate(values), method) for values in zip(*draws, strict=True)]
    return Bootstrapped(*intervals)


def _areas(weights: Weights, label: Bools, probability: Floats) -> tuple[Floats, Floats]:
    """ROC AUC and average precision of each resample.

    weights: (R, N) how often each case is drawn.  label, probability: (N,), in order of falling probability.
    """
    ends = np.append(np.flatnonzero(np.diff(probability)), len(probability) - 1)  # ties count together
    true_positive = np.cumsum(weights * label, axis=1)[:, ends].astype(np.float64)
    called = np.cumsum(weights, axis=1)[:, ends].astype(np.float64)
    false_positive = called - true_positive
    positives, negatives = true_positive[:, -1:], false_positive[:, -1:]
    start = np.zeros_like(positives)
    recall = np.hstack((start, true_positive / positives))
    fall_out = np.hstack((start, false_positive / negatives))
    roc = (np.diff(fall_out, axis=1) * (recall[:, 1:] + recall[:, :-1]) / 2).sum(axis=1)
    precision = np.divide(true_positive, called, out=np.zeros_like(called), where=called > 0)
    return roc, (np.diff(recall, axis=1) * precision).sum(axis=1)


def _by_class(label: Bools, resamples: int, generator: np.random.Generator) -> Iterator[Weights]:
    members = (np.flatnonzero(label), np.flatnonzero(~label))
    for size in _block_sizes(resamples, len(label)):
        weights = np.zeros((size, len(label)), dtype=np.int64)
        for indices in members:
            weights[:, indices] = generator.multinomial(len(indices), np.full(len(indices), 1 / len(indices)), size)
        yield weights


def _by_group(groups: npt.NDArray[np.int64], resamples: int, generator: np.random.Generator) -> Iterator[Weights]:
    count = int(groups.max()) + 1
    for size in _block_sizes(resamples, len(groups)):
        yield generator.multinomial(count, np.full(count, 1 / count), size)[:, groups]


def _block_sizes(resamples: int, cases: int) -> Iterator[int]:
    block = max(1, BATCH_ELEMENTS // cases)
    for start in range(0, resamples, block):
        yield min(block, resamples - start)


def _percentiles(values: Floats, method: str) -> Interval | None:
    if len(values) == 0 or np.ptp(values) == 0.0:
        return None
    low, high = np.quantile(values, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(float(low), float(high), method)
