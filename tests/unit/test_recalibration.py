"""What a site's calibration finds on planted data, what it refuses, and what a card makes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inference.errors import ModelError
from inference.evaluation.errors import EvaluationError
from inference.evaluation.predictions import Predictions
from inference.evaluation.recalibration import TooFewCases, Wish, digest_of, quality, recalibrate
from inference.models.calibration import Calibration, log_odds, logistic
from inference.models.cards import read_card, shipped_folder, write_card

INTERCEPT, SLOPE = 1.5, 2.5


def planted(cases: int, intercept: float = 0.0, slope: float = 1.0, seed: int = 0, patients: int = 0) -> Predictions:
    """Cases whose true log odds the outputs exaggerate by `slope` and raise by `intercept`."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(0, 2, cases)
    label = generator.random(cases) < logistic(truth)
    patient = tuple(f"{number % patients}" for number in range(cases)) if patients else ()
    return Predictions("planted", "", logistic(intercept + slope * truth), label, patient=patient)


def test_a_planted_miscalibration_is_found_and_mended() -> None:
    fit = recalibrate(planted(800, INTERCEPT, SLOPE), 0.5)
    assert fit.method == "platt"
    assert fit.slope == pytest.approx(1 / SLOPE, abs=0.08)
    assert fit.intercept == pytest.approx(-INTERCEPT / SLOPE, abs=0.25)
    assert fit.before.error > 0.1 > 0.05 > fit.after.error
    assert fit.before.slope_interval.high < 1 and fit.before.intercept_interval.high < 0
    assert fit.after.slope_interval.low < 1 < fit.after.slope_interval.high
    assert fit.after.intercept_interval.low < 0 < fit.after.intercept_interval.high
    assert fit.after.log_loss < fit.before.log_loss
    gained = [row for row in fit.decision_curve if row.after > row.before]
    assert len(gained) > len(fit.decision_curve) / 2, "acting by calibrated probabilities is worth more"


def test_without_a_wish_the_cases_stay_on_their_sides() -> None:
    cases = planted(800, INTERCEPT, SLOPE)
    fit = recalibrate(cases, 0.7)
    mapped = logistic(fit.intercept + fit.slope * log_odds(cases.probability))
    assert np.array_equal(mapped >= fit.point.threshold, cases.probability >= 0.7)


def test_outputs_that_mean_what_they_say_are_left_alone() -> None:
    assert [recalibrate(planted(600, seed=seed), 0.5).method for seed in range(4)] == ["threshold"] * 4


def test_a_bent_curve_needs_many_cases_and_then_gets_its_own_shape() -> None:
    def bent(cases: int) -> Predictions:
        generator = np.random.default_rng(3)
        truth = generator.normal(0, 2, cases)
        output = np.where(truth > 0, 0.9 + 0.09 * logistic(truth), 0.2 * logistic(truth))
        return Predictions("bent", "", output, generator.random(cases) < logistic(truth))

    fit = recalibrate(bent(2000), 0.5)
    assert fit.method == "isotonic" and fit.after.error < fit.before.error / 5
    assert fit.probabilities[0] > 0 and fit.probabilities[-1] < 1, "no level claims certainty"
    assert "isotonic" not in recalibrate(bent(300), 0.5).tried


def test_the_operating_point_reaches_what_was_asked_on_cases_that_it_has_not_seen() -> None:
    fit = recalibrate(planted(1500, INTERCEPT, SLOPE), 0.5, wish=Wish("sensitivity", 0.95))
    fresh = planted(20_000, INTERCEPT, SLOPE, seed=9)
    called = logistic(fit.intercept + fit.slope * log_odds(fresh.probability)) >= fit.point.threshold
    assert called[fresh.label].mean() == pytest.approx(0.95, abs=0.02)
    assert fit.point.sensitivity_interval.low < called[fresh.label].mean() < fit.point.sensitivity_interval.high
    assert fit.point.specificity_interval.low < (~called)[~fresh.label].mean() < fit.point.specificity_interval.high
    other = recalibrate(planted(1500, INTERCEPT, SLOPE), 0.5, wish=Wish("specificity", 0.95))
    assert other.point.specificity == pytest.approx(0.95, abs=0.01) and other.point.threshold > fit.point.threshold


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for seed in range(40):
        cases = planted(400, 0.0, 1.6, seed=seed)
        found = quality(cases.probability, cases.label, np.arange(400), seed)
        held += found.slope_interval.low <= 1 / 1.6 <= found.slope_interval.high
    assert held >= 34  # of 40; 95 % intervals hold 34 or more with probability 0.986


@pytest.mark.parametrize(
    ("cases", "wish", "needed"),
    [
        (60, None, "more positive and"),
        (150, Wish("sensitivity", 0.95), "more positive are needed"),
        (150, Wish("specificity", 0.99), "more negative are needed"),
    ],
)
def test_too_few_cases_are_refused_and_told_how_many_more(cases: int, wish: Wish | None, needed: str) -> None:
    with pytest.raises(TooFewCases, match=needed):
        recalibrate(planted(cases), 0.5, wish=wish)


def test_an_output_that_says_nothing_here_is_refused() -> None:
    cases = planted(300)
    shuffled = np.random.default_rng(1).permutation(cases.label)
    for label in (shuffled, ~cases.label):
        with pytest.raises(EvaluationError, match="does not rise with the truth"):
            recalibrate(replace(cases, label=label), 0.5)


def test_cases_of_one_patient_widen_the_intervals() -> None:
    one_each, three_each = planted(600, INTERCEPT, SLOPE), planted(600, INTERCEPT, SLOPE, patients=60)
    fits = [recalibrate(cases, 0.5).after.error_interval.method for cases in (one_each, three_each)]
    assert fits == ["bootstrap of patients"] * 2
    alone = quality(one_each.probability, one_each.label, np.arange(600))
    doubled = np.repeat(np.arange(300), 2)
    twice = quality(
        np.repeat(one_each.probability[:300], 2), np.repeat(one_each.label[:300], 2), doubled.astype(np.int64)
    )
    assert twice.slope_interval.high - twice.slope_interval.low > alone.slope_interval.high - alone.slope_interval.low


def test_the_data_s_digest_is_of_the_pairs_and_not_of_their_order() -> None:
    cases = planted(100)
    turned = replace(cases, probability=cases.probability[::-1], label=cases.label[::-1])
    other = replace(cases, label=~cases.label)
    assert digest_of(cases) == digest_of(turned) != digest_of(other)


CALIBRATION = Calibration("platt", "Here", "2026-11-29", "b" * 64, 100, 50, "d" * 64, slope=0.4, intercept=-0.6)


def test_a_card_keeps_its_calibration_and_is_another_model(tmp_path: Path) -> None:
    base = read_card(shipped_folder() / "demonstration")
    calibrated = replace(base, calibration=CALIBRATION)
    write_card(calibrated, tmp_path)
    assert read_card(tmp_path) == calibrated
    assert calibrated.digest() != base.digest() and base.calibrated(0.3) == 0.3
    assert calibrated.calibrated(0.5) == pytest.approx(float(logistic(np.array([-0.6]))[0]))
    assert replace(base, calibration=replace(CALIBRATION, slope=0.5)).digest() != calibrated.digest()


def test_a_mapping_rises_and_keeps_to_probabilities() -> None:
    outputs = np.linspace(0, 1, 1001)
    knots = replace(CALIBRATION, method="isotonic", outputs=(0.1, 0.4, 0.8), probabilities=(0.05, 0.3, 0.3))
    for one in (CALIBRATION, knots, replace(CALIBRATION, method="threshold")):
        mapped = one.apply_all(outputs)
        assert (np.diff(mapped) >= 0).all() and mapped.min() >= 0 and mapped.max() <= 1
        assert one.apply_log_odds(0.7) == pytest.approx(float(log_odds(one.apply_all(logistic(np.array([0.7]))))[0]))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"slope": -1.0}, "slope"),
        ({"slope": float("nan")}, "slope"),
        ({"method": "isotonic", "outputs": (0.5,), "probabilities": (0.5,)}, "two or more"),
        ({"method": "isotonic", "outputs": (0.5, 0.4), "probabilities": (0.1, 0.2)}, "ascending"),
        ({"method": "isotonic", "outputs": (0.1, 0.4), "probabilities": (0.3, 0.2)}, "never fall"),
        ({"method": "isotonic", "outputs": (0.1, 1.4), "probabilities": (0.1, 0.2)}, "from 0 to 1"),
    ],
)
def test_a_calibration_that_would_turn_results_around_is_no_card(
    wrong: dict[str, object], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=named):
        replace(CALIBRATION, **wrong)  # type: ignore[arg-type]
    card = replace(read_card(shipped_folder() / "demonstration"), calibration=CALIBRATION)
    text = write_card(card, tmp_path).read_text()
    (tmp_path / "card.toml").write_text(text.replace("slope = 0.4", "slope = -0.4"))
    with pytest.raises(ModelError, match="slope"):
        read_card(tmp_path)
