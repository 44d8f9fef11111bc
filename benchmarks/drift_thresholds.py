"""False alarms a year by threshold, for the charts and rates of the watches: many years, of these statistics alone.

    python -m benchmarks.drift_thresholds

Each line is a watch at a site; each number is the share of years with a false alarm of it, for the threshold before
it. Whole sites with all watches are simulated by `python -m benchmarks.drift`, for fewer years.
"""

import sys
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter

from dicom_node.watch.statistics import ewma_sd, most_by_chance, normal_scores
from dicom_node.watch.thresholds import (
    CUSUM_ODDS,
    EWMA_LAMBDA,
    FEWEST,
    RATE_DAYS,
    RECENT,
    REFUSALS_FEWEST,
    WINDOW,
)
from inference.evaluation.intervals import wilson

Floats = npt.NDArray[np.float64]
RUNS, DAYS, WORKDAYS = 300, 365, 0.8
CHARTS = 10  # five facts of two scanners


def ewma_peaks(rng: np.random.Generator, reference: int, studies: int) -> Floats:
    """The greatest EWMA of each year, in standard deviations."""
    peaks = []
    for _ in range(RUNS):
        scores = normal_scores(np.sort(rng.standard_normal(reference)), rng.standard_normal(studies))
        peaks.append(np.abs(lfilter([EWMA_LAMBDA], [1, EWMA_LAMBDA - 1], scores)).max())
    return np.array(peaks) / ewma_sd(EWMA_LAMBDA, reference)


def cusum_peaks(rng: np.random.Generator, rate: float, reference: int, studies: int) -> Floats:
    """The greatest of both CUSUMs of each year, which never start again."""
    intervals = [wilson(int(count), reference) for count in rng.binomial(reference, rate, RUNS)]
    ends = {CUSUM_ODDS: [one.high for one in intervals if one], 1 / CUSUM_ODDS: [one.low for one in intervals if one]}
    peaks = np.zeros(RUNS)
    for odds, starts in ends.items():
        known = np.clip(starts, 1e-3, 1 - 1e-3)
        other = odds * known / (1 - known + odds * known)
        sums = np.zeros(RUNS)
        for _ in range(studies):
            steps = np.where(rng.random(RUNS) < rate, np.log(other / known), np.log((1 - other) / (1 - known)))
            sums = np.maximum(0, sums + steps)
            peaks = np.maximum(peaks, sums)
    return peaks


def rate_peaks(rng: np.random.Generator, rate: float, reference: int, per_day: int) -> Floats:
    """The greatest distance that the rate of the window keeps for seven days, of each year."""
    arrived = rng.poisson(per_day * WORKDAYS, (RUNS, DAYS))
    window = max(WINDOW.days, round(FEWEST / (per_day * WORKDAYS)))
    positive, total = (_moving(counts, window) for counts in (rng.binomial(arrived, rate), arrived))
    known = rng.binomial(reference, rate, RUNS)[:, None]
    pooled = (positive + known) / (total + reference)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(total, 1) + 1 / reference))
    z = np.where(total >= FEWEST, (positive / np.maximum(total, 1) - known / reference) / spread, 0)
    running = np.stack([z[:, day : DAYS - RATE_DAYS + 1 + day] for day in range(RATE_DAYS)])
    return np.maximum(running.min(0).max(1), (-running).min(0).max(1))


def refusal_years(rng: np.random.Generator, rate: float, reference: int, per_day: int, tail: float) -> float:
    """The share of years in which one reason is refused too often in some week."""
    arrived = rng.poisson(per_day * WORKDAYS, (RUNS, DAYS))
    refused, total = (_moving(counts, RECENT.days) for counts in (rng.binomial(arrived, rate), arrived))
    limits: dict[tuple[int, int], int] = {}
    alarms = 0
    for known, counts, totals in zip(rng.binomial(reference, rate, RUNS), refused, total, strict=True):
        for of_week in np.unique(totals):
            if (known, of_week) not in limits:
                limits[known, of_week] = most_by_chance(int(known), reference, int(of_week), tail)
        most = [max(REFUSALS_FEWEST - 1, limits[known, of_week]) for of_week in totals]
        alarms += bool((counts > most).any())
    return alarms / RUNS


def _moving(counts: npt.NDArray[np.int64], days: int) -> npt.NDArray[np.int64]:
    sums = counts.cumsum(1)
    sums[:, days:] -= sums[:, :-days].copy()
    return sums


def _line(watch: str, site: str, shares: Iterable[tuple[float, float]]) -> None:
    cells = [watch, site, *(f"{limit:g}: {share:.2f}" for limit, share in shares)]
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


def main() -> None:
    """The command line of `python -m benchmarks.drift_thresholds`."""
    rng = np.random.default_rng(1)
    for reference, studies in ((500, 13_000), (500, 4_000), (160, 800)):
        peaks = ewma_peaks(rng, reference, studies)
        shares = [(limit, CHARTS * float(np.mean(peaks > limit))) for limit in (3.5, 4.0, 4.5, 5.0)]
        _line(f"control chart, {CHARTS} of them", f"reference {reference}, {studies} studies", shares)
    for rate, reference, studies in ((0.2, 500, 18_000), (0.5, 500, 18_000), (0.05, 500, 6_000), (0.2, 240, 1_500)):
        peaks = cusum_peaks(rng, rate, reference, studies)
        shares = [(limit, float(np.mean(peaks > limit))) for limit in (5, 6, 7, 8)]
        _line("positive rate CUSUM", f"{rate:.0%} of {reference}, {studies} studies", shares)
    for rate, reference, per_day in ((0.2, 500, 60), (0.5, 500, 60), (0.05, 500, 20), (0.2, 240, 5)):
        peaks = rate_peaks(rng, rate, reference, per_day)
        shares = [(limit, float(np.mean(peaks > limit))) for limit in (1.96, 2.5, 3.0, 3.5)]
        _line("positive rate", f"{rate:.0%} of {reference}, {per_day} a day", shares)
    for rate, reference, per_day in ((0.02, 500, 60), (0.02, 500, 20), (0.005, 500, 20), (0.02, 240, 5)):
        shares = [(tail, refusal_years(rng, rate, reference, per_day, tail)) for tail in (1.35e-3, 1e-3, 3e-4, 1e-4)]
        _line("refusals, one reason", f"{rate:.1%} of {reference}, {per_day} a day", shares)


if __name__ == "__main__":
    main()
