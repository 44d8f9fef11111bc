"""Random affine maps and colour jitter, drawn once per volume and applied equally to all of its slices."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class AugmentationSettings:
    """The largest change of each kind; 0 switches that kind off.

    Source: Zheng et al. 2020, "Data Augmentation".
    """

    rotation_degrees: float = 10.0
    translation_share: float = 0.10
    scale_share: float = 0.20
    shear_degrees: float = 10.0  # along the width
    brightness_share: float = 0.50
    contrast_share: float = 0.30


@dataclass(frozen=True)
class Change:
    """One drawn augmentation.

    rotation and shear: radians.  shift: share of (width, height).  scale, brightness, contrast: factors.
    """

    rotation: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    shear: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0


def draw(settings: AugmentationSettings, generator: torch.Generator) -> Change:
    """Draw one augmentation, each part uniform between minus and plus its largest change."""
    u = (torch.rand(7, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
    return Change(
        rotation=math.radians(settings.rotation_degrees) * u[0],
        shift=(settings.translation_share * u[1], settings.translation_share * u[2]),
        scale=1 + settings.scale_share * u[3],
        shear=math.radians(settings.shear_degrees) * u[4],
        brightness=1 + settings.brightness_share * u[5],
        contrast=1 + settings.contrast_share * u[6],
    )


def warp(slices: Tensor, change: Change, mode: str = "bilinear") -> Tensor:
    """Rotate, shift, scale and shear every slice alike; pixels from outside the image are 0.

    slices: (N, C, H, W) float, on any device.  mode: "bilinear", or "nearest" for masks.
    Returns (N, C, H, W).
    """
    height, width = slices.shape[-2:]
    theta = torch.tensor(_matrix(change, height, width), dtype=slices.dtype, device=slices.device)
    grid = functional.affine_grid(theta[None], [1, 1, height, width], align_corners=False)
    # One image of N x C channels: the grid is computed and read once.
    stacked = slices.reshape(1, -1, height, width)
    warped = functional.grid_sample(stacked, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return warped.reshape(slices.shape)


def jitter(grey: Tensor, change: Change) -> Tensor:
    """Change brightness, then contrast about the mean of the whole volume; grey stays within 0..1."""
    bright = (grey * change.brightness).clamp(0, 1)
    mean = bright.mean()
    return ((bright - mean) * change.contrast + mean).clamp(0, 1)


def _matrix(change: Change, height: int, width: int) -> list[list[float]]:
    """Maps positions in the result to positions in the source, in units of half the image, as affine_grid expects."""
    cos, sin = math.cos(change.rotation), math.sin(change.rotation)
    shear = math.tan(change.shear)
    # Rotation after shear, in pixels: forward matrix [[a, b], [c, d]] on (x, y).
    a, b = cos * change.scale, (cos * shear - sin) * change.scale
    c, d = sin * change.scale, (sin * shear + cos) * change.scale
    determinant = a * d - b * c
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    ratio = height / width
    shift_x, shift_y = 2 * change.shift[0], 2 * change.shift[1]
    rows = [[a, b * ratio], [c / ratio, d]]
    return [[*row, -(row[0] * shift_x + row[1] * shift_y)] for row in rows]
