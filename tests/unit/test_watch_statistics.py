"""The statistics of the watches against scipy and against values that can be worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from dicom_node.watch import statistics

RNG = np.random.default_rng(20)
REFERENCE, WINDOW = RNG.normal(0, 1, 500), RNG.normal(0.4, 1.3, 180)


@pytest.mark.parametrize("window", [WINDOW, REFERENCE[:200], np.round(WINDOW)], ids=["moved", "same", "tied"])
def test_kolmogorov_and_smirnov_as_scipy_has_them(window: np.ndarray) -> None:
    theirs = stats.ks_2samp(REFERENCE, window, method="asymp")
    assert statistics.kolmogorov_smirnov(REFERENCE, window) == pytest.approx((theirs.statistic, theirs.pvalue))


def test_chi_square_as_scipy_has_it_and_one_word_proves_nothing() -> None:
    theirs = stats.chi2_contingency([[30, 60, 0], [25, 20, 5]], correction=False).pvalue
    assert statistics.chi_square({"a": 30, "b": 60}, {"a": 25, "b": 20, "c": 5}) == pytest.approx(theirs)
    assert statistics.chi_square({"a": 30}, {"a": 25}) == 1.0


def test_q_as_scipy_has_it() -> None:
    p = [0.5, 0.001, 0.04, 0.04, 0.9, 0.011]
    assert statistics.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert statistics.benjamini_hochberg([]) == []


def test_stability_and_divergence() -> None:
    assert statistics.population_stability([50, 50], [500, 500]) == 0
    shares = np.log(70.5 / 50.5), np.log(30.5 / 50.5)
    assert statistics.population_stability([50, 50], [70, 30]) == pytest.approx(20 / 101 * (shares[0] - shares[1]))
    assert statistics.population_stability([0, 100], [100, 0]) < np.inf
    assert statistics.jensen_shannon([5, 5], [50, 50]) == 0
    assert statistics.jensen_shannon([5, 0], [0, 9]) == pytest.approx(1)


def test_values_are_counted_up_to_each_edge() -> None:
    assert statistics.binned([1.0, 2.0], [0.5, 1.0, 1.5, 2.0, 9.0]) == [2, 2, 1]
    assert statistics.binned([1.0, 2.0], []) == [0, 0, 0]


def test_scores_are_those_of_a_normal_distribution_whatever_the_reference() -> None:
    skewed = np.exp(REFERENCE)
    scores = statistics.normal_scores(np.sort(skewed), skewed)
    assert abs(scores.mean()) < 1e-9
    assert scores.std() == pytest.approx(1, abs=0.02)
    assert statistics.normal_scores(np.sort(skewed), [1e9])[0] < 3.2


def test_the_average_forgets_and_the_sum_does_not_fall_below_0() -> None:
    assert statistics.ewma([1, 1, 0], 0.2) == pytest.approx([0.2, 0.36, 0.288])
    assert statistics.cusum([-1, 2, 1, -5, 1]) == pytest.approx([0, 2, 3, 0, 1])
    means = [statistics.ewma(RNG.standard_normal(60), 0.2)[-1] for _ in range(3000)]
    assert np.std(means) == pytest.approx(statistics.ewma_sd(0.2, 10**9), rel=0.05)


def test_a_result_adds_its_log_likelihood_ratio() -> None:
    up = statistics.bernoulli_steps([True, False], 0.2, 2.0)
    assert up == pytest.approx([np.log((1 / 3) / 0.2), np.log((2 / 3) / 0.8)])


def test_the_score_test_is_that_of_a_chi_square() -> None:
    theirs = stats.chi2_contingency([[100, 400], [60, 120]], correction=False).statistic
    assert statistics.rate_difference((100, 60), (500, 180)) ** 2 == pytest.approx(theirs)
    assert statistics.rate_difference((0, 0), (500, 180)) == 0


def test_no_more_refusals_than_chance_allows() -> None:
    limit = statistics.most_by_chance(10, 500, 140, 1e-4)
    chance = stats.betabinom(140, 10.5, 490.5)
    assert chance.sf(limit) < 1e-4 <= chance.sf(limit - 1)
    assert statistics.most_by_chance(0, 500, 0, 1e-4) == 0
