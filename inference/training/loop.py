"""One training loop for both networks: deterministic, resumable, keeping the best epoch.

Chance is a function of (seed, epoch, step), never a running state, so a run that was killed goes on
from its last checkpoint to the same weights as one that was not.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inference.errors import ModelError
from inference.training.augmentation import AugmentationSettings

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; the defaults are the paper's.

    balance: the smaller class is repeated until classes are equal, as the authors do.
    precision: "float32" or "bfloat16" (autocast; weights stay in float32).
    warm_statistics_share: share of the epochs after which batch normalisation stops following single samples
        and trains with its running statistics, which are those that the node uses; 1 never does.
    statistics_momentum: weight of the newest sample in the running statistics.
    samples_per_step: samples whose gradients are averaged in one step of the optimizer.
    rise_samples: the learning rate rises from zero over the first samples; the paper's is constant.
    decay_share: share of the epochs, at the end, in which the learning rate falls to zero.
    checkpoint_steps: steps between checkpoints within an epoch; None writes one at each epoch's end.
    """

    epochs: int = 100
    learning_rate: float = 1e-5
    validation_share: float = 0.15
    seed: int = 0
    balance: bool = True
    precision: str = "float32"
    warm_statistics_share: float = 1.0
    statistics_momentum: float = 0.1
    samples_per_step: int = 1
    rise_samples: int = 0
    decay_share: float = 0.0
    checkpoint_steps: int | None = None
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)

    def digest(self) -> str:
        """Tells a checkpoint of other settings apart; hexadecimal."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True)
class Score:
    """How good the network is on the validation cases: the larger metric wins, then the smaller loss."""

    metric: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts scores from worse to better."""
        return (round(self.metric, 6), -self.loss)


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch. epoch: from 0."""

    epoch: int
    training_loss: float
    validation: Score
    best: bool


class Task(Protocol):
    """What the loop needs to know about a network's training."""

    @property
    def network(self) -> nn.Module:
        """The network that learns."""

    def order(self, generator: torch.Generator) -> list[int]:
        """The samples of one epoch, in the order in which they are learned from."""

    def loss(self, sample: int, generator: torch.Generator) -> Tensor:
        """Loss of one sample, augmented with chance from `generator`."""

    def validate(self) -> Score:
        """Score of the network, in evaluation mode, on the validation cases."""


def train(
    task: Task,
    settings: TrainingSettings,
    folder: Path,
    *,
    report: Callable[[EpochReport], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Score:
    """Train until `settings.epochs` are done, from the checkpoint in `folder` where there is one.

    The network holds the weights of the best epoch afterwards.
    report: called after each epoch.  progress: called with (samples done, samples of the epoch) after each step.
    stop: asked after each step; True ends the run early, with a checkpoint, as a kill would end it without.
    Returns the score of the best epoch.
    Raises ModelError where the checkpoint is of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=settings.learning_rate)
    for layer in _normalisations(task.network):
        layer.momentum = settings.statistics_momentum
    state = _State()
    if (folder / CHECKPOINT).exists():
        state = _load(folder / CHECKPOINT, task.network, optimizer, settings)
    while state.epoch < settings.epochs:
        if not _run_epoch(task, optimizer, settings, state, folder, progress, stop):
            break
        score = _validate(task)
        best = state.best is None or score.rank > state.best.rank
        if best:
            state.best, state.best_weights = score, _copied(task.network)
        mean = state.loss_sum / max(state.step, 1)
        finished, state.epoch, state.step, state.loss_sum = state.epoch, state.epoch + 1, 0, 0.0
        _save(folder / CHECKPOINT, task.network, optimizer, settings, state)
        if report:
            report(EpochReport(finished, mean, score, best))
    if state.best is None:
        return Score(float("nan"), float("nan"))
    task.network.load_state_dict(state.best_weights)
    task.network.eval()
    return state.best


@dataclass
class _State:
    epoch: int = 0
    step: int = 0  # samples of this epoch that are done
    steps: int = 0  # steps of the optimizer since the start
    loss_sum: float = 0.0
    best: Score | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def _run_epoch(
    task: Task,
    optimizer: torch.optim.Optimizer,
    settings: TrainingSettings,
    state: _State,
    folder: Path,
    progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool] | None,
) -> bool:
    """The rest of an epoch; False where `stop` ended it."""
    order = task.order(_generator(settings.seed, state.epoch, -1))
    task.network.train()
    if state.epoch >= settings.warm_statistics_share * settings.epochs:
        freeze_statistics(task.network)
    pending: list[Tensor] = []
    while state.step < len(order):
        samples = range(state.step, min(state.step + settings.samples_per_step, len(order)))
        _set_learning_rate(optimizer, settings, state.epoch, state.step, len(order))
        optimizer.zero_grad(set_to_none=True)
        for sample in samples:
            pending.append(_learn(task, settings, state.epoch, sample, order[sample]))
        optimizer.step()
        state.step = samples.stop
        state.steps += 1
        if progress:
            progress(state.step, len(order))
        stopping = stop is not None and stop()
        if stopping or (settings.checkpoint_steps and state.steps % settings.checkpoint_steps == 0):
            state.loss_sum = _added(state.loss_sum, pending)
            _save(folder / CHECKPOINT, task.network, optimizer, settings, state)
        if stopping:
            return False
    state.loss_sum = _added(state.loss_sum, pending)
    return True


def _learn(task: Task, settings: TrainingSettings, epoch: int, place: int, sample: int) -> Tensor:
    """Add the gradient of one sample, the `place`-th of its epoch; returns its loss, still on the device."""
    device = next(task.network.parameters()).device
    with _chance(settings.seed, epoch, place, device) as generator, _precision(settings, device):
        loss = task.loss(sample, generator)
    (loss / settings.samples_per_step).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _added(total: float, pending: list[Tensor]) -> float:
    """Sum losses kept on the device until now, so that no step waits for its number."""
    total += sum(float(loss) for loss in pending)
    pending.clear()
    return total


def freeze_statistics(network: nn.Module) -> None:
    """Let batch normalisation use, and no longer change, its running statistics."""
    for layer in _normalisations(network):
        layer.eval()


def _normalisations(network: nn.Module) -> list[nn.BatchNorm2d | nn.BatchNorm3d]:
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)]


def _validate(task: Task) -> Score:
    task.network.eval()
    with torch.inference_mode():
        return task.validate()


def _set_learning_rate(
    optimizer: torch.optim.Optimizer, settings: TrainingSettings, epoch: int, sample: int, samples: int
) -> None:
    done = epoch * samples + sample
    rate = settings.learning_rate
    if settings.rise_samples:
        rate *= min(1.0, (done + 1) / settings.rise_samples)
    if settings.decay_share > 0:
        left = settings.epochs - done / samples
        rate *= min(1.0, left / (settings.epochs * settings.decay_share))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _seed(seed: int, epoch: int, step: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}/{step}".encode()).digest()[:7], "big")


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, epoch, step))


@contextmanager
def _chance(seed: int, epoch: int, step: int, device: torch.device) -> Iterator[torch.Generator]:
    """A generator for augmentation; torch's own, which dropout uses, is seeded beside it and put back."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(seed, epoch, step))
        yield _generator(seed, epoch, step)


def _precision(settings: TrainingSettings, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _save(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings, state: _State
) -> None:
    """Replace the checkpoint in one step: a kill leaves the old one or the new one, whole."""
    content = {
        "settings": settings.digest(),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "steps": state.steps,
        "loss_sum": state.loss_sum,
        "best": None if state.best is None else [state.best.metric, state.best.loss],
        "best_weights": state.best_weights,
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, settings: TrainingSettings) -> _State:
    device = next(network.parameters()).device
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    if content["settings"] != settings.digest():
        raise ModelError(f"the checkpoint {path.name} was made with other settings; choose another folder")
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    best = None if content["best"] is None else Score(*content["best"])
    weights = {name: tensor.cpu() for name, tensor in content["best_weights"].items()}
    return _State(content["epoch"], content["step"], content["steps"], content["loss_sum"], best, weights)
