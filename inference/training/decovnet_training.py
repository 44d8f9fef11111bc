"""Train DeCoVNet from volume-level labels alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional

from inference.covid.decovnet import COVID, DeCoVNet
from inference.training.ahead import Ahead
from inference.training.augmentation import Change, draw, jitter, warp
from inference.training.loop import Score, TrainingSettings
from inference.training.parallel import Team
from inference.training.unet_training import ready_for


@dataclass(frozen=True)
class VolumeCase:
    """One volume with its label.

    grey: uint8 (T, H, W), windowed and resized as for DeCoVNet.  lungs: uint8 (T, H, W), 0 or 1.
    Either may lie on any device.
    """

    name: str
    grey: Tensor
    lungs: Tensor
    covid: bool


class VolumeTask:
    """The task for `loop.train`: whole volumes, one per step, scored by ROC AUC on the validation volumes."""

    def __init__(
        self,
        network: nn.Module,
        training: Sequence[VolumeCase],
        validation: Sequence[VolumeCase],
        settings: TrainingSettings,
        *,
        team: Team | None = None,
    ) -> None:
        self.network = network
        self._training, self._validation, self._settings = training, validation, settings
        self._device = next(network.parameters()).device
        self._team = team or Team()
        self._ahead = Ahead(self._parts)

    def order(self, generator: torch.Generator) -> list[int]:
        """Every volume; if the settings ask for balance, the smaller class is repeated until the classes are equal."""
        by_class: list[list[int]] = [[], []]
        for number, case in enumerate(self._training):
            by_class[case.covid].append(number)
        chosen = by_class[0] + by_class[1]
        smaller = min(by_class, key=len)
        missing = abs(len(by_class[0]) - len(by_class[1]))
        if self._settings.balance and smaller:
            shuffled = [smaller[i] for i in torch.randperm(len(smaller), generator=generator).tolist()]
            chosen += [shuffled[i % len(shuffled)] for i in range(missing)]
        return [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]

    def expect(self, samples: Sequence[int]) -> None:
        """Load these samples ahead."""
        self._ahead.expect(samples)

    def waited_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._ahead.waited_s

    def loss(self, sample: int, generator: torch.Generator) -> Tensor:
        """Cross-entropy over normal and COVID-19."""
        change = draw(self._settings.augmentation, generator)
        grey, lungs = self._inputs(self._ahead.take(sample))
        if change != Change():
            grey, lungs = warp(jitter(grey, change), change), warp(lungs, change, "nearest")
        volume = torch.cat([grey, lungs])
        target = torch.tensor([int(self._training[sample].covid)], device=self._device)
        return functional.cross_entropy(self.network(volume[None]).float(), target)

    def validate(self) -> Score:
        """ROC AUC over the validation volumes, and the mean cross-entropy."""
        own = [self._probability(case) for case in self._team.share(self._validation)]
        probabilities = self._team.collect(own, len(self._validation))
        labels = [case.covid for case in self._validation]
        truth = torch.tensor([float(label) for label in labels])
        loss = functional.binary_cross_entropy(torch.tensor(probabilities), truth) if labels else torch.tensor(0.0)
        return Score(roc_auc(labels, probabilities), float(loss))

    def _parts(self, sample: int) -> tuple[Tensor, Tensor]:
        """Grey values and lungs of one volume, in memory: both uint8 (T, H, W)."""
        case = self._training[sample]
        return _copied(case.grey, self._device), _copied(case.lungs, self._device)

    def _inputs(self, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        grey, lungs = (part.to(self._device, non_blocking=True)[None].float() for part in parts)
        return grey / 255, lungs

    def _probability(self, case: VolumeCase) -> float:
        return probability(self.network, torch.cat(self._inputs((case.grey, case.lungs))))


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The volume, read into memory if its file is mapped, ready to be sent to a GPU."""
    return ready_for(tensor if tensor.device.type != "cpu" else tensor.clone(), device)


def probability(network: nn.Module, volume: Tensor) -> float:
    """P(COVID-19) of a volume (2, T, H, W), grey and mask 0 to 1, in the network's current mode."""
    return float(network(volume[None]).float().softmax(1)[0, COVID])


def roc_auc(labels: Sequence[bool], probabilities: Sequence[float]) -> float:
    """Area under the ROC curve; ties count one half. 0.5 if only one class is present."""
    positives = sum(labels)
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.5
    ranks = rankdata(probabilities)
    total = sum(float(rank) for rank, label in zip(ranks, labels, strict=True) if label)
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def initialise(network: DeCoVNet) -> None:
    """Initialise every convolution so that its output varies as much as its input, ReLU included (He et al. 2015).

    The classifier has no normalisation: with PyTorch's smaller initial weights almost nothing reaches its last layers.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
