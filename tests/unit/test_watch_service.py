"""What the watches say of failures, of waiting, and of the shadow model beside the one that reports."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from dicom_node.watch.assessment import Level
from dicom_node.watch.reference import WHOLE, Baseline
from dicom_node.watch.service import delivery_age, spans, troubles
from dicom_node.watch.shadow import against_shadow
from dicom_node.watch.studies import Study
from dicom_node.watch.thresholds import FEWEST

NOW = datetime(2026, 11, 29, tzinfo=UTC)
STUDIES = [
    Study(when=NOW - timedelta(hours=number), turnaround_s=60.0 + number % 7, queue_s=5.0 + number % 30)
    for number in range(FEWEST)
]
BASELINE = Baseline.of(STUDIES)


def test_a_queue_is_an_alarm_only_if_somebody_waits() -> None:
    def level(factor: float, baseline: Baseline = BASELINE) -> dict[str, Level]:
        later = [replace(study, queue_s=factor * (study.queue_s or 0.0)) for study in STUDIES]
        return {one.watch: one.level for one in spans(baseline, later, NOW)}

    assert level(1) == {"turnaround": Level.OK, "queue": Level.OK}
    assert level(3)["queue"] is Level.OK, "three times a wait of seconds"
    assert level(4) == {"turnaround": Level.OK, "queue": Level.ALARM}
    without = replace(BASELINE, numbers={"turnaround_s": BASELINE.numbers["turnaround_s"]})
    assert level(4, without)["queue"] is Level.TOO_FEW, "a reference that was frozen before there was this watch"


@pytest.mark.parametrize(
    ("count", "level"), [(0, Level.OK), (1, Level.OK), (2, Level.WARN), (7, Level.WARN), (8, Level.ALARM)]
)
def test_a_rate_of_one_percent_warns_and_five_are_an_alarm(count: int, level: Level) -> None:
    for fact in ("retried", "undelivered"):
        studies = [replace(study, **{fact: number < count}) for number, study in enumerate(STUDIES)]
        found = {one.fact: one.level for one in troubles(studies, 0)}
        assert found == {"failed": Level.OK, "retried": Level.OK, "undelivered": Level.OK, fact: level}


def test_analyses_without_a_result_count_as_failed_and_few_studies_give_no_rate() -> None:
    found = {one.fact: one for one in troubles(STUDIES, 8)}
    assert found["failed"].level is Level.ALARM and "8 of 158 studies, 5.1%" in found["failed"].sentence
    assert {one.level for one in troubles(STUDIES[:140], 9)} == {Level.TOO_FEW}
    assert {one.level for one in troubles([], 0)} == {Level.TOO_FEW}


def test_one_delivery_that_waits_for_more_than_an_hour_is_an_alarm() -> None:
    assert [delivery_age(age).level for age in (None, 0.0, 3600.0, 3601.0)] == [Level.OK] * 3 + [Level.ALARM]
    assert "has waited 90 minutes" in delivery_age(5400.0).sentence


def test_a_shadow_model_that_says_the_same_is_quiet_and_one_that_says_more_is_not() -> None:
    rng = np.random.default_rng(1)
    ours = rng.beta(1.5, 4.0, 300)
    same = list(zip(ours, np.clip(ours + rng.normal(0, 0.03, 300), 0, 1), strict=True))
    assert against_shadow(same).level is Level.OK
    assert against_shadow([(one, one) for one in ours]).value == 0
    higher = against_shadow([(one, one**0.4) for one in ours])
    assert higher.level is Level.ALARM and (higher.scanner, higher.statistic) == (WHOLE, "JS, bits")
    assert against_shadow(same[: FEWEST - 1]).level is Level.TOO_FEW
    assert against_shadow([(0.5, 0.5)] * FEWEST).level is Level.OK, "all alike"


def test_independent_studies_of_one_distribution_are_seldom_an_alarm() -> None:
    rng = np.random.default_rng(2)
    levels = [against_shadow(list(zip(*rng.beta(1.5, 4.0, (2, 150)), strict=True))).level for _ in range(200)]
    assert levels.count(Level.ALARM) <= 2
