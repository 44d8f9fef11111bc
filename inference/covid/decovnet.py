"""DeCoVNet: a 3D network that gives one probability for a volume of any length."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.lungs.unet import Statistics

PARAMETERS_IN_CHECKPOINT = 838_242
PARAMETERS_UNUSED = 491_264  # stages s4 and s5 of the published checkpoint, which its forward pass never reaches
PARAMETERS = PARAMETERS_IN_CHECKPOINT - PARAMETERS_UNUSED
NORMAL, COVID = 0, 1


class Norm3d(nn.BatchNorm3d):
    """Batch normalisation that may use the statistics of each volume alone at test time (see `unet.Norm2d`)."""

    statistics: Statistics = "running"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, T, H, W)."""
        if self.training or self.statistics == "running":
            return super().forward(x)
        return functional.instance_norm(x, weight=self.weight, bias=self.bias, use_input_stats=True, eps=self.eps)


class Stem(nn.Module):
    """Conv 5x7x7 with in-plane stride 2, normalisation, ReLU, and an in-plane max-pool with stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
        self.bn = Norm3d(outputs)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, T, H, W) to (N, outputs, T, H / 4, W / 4)."""
        result: Tensor = self.pool(torch.relu(self.bn(self.conv(x))))
        return result


class Bottleneck(nn.Module):
    """Convolutions 3x1x1, 1x3x3 and 1x1x1, each normalised."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv3d(inputs, inner, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.a_bn = Norm3d(inner)
        self.b = nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.b_bn = Norm3d(inner)
        self.c = nn.Conv3d(inner, outputs, 1, bias=False)
        self.c_bn = Norm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, T, H, W) to (N, outputs, T, H / stride, W / stride), before the block's ReLU."""
        x = torch.relu(self.a_bn(self.a(x)))
        x = torch.relu(self.b_bn(self.b(x)))
        result: Tensor = self.c_bn(self.c(x))
        return result


class ResBlock(nn.Module):
    """A bottleneck beside a projection shortcut."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch1 = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)
        self.branch1_bn = Norm3d(outputs)
        self.branch2 = Bottleneck(inputs, inner, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, T, H, W) to (N, outputs, T, H / stride, W / stride)."""
        return torch.relu(self.branch1_bn(self.branch1(x)) + self.branch2(x))


class DeCoVNet(nn.Module):
    """The stem, two residual blocks and the progressive classifier.

    statistics: which normalisation `eval()` uses, see `Norm3d`.
    dropout: share of channels dropped in training; 0.5 in the paper, 0 in the authors' code.
    Source: Zheng et al. 2020, Table 1; layer names of the published checkpoint.
    """

    def __init__(self, statistics: Statistics = "running", dropout: float = 0.5) -> None:
        super().__init__()
        self.s1 = nn.ModuleDict({"pathway0_stem": Stem(2, 16)})
        self.s2 = nn.ModuleDict({"pathway0_res0": ResBlock(16, 16, 64, 1)})
        self.pool = nn.MaxPool3d((2, 1, 1))
        self.s3 = nn.ModuleDict({"pathway0_res0": ResBlock(64, 32, 128, 2)})
        self.head = nn.Sequential(
            nn.AdaptiveMaxPool3d((16, 24, 36)),
            nn.Conv3d(128, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool3d((4, 12, 18)),
            nn.Conv3d(64, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool3d((1, 6, 9)),
            nn.Dropout3d(dropout),
            nn.Conv3d(32, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveMaxPool3d((1, 1, 1)),
        )
        self.classifier = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))
        use_statistics(self, statistics)

    def features(self, x: Tensor) -> Tensor:
        """(N, 2, T, H, W), image and mask 0 to 1, to (N, 128, T / 2, H / 8, W / 8): what the classifier sees."""
        x = self.s1["pathway0_stem"](x)
        x = self.pool(self.s2["pathway0_res0"](x))
        result: Tensor = self.s3["pathway0_res0"](x)
        return result

    def classify(self, features: Tensor) -> Tensor:
        """(N, 128, T / 2, H / 8, W / 8) to (N, 2) logits: normal, COVID-19."""
        logits: Tensor = self.classifier(self.head(features).flatten(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, T, H, W), T >= 2, image and mask 0 to 1, to (N, 2) logits: normal, COVID-19."""
        return self.classify(self.features(x))


def use_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Choose the normalisation of every layer of a DeCoVNet at test time."""
    for layer in network.modules():
        if isinstance(layer, Norm3d):
            layer.statistics = statistics
