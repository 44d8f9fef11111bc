"""The figures of an evaluation, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.evaluation.assessment import Assessment
from inference.evaluation.extra import load
from inference.evaluation.intervals import Interval
from inference.evaluation.metrics import Curve, ThresholdRow
from inference.evaluation.predictions import Predictions
from inference.evaluation.prevalence import ppv_npv
from inference.evaluation.subgroups import figure_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
POINT_STYLES = {
    "high_sensitivity": ("^", RED, "high sensitivity"),
    "balanced": ("o", GREEN, "best balanced"),
    "high_specificity": ("s", ORANGE, "high specificity"),
}
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "font.size": 10.0,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "dicom-node",  # and no date in the file, so the same figures give the same bytes
    "text.parse_math": False,  # a scanner called "A$1$" is a name, not a formula
}
# Scanner and site names may be in Chinese. The first font draws what it can; the others, if installed, the rest.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC")
SQUARE, WIDE = (5.4, 5.4), (7.2, 4.4)
DOTS_PER_INCH = 150


def draw(predictions: Predictions, assessment: Assessment) -> dict[str, dict[str, bytes]]:
    """Every figure that these cases allow, by name, as PNG and SVG bytes: {"roc": {"png": ..., "svg": ...}, ...}.

    Raises MissingExtra without matplotlib.
    """
    with style():
        return {name: rendered(figure) for name, figure in _figures(predictions, assessment)}


def _figures(predictions: Predictions, assessment: Assessment) -> Iterator[tuple[str, Figure]]:
    if assessment.roc is not None and assessment.pr is not None:
        yield "roc", _roc(assessment, assessment.roc)
        yield "precision-recall", _precision_recall(assessment, assessment.pr)
    yield "calibration", _calibration(assessment)
    if assessment.predictive_values is not None:
        yield "predictive-values", _predictive_values(assessment)
    yield "probabilities", _probabilities(predictions, assessment)
    for title in assessment.subgroups:
        yield figure_name(title), _subgroups(assessment, title)


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures. Raises MissingExtra without matplotlib."""
    load("matplotlib")
    import matplotlib
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box; the page's table has the name
        matplotlib.rcdefaults()  # a user's own matplotlibrc has no effect here
        matplotlib.rcParams.update({**STYLE, "font.family": [name for name in FONTS if name in installed]})
        yield


def axes_of(size: tuple[float, float], *, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """A figure with one plot. size: inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def rendered(figure: Figure) -> dict[str, bytes]:
    """PNG and SVG of a figure, by name of the form."""
    files = {}
    for form, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH, metadata=metadata)
        files[form] = buffer.getvalue()
    return files


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")


def area_text(name: str, value: float | None, interval: Interval | None) -> str:
    """Such as "ROC AUC 0.959 (95% interval 0.927 to 0.991, DeLong)"."""
    if value is None:
        return f"{name} not defined"
    if interval is None:
        return f"{name} {value:.3f}"
    return f"{name} {value:.3f} (95% {interval.low:.3f} to {interval.high:.3f})"


def _roc(assessment: Assessment, curve: Curve) -> Figure:
    title = f"ROC curve, {assessment.positives} positive and {assessment.negatives} negative cases"
    figure, axes = axes_of(SQUARE, title=title, x="1 - specificity", y="sensitivity")
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    label = area_text("ROC AUC", assessment.roc_auc, assessment.roc_auc_interval)
    axes.plot(curve.x, curve.y, color=BLUE, linewidth=2, label=label)
    for name, point in _points(assessment):
        marker, colour, words = POINT_STYLES[name]
        sensitivity, specificity = point.sensitivity or 0.0, point.specificity or 0.0
        text = f"{words}: {sensitivity:.3f}, {specificity:.3f}"
        axes.plot(1 - specificity, sensitivity, marker, color=colour, markersize=9, label=text, linestyle="none")
    _unit_square(axes)
    axes.legend(loc="lower right", title="points: sensitivity, specificity")
    return figure


def _points(assessment: Assessment) -> Iterator[tuple[str, ThresholdRow]]:
    return ((name, assessment.operating_points[name]) for name in POINT_STYLES)


def _precision_recall(assessment: Assessment, curve: Curve) -> Figure:
    title = "Precision-recall curve"
    figure, axes = axes_of(SQUARE, title=title, x="recall (sensitivity)", y="precision (PPV among these cases)")
    axes.axhline(assessment.prevalence, linestyle="--", color=GREY, linewidth=1, label="positive share of the cases")
    label = area_text("PR AUC", assessment.pr_auc, assessment.pr_auc_interval)
    axes.step(curve.x, curve.y, where="post", color=BLUE, linewidth=2, label=label)
    _unit_square(axes)
    axes.legend(loc="lower left")
    return figure


def _calibration(assessment: Assessment) -> Figure:
    title = (
        f"Calibration: Brier score {assessment.brier:.3f} (always saying the mean: {assessment.brier_reference:.3f})"
    )
    figure, axes = axes_of((5.8, 5.8), title=title, x="probability that the model gives", y="share that is positive")
    axes.title.set_fontsize(10)
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfect calibration")
    bins = assessment.calibration
    said = [entry.mean_probability for entry in bins]
    seen = [entry.positive_share for entry in bins]
    intervals = [entry.interval or Interval(share, share, "") for entry, share in zip(bins, seen, strict=True)]
    below = [share - interval.low for share, interval in zip(seen, intervals, strict=True)]
    above = [interval.high - share for share, interval in zip(seen, intervals, strict=True)]
    axes.errorbar(said, seen, yerr=[below, above], fmt="o", color=BLUE, capsize=3, label="cases by tenth, 95% interval")
    for entry, x, y in zip(bins, said, seen, strict=True):
        place = {"xytext": (6, 6), "ha": "left"} if x < 0.9 else {"xytext": (-6, 6), "ha": "right"}
        axes.annotate(f"{entry.cases}", (x, y), textcoords="offset points", fontsize=8, color=GREY, **place)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.08), aspect="equal")
    axes.legend(loc="lower right", title="numbers: cases")
    return figure


def _predictive_values(assessment: Assessment) -> Figure:
    values = assessment.predictive_values
    if values is None:
        raise ValueError("no predictive values to draw")
    title = f"Predictive values at threshold {values.threshold:g} by prevalence"
    figure, axes = axes_of(WIDE, title=title, x="prevalence among those scanned", y="predictive value")
    prevalences = np.linspace(0.001, 0.999, 400)
    pairs = [ppv_npv(values.sensitivity, values.specificity, float(value)) for value in prevalences]
    for index, (words, colour) in enumerate(
        (("PPV: a positive result is right", BLUE), ("NPV: a negative is right", RED))
    ):
        line = np.array([pair[index] for pair in pairs], dtype=np.float64)  # None becomes NaN, a gap
        axes.plot(prevalences, line, color=colour, linewidth=2, label=words)
    share = f"these cases: {assessment.prevalence:.0%}"
    axes.axvline(assessment.prevalence, linestyle="--", color=GREY, linewidth=1, label=share)
    asked = assessment.settings["prevalence"]
    if isinstance(asked, float):
        axes.axvline(asked, linestyle=":", color=GREEN, linewidth=2, label=f"the site: {asked:.1%}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _probabilities(predictions: Predictions, assessment: Assessment) -> Figure:
    title = "Probabilities by true class"
    figure, axes = axes_of(WIDE, title=title, x="probability that the model gives", y="cases")
    edges = [float(edge) for edge in np.linspace(0, 1, 21)]
    for inside, words, colour in ((predictions.label, "positive", RED), (~predictions.label, "negative", BLUE)):
        text = f"{words} ({int(inside.sum())})"
        axes.hist(predictions.probability[inside], bins=edges, color=colour, alpha=0.55, label=text)
    at = assessment.threshold.threshold
    axes.axvline(at, linestyle="--", color=GREY, linewidth=1, label=f"threshold {at:g}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _subgroups(assessment: Assessment, title: str) -> Figure:
    rows = assessment.subgroups[title]
    size = (7.2, 1.5 + 0.55 * len(rows))
    figure, axes = axes_of(size, title=f"By {title}, threshold {assessment.threshold.threshold:g}", x="", y="")
    for place, row in enumerate(rows):
        shown = (
            (row.roc_auc, row.roc_auc_interval, -0.22, BLUE, "o"),
            (row.sensitivity, row.sensitivity_interval, 0.0, RED, "^"),
            (row.specificity, row.specificity_interval, 0.22, ORANGE, "s"),
        )
        for value, interval, offset, colour, marker in shown:
            if value is None:
                continue
            if interval is not None:
                axes.plot([interval.low, interval.high], [place + offset] * 2, color=colour, linewidth=1.5)
            fill = "white" if row.few else colour
            axes.plot(value, place + offset, marker, color=colour, markerfacecolor=fill)
    axes.set_yticks(range(len(rows)), [f"{row.value[:40]}\n{row.positives} of {row.cases} positive" for row in rows])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(axis="y", labelsize=9)
    handles = [
        axes.plot([], [], marker, color=colour, linestyle="none", label=words)[0]
        for marker, colour, words in (("o", BLUE, "ROC AUC"), ("^", RED, "sensitivity"), ("s", ORANGE, "specificity"))
    ]
    handles += axes.plot(
        [], [], "o", color=GREY, markerfacecolor="white", label="fewer than 10 of a class", linestyle="none"
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9)
    return figure
