"""How the node serves a model's studies: how long results wait and take, and what fails."""

from collections.abc import Iterator
from datetime import datetime

import numpy as np

from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.distributions import too_few
from dicom_node.watch.reference import WHOLE, Baseline
from dicom_node.watch.studies import Study, numbers
from dicom_node.watch.thresholds import (
    DELIVERY_AGE_S,
    FEWEST,
    QUEUE_LEAST_S,
    RECENT,
    TROUBLE_ALARM,
    TROUBLE_WARN,
    TURNAROUND_FEWEST,
    TURNAROUND_LEAST_S,
    TURNAROUND_RATIO,
)
from dicom_node.watch.wording import amount, name, start
from dicom_node.watch.wording import studies as count_of

SPANS = {"turnaround": ("turnaround_s", TURNAROUND_LEAST_S), "queue": ("queue_s", QUEUE_LEAST_S)}
"""Of each watch the fact, and the 95th percentile below which none is compared, seconds."""
TROUBLES = {
    "failed": "Analyses given up",
    "retried": "Analysed or delivered only at a further attempt",
    "undelivered": "Not taken by a destination",
}


def spans(baseline: Baseline, studies: list[Study], now: datetime) -> Iterator[Assessment]:
    """How long results waited for a worker, and took until the PACS had them.

    The 95th percentile of the last seven days, or of the latest studies if those are few.
    """
    for watch in SPANS:
        yield _span(watch, baseline, studies, now)


def _span(watch: str, baseline: Baseline, studies: list[Study], now: datetime) -> Assessment:
    fact, least_s = SPANS[watch]
    known = baseline.numbers.get(fact, ())  # a reference of before has no queue
    recent = numbers([study for study in studies if now - study.when <= RECENT], fact)
    found = recent if len(recent) >= TURNAROUND_FEWEST else numbers(studies, fact)[-TURNAROUND_FEWEST:]
    if len(known) < FEWEST or len(found) < TURNAROUND_FEWEST:
        return too_few(watch, fact, WHOLE, len(known), len(found))
    (half, most), before = np.quantile(found, (0.5, 0.95)), float(np.quantile(known, 0.95))
    ratio = float(most) / max(before, least_s)
    level = Level.ALARM if ratio > TURNAROUND_RATIO else Level.OK
    sentence = (
        f"{start(name(fact))}: 95% of {count_of(len(found))} within {amount(fact, float(most))}, half within "
        f"{amount(fact, float(half))}; 95% within {amount(fact, before)} in the reference. "
        f"An alarm begins at {amount(fact, TURNAROUND_RATIO * max(before, least_s))}."
    )
    return Assessment(watch, fact, WHOLE, level, "ratio of p95", ratio, TURNAROUND_RATIO, sentence)


def troubles(studies: list[Study], failed: int) -> Iterator[Assessment]:
    """The shares of analyses that failed, of studies that needed a further attempt, and of undelivered ones.

    studies: of the window.  failed: analyses of the same time that were given up; they have no result.
    """
    counts = {
        "failed": (failed, len(studies) + failed),
        "retried": (sum(study.retried for study in studies), len(studies)),
        "undelivered": (sum(study.undelivered for study in studies), len(studies)),
    }
    for fact, (count, total) in counts.items():
        yield _trouble(fact, count, total)


def _trouble(fact: str, count: int, total: int) -> Assessment:
    told = f"{TROUBLES[fact]}: {count} of {count_of(total)}"
    if total < FEWEST:
        sentence = f"{told}, and {FEWEST} are needed for a rate."
        return Assessment("failures", fact, WHOLE, Level.TOO_FEW, "studies", float(total), float(FEWEST), sentence)
    share = count / total
    level = Level.ALARM if share > TROUBLE_ALARM else Level.WARN if share > TROUBLE_WARN else Level.OK
    sentence = f"{told}, {share:.1%}. A warning begins above {TROUBLE_WARN:.0%}, an alarm above {TROUBLE_ALARM:.0%}."
    return Assessment("failures", fact, WHOLE, level, "share", share, TROUBLE_ALARM, sentence)


def delivery_age(oldest_s: float | None) -> Assessment:
    """Whether a result waits for a destination for too long. oldest_s: how long the first one does; None: none does."""
    waits = "No result waits for a destination" if oldest_s is None else f"A result has waited {_minutes(oldest_s)}"
    level = Level.ALARM if oldest_s is not None and oldest_s > DELIVERY_AGE_S else Level.OK
    sentence = f"{waits}. An alarm begins at {_minutes(DELIVERY_AGE_S)}."
    return Assessment(
        "delivery age", "oldest_delivery", WHOLE, level, "seconds", oldest_s or 0.0, DELIVERY_AGE_S, sentence
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"
