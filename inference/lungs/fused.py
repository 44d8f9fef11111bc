"""The U-Net with its normalisation fused into the convolutions: the same function in fewer passes over memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from inference.lungs.unet import DoubleConv, UNet


class FusedConv(nn.Module):
    """A 3x3 convolution, its normalisation and ReLU.

    With running statistics, everything is folded into the convolution. With the slice's statistics, mean and variance
    come from E[x] and E[x2] in one pass; the convolution's bias cancels against the mean, so it is left out.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, per_slice: bool) -> None:
        super().__init__()
        self.per_slice = per_slice
        weight, bias = conv.weight.detach(), conv.bias.detach() if conv.bias is not None else torch.zeros(1)
        gamma, beta = norm.weight.detach(), norm.bias.detach()
        if not per_slice:
            scale = gamma * torch.rsqrt(norm.get_buffer("running_var").double() + norm.eps)
            weight = (weight * scale.view(-1, 1, 1, 1)).float()
            bias = (beta + (bias - norm.get_buffer("running_mean")) * scale).float()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.gamma = nn.Parameter(gamma.view(1, -1, 1, 1).clone(), requires_grad=False)
        self.beta = nn.Parameter(beta.view(1, -1, 1, 1).clone(), requires_grad=False)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H, W)."""
        if not self.per_slice:
            return torch.relu(functional.conv2d(x, self.weight, self.bias, padding=1))
        x = functional.conv2d(x, self.weight, padding=1)
        if x.dtype != torch.float32:
            x = x.float()  # the difference of two means does not survive the rounding of a lower precision
        mean = x.mean((2, 3), keepdim=True)
        variance = (x * x).mean((2, 3), keepdim=True) - mean * mean
        scale = self.gamma * torch.rsqrt(variance + self.eps)
        return torch.relu(x * scale + (self.beta - mean * scale))


class FusedUnet(nn.Module):
    """A U-Net from 8-bit grey values to the lung mask, for one slice or many.

    The two classes' last convolutions are replaced by their difference: above 0 is lung.
    """

    def __init__(self, unet: UNet, per_slice: bool) -> None:
        super().__init__()
        blocks = [unet.inc, *(down.maxpool_conv[1] for down in (unet.down1, unet.down2, unet.down3, unet.down4))]
        self.down = nn.ModuleList(_fused(block, per_slice) for block in blocks)  # type: ignore[arg-type]
        self.up = nn.ModuleList(_fused(up.conv, per_slice) for up in (unet.up1, unet.up2, unet.up3, unet.up4))
        last = unet.outc["conv"]
        self.last = nn.Conv2d(last.in_channels, 1, 1).requires_grad_(False)  # type: ignore[arg-type]
        self.last.weight.copy_((last.weight[1:] - last.weight[:1]).detach())  # type: ignore[index]
        self.last.bias.copy_((last.bias[1:] - last.bias[:1]).detach())  # type: ignore[index, union-attr]

    def forward(self, grey: Tensor) -> Tensor:
        """uint8 (N, 1, H, W) grey values to uint8 (N, 1, H, W), 1 in the lung."""
        x = grey.to(self.last.weight.dtype) / 255
        skips = []
        for i, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
            x = block(torch.cat([skip, x], dim=1))
        return (self.last(x) > 0).to(torch.uint8)  # type: ignore[no-any-return]


def fuse(unet: UNet) -> FusedUnet:
    """The fused form of a U-Net in evaluation mode, with the statistics that it is set to use."""
    per_slice = unet.inc.double_conv[1].statistics == "batch"
    return FusedUnet(unet, per_slice).eval()


def _fused(block: DoubleConv, per_slice: bool) -> nn.Sequential:
    layers = block.double_conv
    return nn.Sequential(*(FusedConv(layers[i], layers[i + 1], per_slice) for i in (0, 3)))  # type: ignore[arg-type]
