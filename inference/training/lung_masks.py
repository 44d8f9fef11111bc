"""Checks that find the unsupervised lung masks that failed, so that the U-Net does not learn from them."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from inference.arrays import Mask


@dataclass(frozen=True)
class MaskChecks:
    """Limits that an adult's lung mask must keep to be used for training.

    volume_ml: both lungs together.  largest_share: the larger lung's share of both.
    height_mm: extent along z.  edge_share: area allowed on the first or last slice, as a share of the largest.
    fill_share: share of its bounding box that the mask fills.
    """

    volume_ml: tuple[float, float] = (1200.0, 9000.0)
    largest_share: float = 0.80
    height_mm: tuple[float, float] = (110.0, 380.0)
    edge_share: float = 0.05
    fill_share: tuple[float, float] = (0.15, 0.75)


def failures(mask: Mask, spacing_mm: tuple[float, float, float], checks: MaskChecks | None = None) -> tuple[str, ...]:
    """Why a mask should not be used for training: one sentence per failed check; empty for a good mask.

    mask: bool (Z, Y, X).  spacing_mm: (z, y, x).
    """
    checks = checks or MaskChecks()
    if not mask.any():
        return ("The mask is empty.",)
    found = []
    millilitres = float(np.count_nonzero(mask)) * float(np.prod(spacing_mm)) / 1000
    low, high = checks.volume_ml
    if not low <= millilitres <= high:
        found.append(f"The lungs hold {millilitres:.0f} mL; {low:.0f} to {high:.0f} are expected.")
    areas = mask.sum(axis=(1, 2))
    height = float(np.ptp(np.flatnonzero(areas)) + 1) * spacing_mm[0]
    if not checks.height_mm[0] <= height <= checks.height_mm[1]:
        found.append(f"The lungs are {height:.0f} mm high.")
    if max(areas[0], areas[-1]) > checks.edge_share * areas.max():
        found.append("The lungs are cut off at the first or the last slice.")
    share = left_right_share(mask)
    if share > checks.largest_share:
        found.append(f"{share:.0%} of the mask lies on one side.")
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    filled = float(mask[box].mean())
    if not checks.fill_share[0] <= filled <= checks.fill_share[1]:
        found.append(f"The mask fills {filled:.0%} of the box around it.")
    return tuple(found)


def left_right_share(mask: Mask) -> float:
    """The larger side's share of the mask, split at the middle of the image, on which a scan is centred: 0.5 to 1.

    Splitting at the middle of the mask would not work: a single lung would have two equal halves.
    """
    columns = mask.sum(axis=(0, 1), dtype=np.float64)
    first = columns[: len(columns) // 2].sum() / columns.sum()
    return float(max(first, 1 - first))
