"""A profile: every step of the preprocessing between HU and the networks."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]
Statistics = Literal["batch", "running"]


@dataclass(frozen=True)
class RawClamp:
    """Limits on stored pixel values, applied before the rescale to HU.

    Values below `low` become `low_becomes`; values above `high` become `high`.
    """

    low: int
    low_becomes: int
    high: int


@dataclass(frozen=True)
class Circle:
    """A reconstruction circle, given for a matrix of `matrix` pixels and scaled to others.

    Pixels `radius_px` or farther from `centre_px` (row, column) are lowered by `lower_by_hu`.
    """

    centre_px: tuple[float, float]
    radius_px: float
    lower_by_hu: int
    matrix: int


@dataclass(frozen=True)
class Intensity:
    """From HU to 8-bit grey: floor(255 x) of the window."""

    window_hu: tuple[float, float]
    raw_clamp: RawClamp | None = None
    circle: Circle | None = None

    def __post_init__(self) -> None:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu: the lower edge must be below the upper")


@dataclass(frozen=True)
class Slices:
    """Order, spacing and choice of slices.

    spacing_mm: slices are resampled to this distance with a spline of `interpolation_order`, edges
        repeated; absent leaves them as they are.
    lung_range, verdict_range: shares of the slices, `int(share * n)`, that are kept for the verdict: first
        `lung_range` of all slices, then `verdict_range` of those.
    """

    order: Literal["ascending", "descending"]
    spacing_mm: float | None = None
    interpolation_order: Literal[1, 3] = 3
    lung_range: tuple[float, float] = (0.0, 1.0)
    verdict_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("lung_range", "verdict_range"):
            start, stop = getattr(self, name)
            if not 0 <= start < stop <= 1:
                raise ValueError(f"{name}: expected 0 <= start < stop <= 1")
        if self.spacing_mm is not None and self.spacing_mm <= 0:
            raise ValueError("spacing_mm: must be above 0")


@dataclass(frozen=True)
class UnetInput:
    """What the U-Net gets: slices of `size` (rows, columns), resampled in plane if they differ."""

    size: tuple[int, int]
    interpolation_order: Literal[1, 3]
    statistics: Statistics


@dataclass(frozen=True)
class DecovnetInput:
    """What DeCoVNet gets: image and mask of `size` (rows, columns), slices untouched.

    crop: "mask-box" crops both to the mask's bounding box in z, y and x, each upper bound exclusive of the
        last index; "none" keeps the whole slice.
    mask: "raw" as the U-Net gives it, "cleaned" after keeping its largest connected components.
    """

    size: tuple[int, int]
    interpolation_order: Literal[1, 3]
    statistics: Statistics
    crop: Literal["mask-box", "none"]
    mask: Literal["raw", "cleaned"]


Change = Literal["one row higher", "one row lower", "without its lowest slice", "without its highest slice"]
"""A change of the part of the images that DeCoVNet gets: moved by one row of pixels, or one slice shorter."""


@dataclass(frozen=True)
class SpreadRule:
    """When to try how far harmless changes move the output, and which ones; each costs one more run of DeCoVNet.

    band: probabilities, inclusive; outside of it nothing is tried.
    """

    band: tuple[float, float]
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.band[0] < self.band[1] <= 1:
            raise ValueError("band: expected 0 <= low < high <= 1")

    def applies(self, probability: float) -> bool:
        """True if a probability is near enough to the threshold."""
        return self.band[0] <= probability <= self.band[1]


@dataclass(frozen=True)
class Profile:
    """Every step between HU and the two networks."""

    name: str
    intensity: Intensity
    slices: Slices
    unet: UnetInput
    decovnet: DecovnetInput
