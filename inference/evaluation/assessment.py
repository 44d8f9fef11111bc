"""Computes every figure of an evaluation from predictions, as plain data."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

import numpy as np
import numpy.typing as npt

from inference.evaluation import metrics
from inference.evaluation.comparison import Comparison
from inference.evaluation.intervals import Bootstrapped, Interval, bootstrap, delong
from inference.evaluation.metrics import CalibrationBin, Curve, ThresholdRow
from inference.evaluation.predictions import Predictions
from inference.evaluation.prevalence import PredictiveRow, predictive_table
from inference.evaluation.subgroups import SubgroupRow, subgroup_rows
from inference.finding import ModelIdentity

PREVALENCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
IntervalMethod = Literal["auto", "delong", "bootstrap"]


@dataclass(frozen=True)
class Options:
    """What an evaluation should compute.

    threshold: the one in use, for predictive values and subgroups.  prevalence: the site's, 0 to 1, if it is known.
    interval: of the ROC AUC; "auto" is DeLong's, or the bootstrap of patients if any patient has several cases.
    subgroups: columns to split by, in addition to the known ones.
    """

    thresholds: tuple[float, ...] = metrics.PAPER_THRESHOLDS
    threshold: float = 0.5
    prevalence: float | None = None
    interval: IntervalMethod = "auto"
    resamples: int = 2000
    seed: int = 0
    subgroups: tuple[str, ...] = ()


@dataclass(frozen=True)
class PredictiveValuesAt:
    """Predictive values of one operating point at several prevalences."""

    threshold: float
    sensitivity: float
    specificity: float
    rows: list[PredictiveRow]


@dataclass(frozen=True)
class Assessment:
    """Every figure of an evaluation. None: not defined for these cases; `notes` says why.

    pr_auc: average precision; pr_auc_trapezoid joins the points with straight lines.
    brier_reference: the Brier score of always predicting the prevalence.
    calibration_in_the_large: mean probability less the share of positives.
    """

    source: str
    sha256: str
    cases: int
    patients: int | None
    positives: int
    negatives: int
    prevalence: float
    roc_auc: float | None
    roc_auc_interval: Interval | None
    pr_auc: float | None
    pr_auc_interval: Interval | None
    pr_auc_trapezoid: float | None
    brier: float
    brier_interval: Interval | None
    brier_reference: float
    calibration: list[CalibrationBin]
    calibration_error: float
    calibration_in_the_large: float
    threshold: ThresholdRow
    thresholds: list[ThresholdRow]
    operating_points: dict[str, ThresholdRow]
    predictive_values: PredictiveValuesAt | None
    subgroups: dict[str, list[SubgroupRow]]
    roc: Curve | None
    pr: Curve | None
    comparison: Comparison | None
    model: ModelIdentity | None
    left_out: list[str]
    notes: list[str]
    settings: dict[str, object]
    versions: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """The same as JSON types; floats are finite, and undefined values are null."""
        found = {**asdict(self), "predictive_values": _predictive_json(self.predictive_values)}
        return {**found, "model": None if self.model is None else _model_json(self.model)}


def _model_json(model: ModelIdentity) -> dict[str, object]:
    """Which model it is, with the digest of each of its weight files."""
    names = ("name", "version", "profile", "digest")
    digests = {f"{role}_sha256": sha256 for role, sha256 in model.weights.items()}
    rest = ("threshold", "verified", "demonstration")
    return {name: getattr(model, name) for name in names} | digests | {name: getattr(model, name) for name in rest}


def assess(
    predictions: Predictions,
    options: Options,
    comparison: Comparison | None = None,
    model: ModelIdentity | None = None,
) -> Assessment:
    """Compute every figure. Deterministic: the same file and options give the same figures.

    comparison, model: other facts about these predictions, passed through unchanged.
    Raises EvaluationError if a subgroup column does not exist or does not divide the cases into groups; MissingExtra
    without scikit-learn.
    """
    label, probability = predictions.label, predictions.probability
    positives = int(label.sum())
    both = 0 < positives < len(label)
    groups, patients = _patients(predictions.patient)
    drawn = _bootstrap(predictions, options, groups) if both else Bootstrapped(None, None, None)
    roc = metrics.roc_curve(label, probability) if both else None
    pr = metrics.pr_curve(label, probability) if both else None
    bins = metrics.calibration(label, probability)
    at_threshold = metrics.threshold_row(label, probability, options.threshold)
    share = positives / len(label)
    use_delong = options.interval == "delong" or (options.interval == "auto" and groups is None)
    return Assessment(
        source=predictions.source,
        sha256=predictions.sha256,
        cases=len(label),
        patients=patients,
        positives=positives,
        negatives=len(label) - positives,
        prevalence=share,
        roc_auc=metrics.roc_auc(label, probability) if both else None,
        roc_auc_interval=delong(label, probability) if use_delong else drawn.roc_auc,
        pr_auc=metrics.average_precision(label, probability) if both else None,
        pr_auc_interval=drawn.pr_auc,
        pr_auc_trapezoid=metrics.trapezoid_pr_auc(pr) if pr else None,
        brier=metrics.brier(label, probability),
        brier_interval=drawn.brier,
        brier_reference=share * (1 - share),
        calibration=bins,
        calibration_error=metrics.calibration_error(bins),
        calibration_in_the_large=float(probability.mean()) - share,
        threshold=at_threshold,
        thresholds=[metrics.threshold_row(label, probability, value) for value in options.thresholds],
        operating_points=metrics.operating_points(label, probability) if both else {},
        predictive_values=_predictive_values(at_threshold, share, options.prevalence),
        subgroups=subgroup_rows(predictions, options.threshold, options.subgroups),
        roc=roc,
        pr=pr,
        comparison=comparison,
        model=model,
        left_out=[str(problem) for problem in predictions.left_out],
        notes=_notes(predictions, groups is not None, use_delong),
        settings=asdict(options),
        versions=_versions(),
    )


def _bootstrap(predictions: Predictions, options: Options, groups: npt.NDArray[np.int64] | None) -> Bootstrapped:
    return bootstrap(
        predictions.label, predictions.probability, groups=groups, resamples=options.resamples, seed=options.seed
    )


def _patients(patient: Sequence[str]) -> tuple[npt.NDArray[np.int64] | None, int | None]:
    """Patient number of each case if any patient has several cases, and the number of patients if it is known."""
    if not patient:
        return None, None
    names, numbers = np.unique(np.array(patient), return_inverse=True)
    return (numbers.astype(np.int64) if len(names) < len(patient) else None), len(names)


def _predictive_values(row: ThresholdRow, share: float, prevalence: float | None) -> PredictiveValuesAt | None:
    if row.sensitivity is None or row.specificity is None:
        return None
    prevalences = sorted({*PREVALENCES, share, *(() if prevalence is None else (prevalence,))})
    rows = predictive_table(row.sensitivity, row.specificity, prevalences)
    return PredictiveValuesAt(row.threshold, row.sensitivity, row.specificity, rows)


def _predictive_json(values: PredictiveValuesAt | None) -> Mapping[str, object] | None:
    # asdict() leaves named tuples as they are, and JSON would turn them into lists without names.
    return None if values is None else {**asdict(values), "rows": [row._asdict() for row in values.rows]}


def _notes(predictions: Predictions, repeated: bool, use_delong: bool) -> list[str]:
    label, probability, notes = predictions.label, predictions.probability, list(predictions.notes)
    if label.all() or not label.any():
        missing = "positive" if not label.any() else "negative"
        notes.append(f"there is no {missing} case: areas, curves and operating points are not defined")
    elif min(probability[label]) > max(probability[~label]):
        notes.append("the classes do not overlap at all: an interval of the area cannot be estimated from these cases")
    elif min(label.sum(), (~label).sum()) < 2:
        notes.append("a class has a single case: DeLong's interval is not defined")
    if repeated:
        kinds = "the area's, those of shares and of subgroups" if use_delong else "those of shares and of subgroups"
        notes.append(f"patients have several cases, which some intervals take for independent ({kinds}): too narrow")
    if predictions.left_out:
        notes.append(f"{len(predictions.left_out)} lines or cases could not be used and are left out")
    return notes


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")},
    }
