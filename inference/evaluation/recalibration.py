"""Fits what a model's output means at a site: a mapping, a threshold, and how far both can be trusted.

Everything that is said about the fit is computed on cases that the fit has not seen (cross-validation by patient).
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from inference.evaluation.errors import EvaluationError
from inference.evaluation.intervals import Interval, wilson
from inference.evaluation.metrics import CalibrationBin, calibration, calibration_error
from inference.evaluation.predictions import Predictions
from inference.models.calibration import SMALLEST, Method, log_odds, logistic

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]
Map = Callable[[Floats], Floats]

FEWEST = 50
"""Cases of each label without which nothing is fitted."""
FEWEST_ISOTONIC = 200
"""Cases of each label for a curve of any shape (Van Calster et al. 2016, J Clin Epidemiol 74:167)."""
FEWEST_MISSES = 5
"""An operating point at sensitivity s needs so many positives that it is expected to miss this many of them."""
FOLDS, REPEATS, RESAMPLES = 10, 5, 1000
NET_BENEFIT_AT = tuple(step / 100 for step in range(5, 100, 5))
STEPS = 50  # of Newton's method; it needs about eight


class TooFewCases(EvaluationError):
    """There are too few cases to fit anything that could be believed; the text says how many more are needed."""


@dataclass(frozen=True)
class Wish:
    """What a site wants of its operating point: at least this sensitivity, or at least this specificity (0 to 1)."""

    of: Literal["sensitivity", "specificity"]
    at_least: float


@dataclass(frozen=True)
class Quality:
    """How well probabilities agree with what was found.

    error: expected calibration error.  intercept: log odds by which they are too low, with the slope held at 1; slope:
    below 1 if they are too extreme; 0 and 1 are perfect.  brier, log_loss: mean of both scores, lower is better.
    """

    error: float
    error_interval: Interval
    intercept: float
    intercept_interval: Interval
    slope: float
    slope_interval: Interval
    brier: float
    log_loss: float
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class PointAt:
    """An operating point, as it did on cases that neither the mapping nor the threshold was chosen on."""

    threshold: float
    sensitivity: float
    sensitivity_interval: Interval
    specificity: float
    specificity_interval: Interval


@dataclass(frozen=True)
class NetBenefit:
    """One row of the decision curve (Vickers and Elkin 2006): net true positives per case, if `threshold` is the
    probability from which a site would act."""

    threshold: float
    before: float
    after: float
    treat_all: float


@dataclass(frozen=True)
class Recalibration:
    """A fit.

    method and what it needs (see `Calibration`); threshold: on the calibrated scale.
    before, after: of the outputs as they are, and of the calibrated ones on unseen cases.
    tried: mean log loss on unseen cases of each method that the counts allow.
    """

    method: Method
    slope: float
    intercept: float
    outputs: tuple[float, ...]
    probabilities: tuple[float, ...]
    cases: int
    positives: int
    data_sha256: str
    before: Quality
    after: Quality
    point: PointAt
    decision_curve: tuple[NetBenefit, ...]
    tried: dict[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Cases:
    output: Floats
    label: Bools
    group: Integers


def recalibrate(
    predictions: Predictions, threshold: float, *, method: Method | None = None, wish: Wish | None = None, seed: int = 0
) -> Recalibration:
    """Fit a mapping and a threshold on labelled outputs of a model.

    threshold: the model's own; without a wish, the new one parts the cases as it does.
    method: None for the simplest one that no other beats by more than chance on unseen cases.
    The same cases and options give the same fit.
    Raises TooFewCases, which says how many more are needed; EvaluationError if the output does not rise with the truth.
    """
    cases = _Cases(predictions.probability, predictions.label, _groups(predictions))
    _require_enough(cases.label, method, wish)
    _require_rising(cases, seed)
    folds = list(_folds(cases, seed))
    allowed = [method] if method else _allowed(cases.label)
    unseen = {name: _unseen(cases, folds, _fitters(name)) for name in allowed}
    chosen = method or _simplest(unseen, cases.label)
    final = _fit(chosen, cases.output, cases.label)
    mapped = final.apply(cases.output)
    return Recalibration(
        chosen,
        final.slope,
        final.intercept,
        final.outputs,
        final.probabilities,
        len(cases.label),
        int(cases.label.sum()),
        digest_of(predictions),
        quality(cases.output, cases.label, cases.group, seed),
        quality(unseen[chosen].mean(axis=0), cases.label, cases.group, seed),
        _point(cases, folds, chosen, mapped, _own(threshold, final), wish),
        _decision_curve(cases, unseen[chosen].mean(axis=0)),
        {name: float(_log_losses(found, cases.label).mean()) for name, found in unseen.items()},
        tuple(_notes(cases, predictions)),
    )


def digest_of(predictions: Predictions) -> str:
    """SHA-256 over outputs and labels alone, in an order that does not depend on the file's: no names, no cases."""
    pairs = sorted(zip(predictions.probability.tolist(), predictions.label.tolist(), strict=True))
    return hashlib.sha256(repr(pairs).encode()).hexdigest()


# Enough cases


def _require_enough(label: Bools, method: Method | None, wish: Wish | None) -> None:
    needed = {"positive": FEWEST, "negative": FEWEST}
    if method == "isotonic":
        needed = dict.fromkeys(needed, FEWEST_ISOTONIC)
    if wish is not None:
        of = "positive" if wish.of == "sensitivity" else "negative"
        needed[of] = max(needed[of], math.ceil(round(FEWEST_MISSES / (1 - wish.at_least), 6)))
    there = {"positive": int(label.sum()), "negative": int((~label).sum())}
    missing = [f"{needed[of] - there[of]} more {of}" for of in needed if there[of] < needed[of]]
    if missing:
        wanted = f" for at least {wish.at_least:g} {wish.of}" if wish else ""
        raise TooFewCases(
            f"{there['positive']} positive and {there['negative']} negative cases are too few{wanted}: "
            f"{' and '.join(missing)} are needed"
        )


def _allowed(label: Bools) -> list[Method]:
    enough = min(label.sum(), (~label).sum()) >= FEWEST_ISOTONIC
    return ["threshold", "platt", "isotonic"] if enough else ["threshold", "platt"]


def _require_rising(cases: _Cases, seed: int) -> None:
    slopes = _resampled_slopes(log_odds(cases.output), cases, seed)
    if np.quantile(slopes, 0.025) <= 0:
        raise EvaluationError(
            "the model's output does not rise with the truth on these cases, or too little to tell: check the labels; "
            "if they are right, this model says nothing here that could be calibrated"
        )


def _notes(cases: _Cases, predictions: Predictions) -> Iterator[str]:
    clipped = int(((cases.output < SMALLEST) | (cases.output > 1 - SMALLEST)).sum())
    if clipped:
        yield f"{clipped} outputs lie nearer to 0 or 1 than {SMALLEST:g}, and count as {SMALLEST:g} away from it"
    if not predictions.patient:
        yield "no patient column: each case counts as a patient of its own"
    yield from predictions.notes


# Cross-validation


def _groups(predictions: Predictions) -> Integers:
    if not predictions.patient:
        return np.arange(len(predictions), dtype=np.int64)
    return np.unique(predictions.patient, return_inverse=True)[1].astype(np.int64)


def _folds(cases: _Cases, seed: int) -> Iterator[Integers]:
    """REPEATS times, the fold of each case: all cases of a patient in one, both labels spread evenly."""
    generator = np.random.default_rng(seed)
    positive_groups = np.unique(cases.group[cases.label])
    every = np.unique(cases.group)
    for _ in range(REPEATS):
        of_group = np.zeros(int(every.max()) + 1, dtype=np.int64)
        for groups in (positive_groups, np.setdiff1d(every, positive_groups)):
            of_group[generator.permutation(groups)] = np.arange(len(groups)) % FOLDS
        yield of_group[cases.group]


def _unseen(cases: _Cases, folds: Sequence[Integers], fit: Callable[[Floats, Bools], "_Fitted"]) -> Floats:
    """(REPEATS, N): the probability of each case by fits that have not seen its patient."""
    found = np.empty((len(folds), len(cases.label)))
    for row, fold in zip(found, folds, strict=True):
        for number in range(FOLDS):
            inside = fold == number
            row[inside] = fit(cases.output[~inside], cases.label[~inside]).apply(cases.output[inside])
    return found


def _log_losses(probability: Floats, label: Bools) -> Floats:
    """(N,): log loss of each case, the mean over the repeats if there are several."""
    clipped = np.clip(probability, SMALLEST, 1 - SMALLEST)
    losses = -np.where(label, np.log(clipped), np.log1p(-clipped))
    return np.asarray(losses.mean(axis=0) if losses.ndim > 1 else losses)


def _simplest(unseen: dict[Method, Floats], label: Bools) -> Method:
    """The first method that no later one beats by more than one standard error of their difference."""
    losses = {name: _log_losses(found, label) for name, found in unseen.items()}
    names = list(losses)
    for place, name in enumerate(names):
        gains = [losses[name] - losses[other] for other in names[place + 1 :]]
        if all(gain.mean() <= gain.std(ddof=1) / math.sqrt(len(label)) for gain in gains):
            return name
    return names[-1]


# The mappings


@dataclass(frozen=True)
class _Fitted:
    apply: Map
    slope: float = 1.0
    intercept: float = 0.0
    outputs: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()


def _fitters(method: Method) -> Callable[[Floats, Bools], _Fitted]:
    return lambda output, label: _fit(method, output, label)


def _fit(method: Method, output: Floats, label: Bools) -> _Fitted:
    if method == "platt":
        return _platt(output, label)
    if method == "isotonic":
        return _isotonic(output, label)
    return _Fitted(lambda values: values)


def _platt(output: Floats, label: Bools) -> _Fitted:
    """Platt's scaling of the log odds, with his targets, which keep it finite where the classes do not overlap."""
    positives, negatives = int(label.sum()), int((~label).sum())
    target = np.where(label, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    ((intercept, slope),) = _logistic_fit(log_odds(output), target, np.ones((1, len(output)))).tolist()
    return _Fitted(lambda values: logistic(intercept + slope * log_odds(values)), slope=slope, intercept=intercept)


def _isotonic(output: Floats, label: Bools) -> _Fitted:
    """A curve that never falls, through the middle of each of its levels. Both ends keep clear of 0 and 1."""
    order = np.argsort(output, kind="stable")
    values, start = np.unique(output[order], return_index=True)
    weights = np.diff(np.append(start, len(output))).astype(np.float64)
    shares = np.add.reduceat(label[order].astype(np.float64), start) / weights
    found = isotonic_regression(shares, weights=weights)
    levels = found.blocks
    knots, heights = [], []
    for first, last in pairwise(levels):
        inside = slice(first, last)
        total = weights[inside].sum()
        knots.append(float(np.average(values[inside], weights=weights[inside])))
        # Laplace's rule: a level of k positives among n cases never claims certainty.
        heights.append(float((found.x[first] * total + 1) / (total + 2)))
    heights = [float(height) for height in np.maximum.accumulate(heights)]
    if len(knots) == 1:
        knots, heights = [0.0, 1.0], [heights[0], heights[0]]
    return _Fitted(lambda given: np.interp(given, knots, heights), outputs=tuple(knots), probabilities=tuple(heights))


def _logistic_fit(scores: Floats, target: Floats, weights: Floats) -> Floats:
    """(R, 2): intercept and slope of R weighted logistic regressions, by Newton's method.

    scores, target: (N,).  weights: (R, N).
    """
    design = np.stack((np.ones_like(scores), scores))
    found = np.zeros((len(weights), 2))
    for _ in range(STEPS):
        probability = logistic(found @ design)
        gradient = (weights * (target - probability)) @ design.T
        spread = weights * probability * (1 - probability)
        hessian = np.einsum("rn,in,jn->rij", spread, design, design) + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        found += np.clip(step, -5.0, 5.0)
        if np.abs(step).max() < 1e-9:
            break
    return found


# What is said about a fit


def quality(probability: Floats, label: Bools, group: Integers, seed: int = 0) -> Quality:
    """How well (N,) probabilities agree with (N,) labels, with bootstrap intervals over patients.

    group: (N,) patient of each case. Both labels must be present.
    """
    cases = _Cases(probability, label, group)
    scores, target = log_odds(probability), label.astype(np.float64)
    ((_, slope),) = _logistic_fit(scores, target, np.ones((1, len(label))))
    draws = _draws(cases, seed)
    both = _logistic_fit(scores, target, draws)
    bins = tuple(calibration(label, probability))
    return Quality(
        error=calibration_error(bins),
        error_interval=_percentile([_error(cases, draw) for draw in draws]),
        intercept=float(_offset(scores, target, np.ones((1, len(label))))[0]),
        intercept_interval=_percentile(_offset(scores, target, draws)),
        slope=float(slope),
        slope_interval=_percentile(both[:, 1]),
        brier=float(np.mean((probability - label) ** 2)),
        log_loss=float(_log_losses(probability, label).mean()),
        bins=bins,
    )


def _offset(scores: Floats, target: Floats, weights: Floats) -> Floats:
    """(R,): the intercept of a logistic regression with the slope held at 1."""
    found = np.zeros(len(weights))
    for _ in range(STEPS):
        probability = logistic(found[:, None] + scores)
        step = (weights * (target - probability)).sum(axis=1) / (
            (weights * probability * (1 - probability)).sum(axis=1) + 1e-9
        )
        found += np.clip(step, -5.0, 5.0)
        if np.abs(step).max() < 1e-9:
            break
    return found


def _resampled_slopes(scores: Floats, cases: _Cases, seed: int) -> Floats:
    return _logistic_fit(scores, cases.label.astype(np.float64), _draws(cases, seed))[:, 1]


def _draws(cases: _Cases, seed: int) -> Floats:
    """(R, N): how often each case is drawn; patients are drawn, with all their cases. Both labels are in each."""
    generator = np.random.default_rng(seed)
    count = int(cases.group.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)[:, cases.group].astype(np.float64)
    both = (drawn[:, cases.label].sum(axis=1) > 0) & (drawn[:, ~cases.label].sum(axis=1) > 0)
    return np.asarray(drawn[both])


def _error(cases: _Cases, weights: Floats) -> float:
    """Expected calibration error of a resample, as `calibration_error` has it."""
    drawn = np.repeat(np.arange(len(weights)), weights.astype(np.int64))
    return calibration_error(calibration(cases.label[drawn], cases.output[drawn]))


def _percentile(values: Sequence[float] | Floats) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(float(low), float(high), "bootstrap of patients")


def _own(threshold: float, fitted: _Fitted) -> float:
    """The model's own threshold on the calibrated scale."""
    return float(fitted.apply(np.array([threshold]))[0])


def _point(
    cases: _Cases, folds: Sequence[Integers], method: Method, mapped: Floats, own: float, wish: Wish | None
) -> PointAt:
    """The threshold chosen on all cases, and how the same choice does on cases that it has not seen."""
    threshold = _rounded(own if wish is None else _chosen(mapped, cases.label, wish), mapped)
    positive = np.empty((len(folds), len(cases.label)), dtype=np.bool_)
    for row, fold in zip(positive, folds, strict=True):
        for number in range(FOLDS):
            inside = fold == number
            fitted = _fit(method, cases.output[~inside], cases.label[~inside])
            seen = fitted.apply(cases.output[~inside])
            at = threshold if wish is None else _chosen(seen, cases.label[~inside], wish)
            row[inside] = fitted.apply(cases.output[inside]) >= at
    sensitivity = float(positive[:, cases.label].mean())
    specificity = float(1 - positive[:, ~cases.label].mean())
    positives, negatives = int(cases.label.sum()), int((~cases.label).sum())
    return PointAt(
        threshold,
        sensitivity,
        _around(sensitivity, positives),
        specificity,
        _around(specificity, negatives),
    )


def _rounded(threshold: float, probability: Floats) -> float:
    """With as few decimals, from two on, as keep every case on its side."""
    for decimals in range(2, 16):
        short = round(threshold, decimals)
        if 0 < short < 1 and np.array_equal(probability >= short, probability >= threshold):
            return short
    return threshold


def _around(share: float, cases: int) -> Interval:
    interval = wilson(round(share * cases), cases)
    if interval is None:
        raise EvaluationError("no cases of one label")
    return interval


def _chosen(probability: Floats, label: Bools, wish: Wish) -> float:
    """The threshold that keeps the wish at the least cost of the other share, midway between two cases."""
    values = np.unique(probability)
    edges = np.concatenate(([values[0]], (values[1:] + values[:-1]) / 2))
    side = np.sort(probability[label] if wish.of == "sensitivity" else probability[~label])
    below = np.searchsorted(side, edges, side="left") / len(side)
    kept = (1 - below if wish.of == "sensitivity" else below) >= wish.at_least - 1e-12
    if not kept.any():  # not even calling nothing positive: the highest output is a negative's
        raise EvaluationError(f"no threshold gives at least {wish.at_least:g} {wish.of} on these cases")
    found = float(edges[kept][-1] if wish.of == "sensitivity" else edges[kept][0])
    return min(max(found, SMALLEST), 1 - SMALLEST)


def _decision_curve(cases: _Cases, after: Floats) -> tuple[NetBenefit, ...]:
    share = float(cases.label.mean())
    return tuple(
        NetBenefit(
            at,
            _net_benefit(cases.output, cases.label, at),
            _net_benefit(after, cases.label, at),
            share - (1 - share) * at / (1 - at),
        )
        for at in NET_BENEFIT_AT
    )


def _net_benefit(probability: Floats, label: Bools, at: float) -> float:
    called = probability >= at
    return float(np.mean(called & label) - np.mean(called & ~label) * at / (1 - at))
