"""The statistics of the watches: functions of numbers, without thresholds."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.float64]


def kolmogorov_smirnov(reference: Sequence[float], window: Sequence[float]) -> tuple[float, float]:
    """The greatest distance D of two distribution functions, and its two-sided p, conservative if values are tied.

    Source: as `scipy.stats.ks_2samp(method="asymp")`, but 20 times as fast.
    """
    one, other = np.sort(np.asarray(reference, float)), np.sort(np.asarray(window, float))
    both = np.concatenate((one, other))
    shares = [np.searchsorted(values, both, side="right") / len(values) for values in (one, other)]
    distance = float(np.abs(shares[0] - shares[1]).max())
    effective = len(one) * len(other) / (len(one) + len(other))
    from scipy import stats  # takes most of a second to load, and every command loads this module

    return distance, float(np.clip(stats.kstwo.sf(distance, np.round(effective)), 0, 1))


def chi_square(reference: Mapping[str, int], window: Mapping[str, int]) -> float:
    """p of Pearson's chi-square test that two counts of words have the same shares; 1 if there is only one word."""
    names = sorted({*reference, *window})
    if len(names) < 2:
        return 1.0
    table = np.array([[counts.get(name, 0) for name in names] for counts in (reference, window)], float)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return float(special.chdtrc(len(names) - 1, statistic))


def population_stability(reference: Sequence[float], window: Sequence[float]) -> float:
    """The population stability index (PSI) of two counts over the same bins; half a case is added to each bin.

    It is the sum of (a - b) ln(a / b) over the shares: 0 for equal ones. Two samples of sizes m and n from the same
    shares of k bins have (k - 1) (1/m + 1/n) on average.
    """
    one, other = (_shares(np.asarray(counts, float) + 0.5) for counts in (reference, window))
    return float(((other - one) * np.log(other / one)).sum())


def jensen_shannon(one: Sequence[float], other: Sequence[float]) -> float:
    """The Jensen-Shannon divergence of two counts over the same bins, in bits: 0 equal, 1 without overlap."""
    first, second = (_shares(np.asarray(counts, float)) for counts in (one, other))
    middle = (first + second) / 2
    return float((special.rel_entr(first, middle) + special.rel_entr(second, middle)).sum() / 2 / np.log(2))


def binned(edges: Sequence[float] | Floats, values: Sequence[float]) -> list[int]:
    """How many values lie up to each edge, and above the last: len(edges) + 1 counts. edges: rising."""
    places = np.searchsorted(np.asarray(edges, float), np.asarray(values, float), side="left")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """q of each p: the share of false discoveries among all that are at least as small.

    Source: Benjamini and Hochberg 1995, J R Stat Soc B 57:289.
    """
    values = np.asarray(p, float)
    order = np.argsort(-values)
    ranks = np.arange(len(values), 0, -1)
    q = np.empty_like(values)
    q[order] = np.minimum.accumulate(np.minimum(values[order] * len(values) / ranks, 1.0))
    return [float(value) for value in q]


def normal_scores(reference: Sequence[float], values: Sequence[float]) -> Floats:
    """Where each value stands in the reference, as a normal deviate: 0 at its median, whatever the distribution.

    reference: sorted.  One outlier moves a chart of scores by 3 standard deviations at most, not by 300.
    """
    known, found = np.asarray(reference, float), np.asarray(values, float)
    below, up_to = np.searchsorted(known, found, "left"), np.searchsorted(known, found, "right")
    scores: Floats = special.ndtri(((below + up_to) / 2 + 0.5) / (len(known) + 1))
    return scores


def ewma(scores: Sequence[float] | Floats, weight: float) -> Floats:
    """The exponentially weighted moving average after each score, from 0. Source: Roberts 1959."""
    steps = accumulate(scores, lambda before, score: before + weight * (score - before), initial=0.0)
    return np.fromiter(steps, float, len(scores) + 1)[1:]


def ewma_sd(weight: float, reference: int) -> float:
    """The standard deviation of `ewma` of normal scores, with that of a mean over so many reference studies."""
    return float(np.sqrt(weight / (2 - weight) + 1 / reference))


def cusum(steps: Sequence[float] | Floats) -> Floats:
    """The sum after each step, never below 0. Source: Page 1954."""
    sums = accumulate(steps, lambda before, step: max(0.0, before + step), initial=0.0)
    return np.fromiter(sums, float, len(steps) + 1)[1:]


def bernoulli_steps(positive: Sequence[bool], rate: float, odds_ratio: float) -> Floats:
    """What each result adds to a CUSUM that looks for a rate with so many times the odds of `rate`.

    Log-likelihood ratios of the two rates. Source: Reynolds and Stoumbos 1999, J Qual Technol 31:87.
    """
    looked_for = odds_ratio * rate / (1 - rate + odds_ratio * rate)
    if_positive, if_negative = math.log(looked_for / rate), math.log((1 - looked_for) / (1 - rate))
    return np.array([if_positive if each else if_negative for each in positive])


def rate_difference(positives: tuple[int, int], totals: tuple[int, int]) -> float:
    """Score test of two shares, in standard deviations: the second less the first; 0 if all cases are alike."""
    pooled = sum(positives) / sum(totals)
    deviation = np.sqrt(pooled * (1 - pooled) * (1 / totals[0] + 1 / totals[1]))
    return float((positives[1] / totals[1] - positives[0] / totals[0]) / deviation) if deviation else 0.0


def most_by_chance(count: int, total: int, now: int, tail: float) -> int:
    """The upper limit of a p-chart: more cases than this among `now` have a chance of less than `tail`.

    count, total: cases in the reference, of so many. Its rate is not known but estimated, so the cases to come follow
    a beta-binomial distribution (with Jeffreys' prior), also if they are too few for a normal one.
    """
    a, b, cases = count + 0.5, total - count + 0.5, np.arange(now + 1)
    choices = -special.betaln(now - cases + 1, cases + 1) - np.log(now + 1)
    chance = np.exp(choices + special.betaln(cases + a, now - cases + b) - special.betaln(a, b))
    above = chance[::-1].cumsum()[::-1] - chance
    return int(np.argmax(above < tail))


def _shares(counts: Floats) -> Floats:
    shares: Floats = counts / counts.sum()
    return shares
