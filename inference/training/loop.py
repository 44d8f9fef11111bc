"""One training loop for both networks: deterministic, resumable, keeping the best epoch.

Randomness depends only on (seed, epoch, step), never on a running state. A run that was killed therefore continues
from its last checkpoint to the same weights as an uninterrupted run.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from inference.errors import ModelError
from inference.training.augmentation import AugmentationSettings
from inference.training.parallel import Team, statistics

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainingSettings:
    """Training settings; the defaults are the paper's.

    balance: repeat the smaller class until the classes are equal, as the authors do.
    precision: "float32" or "bfloat16" (autocast; weights stay in float32).
    warm_statistics_share: share of the epochs after which batch normalisation stops following single samples
        and trains with its running statistics, which the node uses too; with 1 it never does.
    statistics_momentum: weight of the newest sample in the running statistics.
    samples_per_step: samples per process whose gradients are averaged in one step of the optimizer.
    rise_samples: number of first samples over which the learning rate rises from zero; the paper's is constant.
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
        """Identifies the settings, so that a checkpoint of other settings is recognised; hexadecimal."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True)
class Score:
    """How good the network is on the validation cases: the larger metric wins, then the smaller loss."""

    metric: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key from worse to better scores."""
        return (round(self.metric, 6), -self.loss)


@dataclass(frozen=True)
class EpochReport:
    """One finished epoch. epoch: from 0.

    seconds: wall time of its training.  waiting_share: share of that time in which the network waited for data.
    """

    epoch: int
    training_loss: float
    validation: Score
    best: bool
    seconds: float = 0.0
    waiting_share: float = 0.0


class Task(Protocol):
    """What the loop needs to know about a network's training."""

    @property
    def network(self) -> nn.Module:
        """The network that learns."""

    def order(self, generator: torch.Generator) -> list[int]:
        """The samples of one epoch, in training order."""

    def expect(self, samples: Sequence[int]) -> None:
        """Announces the samples of the next calls of `loss`, in order, to be loaded ahead. Empty: no more."""

    def waited_s(self) -> float:
        """Seconds that `loss` has waited for data so far."""

    def loss(self, sample: int, generator: torch.Generator) -> Tensor:
        """Loss of one sample, augmented with random numbers from `generator`."""

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
    resumed: Callable[[Sequence[EpochReport]], None] | None = None,
    data: str = "",
    team: Team | None = None,
) -> Score:
    """Train until `settings.epochs` are done, from the checkpoint in `folder` if there is one.

    Afterwards the network holds the weights of the best epoch.
    report: called after each epoch.  progress: called with (samples done, samples of the epoch) after each step.
    stop: called after each step; True ends the run early, after writing a checkpoint.
    resumed: called with the epochs that the checkpoint contains.
    data: any digest of the training data; a checkpoint of other data is refused, as is one of other settings.
    team: the processes that train together; each of them calls this function.
    Returns the score of the best epoch.
    Raises ModelError if the checkpoint is of other settings or data, or the loss is not finite.
    """
    team = team or Team()
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, settings, folder / CHECKPOINT, _identity(settings, data, team), team, progress, stop)
    if resumed and run.state.history:
        resumed(run.state.history)
    state = run.state
    while state.epoch < settings.epochs:
        if not run.epoch():
            break
        finished = run.judge()
        if report:
            report(finished)
    task.expect(())
    if state.best is None:
        return Score(float("nan"), float("nan"))
    task.network.load_state_dict(state.best_weights)
    task.network.eval()
    return state.best


@dataclass
class _State:
    epoch: int = 0
    step: int = 0  # samples done in this epoch
    steps: int = 0  # steps of the optimizer since the start
    loss_sum: float = 0.0
    best: Score | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[EpochReport] = field(default_factory=list)


class _Run:
    """One call of `train`: the state that it continues from, and its epochs."""

    def __init__(
        self,
        task: Task,
        settings: TrainingSettings,
        checkpoint: Path,
        identity: str,
        team: Team,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.task, self.settings, self.team = task, settings, team
        self.checkpoint, self.identity = checkpoint, identity
        self.progress, self.stop = progress, stop
        self.optimizer = torch.optim.Adam(task.network.parameters(), lr=settings.learning_rate)
        for layer in _normalisations(task.network):
            layer.momentum = settings.statistics_momentum
        self.state = _State()
        if checkpoint.exists():
            self.state = _load(checkpoint, task.network, self.optimizer, identity)
        self._seconds, self._waited = 0.0, 0.0

    def epoch(self) -> bool:
        """Train the rest of an epoch; False if `stop` ended it."""
        settings, state, network = self.settings, self.state, self.task.network
        order = self.task.order(_generator(settings.seed, state.epoch, -1))
        network.train()
        if state.epoch >= settings.warm_statistics_share * settings.epochs:
            freeze_statistics(network)
        self.task.expect([order[place] for step in self._steps(len(order)) for place in self._own(step)])
        started, waited = time.perf_counter(), self.task.waited_s()
        pending: list[Tensor] = []
        for step in self._steps(len(order)):
            _set_learning_rate(self.optimizer, settings, state.epoch, state.step, len(order))
            pending += self._learn(step, order)
            state.step, state.steps = step.stop, state.steps + 1
            if self.progress:
                self.progress(state.step, len(order))
            stopping = self.team.any(self.stop is not None and self.stop())
            if stopping or (settings.checkpoint_steps and state.steps % settings.checkpoint_steps == 0):
                self._add(pending)
                self._save()
            if stopping:
                self.task.expect(())
                return False
        self._add(pending)
        self._seconds, self._waited = time.perf_counter() - started, self.task.waited_s() - waited
        return True

    def judge(self) -> EpochReport:
        """Score the epoch that has just ended, keep its weights if they are the best, and write a checkpoint."""
        state = self.state
        mean = state.loss_sum / max(state.step, 1)
        if not math.isfinite(mean):
            raise ModelError(f"the loss of epoch {state.epoch + 1} is not finite: try a lower training.learning_rate")
        score = _validate(self.task)
        best = state.best is None or score.rank > state.best.rank
        if best:
            state.best, state.best_weights = score, _copied(self.task.network)
        share = self._waited / self._seconds if self._seconds else 0.0
        report = EpochReport(state.epoch, mean, score, best, self._seconds, share)
        state.history.append(report)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        self._save()
        return report

    def _steps(self, samples: int) -> list[range]:
        """For each remaining step of the epoch, its samples' positions in the order, over all processes."""
        size = self.settings.samples_per_step * self.team.size
        return [range(start, min(start + size, samples)) for start in range(self.state.step, samples, size)]

    def _own(self, step: range, rank: int | None = None) -> range:
        """The samples of a step that one process handles; this process if no rank is given."""
        start = (self.team.rank if rank is None else rank) * self.settings.samples_per_step
        return step[start : start + self.settings.samples_per_step]

    def _learn(self, step: range, order: Sequence[int]) -> list[Tensor]:
        """Take one step of the optimizer; returns the losses of this process's samples, still on the device."""
        network = self.task.network
        layers = [layer for layer in _normalisations(network) if layer.training] if self.team.size > 1 else []
        before = statistics(layers)
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._learn_one(place, order[place]) for place in self._own(step)]
        self.team.add_gradients(network)
        self.team.join_statistics(layers, before, [len(self._own(step, rank)) for rank in range(self.team.size)])
        self.optimizer.step()
        return losses

    def _learn_one(self, place: int, sample: int) -> Tensor:
        """Add the gradient of sample number `place` of the epoch; returns its loss."""
        device = next(self.task.network.parameters()).device
        seed, epoch = self.settings.seed, self.state.epoch
        with _chance(seed, epoch, place, device) as generator, _precision(self.settings, device):
            loss = self.task.loss(sample, generator)
        (loss / (self.settings.samples_per_step * self.team.size)).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _add(self, pending: list[Tensor]) -> None:
        """Sum the losses, which stayed on the device so that no step had to wait for its value."""
        own = sum(float(loss) for loss in pending)
        pending.clear()
        self.state.loss_sum += sum(self.team.collect([own], self.team.size))

    def _save(self) -> None:
        if self.team.leads:
            _save(self.checkpoint, self.task.network, self.optimizer, self.identity, self.state)
        self.team.wait()


def freeze_statistics(network: nn.Module) -> None:
    """Make batch normalisation use its running statistics and stop changing them."""
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
    """A generator for augmentation. Torch's global one, which dropout uses, is seeded too and restored afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_seed(seed, epoch, step))
        yield _generator(seed, epoch, step)


def _precision(settings: TrainingSettings, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str, state: _State) -> None:
    """Replace the checkpoint atomically: after a kill, either the old or the new one is there, complete."""
    content = {
        "identity": identity,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "steps": state.steps,
        "loss_sum": state.loss_sum,
        "best": None if state.best is None else [state.best.metric, state.best.loss],
        "best_weights": state.best_weights,
        "history": [_plain(report) for report in state.history],
    }
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _load(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> _State:
    # To the CPU: both take their tensors to the device themselves, and the optimizer counts its steps on the CPU.
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if content["identity"] != identity:
        raise ModelError(f"{path}: made with other settings, data or numbers of processes; choose another folder")
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    best = None if content["best"] is None else Score(*content["best"])
    weights = {name: tensor.cpu() for name, tensor in content["best_weights"].items()}
    history = [
        EpochReport(epoch, loss, Score(metric, validation_loss), was_best, seconds, share)
        for epoch, loss, metric, validation_loss, was_best, seconds, share in content["history"]
    ]
    return _State(content["epoch"], content["step"], content["steps"], content["loss_sum"], best, weights, history)


def _plain(report: EpochReport) -> list[float]:
    score = report.validation
    return [report.epoch, report.training_loss, score.metric, score.loss, report.best, report.seconds,
            report.waiting_share]  # fmt: skip


def _identity(settings: TrainingSettings, data: str, team: Team) -> str:
    return f"{settings.digest()} {data} {settings.samples_per_step * team.size}"
