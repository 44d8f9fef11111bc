"""train unet and train decovnet: the paper's two trainings, on a data set."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dicom_node.cli.common import JsonOption, err, out, print_json
from dicom_node.cli.overrides import SetOption, SettingsFileOption, settings_of

if TYPE_CHECKING:
    from inference.training.loop import EpochReport
    from inference.training.runs import Listener, RunResult

group = typer.Typer(no_args_is_help=True, help="Train the two networks on a data set.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="train")


DatasetArgument = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder that dataset build made.")]
Output = Annotated[
    Path, typer.Option(file_okay=False, help="Folder of the run; one that was killed goes on from its checkpoint.")
]
Epochs = Annotated[int | None, typer.Option(min=1, help="training.epochs; the paper's 100.")]
LearningRate = Annotated[float | None, typer.Option(min=0, help="training.learning_rate; the paper's 1e-5.")]
Seed = Annotated[int | None, typer.Option(min=0, help="training.seed; 0.")]
Precision = Annotated[
    Literal["float32", "bfloat16"] | None, typer.Option(help="training.precision; bfloat16 is mixed precision.")
]
DeviceOption = Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0", ...')]


@group.command()
def unet(
    dataset: DatasetArgument,
    output: Output,
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    precision: Precision = None,
    device: DeviceOption = "auto",
    settings_file: SettingsFileOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train the U-Net to find lungs, from the unsupervised masks that removed.txt leaves.

    Further settings (--set, or a TOML file): training.balance, training.samples_per_step, training.checkpoint_steps,
    training.augmentation.rotation_degrees, slices_per_step, slices_per_volume, statistics, ...
    """
    from inference.training.runs import train_unet
    from inference.training.settings import merged, unet_settings

    settings = unet_settings(merged(settings_of(settings_file, set_), _direct(epochs, learning_rate, seed, precision)))
    run = Run(dataset, device, settings.training.epochs, "Dice", json)
    run.train(lambda data, **how: train_unet(data, output, settings, **how))


@group.command()
def decovnet(
    dataset: DatasetArgument,
    output: Output,
    unet: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Run of train unet, or a model's folder.")],
    epochs: Epochs = None,
    learning_rate: LearningRate = None,
    seed: Seed = None,
    precision: Precision = None,
    device: DeviceOption = "auto",
    settings_file: SettingsFileOption = None,
    set_: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Train DeCoVNet from the labels alone, with the trained U-Net's masks.

    Further settings (--set, or a TOML file): training.balance, training.samples_per_step, training.checkpoint_steps,
    training.augmentation.rotation_degrees, dropout, start, statistics, ...
    """
    from inference.training.runs import train_decovnet
    from inference.training.settings import decovnet_settings, merged

    table = merged(settings_of(settings_file, set_), _direct(epochs, learning_rate, seed, precision))
    settings = decovnet_settings(table)
    run = Run(dataset, device, settings.training.epochs, "ROC AUC", json)
    run.train(lambda data, **how: train_decovnet(data, unet, output, settings, **how))


@dataclass(frozen=True)
class Run:
    """What both trainings have in common. metric: name of the figure that says which epoch is the best."""

    dataset: Path
    device: str
    epochs: int
    metric: str
    json: bool

    def train(self, training: Callable[..., RunResult]) -> None:
        """Run a training in the team of processes that this one belongs to, with its progress, and say the result."""
        from inference.training.cached import open_dataset
        from inference.training.parallel import join_team, leave_team

        team, own_device = join_team(self.device)
        try:
            with _listening(self.epochs, self.metric, talks=team.leads) as listener:
                result = training(open_dataset(self.dataset), device=own_device, team=team, listener=listener)
            if team.leads:
                _say(result, self.json)
        finally:
            leave_team()


def _direct(
    epochs: int | None, learning_rate: float | None, seed: int | None, precision: str | None
) -> dict[str, object]:
    given = {"epochs": epochs, "learning_rate": learning_rate, "seed": seed, "precision": precision}
    training = {name: value for name, value in given.items() if value is not None}
    return {"training": training} if training else {}


@contextmanager
def _listening(epochs: int, metric: str, *, talks: bool) -> Iterator[Listener]:
    """Progress bars on a terminal, a line an epoch elsewhere; a first SIGINT or SIGTERM ends the run in order."""
    from inference.training.runs import Listener, Stopped

    stop = threading.Event()

    def asked_to_stop(number: int, _: object) -> None:
        if stop.is_set():  # asked again: at once
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    former = {number: signal.signal(number, asked_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = talks and err.is_terminal
    with Progress(*columns, console=err, transient=True, disable=not shown) as progress:
        preparing = progress.add_task("preparing", total=None)
        samples = progress.add_task("samples", total=None, visible=False)

        def prepared(number: int, total: int) -> None:
            progress.update(preparing, completed=number, total=total, visible=number < total)
            if stop.is_set():
                raise Stopped("stopped while preparing; the same command goes on from there")

        def learned(number: int, total: int) -> None:
            progress.update(samples, completed=number, total=total, visible=True)

        def ended(report: EpochReport) -> None:
            score = report.validation
            err.print(
                f"epoch {report.epoch + 1}/{epochs}: training loss {report.training_loss:.4f}, validation loss "
                f"{score.loss:.4f}, {metric} {score.metric:.4f}{' (best)' if report.best else ''}, "
                f"{report.seconds:.1f} s, {report.waiting_share:.1%} waiting for data",
                markup=False,
                soft_wrap=True,
            )
            progress.update(samples, description=f"epoch {min(report.epoch + 2, epochs)}/{epochs}")

        try:
            yield Listener(prepared, learned, ended, stop.is_set)
        finally:
            for kind, handler in former.items():
                signal.signal(kind, handler)


def _say(result: RunResult, json: bool) -> None:
    figures = result.figures
    if json:
        print_json({**figures, "folder": str(result.folder)})
        return
    out.print(
        f"best {figures['metric']} {figures['best']:.4f} in epoch {figures['best_epoch']} of {figures['epochs']}; "
        f"{figures['training_s']:.0f} s of training, {figures['waiting_share']:.1%} of it waiting for data",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"wrote {result.folder}: weights, curves.png, history.csv, training.json", markup=False, soft_wrap=True)
