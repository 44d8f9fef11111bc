"""The record of a training run: history.csv, curves.png, and TensorBoard's files if it is installed."""

import csv
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inference.training.cached import replace_file
from inference.training.loop import EpochReport

HISTORY, CURVES, TENSORBOARD = "history.csv", "curves.png", "tensorboard"
COLUMNS = ("epoch", "training_loss", "validation_loss", "metric", "best", "seconds", "waiting_share")


class Journal:
    """Records the epochs of one run.

    metric: what `Score.metric` is called: "validation ROC AUC" or "validation Dice".
    """

    def __init__(self, folder: Path, metric: str) -> None:
        self._folder, self._metric = folder, metric
        self._epochs: list[EpochReport] = []
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / TENSORBOARD))

    @property
    def epochs(self) -> Sequence[EpochReport]:
        """The run's epochs so far, including those before a resumption."""
        return self._epochs

    def resumed(self, epochs: Sequence[EpochReport]) -> None:
        """Take over the epochs of a checkpoint; their curves are in the files already."""
        self._epochs = list(epochs)
        self._write()

    def epoch(self, report: EpochReport) -> None:
        """Record a finished epoch."""
        self._epochs.append(report)
        self._write()
        if self._board is not None:
            number, score = report.epoch + 1, report.validation
            self._board.add_scalar("loss/training", report.training_loss, number)
            self._board.add_scalar("loss/validation", score.loss, number)
            self._board.add_scalar(self._metric, score.metric, number)
            self._board.add_scalar("time/seconds", report.seconds, number)
            self._board.add_scalar("time/share waiting for data", report.waiting_share, number)
            self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for report in self._epochs:
            score = report.validation
            writer.writerow(
                [report.epoch + 1, f"{report.training_loss:.6g}", f"{score.loss:.6g}", f"{score.metric:.6g}",
                 int(report.best), f"{report.seconds:.1f}", f"{report.waiting_share:.4f}"]
            )  # fmt: skip
        replace_file(self._folder / HISTORY, text.getvalue().encode())
        if find_spec("matplotlib"):
            replace_file(self._folder / CURVES, self._curves())

    def _curves(self) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        FigureCanvasAgg(figure)
        losses, metric = figure.subplots(1, 2)
        numbers = [report.epoch + 1 for report in self._epochs]
        losses.plot(numbers, [report.training_loss for report in self._epochs], label="training")
        losses.plot(numbers, [report.validation.loss for report in self._epochs], label="validation")
        losses.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
        losses.legend()
        metric.plot(numbers, [report.validation.metric for report in self._epochs], color="tab:green")
        best = [report for report in self._epochs if report.best]
        if best:
            metric.plot([best[-1].epoch + 1], [best[-1].validation.metric], "o", color="tab:red", label="kept")
            metric.legend()
        metric.set(xlabel="epoch", title=self._metric)
        for axes in (losses, metric):
            axes.grid(alpha=0.3)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=110)
        return image.getvalue()
