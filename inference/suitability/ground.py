"""Is the network on its own ground? Compares its raw mask, which the verdict is made from, with the actual lungs."""

import numpy as np

from config.reasons import ReasonCode
from inference.arrays import Box, Grey, Mask
from inference.errors import UnsuitableSeries
from inference.finding import QualityCheck
from inference.suitability.policy import Policy


def check_ground(raw: Grey, lungs: Mask, inside: slice, voxel_ml: float, policy: Policy) -> QualityCheck:
    """How much of the network's mask is not lung, in the slices that the verdict is made from.

    raw: uint8 (Z, Y, X), the network's mask.  lungs: bool (Z, Y, X), the same confined to the lungs.  inside: z of the
    verdict's slices.
    Raises UnsuitableSeries (MASK_OFF_GROUND) above the share that the card allows.
    """
    share = outside_share(raw[inside], lungs[inside])
    off_ml = share * int(np.count_nonzero(raw[inside])) * voxel_ml
    if share > policy.outside_lungs_share:
        raise UnsuitableSeries(
            ReasonCode.MASK_OFF_GROUND,
            f"{share:.0%} of what the network took for lung in the slices of the verdict, {off_ml:.0f} mL, lies "
            f"outside the lungs; at most {policy.outside_lungs_share:.0%} are accepted.",
        )
    return QualityCheck(
        "MASK_GROUND",
        f"{share:.1%} of what the network took for lung in the slices of the verdict, {off_ml:.0f} mL, lies outside "
        "the lungs or in the airways; it is neither measured nor shown.",
    )


def outside_share(raw: Grey, lungs: Mask) -> float:
    """Share of a raw mask's voxels that are not in the confined one; 0 for an empty mask."""
    total = int(np.count_nonzero(raw))
    return 1.0 - int(np.count_nonzero(np.logical_and(raw, lungs))) / total if total else 0.0


def check_crop(box: Box, lungs: Mask, rule: str, policy: Policy) -> None:
    """The part of the images that the verdict is made from must fit the lungs in it.

    box: that part, its rows and columns on the source grid.  lungs: bool (Z, Y, X), in the verdict's slices.
    rule: how the profile crops; only a box around the mask can be wrong.
    Raises UnsuitableSeries (CROP_IMPLAUSIBLE). A single stray voxel far from the lungs moves the whole box.
    """
    if rule != "mask-box" or not lungs.any():
        return
    spans = [np.flatnonzero(lungs.any(axis=others)) for others in ((0, 2), (0, 1))]
    rows, columns = (int(span[-1] - span[0]) + 1 for span in spans)
    given_rows, given_columns = (side.stop - side.start for side in box[1:])
    excess = given_rows * given_columns / (rows * columns)
    if excess > policy.crop_excess:
        raise UnsuitableSeries(
            ReasonCode.CROP_IMPLAUSIBLE,
            f"The part of the images that the verdict would be made from, {given_rows} by {given_columns} pixels, is "
            f"{excess:.1f} times as large as the lungs in it, {rows} by {columns}: the network saw lung far from them.",
        )
