"""The numbers: share of low attenuation, percentile density, mean density and volume of any part of the lungs.

Plain arrays in, plain numbers out. All of them come from one histogram of whole HU for each part.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from inference.arrays import Mask
from inference.densitometry.lungs import Lungs

Side = Literal["both", "right", "left"]
Third = Literal["whole", "upper", "middle", "lower"]
SIDES: tuple[Side, ...] = ("both", "right", "left")
THIRDS: tuple[Third, ...] = ("whole", "upper", "middle", "lower")
LOWEST_HU, HIGHEST_HU = -1100, 3100
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Part:
    """A part of the lungs: which lung, and which third of the height of both."""

    side: Side = "both"
    third: Third = "whole"


@dataclass(frozen=True)
class Density:
    """The numbers of one part.

    volume_ml: with the vessels in it.  laa_percent: share of the parenchyma below the threshold.
    perc15_hu: HU below which 15% of the parenchyma lies.  mean_hu: of the parenchyma.  voxels: of the parenchyma.
    The last four are NaN and 0 for a part without parenchyma.
    """

    volume_ml: float
    laa_percent: float
    perc15_hu: float
    mean_hu: float
    voxels: int


@dataclass(frozen=True, eq=False)
class Densities:
    """The numbers of every part, and how the parenchyma of both lungs is distributed.

    histogram: voxels of each whole HU from `LOWEST_HU` to `HIGHEST_HU`.  voxel_ml: of one voxel.
    """

    parts: dict[Part, Density]
    histogram: Counts
    voxel_ml: float


def measure(
    hu: npt.NDArray[np.int16],
    lungs: Lungs,
    voxel_ml: float,
    *,
    threshold_hu: int = -950,
    percentile: float = 15.0,
) -> Densities:
    """The numbers of both lungs, each lung, each third of the height, and each lung's thirds.

    hu: (Z, Y, X) whole HU; values beyond `LOWEST_HU` and `HIGHEST_HU` count as those.
    """
    counts: dict[Part, Counts] = {}
    volumes: dict[Part, int] = {}
    levels = thirds(lungs)
    for side, mask in (("right", lungs.right), ("left", lungs.left)):
        for third, where in levels.items():
            part = Part(side, third)  # type: ignore[arg-type]
            box = (where, *lungs.box[1:])
            counts[part] = _histogram(hu[box], mask[box] & lungs.parenchyma[box])
            volumes[part] = int(np.count_nonzero(mask[box]))
    _add_up(counts)
    _add_up(volumes)
    found = {
        part: _density(counts[part], volumes[part] * voxel_ml, threshold_hu, percentile)
        for part in (Part(side, third) for side in SIDES for third in THIRDS)
    }
    return Densities(found, counts[Part()], voxel_ml)


def thirds(lungs: Lungs) -> dict[Third, slice]:
    """The slices of each third of the height from the lowest to the highest slice with lung, the same for both lungs.

    A slice belongs to the third that its middle lies in.
    """
    filled = np.flatnonzero(lungs.right.any(axis=(1, 2)) | lungs.left.any(axis=(1, 2)))
    if not len(filled):
        return {"lower": slice(0, 0), "middle": slice(0, 0), "upper": slice(0, 0)}
    first, height = int(filled[0]), int(filled[-1] - filled[0]) + 1
    low, high = (first + round(height * share / 3) for share in (1, 2))
    return {"lower": slice(first, low), "middle": slice(low, high), "upper": slice(high, first + height)}


def percentile_of(counts: Counts, percent: float) -> float:
    """The HU below which a share of the voxels lies, from a histogram of whole HU that starts at `LOWEST_HU`.

    A voxel of whole HU h is taken to lie anywhere from h - 0.5 to h + 0.5 with equal chance, so that changes
    of less than 1 HU show. NaN for an empty histogram.
    """
    total = int(counts.sum())
    if not total:
        return float("nan")
    below = np.cumsum(counts)
    wanted = total * percent / 100.0
    index = int(np.searchsorted(below, wanted))
    before = int(below[index - 1]) if index else 0
    return LOWEST_HU - 0.5 + index + (wanted - before) / int(counts[index])


def _histogram(hu: npt.NDArray[np.int16], mask: Mask) -> Counts:
    values = np.clip(hu[mask], LOWEST_HU, HIGHEST_HU).astype(np.int32) - LOWEST_HU
    return np.bincount(values, minlength=HIGHEST_HU - LOWEST_HU + 1).astype(np.int64)


def _add_up(found: dict[Part, Any]) -> None:
    """From each lung's thirds to each lung, to both lungs' thirds and to both lungs."""
    for side in ("right", "left"):
        found[Part(side)] = sum(found[Part(side, third)] for third in THIRDS[1:])
    for third in THIRDS:
        found[Part("both", third)] = found[Part("right", third)] + found[Part("left", third)]


def _density(counts: Counts, volume_ml: float, threshold_hu: int, percentile: float) -> Density:
    voxels = int(counts.sum())
    if not voxels:
        return Density(volume_ml, float("nan"), float("nan"), float("nan"), 0)
    low = int(counts[: threshold_hu - LOWEST_HU].sum())
    mean = LOWEST_HU + float(counts @ np.arange(len(counts))) / voxels
    return Density(volume_ml, 100.0 * low / voxels, percentile_of(counts, percentile), mean, voxels)
