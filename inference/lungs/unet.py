"""The 2D U-Net that finds the lungs, with the layer names of the authors' checkpoint."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.errors import ModelError

Statistics = Literal["batch", "running"]

PARAMETERS = 839_506
CHANNELS = (16, 32, 64, 128, 128)
DOWNSCALING = 2 ** (len(CHANNELS) - 1)


class Norm2d(nn.BatchNorm2d):
    """Batch normalisation that may use the statistics of each slice alone at test time.

    statistics: "running" as usual; "batch" normalises every sample by its own mean and variance, as a network left in
        training mode does with one slice at a time. Training mode is not affected.
    """

    statistics: Statistics = "running"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W)."""
        if self.training or self.statistics == "running":
            return super().forward(x)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps)


class DoubleConv(nn.Module):
    """A 3x3 convolution, normalisation and ReLU, twice; height and width stay the same."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            Norm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            Norm2d(outputs),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        result: Tensor = self.double_conv(x)
        return result


class Down(nn.Module):
    """Halve height and width, then convolve twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""
        result: Tensor = self.maxpool_conv(x)
        return result


class Up(nn.Module):
    """Double height and width, concatenate the features of the same size from the way down, then convolve twice."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, C, H / 2, W / 2) and the skipped (N, inputs - C, H, W) to (N, outputs, H, W)."""
        result: Tensor = self.conv(torch.cat([skip, self.up(x)], dim=1))
        return result


class UNet(nn.Module):
    """A U-Net of 16-32-64-128-128 channels for two classes: background and lung.

    statistics: which normalisation `eval()` uses, see `Norm2d`.
    Source: Zheng et al. 2020, with the channel counts of the published checkpoint (839,506 parameters).
    """

    def __init__(self, statistics: Statistics = "running") -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = CHANNELS
        self.inc = DoubleConv(1, c1)
        self.down1 = Down(c1, c2)
        self.down2 = Down(c2, c3)
        self.down3 = Down(c3, c4)
        self.down4 = Down(c4, c5)
        self.up1 = Up(c5 + c4, c3)
        self.up2 = Up(c3 + c3, c2)
        self.up3 = Up(c2 + c2, c1)
        self.up4 = Up(c1 + c1, c1)
        self.outc = nn.ModuleDict({"conv": nn.Conv2d(c1, 2, 1)})
        use_statistics(self, statistics)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of slices.

        x: (N, 1, H, W), grey values 0 to 1; H and W multiples of 16.
        Returns (N, 2, H, W) logits: background, lung.
        Raises ModelError if a size is not a multiple of 16.
        """
        if x.shape[-2] % DOWNSCALING or x.shape[-1] % DOWNSCALING:
            raise ModelError(f"U-Net input {tuple(x.shape[-2:])}: height and width must be multiples of {DOWNSCALING}")
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        x = self.up1(self.down4(x4), x4)
        x = self.up2(x, x3)
        x = self.up3(x, x2)
        x = self.up4(x, x1)
        logits: Tensor = self.outc["conv"](x)
        return logits


def use_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Choose the normalisation of every layer of a U-Net at test time."""
    for layer in network.modules():
        if isinstance(layer, Norm2d):
            layer.statistics = statistics
