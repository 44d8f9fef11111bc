"""Rates since the reference: positive results, and refusals by reason."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import accumulate

import numpy as np

from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.distributions import too_few
from dicom_node.watch.reference import WHOLE, Baseline
from dicom_node.watch.statistics import bernoulli_steps, cusum, most_by_chance, rate_difference
from dicom_node.watch.studies import Study
from dicom_node.watch.thresholds import (
    CUSUM_LIMIT,
    CUSUM_ODDS,
    FEWEST,
    RATE_DAYS,
    RATE_LIMIT,
    RECENT,
    REFUSALS_FEWEST,
    REFUSALS_TAIL,
)
from dicom_node.watch.wording import studies as count_of
from inference.evaluation.intervals import wilson

ALL_REASONS = "all reasons"
FEWEST_OF_A_DAY = 50  # the rate up to a day needs so many


def positive_rate(baseline: Baseline, studies: list[Study], now: datetime) -> Iterator[Assessment]:
    """Whether the share of positive results is another one, on seven days running or by CUSUM."""
    judged = [study for study in studies if study.positive is not None]
    if baseline.judged < FEWEST:
        yield too_few("positive rate", "positive", WHOLE, baseline.judged, len(judged))
        return
    yield _cusum(baseline, judged, now)
    if len(judged) < FEWEST:
        yield too_few("positive rate", "positive", WHOLE, baseline.judged, len(judged))
    else:
        yield _days_running(baseline, judged, now)


def _days_running(baseline: Baseline, judged: list[Study], now: datetime) -> Assessment:
    """The score test of the rate up to each of the last days; what counts is the least of them."""
    tests, counts = [], list(accumulate(study.positive is True for study in judged))
    for day in range(RATE_DAYS):
        until = bisect_right(judged, now - timedelta(days=day), key=lambda study: study.when)
        if until >= FEWEST_OF_A_DAY:
            tests.append(rate_difference((baseline.positives, counts[until - 1]), (baseline.judged, until)))
    one_side = len(tests) == RATE_DAYS and (min(tests) > 0 or max(tests) < 0)
    least = min(map(abs, tests)) if one_side else 0.0
    level = Level.ALARM if least > RATE_LIMIT else Level.OK
    positives = counts[-1]
    interval = wilson(positives, len(judged))
    between = f" (95% {interval.low:.1%} to {interval.high:.1%})" if interval else ""
    sentence = (
        f"Positive results: {positives / len(judged):.1%}{between} of {count_of(len(judged))}, "
        f"{baseline.positives / baseline.judged:.1%} in the reference; at least {least:.1f} SD away on {RATE_DAYS} "
        f"days running. An alarm begins at {RATE_LIMIT:g}."
    )
    return Assessment("positive rate", "positive", WHOLE, level, "z", least, RATE_LIMIT, sentence)


def rate_charts(baseline: Baseline, positive: list[bool]) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """The CUSUMs "up" and "down" after each result.

    Each starts from the end of the reference rate's 95% interval, because that rate is an estimate.
    """
    interval = wilson(baseline.positives, baseline.judged)
    low, high = (interval.low, interval.high) if interval else (0.0, 1.0)
    low, high = max(low, 1e-3), min(high, 1 - 1e-3)
    return {
        "up": cusum(bernoulli_steps(positive, high, CUSUM_ODDS)),
        "down": cusum(bernoulli_steps(positive, low, 1 / CUSUM_ODDS)),
    }


def _cusum(baseline: Baseline, judged: list[Study], now: datetime) -> Assessment:
    charts = rate_charts(baseline, [study.positive is True for study in judged])
    recent = np.array([now - study.when <= RECENT for study in judged], bool)
    reached = {way: float(sums[recent].max(initial=0.0)) for way, sums in charts.items()}
    way = max(reached, key=lambda each: reached[each])
    level = Level.ALARM if reached[way] > CUSUM_LIMIT else Level.OK
    sentence = (
        f"Positive results: the CUSUM {way}wards reached {reached[way]:.1f}, from "
        f"{baseline.positives / baseline.judged:.1%} in the reference. An alarm begins at {CUSUM_LIMIT:g}."
    )
    return Assessment("positive rate CUSUM", "positive", WHOLE, level, "CUSUM", reached[way], CUSUM_LIMIT, sentence)


def refusals(baseline: Baseline, studies: list[Study], now: datetime) -> Iterator[Assessment]:
    """A p-chart of the last seven days: series that were not analysed, by reason and all together."""
    recent = [study for study in studies if now - study.when <= RECENT]
    found = Counter(study.reason for study in recent if study.reason)
    yield _refusals(ALL_REASONS, sum(baseline.reasons.values()), found.total(), baseline.arrived, len(recent))
    for reason in sorted({*baseline.reasons, *found}):
        yield _refusals(reason, baseline.reasons.get(reason, 0), found[reason], baseline.arrived, len(recent))


def _refusals(reason: str, before: int, count: int, arrived: int, recent: int) -> Assessment:
    limit = max(REFUSALS_FEWEST - 1, most_by_chance(before, arrived, recent, REFUSALS_TAIL))
    level = Level.ALARM if count > limit else Level.OK
    sentence = (
        f"Not analysed, {reason}: {count} of {count_of(recent)} in {RECENT.days} days, {before} of {arrived} in the "
        f"reference. An alarm begins above {limit}."
    )
    return Assessment("refusals", reason, WHOLE, level, "studies", float(count), float(limit), sentence)
