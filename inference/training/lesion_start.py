"""A start for DeCoVNet from volume-level labels alone: multiple-instance learning on its feature volume.

From a random start DeCoVNet learns nothing from a few hundred volumes in minutes: only a few random features at a
time reach the classifier's chain of maxima, and none of them tells a lesion from a vessel or the edge of the lung.
Therefore:

1. Some features start from the definition of an opacity: places inside the lung mask, off its edge, with no aerated
   lung around them (`start_features`). The others start at random.
2. The features learn first, through one linear layer that scores every place. The mean of a volume's highest scores
   is compared with its label (`Finder`). This stage uses the unsupervised masks, because their edge is the edge of
   the lung. The masks of a U-Net trained for minutes are off by a pixel here and there: the edge itself then looks
   like an opacity, and little is learned.
3. The classifier starts as a measure of how high the scores are (`start_classifier`). Then all of DeCoVNet continues
   to learn, with the U-Net's masks, as in use.

No label but the volume's is used.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from inference.covid.decovnet import COVID, DeCoVNet, ResBlock, Stem
from inference.training.decovnet_training import VolumeCase

HIGHEST = 16  # a volume's score is the mean over this many places
LEVELS = 8  # channels that carry the score through the classifier, each above another level
SMOOTHING = ((0.5, 0.8), (0.5, 1.2), (0.8, 1.8), (0.8, 0.8))  # (along z, in plane), in voxels, of the first features
EDGES = (1.5, 3.0, 5.0)  # penalty of a place at the edge of the lung


@torch.no_grad()
def start_features(network: DeCoVNet) -> None:
    """Set the first features of each stage to "inside the lung, no aerated lung around"; the others stay.

    The stem's max-pool widens whatever is bright, so the stem's features are the aerated lung and the outside. Widened,
    aerated lung is absent inside an opacity of that width and present at a vessel; the outside covers the lung's edge.
    """
    stem = cast(Stem, network.s1["pathway0_stem"])
    second, third = cast(ResBlock, network.s2["pathway0_res0"]), cast(ResBlock, network.s3["pathway0_res0"])
    scales = len(SMOOTHING)
    for number, (along, across) in enumerate(SMOOTHING):
        blur = _gaussian(along, across)
        stem.conv.weight[number, 0], stem.conv.weight[number, 1] = -blur, blur
        stem.conv.weight[scales + number, 0], stem.conv.weight[scales + number, 1] = 0, -blur
    stem.bn.bias[:scales] = 1
    outputs = scales * len(EDGES)
    for output in range(outputs):
        scale, edge = output // len(EDGES), EDGES[output % len(EDGES)]
        second.branch1.weight[output] = 0
        second.branch1.weight[output, scale] = -1
        second.branch1.weight[output, scales + scale] = -edge
        third.branch1.weight[output] = 0
        third.branch1.weight[output, output] = 1
    second.branch1_bn.bias[:outputs] = -0.5
    for block in (second, third):
        block.branch2.c_bn.weight[:outputs] = 0


def _gaussian(along: float, across: float) -> Tensor:
    """A Gaussian of the stem's size with sum 1: (5, 7, 7)."""
    z, y, x = (torch.arange(-reach, reach + 1.0) for reach in (2, 3, 3))
    axes = (
        torch.exp(-(z**2) / (2 * along**2)),
        torch.exp(-(y**2) / (2 * across**2)),
        torch.exp(-(x**2) / (2 * across**2)),
    )
    kernel = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return kernel / kernel.sum()


class Finder(nn.Module):
    """DeCoVNet's features and a score for each place of them."""

    def __init__(self, network: DeCoVNet) -> None:
        super().__init__()
        self.network = network
        self.score = nn.Conv3d(128, 1, 1)
        outputs = len(SMOOTHING) * len(EDGES)
        with torch.no_grad():
            self.score.weight[:, :outputs] = 1 / outputs
            self.score.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(1, 2, T, H, W), image and mask 0 to 1, to (1, 2) logits: normal, COVID-19."""
        scores = self.score(self.network.features(x)).flatten().float()
        highest = scores.topk(min(HIGHEST, len(scores))).values.mean()
        return torch.stack([torch.zeros_like(highest), highest])[None]


def new_finder(network: DeCoVNet, cases: Sequence[VolumeCase]) -> Finder:
    """A finder whose features start from opacities; its scores are centred on some of the training volumes."""
    start_features(network)
    finder = Finder(network)
    device = next(network.parameters()).device
    centre(finder.eval(), [task_input(case).to(device) for case in cases[:24]])
    return finder


def task_input(case: VolumeCase) -> Tensor:
    """Grey and mask 0 to 1: float32 (2, T, H, W)."""
    return torch.stack([case.grey.float() / 255, case.lungs.float()])


@torch.no_grad()
def centre(finder: Finder, volumes: Sequence[Tensor]) -> None:
    """Scale the scores so that those of some volumes (2, T, H, W) lie around 0 with spread 1."""
    found = torch.stack([finder(volume[None])[0, COVID] for volume in volumes])
    scale = 1 / found.std().clamp(min=1e-3)
    finder.score.weight.mul_(scale)
    finder.score.bias.fill_(-found.mean() * scale)  # type: ignore[union-attr]


@torch.no_grad()
def start_classifier(finder: Finder) -> DeCoVNet:
    """The finder's DeCoVNet, with a classifier that starts as the highest score.

    Channels that play no part in that start near zero and learn.
    """
    network = finder.network
    convolutions = [layer for layer in network.head if isinstance(layer, nn.Conv3d)]
    for layer in convolutions:
        layer.weight.mul_(0.1)
        layer.weight[:LEVELS] = 0
    first, second, third = convolutions
    for channel in range(LEVELS):
        first.weight[channel, :, 1, 1, 1] = finder.score.weight[0, :, 0, 0, 0]
        first.bias[channel] = finder.score.bias[0] + 3 - channel  # type: ignore[index]
        second.weight[channel, channel, 1, 1, 1] = 1
        third.weight[channel, channel, 1, 1, 1] = 1
    hidden, last = network.classifier[0], network.classifier[1]
    nn.init.eye_(hidden.weight)  # type: ignore[arg-type]
    nn.init.zeros_(hidden.bias)  # type: ignore[arg-type]
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    last.weight[COVID, :LEVELS] = 0.2  # type: ignore[operator]
    last.bias.copy_(torch.tensor([0.0, -2.0]))  # type: ignore[operator]
    return network
