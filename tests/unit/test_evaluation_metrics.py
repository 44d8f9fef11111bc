"""Figures against the paper's, against scikit-learn's and against counting by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from inference.evaluation import intervals, metrics
from inference.evaluation.assessment import Options, assess
from inference.evaluation.comparison import compare
from inference.evaluation.errors import EvaluationError
from inference.evaluation.predictions import Predictions, read_predictions
from inference.evaluation.subgroups import figure_name

# Threshold, accuracy, then the columns that the paper's Table 2 calls PPV and NPV and that are sensitivity and
# specificity, then PPV and NPV as they are.
TABLE_2 = [
    (0.1, 0.893, 0.933, 0.839, 0.886, 0.904),
    (0.2, 0.908, 0.880, 0.946, 0.957, 0.855),
    (0.3, 0.908, 0.867, 0.964, 0.970, 0.844),
    (0.4, 0.901, 0.840, 0.982, 0.984, 0.821),
    (0.5, 0.901, 0.840, 0.982, 0.984, 0.821),
    (0.6, 0.878, 0.800, 0.982, 0.984, 0.786),
    (0.7, 0.870, 0.787, 0.982, 0.983, 0.775),
    (0.8, 0.855, 0.760, 0.982, 0.983, 0.753),
    (0.9, 0.847, 0.733, 1.000, 1.000, 0.737),
]


def predictions(label, probability, **more):
    return Predictions("made.csv", "0" * 64, np.array(probability, float), np.array(label, bool), **more)


def random_cases(seed, cases, levels):
    """Overlapping classes; few levels make many ties."""
    generator = np.random.default_rng(seed)
    label = generator.random(cases) < 0.4
    label[:4] = True, True, False, False
    probability = np.clip(generator.normal(np.where(label, 0.6, 0.4), 0.2), 0, 1)
    return label, np.round(probability * levels) / levels


@pytest.fixture(scope="module")
def published(shared):
    return assess(read_predictions(shared / "data" / "published-predictions.txt"), Options())


def test_the_published_predictions_give_the_papers_areas(published):
    assert (published.cases, published.positives) == (131, 75)
    assert round(published.roc_auc, 4) == 0.9590
    assert round(published.pr_auc, 3) == 0.976
    assert published.roc_auc_interval.low == pytest.approx(0.9273, abs=1e-4)
    assert published.roc_auc_interval.high == pytest.approx(0.9908, abs=1e-4)
    assert published.pr_auc_interval.low < published.pr_auc < published.pr_auc_interval.high


def test_the_published_predictions_give_table_2_under_the_right_names(published):
    rows = [
        (row.threshold, row.accuracy, row.sensitivity, row.specificity, row.ppv, row.npv)
        for row in published.thresholds
    ]
    assert [tuple(round(value, 3) for value in row) for row in rows] == TABLE_2


def test_the_published_predictions_give_the_papers_operating_points(published):
    points = {
        name: (round(row.sensitivity, 3), round(row.specificity, 3)) for name, row in published.operating_points.items()
    }
    assert points["high_sensitivity"] == (0.947, 0.786)
    assert points["high_specificity"] == (0.880, 0.946)
    assert points["balanced"] == (0.907, 0.911)
    assert points["sensitivity_at_least_0.95"] == (0.960, 0.554)
    assert points["specificity_at_least_0.95"] == (0.880, 0.964)


def test_a_case_at_the_threshold_is_positive():
    row = metrics.threshold_row(np.array([True, False]), np.array([0.5, 0.5]), 0.5)
    assert (row.true_positive, row.false_positive, row.true_negative, row.false_negative) == (1, 1, 0, 0)
    assert (row.npv, row.intervals["npv"]) == (None, None)


def test_every_figure_of_a_threshold_is_its_own_share():
    label = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    row = metrics.threshold_row(label, np.array([0.9, 0.8, 0.7, 0.1, 0.9, 0.1, 0.1]), 0.5)
    assert (row.accuracy, row.sensitivity, row.specificity) == (5 / 7, 3 / 4, 2 / 3)
    assert (row.ppv, row.npv) == (3 / 4, 2 / 3)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)]
)
def test_wilson_intervals_are_the_tabulated_ones(successes, total, low, high):
    interval = intervals.wilson(successes, total)
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def wins(label, probability):
    """For each pair of a positive and a negative case: 1 if the positive lies above, one half if they tie."""
    positive, negative = probability[label][:, None], probability[~label]
    return (positive > negative) + 0.5 * (positive == negative)


@pytest.mark.parametrize("levels", [1000, 7])
def test_delong_equals_its_definition_over_all_pairs(levels):
    label, probability = random_cases(1, 60, levels)
    won = wins(label, probability)
    variance = won.mean(axis=1).var(ddof=1) / label.sum() + won.mean(axis=0).var(ddof=1) / (~label).sum()
    interval = intervals.delong(label, probability)
    assert interval.low == pytest.approx(won.mean() - 1.96 * math.sqrt(variance), abs=1e-5)
    assert interval.high == pytest.approx(min(1, won.mean() + 1.96 * math.sqrt(variance)), abs=1e-5)
    assert intervals.delong_components(label, probability)[0] == pytest.approx(roc_auc_score(label, probability))


@pytest.mark.parametrize("levels", [1000, 7])
def test_resampled_areas_equal_scikit_learns_on_the_repeated_cases(levels):
    label, probability = random_cases(2, 50, levels)
    weights = np.random.default_rng(3).integers(0, 3, (5, 50))
    order = np.argsort(-probability, kind="stable")
    roc, average_precision = intervals._areas(weights[:, order], label[order], probability[order])
    for row, area, precision in zip(weights, roc, average_precision, strict=True):
        drawn_label, drawn = np.repeat(label, row), np.repeat(probability, row)
        assert area == pytest.approx(roc_auc_score(drawn_label, drawn))
        assert precision == pytest.approx(average_precision_score(drawn_label, drawn))


def test_the_bootstrap_agrees_with_delong_and_repeats_itself():
    label, probability = random_cases(4, 400, 1000)
    first = intervals.bootstrap(label, probability, groups=None, resamples=2000, seed=1)
    delong = intervals.delong(label, probability)
    assert first.roc_auc.low == pytest.approx(delong.low, abs=0.01)
    assert first.roc_auc.high == pytest.approx(delong.high, abs=0.01)
    assert first == intervals.bootstrap(label, probability, groups=None, resamples=2000, seed=1)
    assert first.brier.low < brier_score_loss(label, probability) < first.brier.high


def test_patients_with_several_cases_widen_the_interval():
    label, probability = random_cases(5, 60, 1000)
    patient = tuple(f"p{n}" for n in range(60))
    once = assess(predictions(label, probability, patient=patient), Options(interval="bootstrap"))
    four = predictions(np.tile(label, 4), np.tile(probability, 4), patient=patient * 4)
    repeated = assess(four, Options())
    assert (repeated.patients, repeated.cases) == (60, 240)
    assert repeated.roc_auc_interval.method == "bootstrap of patients"
    width = once.roc_auc_interval.high - once.roc_auc_interval.low
    assert repeated.roc_auc_interval.high - repeated.roc_auc_interval.low == pytest.approx(width, rel=0.2)
    naive = intervals.delong(four.label, four.probability)
    assert naive.high - naive.low < 0.7 * width
    assert any("independent" in note for note in repeated.notes)


@pytest.mark.parametrize(("label", "missing"), [(True, "negative"), (False, "positive")])
def test_one_class_alone_gives_what_it_can_and_says_what_it_cannot(label, missing):
    assessment = assess(predictions([label] * 3, [0.2, 0.6, 0.9]), Options())
    assert (assessment.roc_auc, assessment.pr_auc, assessment.roc, assessment.operating_points) == (
        None,
        None,
        None,
        {},
    )
    assert assessment.threshold.accuracy == pytest.approx(2 / 3 if label else 1 / 3)
    assert (assessment.threshold.sensitivity is None) == (not label)
    assert any(f"there is no {missing} case" in note for note in assessment.notes)


def test_a_single_case_is_evaluated():
    assessment = assess(predictions([True], [0.7]), Options())
    assert (assessment.cases, assessment.threshold.sensitivity, assessment.brier) == (1, 1.0, pytest.approx(0.09))


def test_classes_that_do_not_overlap_get_no_false_interval():
    assessment = assess(predictions([1, 1, 1, 0, 0], [0.9, 0.8, 0.7, 0.2, 0.1]), Options())
    assert (assessment.roc_auc, assessment.roc_auc_interval, assessment.pr_auc_interval) == (1.0, None, None)
    assert any("do not overlap" in note for note in assessment.notes)


def test_all_cases_at_one_probability_are_no_better_than_chance():
    assessment = assess(predictions([1, 1, 0, 0], [0.4] * 4), Options())
    assert (assessment.roc_auc, assessment.pr_auc) == (0.5, 0.5)
    assert assessment.operating_points["balanced"].sensitivity == 1.0


def test_an_operating_point_that_cannot_be_reached_is_not_given():
    assessment = assess(predictions([1, 1, 0, 0], [0.2, 0.4, 0.4, 0.9]), Options())
    assert "specificity_at_least_0.95" not in assessment.operating_points
    assert assessment.operating_points["sensitivity_at_least_0.95"].sensitivity == 1.0


def test_calibration_bins_hold_every_case_once_and_one_belongs_to_the_last():
    label, probability = random_cases(6, 300, 1000)
    probability[:3] = 0.0, 1.0, 0.1
    bins = metrics.calibration(label, probability)
    assert sum(entry.cases for entry in bins) == 300
    assert bins[-1].high == 1.0
    assert all(entry.low <= entry.mean_probability <= entry.high for entry in bins)
    perfect = metrics.calibration(np.array([1, 1, 0, 0], bool), np.array([1.0, 1.0, 0.0, 0.0]))
    assert metrics.calibration_error(perfect) == 0.0
    inverted = metrics.calibration(np.array([0, 0, 1, 1], bool), np.array([1.0, 1.0, 0.0, 0.0]))
    assert metrics.calibration_error(inverted) == 1.0


def test_subgroups_come_from_header_like_columns():
    label = [1, 0, 1, 0, 1, 0]
    columns = {
        "slice_thickness_mm": ("1.0", "1.25 mm", "5", "8", "", "thin"),
        "age": ("045Y", "40", "18M", "80", "", "39.9"),
        "sex": ("M", "f", "Female", "O", "", "X"),
        "manufacturer_model_name": ("A", "A", "B", "B", "", "B"),
    }
    groups = assess(predictions(label, [0.9, 0.1, 0.8, 0.6, 0.7, 0.2], columns=columns), Options()).subgroups
    found = {title: [(row.value, row.cases) for row in rows] for title, rows in groups.items()}
    assert found["slice thickness"] == [
        ("up to 1 mm", 1),
        ("over 1 to 2 mm", 1),
        ("over 3 to 5 mm", 1),
        ("over 5 mm", 1),
        ("not given", 2),
    ]
    assert found["age"] == [
        ("under 18 years", 1),
        ("18 to under 40 years", 1),
        ("40 to under 60 years", 2),
        ("from 75 years", 1),
        ("not given", 1),
    ]
    assert found["sex"] == [("X", 1), ("female", 2), ("male", 1), ("other", 1), ("not given", 1)]
    assert found["scanner"] == [("A", 2), ("B", 3), ("not given", 1)]
    by_scanner = {row.value: row for row in groups["scanner"]}
    assert (by_scanner["A"].roc_auc, by_scanner["A"].sensitivity, by_scanner["A"].specificity) == (1.0, 1.0, 1.0)
    assert (by_scanner["B"].specificity, by_scanner["B"].few) == (0.5, True)


def test_a_column_that_makes_no_subgroups_is_refused_only_when_asked_for():
    columns = {"site": tuple(f"s{n}" for n in range(40)), "kernel": ("B40f",) * 40}
    cases = predictions([1, 0] * 20, np.linspace(0, 1, 40), columns=columns)
    assert list(assess(cases, Options()).subgroups) == ["kernel"]
    for asked, reason in (("site", "40 different values"), ("colour", "no column colour")):
        with pytest.raises(EvaluationError, match=reason):
            assess(cases, Options(subgroups=(asked,)))


def test_a_subgroups_figure_cannot_leave_its_folder():
    assert figure_name("../../etc/x") == "subgroups--etc-x"
    assert figure_name("slice thickness") == "subgroups-slice-thickness"


def test_a_better_second_model_is_found_better_on_the_same_cases():
    label, probability = random_cases(7, 200, 1000)
    better = np.clip(probability + np.where(label, 0.15, -0.15), 0, 1)
    names = tuple(f"c{n}" for n in range(200))
    first = predictions(label, probability, case=names)
    shuffled = np.random.default_rng(0).permutation(200)
    shadow = predictions(label[shuffled], better[shuffled], case=tuple(names[n] for n in shuffled))
    result = compare(first, shadow, 0.5)
    assert result.difference == pytest.approx(roc_auc_score(label, better) - roc_auc_score(label, probability))
    won = wins(label, better) - wins(label, probability)
    variance = won.mean(axis=1).var(ddof=1) / label.sum() + won.mean(axis=0).var(ddof=1) / (~label).sum()
    half = 1.96 * math.sqrt(variance)
    assert result.difference_interval.low == pytest.approx(result.difference - half, abs=1e-5)
    assert result.difference_interval.high == pytest.approx(result.difference + half, abs=1e-5)
    assert result.difference_p < 0.001
    assert result.only_first_right == 0 < result.only_shadow_right
    assert result.agree + result.only_shadow_right == 200


def test_two_models_are_compared_only_where_both_and_the_truth_agree():
    first = predictions([1, 0, 1], [0.9, 0.1, 0.8], case=("a", "b", "c"))
    some = predictions([0, 1, 0], [0.2, 0.7, 0.5], case=("b", "a", "z"))
    result = compare(first, some, 0.5)
    assert (result.cases, result.only_in_first, result.only_in_shadow, result.mcnemar_p) == (2, 1, 1, 1.0)
    for other, reason in (
        (predictions([1], [0.5], case=("z",)), "no case in common"),
        (predictions([0], [0.5], case=("a",)), "different labels"),
        (predictions([1], [0.5]), "no case column"),
    ):
        with pytest.raises(EvaluationError, match=reason):
            compare(first, other, 0.5)
