"""Train the U-Net to find lungs, slice by slice, from unsupervised masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from inference.lungs.unet import UNet
from inference.training.ahead import Ahead
from inference.training.augmentation import draw, jitter, warp
from inference.training.loop import Score, TrainingSettings
from inference.training.parallel import Team

SLICES_AT_ONCE = 32  # in validation


@dataclass(frozen=True)
class LungCase:
    """One volume to learn lungs from.

    grey: uint8 (Z, H, W), windowed and resized as for the U-Net.  lungs: uint8 (Z, H, W), 0 or 1.
    Either may lie on any device.
    """

    name: str
    grey: Tensor
    lungs: Tensor


class LungTask:
    """The task for `loop.train`: slices of the training volumes, scored by Dice on the validation volumes.

    slices_per_step: slices of one volume in one step; 1 in the paper.
    slices_per_volume: drawn anew in each epoch; None takes all slices.
    team: the processes that validate together.
    """

    def __init__(
        self,
        network: UNet,
        training: Sequence[LungCase],
        validation: Sequence[LungCase],
        settings: TrainingSettings,
        *,
        slices_per_step: int = 1,
        slices_per_volume: int | None = None,
        team: Team | None = None,
    ) -> None:
        self.network = network
        self._training, self._validation, self._settings = training, validation, settings
        self._per_step, self._per_volume = slices_per_step, slices_per_volume
        self._device = next(network.parameters()).device
        self._pieces: list[tuple[int, Tensor]] = []
        self._team = team or Team()
        self._ahead = Ahead(self._piece)

    def order(self, generator: torch.Generator) -> list[int]:
        """All pieces of all volumes, shuffled."""
        self._pieces = []
        for number, case in enumerate(self._training):
            chosen = torch.randperm(len(case.grey), generator=generator)[: self._per_volume]
            self._pieces += [(number, piece) for piece in torch.split(chosen, self._per_step)]
        return torch.randperm(len(self._pieces), generator=generator).tolist()

    def expect(self, samples: Sequence[int]) -> None:
        """Load these samples ahead."""
        self._ahead.expect(samples)

    def waited_s(self) -> float:
        """Seconds spent waiting for data."""
        return self._ahead.waited_s

    def loss(self, sample: int, generator: torch.Generator) -> Tensor:
        """Cross-entropy over background and lung."""
        parts = self._ahead.take(sample)
        grey, lungs = (part.to(self._device, non_blocking=True)[:, None].float() for part in parts)
        change = draw(self._settings.augmentation, generator)
        grey, lungs = warp(jitter(grey / 255, change), change), warp(lungs, change, "nearest")
        return functional.cross_entropy(self.network(grey).float(), lungs[:, 0].long())

    def _piece(self, sample: int) -> tuple[Tensor, Tensor]:
        """Grey values and lungs of one piece of a volume: both uint8 (N, H, W)."""
        number, chosen = self._pieces[sample]
        case = self._training[number]
        grey, lungs = (part[chosen.to(part.device)] for part in (case.grey, case.lungs))
        return ready_for(grey, self._device), ready_for(lungs, self._device)

    def validate(self) -> Score:
        """Mean Dice over the validation volumes, and the mean cross-entropy."""
        own = [self._compare(case) for case in self._team.share(self._validation)]
        compared = self._team.collect(own, len(self._validation))
        count = max(len(compared), 1)
        return Score(sum(overlap for overlap, _ in compared) / count, sum(loss for _, loss in compared) / count)

    def _compare(self, case: LungCase) -> tuple[float, float]:
        both = total = 0
        loss = 0.0
        for grey, lungs in zip(*(torch.split(part, SLICES_AT_ONCE) for part in (case.grey, case.lungs)), strict=True):
            truth = lungs.to(self._device).long()
            logits = self.network(grey.to(self._device)[:, None].float() / 255)
            found = logits.argmax(1)
            both += int((found * truth).sum())
            total += int(found.sum() + truth.sum())
            loss += float(functional.cross_entropy(logits, truth)) * len(grey)
        return (2 * both / total if total else 1.0), loss / len(case.grey)


def ready_for(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that a GPU can fetch while it computes; the tensor itself for other devices."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def segment(network: UNet, grey: Tensor, slices_at_once: int = SLICES_AT_ONCE) -> Tensor:
    """Find a volume's lungs in evaluation mode: uint8 (Z, H, W) from uint8 grey (Z, H, W), on the network's device."""
    device = next(network.parameters()).device
    network.eval()
    with torch.inference_mode():
        masks = [
            network(piece.to(device)[:, None].float() / 255).argmax(1).to(torch.uint8)
            for piece in torch.split(grey, slices_at_once)
        ]
    return torch.cat(masks)
