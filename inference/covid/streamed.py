"""DeCoVNet in parts along z: the same function, in memory that grows with its results and not with its layers.

Statistics of the whole volume are gathered part by part and combined in a fixed order, so neither the number of
threads nor that of slices changes a bit of the result. Three facts make this cheap. A max-pool commutes with an
increasing normalisation, and with a decreasing one once the sign of its convolution is reversed. A 1x1x1 convolution's
mean and variance follow from the moments of its input. Convolutions over few slices are 2D convolutions over stacked
channels.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inference.arrays import Grey
from inference.covid.decovnet import COVID, DeCoVNet, Norm3d, ResBlock, Stem
from inference.device import Device, one_thread, workers
from inference.interrupt import checkpoint

Result = TypeVar("Result")

# Even, so that the pool over pairs of slices never straddles two parts.
SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class Moments:
    """Count, mean per channel, and the sum of products of deviations (C, C), both float64."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Moments of (n, C, H, W) over everything but C."""
        values = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        mean = values.mean(0)
        centred = values - mean
        return cls(len(values), mean.double(), (centred.T @ centred).double())

    def with_more(self, other: "Moments") -> "Moments":
        """The moments of both sets of voxels together (Chan et al. 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    def through(self, weight: Tensor) -> "Moments":
        """Moments after a linear map of the channels.  weight: (outputs, C)."""
        weight = weight.double()
        return Moments(self.count, weight @ self.mean, weight @ self.scatter @ weight.T)


class StreamedDecovnet:
    """A DeCoVNet in evaluation mode that takes a volume of any length.

    network: not changed.  device: the parts are shared among its threads, or go to its GPU one by one.
    """

    def __init__(self, network: DeCoVNet, device: Device) -> None:
        self._network = network.to(device.torch_device)
        self._device = device

    def verdict(self, image: Grey, mask: Grey) -> tuple[float, Tensor]:
        """P(COVID-19) of a volume, and the last feature volume that it was computed from.

        image: uint8 (T, H, W), grey values; mask: uint8 (T, H, W), 0 or 1; T at least 2.
        The features are float32 (T // 2, 128, H / 8, W / 8), on the device.
        """
        with torch.inference_mode(), one_thread(), workers(self._device.cpu_threads) as pool:
            parts = _Parts(pool)
            network = self._network
            x = _stem(network.s1["pathway0_stem"], image, mask, self._device.torch_device, parts)  # type: ignore[arg-type]
            x = _block(network.s2["pathway0_res0"], x, parts, pairs=True)  # type: ignore[arg-type]
            x = _block(network.s3["pathway0_res0"], x, parts, pairs=False)  # type: ignore[arg-type]
            logits = network.classify(x.transpose(0, 1)[None].contiguous())  # channels-last pools are slow
            return float(torch.softmax(logits, 1)[0, COVID]), x

    def probability(self, image: Grey, mask: Grey) -> float:
        """P(COVID-19) of a volume, see `verdict`."""
        return self.verdict(image, mask)[0]


class _Parts:
    """Runs a function over parts of a volume in a pool's threads; results come in order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def map(self, function: Callable[[int, int], Result], count: int) -> list[Result]:
        """Call function(start, stop) for every part of `count` slices."""

        def run(start: int) -> Result:
            with torch.inference_mode():
                return function(start, min(start + SLICES_AT_ONCE, count))

        checkpoint()
        return list(self._pool.map(run, range(0, count, SLICES_AT_ONCE)))


def _stem(stem: Stem, image: Grey, mask: Grey, device: torch.device, parts: _Parts) -> Tensor:
    """(T, 16, H / 4, W / 4): convolved and pooled part by part, then normalised in place."""
    count, height, width = image.shape
    before = stem.conv.kernel_size[0] // 2
    source = torch.from_numpy(np.stack([image, mask], axis=1))
    # A normalisation with a negative weight decreases, so its channel is negated to let the max-pool go first.
    sign = torch.where(stem.bn.weight < 0, -1.0, 1.0)
    # Grey values stay 8-bit until the convolution; its weights include the division by 255.
    unit = torch.tensor([1 / 255, 1.0], device=device).view(1, 2, 1, 1, 1)
    weight = _stacked(stem.conv.weight * unit * sign.view(-1, 1, 1, 1, 1))
    pooled = torch.empty((count, weight.shape[0], *_stem_size(height, width)), device=device)
    pooled = pooled.contiguous(memory_format=torch.channels_last)

    def convolve(start: int, stop: int) -> Moments:
        near = _neighbours_stacked(_with_neighbours(source, start, stop, before), 2 * before + 1)
        x = functional.conv2d(near.to(device).float(), weight, stride=2, padding=3)
        pooled[start:stop] = functional.max_pool2d(x, 3, 2, 1)
        return Moments.of(x)

    moments = _combined(parts.map(convolve, count))
    scale, shift = _affine(stem.bn, moments, sign)
    parts.map(lambda start, stop: _normalise_(pooled[start:stop], scale, shift), count)
    return pooled


def _block(block: ResBlock, x: Tensor, parts: _Parts, *, pairs: bool) -> Tensor:
    """(T, C, H, W) through a residual block; with `pairs`, the larger of every two slices.

    Returns (T or T // 2, outputs, H / stride, W / stride).
    """
    branch, stride, count = block.branch2, block.branch2.b.stride[1], len(x)
    weight_a, weight_b = _stacked(branch.a.weight), branch.b.weight[:, :, 0]
    after_a: list[Tensor] = []

    def first(start: int, stop: int) -> tuple[Tensor, Moments, Moments]:
        near = _neighbours_stacked(_with_neighbours(x, start, stop, 1), 3)
        y = functional.conv2d(near, weight_a)
        return y, Moments.of(y), Moments.of(x[start:stop, :, ::stride, ::stride])

    results = parts.map(first, count)
    after_a = [result[0] for result in results]
    scale_a, shift_a = _affine(branch.a_bn, _combined([result[1] for result in results]))
    of_input = _combined([result[2] for result in results])
    del results

    def second(start: int, stop: int) -> tuple[Tensor, Moments]:
        y = _normalise_(after_a[start // SLICES_AT_ONCE], scale_a, shift_a)
        y = functional.conv2d(y, weight_b, stride=stride, padding=1)
        return y, Moments.of(y)

    done = parts.map(second, count)
    after_a.clear()
    after_b = [result[0] for result in done]
    scale_b, shift_b = _affine(branch.b_bn, _combined([result[1] for result in done]))

    def normalised(start: int, stop: int) -> Moments:
        return Moments.of(_normalise_(after_b[start // SLICES_AT_ONCE], scale_b, shift_b))

    of_inner = _combined(parts.map(normalised, count))
    weight, bias = _joined(block, of_input, of_inner)

    def last(start: int, stop: int) -> Tensor:
        both = torch.cat([x[start:stop, :, ::stride, ::stride], after_b[start // SLICES_AT_ONCE]], dim=1)
        y = functional.conv2d(both, weight, bias)
        even = len(y) // 2 * 2
        return torch.relu(torch.maximum(y[0:even:2], y[1:even:2]) if pairs else y)

    return torch.cat(parts.map(last, count))


def _joined(block: ResBlock, of_input: Moments, of_inner: Moments) -> tuple[Tensor, Tensor]:
    """Weight and bias of one 1x1 convolution that replaces the shortcut, the third convolution and their sum."""
    shortcut, third = block.branch1.weight[:, :, 0, 0, 0], block.branch2.c.weight[:, :, 0, 0, 0]
    scale_1, shift_1 = _affine(block.branch1_bn, of_input.through(shortcut))
    scale_c, shift_c = _affine(block.branch2.c_bn, of_inner.through(third))
    weight = torch.cat([shortcut * scale_1[:, None], third * scale_c[:, None]], dim=1)
    return weight[:, :, None, None], shift_1 + shift_c


def _affine(norm: Norm3d, moments: Moments, sign: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scale and shift that normalise each channel.  sign: of channels that were negated before the moments."""
    if norm.statistics == "running":
        mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
        turned = mean if sign is None else mean * sign
    else:
        turned, variance = moments.mean, moments.scatter.diagonal().clamp_min(0) / moments.count
    weight = norm.weight.double() * (1.0 if sign is None else sign)
    scale = weight * torch.rsqrt(variance + norm.eps)
    return scale.float(), (norm.bias.double() - turned * scale).float()


def _combined(moments: list[Moments]) -> Moments:
    total = moments[0]
    for part in moments[1:]:
        total = total.with_more(part)
    return total


def _normalise_(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale, shift and ReLU of (n, C, H, W), in place."""
    return x.mul_(scale.view(1, -1, 1, 1)).add_(shift.view(1, -1, 1, 1)).relu_()


def _stacked(weight: Tensor) -> Tensor:
    """A 3D weight (outputs, C, D, h, w) as a 2D one over D neighbours' channels: (outputs, D * C, h, w)."""
    return weight.transpose(1, 2).flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _neighbours_stacked(x: Tensor, depth: int) -> Tensor:
    """(n + depth - 1, C, H, W) to (n, depth * C, H, W): each slice with its neighbours."""
    count = len(x) - depth + 1
    stacked = torch.cat([x[offset : offset + count] for offset in range(depth)], dim=1)
    return stacked.contiguous(memory_format=torch.channels_last)


def _with_neighbours(x: Tensor, start: int, stop: int, around: int) -> Tensor:
    """Slices `start - around` to `stop + around` of (T, ...), zeros beyond the ends."""
    inside = x[max(0, start - around) : stop + around]
    below, above = max(0, around - start), max(0, stop + around - len(x))
    if not below and not above:
        return inside
    zeros = inside.new_zeros((1, *inside.shape[1:]))
    return torch.cat([zeros.expand(below, *inside.shape[1:]), inside, zeros.expand(above, *inside.shape[1:])])


def _stem_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns after the stem's two halvings, each rounded up."""
    return (height + 3) // 4, (width + 3) // 4
