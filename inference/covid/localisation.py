"""What drove a DeCoVNet's verdict: its class activation map on the source grid, and a region of the lungs cut from it.

docs/localisation.md says why it is built this way and how well it does. The verdict is finished before anything here
runs. Everything is computed on the CPU in one thread, so that the same verdict gives the same map everywhere.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import uniform_filter
from torch import Tensor

from inference.anatomy.parts import bounding_box, sizes_of
from inference.anatomy.squares import opened
from inference.arrays import Box, Grey, Mask
from inference.covid.decovnet import COVID, NORMAL, DeCoVNet
from inference.lungs.mask import label

Heat = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

STRIDE = (2, 8, 8)
"""Input voxels (z, y, x) between neighbours of the last feature volume."""
FIRST = (0.5, 0.0, 0.0)
"""Position of the first of them in the input: the stem and both blocks are centred, the pool joins pairs of slices."""

HOT = 0.15
"""Share of the map's maximum from which a voxel counts as having driven the verdict."""
DENSER_BY_HU = 100
"""HU above the median of the lungs: a density that normal lung does not have."""
SMOOTHED_OVER_MM = 3.0
THINNEST_MM = 4.5
"""Parts narrower than this in plane are left out: vessels, and the rim, whose voxels are half chest wall."""
LEAST_ML = 0.5
"""Smaller connected parts of the region are left out."""
_OFFSET = 1 << 15  # of the lowest HU in an int16


@dataclass(frozen=True)
class Placement:
    """How DeCoVNet's input lies on the source grid.

    shape: (Z, Y, X) of the source.  resampled: its slices after resampling along z.  descending: turned before that.
    box: the part of the resampled slices that was cropped.  size: rows and columns that the crop was resized to.
    """

    shape: tuple[int, int, int]
    resampled: int
    descending: bool
    box: Box
    size: tuple[int, int]

    @property
    def source_slices(self) -> tuple[int, int]:
        """Lowest and highest source slice z that the crop holds."""
        count = self.shape[0]
        ends = [round(z / _scale(self.resampled, count)) for z in (self.box[0].start, self.box[0].stop - 1)]
        low, high = (count - 1 - z for z in ends[::-1]) if self.descending else ends
        return low, high


@dataclass(frozen=True)
class NetworkInput:
    """DeCoVNet's input, and where it lies in the volume. Grey values, and mask 0 or 1: uint8 (T, rows, columns)."""

    image: Grey
    mask: Grey
    placement: Placement


@dataclass(frozen=True)
class Localisation:
    """heat: uint8 (Z, Y, X), 255 where it matters most to the verdict.  region: bool (Z, Y, X), part of the lungs."""

    heat: Heat
    region: Mask

    @classmethod
    def nothing(cls, shape: tuple[int, ...]) -> "Localisation":
        """No heat and no region on a grid (Z, Y, X)."""
        return cls(np.zeros(shape, np.uint8), np.zeros(shape, bool))


class Localiser:
    """Finds what drove a network's verdicts."""

    def __init__(self, network: DeCoVNet) -> None:
        """network: in evaluation mode; not changed."""
        self._network = copy.deepcopy(network).cpu().requires_grad_(False)

    def log_odds(self, features: Tensor) -> float:
        """Logit of COVID-19 minus that of normal. The probability is its sigmoid, which saturates; this does not.

        features: float32 (t, 128, h, w), the last feature volume.
        """
        with torch.inference_mode():
            logits = self._network.classify(features.cpu().transpose(0, 1)[None].contiguous())[0]
        return float(logits[COVID] - logits[NORMAL])

    def activation(self, features: Tensor) -> Floats:
        """The `activation_map` of a verdict. features: float32 (t, 128, h, w), the last feature volume."""
        return activation_map(self._network, features)

    def localise(
        self,
        activation: Floats,
        placement: Placement,
        hu: npt.NDArray[np.int16],
        lungs: Mask,
        spacing_mm: tuple[float, float, float],
    ) -> Localisation:
        """Heat and region of one verdict.

        activation: see there.  hu, lungs: (Z, Y, X), the source and its lung mask.
        """
        heat = on_source_grid(activation, placement)
        return Localisation(heat, region_of(heat, hu, lungs, spacing_mm))


def activation_map(network: DeCoVNet, features: Tensor) -> Floats:
    """How strongly each place of the last feature volume points to COVID-19.

    A channel's contribution to the difference of the two logits is gradient times activation, summed over the volume.
    It is distributed over the places in proportion to the channel's activation. What points away is cut to 0.
    features: float32 (t, 128, h, w), on any device.
    Returns float32 (t, h, w), 0 to 1; all 0 if nothing points to it.
    Source: Fu et al. 2020, "Axiom-based Grad-CAM" (XGrad-CAM).
    """
    # A separate copy: tensors made in inference mode have no gradient.
    x = features.detach().cpu().clone().transpose(0, 1)[None].contiguous().requires_grad_()
    with torch.enable_grad():
        logits = network.classify(x)[0]
        (gradient,) = torch.autograd.grad(logits[COVID] - logits[NORMAL], x)
    x, gradient = x.detach()[0], gradient[0]
    weights = (gradient * x).sum((1, 2, 3)) / x.sum((1, 2, 3)).clamp_min(torch.finfo(x.dtype).tiny)
    found = torch.tensordot(weights, x, dims=1).clamp_min(0)
    return np.asarray((found / found.max().clamp_min(torch.finfo(x.dtype).tiny)).numpy(), np.float32)


def on_source_grid(activation: Floats, placement: Placement) -> Heat:
    """The map brought back through resize, crop and resampling, with linear interpolation: uint8 (Z, Y, X).

    It fades to 0 within one step beyond what the network saw.
    """
    along_z, down, across = (_hats(where, n) for where, n in zip(_places(placement), activation.shape, strict=True))
    planes = np.tensordot(along_z, activation, axes=1)
    heat = np.zeros(placement.shape, np.uint8)
    found = np.empty(placement.shape[1:], np.float32)
    for z in np.flatnonzero(planes.any(axis=(1, 2))):
        np.matmul(down @ planes[z], across.T, out=found)
        found *= 255
        heat[z] = np.rint(found, out=found)
    return heat


def _places(placement: Placement) -> tuple[Floats, Floats, Floats]:
    """The position of each source slice, row and column among the places of the feature volume."""
    count, rows, columns = placement.shape
    z = np.arange(count) * _scale(placement.resampled, count)
    in_crop = (z[::-1] if placement.descending else z, np.arange(rows), np.arange(columns))
    found = []
    for axis, (source, crop) in enumerate(zip(in_crop, placement.box, strict=True)):
        resize = _scale(placement.size[axis - 1], crop.stop - crop.start) if axis else 1.0
        found.append((((source - crop.start) * resize - FIRST[axis]) / STRIDE[axis]).astype(np.float32))
    return found[0], found[1], found[2]


def _scale(result: int, source: int) -> float:
    """Result samples per source sample if the first and the last of both coincide, as in `scipy.ndimage.zoom`."""
    return (result - 1) / (source - 1) if source > 1 else 1.0


def _hats(where: Floats, count: int) -> Floats:
    """Linear interpolation weights for `count` samples: (len(where), count), fading beyond the ends."""
    weights: Floats = np.clip(1 - np.abs(where[:, None] - np.arange(count, dtype=np.float32)), 0, 1)
    return weights


def region_of(heat: Heat, hu: npt.NDArray[np.int16], lungs: Mask, spacing_mm: tuple[float, float, float]) -> Mask:
    """The connected parts of lung that are hot and denser than normal lung: bool (Z, Y, X).

    The map is some millimetres coarse, so density traces the tissue; which tissue, the map alone decides.
    Source: Wang et al. 2020, "A Weakly-Supervised Framework for COVID-19 Classification and Lesion Localization From
    Chest CT", which joins activation maps with 3D connected components.
    """
    region = np.zeros(lungs.shape, bool)
    found = heat >= math.ceil(255 * HOT)
    found &= lungs
    box = bounding_box(found)
    if box is None:
        return region
    _keep_dense(found[box], hu[box], _median(hu, lungs) + DENSER_BY_HU, spacing_mm)
    box = bounding_box(found)
    if box is None:
        return region
    labels, count = label(found[box].view(np.uint8))
    keep = sizes_of(labels, count) * (np.prod(spacing_mm) / 1000) >= LEAST_ML
    for kept, numbers in zip(region[box], labels, strict=True):
        kept[:] = keep.take(numbers)
    return region


def _median(hu: npt.NDArray[np.int16], lungs: Mask) -> float:
    """The median HU of the lungs, from a histogram: it needs neither a copy of their voxels nor an order of them."""
    counts = np.zeros(1 << 16, np.intp)
    for plane, inside in zip(hu, lungs, strict=True):
        if inside.any():
            values = plane[inside].astype(np.intp)
            low = int(values.min())
            found = np.bincount(values - low)
            counts[low + _OFFSET : low + _OFFSET + len(found)] += found
    below = np.cumsum(counts)
    # The middle one of an odd number of voxels, the mean of the middle two of an even one.
    middle = np.searchsorted(below, [(below[-1] + 1) // 2, below[-1] // 2 + 1]) - _OFFSET
    return float(middle.mean())


def _keep_dense(hot: Mask, hu: npt.NDArray[np.int16], above_hu: float, spacing_mm: tuple[float, float, float]) -> None:
    """Leave in a mask what is denser than a limit, in parts that are not too thin. hot: changed in place.

    The density is averaged in plane over about `SMOOTHED_OVER_MM`, to suppress the noise of sharp kernels.
    """
    window = [max(1, round(SMOOTHED_OVER_MM / mm)) for mm in spacing_mm[1:]]
    down, across = (max(0, round((THINNEST_MM / mm - 1) / 2)) for mm in spacing_mm[1:])
    for plane, values in zip(hot, hu, strict=True):
        lines = [np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0)]
        if not len(lines[0]):
            continue
        # The averages need the window around the hot pixels too; sums of whole numbers are the same in any part.
        rows, columns = (
            slice(max(0, int(found[0]) - size), int(found[-1]) + size + 1)
            for found, size in zip(lines, window, strict=True)
        )
        dense = plane[rows, columns]
        dense &= uniform_filter(values[rows, columns].astype(np.float32), window) > above_hu
        dense[:] = opened(dense[None], (down, across))[0]
