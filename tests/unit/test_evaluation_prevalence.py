"""Predictive values against Bayes' theorem worked by hand."""

import sys
from subprocess import run

import pytest

from inference.evaluation.prevalence import PredictiveRow, ppv_npv, predictive_table


def test_predictive_values_are_the_shares_of_a_thousand_people_counted_out():
    # 100 of 1000 ill: 84 found, 16 missed; of 900 others 18 are called ill wrongly.
    ppv, npv = ppv_npv(0.84, 0.98, 0.1)
    assert ppv == pytest.approx(84 / (84 + 18))
    assert npv == pytest.approx(882 / (882 + 16))


def test_the_published_operating_point_has_a_low_npv_and_a_high_ppv_at_its_own_prevalence():
    values = ppv_npv(63 / 75, 55 / 56, 75 / 131)
    assert values.ppv == pytest.approx(63 / 64)
    assert values.npv == pytest.approx(55 / 67)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.0, 1.0, 0.3), (None, pytest.approx(0.7))),  # nothing is ever called positive
        ((1.0, 0.0, 0.3), (pytest.approx(0.3), None)),  # everything is
        ((0.9, 0.9, 0.0), (0.0, 1.0)),
        ((0.9, 0.9, 1.0), (1.0, 0.0)),
        ((0.9, 1.0, 0.0), (None, 1.0)),
        ((1.0, 0.9, 1.0), (1.0, None)),
    ],
)
def test_a_predictive_value_of_results_that_cannot_occur_is_none(point, expected):
    assert ppv_npv(*point) == expected


@pytest.mark.parametrize("point", [(-0.1, 0.5, 0.5), (0.5, 1.1, 0.5), (0.5, 0.5, float("nan")), (0.5, 0.5, 57.0)])
def test_anything_but_a_share_is_refused(point):
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        ppv_npv(*point)


def test_the_table_keeps_the_prevalences_in_order():
    rows = predictive_table(0.84, 0.98, (0.5, 0.01))
    assert [row.prevalence for row in rows] == [0.5, 0.01]
    assert rows[0] == PredictiveRow(0.5, *ppv_npv(0.84, 0.98, 0.5))
    assert rows[0].ppv > 0.97 > 0.3 > rows[1].ppv


def test_predictive_values_need_no_numpy_and_no_extra():
    code = (
        "import sys; sys.modules.update(numpy=None, scipy=None, sklearn=None, matplotlib=None);"
        "from inference.evaluation.prevalence import ppv_npv; assert ppv_npv(1, 1, 0.5) == (1, 1)"
    )
    run([sys.executable, "-c", code], check=True)
