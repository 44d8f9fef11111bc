"""Is the network on its own ground? Compares its raw mask, which the verdict is made from, with the actual lungs."""

import numpy as np
import numpy.typing as npt

from config.reasons import ReasonCode
from inference.arrays import Box, Grey, Mask
from inference.errors import Evidence, UnsuitableSeries
from inference.finding import QualityCheck
from inference.suitability.policy import Policy


def check_ground(raw: Grey, lungs: Mask, inside: slice, voxel_ml: float, policy: Policy) -> QualityCheck:
    """How much of the network's mask is not lung, in the slices that the verdict is made from.

    raw: uint8 (Z, Y, X), the network's mask.  lungs: bool (Z, Y, X), the same confined to the lungs.  inside: z of the
    verdict's slices.
    Raises UnsuitableSeries (MASK_OFF_GROUND) above the share that the card allows.
    """
    share = outside_share(raw[inside], lungs[inside])
    off_ml = share * _count(raw[inside]) * voxel_ml
    if share > policy.outside_lungs_share:
        suspect = np.logical_and(raw, ~lungs)
        raise UnsuitableSeries(
            ReasonCode.MASK_OFF_GROUND,
            f"{share:.0%} of what the network took for lung in the slices of the verdict, {off_ml:.0f} mL, lies "
            f"outside the lungs; at most {policy.outside_lungs_share:.0%} are accepted.",
            Evidence(
                z=inside.start + int(np.count_nonzero(suspect[inside], axis=(1, 2)).argmax()),
                lungs=lungs,
                suspect=suspect,
            ),
        )
    return QualityCheck(
        "MASK_GROUND",
        f"{share:.1%} of what the network took for lung in the slices of the verdict, {off_ml:.0f} mL, lies outside "
        "the lungs or in the airways; it is neither measured nor shown.",
    )


def outside_share(raw: Grey, lungs: Mask) -> float:
    """Share of a raw mask's voxels that are not in the confined one; 0 for an empty mask."""
    total = _count(raw)
    kept = sum(
        int(np.count_nonzero(np.logical_and(plane, inside.view(np.uint8))))
        for plane, inside in zip(raw, lungs, strict=True)
    )
    return 1.0 - kept / total if total else 0.0


def _count(mask: Grey) -> int:
    """How many values are not 0. A slice at a time, because a comparison and a count of bits are quicker than one."""
    return sum(int(np.count_nonzero(plane != 0)) for plane in mask)


def check_crop(box: Box, raw: Grey, lungs: Mask, inside: slice, rule: str, policy: Policy) -> None:
    """The part of the images that the verdict is made from must fit the lungs in it.

    box: that part, its rows and columns on the source grid.  raw, lungs, inside: as in `check_ground`.
    rule: how the profile crops; only a box around the mask can be wrong.
    Raises UnsuitableSeries (CROP_IMPLAUSIBLE). A single stray voxel far from the lungs moves the whole box.
    """
    if rule != "mask-box" or not lungs[inside].any():
        return
    spans = [np.flatnonzero(lungs[inside].any(axis=others)) for others in ((0, 2), (0, 1))]
    around = slice(int(spans[0][0]), int(spans[0][-1]) + 1), slice(int(spans[1][0]), int(spans[1][-1]) + 1)
    rows, columns = (side.stop - side.start for side in around)
    given_rows, given_columns = (side.stop - side.start for side in box[1:])
    excess = given_rows * given_columns / (rows * columns)
    if excess > policy.crop_excess:
        raise UnsuitableSeries(
            ReasonCode.CROP_IMPLAUSIBLE,
            f"The part of the images that the verdict would be made from, {given_rows} by {given_columns} pixels, is "
            f"{excess:.1f} times as large as the lungs in it, {rows} by {columns}: the network saw lung far from them.",
            Evidence(
                z=inside.start + int(_beyond(raw[inside], around).argmax()),
                box=(box[1], box[2]),
                lungs=lungs,
                suspect=np.logical_and(raw, ~lungs),
            ),
        )


def _beyond(raw: Grey, around: tuple[slice, slice]) -> npt.NDArray[np.intp]:
    """How many pixels the mask reaches beyond the given rows and columns, for each slice."""
    found = np.zeros(len(raw), np.intp)
    for side, lines in zip(around, (raw.any(axis=2), raw.any(axis=1)), strict=True):
        index = np.arange(lines.shape[1])
        away = np.maximum(np.maximum(side.start - index, index - side.stop + 1), 0)
        found = np.maximum(found, (lines * away).max(axis=1))
    return found
