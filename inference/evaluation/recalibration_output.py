"""The files of a calibration in a folder: its figures as JSON, and two plots."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inference.evaluation.errors import EvaluationError
from inference.evaluation.intervals import Interval
from inference.evaluation.metrics import CalibrationBin
from inference.evaluation.plots import BLUE, GREY, ORANGE, axes_of, rendered, style
from inference.evaluation.recalibration import Recalibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "calibration.json"


def write_recalibration(fit: Recalibration, folder: Path) -> list[Path]:
    """Write the figures as JSON, and both plots as PNG and SVG. None of the files names a case or a patient.

    Raises EvaluationError if the folder cannot be written to, MissingExtra without matplotlib.
    """
    files = {FIGURES: json.dumps(asdict(fit), indent=2, allow_nan=False).encode() + b"\n"}
    with style():
        for name, figure in _figures(fit):
            files |= {f"{name}.{form}": data for form, data in rendered(figure).items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise EvaluationError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / name for name in files]


def _figures(fit: Recalibration) -> Iterator[tuple[str, "Figure"]]:
    yield "calibration", _curve(fit)
    yield "decision-curve", _decision_curve(fit)


def _curve(fit: Recalibration) -> "Figure":
    title = f"Before and after: error {fit.before.error:.3f} and {fit.after.error:.3f}, {fit.cases} cases"
    figure, axes = axes_of((5.8, 5.8), title=title, x="probability", y="share that is positive")
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="perfect calibration")
    for words, colour, bins in (("as the model gives it", GREY, fit.before.bins), ("calibrated", BLUE, fit.after.bins)):
        seen = [one.positive_share for one in bins]
        intervals = [_interval(one) for one in bins]
        errors = [[share - one.low for share, one in zip(seen, intervals, strict=True)],
                  [one.high - share for share, one in zip(seen, intervals, strict=True)]]  # fmt: skip
        at = [one.mean_probability for one in bins]
        axes.errorbar(at, seen, yerr=errors, fmt="o", color=colour, capsize=3, label=f"{words}, 95% interval")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
    axes.legend(loc="upper left")
    return figure


def _interval(entry: CalibrationBin) -> Interval:
    return entry.interval or Interval(entry.positive_share, entry.positive_share, "")


def _decision_curve(fit: Recalibration) -> "Figure":
    figure, axes = axes_of(
        (7.2, 4.4), title="Decision curve", x="probability from which one would act", y="net benefit per case"
    )
    at = [row.threshold for row in fit.decision_curve]
    axes.plot(at, [row.after for row in fit.decision_curve], color=BLUE, linewidth=2, label="calibrated")
    axes.plot(at, [row.before for row in fit.decision_curve], color=ORANGE, linewidth=2, label="as the model gives it")
    axes.plot(at, [row.treat_all for row in fit.decision_curve], color=GREY, linewidth=1, label="act on everybody")
    axes.axhline(0, linestyle="--", color=GREY, linewidth=1, label="act on nobody")
    highest = max(row.after for row in fit.decision_curve)
    axes.set(xlim=(0, 1), ylim=(-0.05 - highest / 5, highest * 1.1 + 0.05))
    axes.legend(loc="upper right")
    return figure
