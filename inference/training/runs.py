"""The two trainings as runs in a folder: from a data set to weights from which a model card can be made."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from inference.covid.card import ZhengCard, read_zheng_card
from inference.covid.decovnet import DeCoVNet
from inference.covid.weights import encode, load_unet, sha256
from inference.device import Device, choose_device
from inference.errors import ModelError
from inference.lungs.unet import UNet
from inference.models.cards import CARD_FILE, Weights, shipped_folder, write_card
from inference.models.toml_fields import plain, write_toml
from inference.training.cached import CachedCase, Dataset, UnusableDataset, replace_file, summary
from inference.training.decovnet_training import VolumeCase, VolumeTask, initialise
from inference.training.inputs import Refused, lung_cases, volume_cases
from inference.training.journal import Journal
from inference.training.lesion_start import new_finder, start_classifier
from inference.training.loop import EpochReport, Score, Task, TrainingSettings, train
from inference.training.parallel import Team
from inference.training.settings import DecovnetSettings, UnetSettings
from inference.training.unet_training import LungTask

SETTINGS, SUMMARY = "settings.toml", "training.json"
UNET_FILE, DECOVNET_FILE = "unet.safetensors", "decovnet.safetensors"
FINDER = "finder"  # folder of the checkpoint of the start from opacities
TRAINED_CARD = "zheng2020-paper"

N = TypeVar("N", bound=nn.Module)


class Stopped(ModelError):
    """A run was asked to stop and has written a checkpoint; the same command continues from it."""


@dataclass(frozen=True)
class Listener:
    """Functions called during a run.

    preparing: (cases done, cases).  progress: (samples done, samples of the epoch).  epoch: each finished epoch.
    stop: True ends the run, with a checkpoint.
    """

    preparing: Callable[[int, int], None] = lambda number, total: None
    progress: Callable[[int, int], None] = lambda number, total: None
    epoch: Callable[[EpochReport], None] = lambda report: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class RunResult:
    """The result of a run. figures: as in training.json."""

    folder: Path
    score: Score
    figures: Mapping[str, Any]


def train_unet(
    dataset: Dataset,
    folder: Path,
    settings: UnetSettings,
    *,
    device: str = "auto",
    team: Team | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Train the U-Net on the unsupervised masks of the training part; the folder then holds unet.safetensors.

    Cases named in removed.txt are used neither for training nor for validation.
    Raises UnusableDataset if a part is empty, ModelError for a folder of another run, Stopped.
    """
    team, listener = team or Team(), listener or Listener()
    removed = dataset.removed()
    parts = [[case for case in dataset.part(name) if case.case not in removed] for name in ("training", "validation")]
    _require(parts, "lung mask")
    chosen = choose_device(device)
    cases = lung_cases(dataset, [*parts[0], *parts[1]], team, listener.preparing)
    split = len(parts[0])
    network = _started(lambda: UNet(settings.statistics), settings.training.seed).to(chosen.torch_device)
    task = LungTask(
        network,
        cases[:split],
        cases[split:],
        settings.training,
        slices_per_step=settings.slices_per_step,
        slices_per_volume=settings.slices_per_volume,
        team=team,
    )
    data = sha256(json.dumps([_used(part) for part in parts] + [plain(settings)]).encode())
    run = _Run(folder, "validation Dice", settings, team, listener, chosen.name)
    score, journal = run.train(task, settings.training, data)
    weights = encode(network.state_dict())
    figures = run.figures(dataset, score, journal, {"unet_sha256": sha256(weights), "cases_learned_from": split})
    if team.leads:
        replace_file(folder / UNET_FILE, weights)
    team.wait()
    return RunResult(folder, score, figures)


def train_decovnet(
    dataset: Dataset,
    unet_folder: Path,
    folder: Path,
    settings: DecovnetSettings,
    *,
    device: str = "auto",
    team: Team | None = None,
    listener: Listener | None = None,
) -> RunResult:
    """Train DeCoVNet on the labels alone, with the trained U-Net's masks; the folder is then a model's folder.

    unet_folder: of a U-Net's run, or of any model whose U-Net fits the data set's profile.
    Raises as `train_unet` does.
    """
    team, listener = team or Team(), listener or Listener()
    chosen = choose_device(device)
    unet, card = _trained_unet(unet_folder, dataset, settings)
    parts = [dataset.part(name) for name in ("training", "validation")]
    _require(parts, "case")
    prepare = partial(_prepared, dataset, parts, card, device=chosen, team=team, done=listener.preparing)
    training, validation, refused = prepare(unet)
    network = _started(lambda: _new_decovnet(settings), settings.training.seed).to(chosen.torch_device)
    data = sha256(json.dumps([_used(part) for part in parts] + [plain(settings), plain(card)]).encode())
    if settings.start == "opacities":
        # With the unsupervised masks, whose edge is the edge of the lung: see `lesion_start`.
        learning, held, _ = prepare(None)
        finder = _started(lambda: new_finder(network, learning), settings.training.seed)
        task = VolumeTask(finder, learning, held, settings.finder, team=team)
        _train_finder(task, settings.finder, folder / FINDER, data, team, listener)
        network = start_classifier(finder)
    task = VolumeTask(network, training, validation, settings.training, team=team)
    run = _Run(folder, "validation ROC AUC", settings, team, listener, chosen.name)
    score, journal = run.train(task, settings.training, data)
    weights = encode(network.state_dict())
    more = {
        "unet_sha256": card.unet.sha256,
        "decovnet_sha256": sha256(weights),
        "cases_learned_from": len(training),
        "cases_without_lung_mask": len(refused),
    }
    figures = run.figures(dataset, score, journal, more)
    if team.leads:
        replace_file(folder / DECOVNET_FILE, weights)
        replace_file(folder / UNET_FILE, (unet_folder / card.unet.file).read_bytes())
        _write_model(card, folder, figures)
    team.wait()
    return RunResult(folder, score, figures)


def _prepared(
    dataset: Dataset,
    parts: Sequence[Sequence[CachedCase]],
    card: ZhengCard,
    unet: UNet | None,
    device: Device,
    team: Team,
    done: Callable[[int, int], None],
) -> tuple[list[VolumeCase], list[VolumeCase], list[Refused]]:
    """Training cases, validation cases and those left out, with the masks of a U-Net or the unsupervised ones."""
    kept, refused = volume_cases(dataset, [*parts[0], *parts[1]], card, unet, device, team, done)
    by_name = {case.name: case for case in kept}
    training, validation = ([by_name[case.case] for case in part if case.case in by_name] for part in parts)
    _require([training, validation], "case with a lung mask")
    return training, validation, refused


def _train_finder(
    task: Task, settings: TrainingSettings, folder: Path, data: str, team: Team, listener: Listener
) -> None:
    """Train the features alone, with a checkpoint of their own; the run's curves show nothing of it."""
    done: list[EpochReport] = []
    train(
        task, settings, folder, report=done.append, progress=listener.progress, stop=listener.stop,
        resumed=done.extend, data=data, team=team,
    )  # fmt: skip
    if len(done) < settings.epochs:
        raise Stopped(f"stopped while the features learned, in epoch {len(done) + 1}; the same command goes on")


class _Run:
    """A run's folder and the files written into it."""

    def __init__(
        self,
        folder: Path,
        metric: str,
        settings: UnetSettings | DecovnetSettings,
        team: Team,
        listener: Listener,
        device_name: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.metric, self.settings = folder, metric, settings
        self.team, self.listener, self.device_name = team, listener, device_name
        self._started = time.monotonic()

    def train(self, task: Task, settings: TrainingSettings, data: str) -> tuple[Score, Journal | None]:
        """Train; the leading process writes the curves."""
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        if self.team.leads:
            replace_file(self.folder / SETTINGS, write_toml(plain(self.settings)).encode())
        journal = Journal(self.folder, self.metric) if self.team.leads else None
        done = 0

        def report(epoch: EpochReport) -> None:
            nonlocal done
            done += 1
            if journal:
                journal.epoch(epoch)
                self.listener.epoch(epoch)

        def resumed(epochs: Sequence[EpochReport]) -> None:
            nonlocal done
            done = len(epochs)
            if journal:
                journal.resumed(epochs)

        score = train(
            task, settings, self.folder, report=report, progress=self.listener.progress, stop=self.listener.stop,
            resumed=resumed, data=data, team=self.team,
        )  # fmt: skip
        if journal:
            journal.close()
        if done < settings.epochs:
            raise Stopped(f"stopped in epoch {done + 1} of {settings.epochs}; the same command goes on from there")
        return score, journal

    def figures(
        self, dataset: Dataset, score: Score, journal: Journal | None, more: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What is known of the run, also written as training.json."""
        epochs = list(journal.epochs) if journal else []
        seconds = sum(epoch.seconds for epoch in epochs)
        waited = sum(epoch.seconds * epoch.waiting_share for epoch in epochs)
        figures = {
            "metric": self.metric,
            "best": round(score.metric, 6),
            "best_loss": round(score.loss, 6),
            "best_epoch": max((epoch.epoch + 1 for epoch in epochs if epoch.best), default=0),
            "epochs": len(epochs),
            "training_s": round(seconds, 1),
            "waiting_share": round(waited / seconds, 4) if seconds else 0.0,
            "device": self.device_name,
            "processes": self.team.size,
            "torch": torch.__version__,
            **more,
            "settings": plain(self.settings),
            "data": summary(dataset),
        }
        if self.team.leads:
            replace_file(self.folder / SUMMARY, json.dumps(figures, indent=1, ensure_ascii=False).encode() + b"\n")
        return figures


def _started(make: Callable[[], N], seed: int) -> N:
    """A network with the initial weights that its seed gives, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _new_decovnet(settings: DecovnetSettings) -> DeCoVNet:
    network = DeCoVNet(settings.statistics, settings.dropout)
    if settings.start != "torch":
        initialise(network)
    return network


def _trained_unet(folder: Path, dataset: Dataset, settings: DecovnetSettings) -> tuple[UNet, ZhengCard]:
    """The U-Net of a run or of a model, and the card of the model to be trained with it."""
    own = read_zheng_card(folder) if (folder / CARD_FILE).exists() else None
    profile = dataset.profile
    if own is not None:
        statistics = own.profile.unet.statistics
        file = own.unet.file
    else:
        try:
            statistics = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["settings"]["statistics"]
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{folder}: neither a finished run of `train unet` nor a model's folder") from error
        file = UNET_FILE
    profile = replace(
        profile,
        unet=replace(profile.unet, statistics=statistics),
        decovnet=replace(profile.decovnet, statistics=settings.statistics),
    )
    content = (folder / file).read_bytes() if (folder / file).is_file() else b""
    if not content:
        raise ModelError(f"{folder / file}: missing")
    card = replace(
        read_zheng_card(shipped_folder() / TRAINED_CARD),
        profile=profile,
        unet=Weights(UNET_FILE, sha256(content)),
        decovnet=Weights(DECOVNET_FILE),
    )
    return load_unet(folder / file, card.unet.sha256, statistics), card


def _write_model(card: ZhengCard, folder: Path, figures: Mapping[str, Any]) -> None:
    trained = replace(
        card,
        name="trained-here",
        version="0",
        title="Trained at this site, not published",
        source="trained by this site with the method of Zheng et al. 2020",
        decovnet=Weights(DECOVNET_FILE, str(figures["decovnet_sha256"])),
    )
    write_card(trained, folder)


def _require(parts: Sequence[Sequence[object]], what: str) -> None:
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not part:
            raise UnusableDataset(f"the {name} part has no {what} to use; see left-out.csv and removed.txt")


def _used(cases: Sequence[CachedCase]) -> list[list[object]]:
    return [[case.sha256, case.covid] for case in cases]
