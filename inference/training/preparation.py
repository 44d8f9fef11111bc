"""Volumes as the networks want them: the paper's profile, with torch, on any device.

The steps are those of the node; a test holds the two together.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

WINDOW_HU = (-1200, 600)
UNET_SIZE = (368, 368)
DECOVNET_SIZE = (224, 336)


def grey_values(hu: npt.NDArray[np.int16]) -> Tensor:
    """HU (Z, Y, X) to 8-bit grey values, floor(255 x) of the window: uint8 (Z, Y, X)."""
    low, high = WINDOW_HU
    table = np.arange(-32768, 32768, dtype=np.float64)
    grey = np.floor(255 * np.clip((table - low) / (high - low), 0, 1)).astype(np.uint8)
    return torch.from_numpy(grey[hu.astype(np.int32) + 32768])


@cache
def spline_matrix(result: int, source: int) -> Tensor:
    """The order-3 spline resize of one axis as a matrix: float32 (result, source)."""
    if result == source:
        return torch.eye(source)
    matrix = ndimage.zoom(np.eye(source), (result / source, 1), order=3)
    return torch.from_numpy(matrix.astype(np.float32))


def resize(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize each slice with order-3 splines, rounded: uint8 (Z, H, W) from uint8 (Z, Y, X), on its device."""
    rows = spline_matrix(size[0], slices.shape[1]).to(slices.device)
    columns = spline_matrix(size[1], slices.shape[2]).to(slices.device)
    resized = [
        (rows @ (part.float() @ columns.T)).round().clamp(0, 255).to(torch.uint8) for part in torch.split(slices, 16)
    ]
    return torch.cat(resized)


def enlarge_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask brought to `size` by its nearest pixels: uint8 (Z, H, W) from uint8 (Z, h, w)."""
    return torch.nn.functional.interpolate(mask[:, None], size, mode="nearest-exact")[:, 0]
