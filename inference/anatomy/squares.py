"""Masks grown and shrunk by squares in each slice: what scipy's filters do, but on whole slices at a time."""

import numpy as np

from inference.arrays import Mask


def grown(mask: Mask, reach: int) -> Mask:
    """A mask with all within `reach` rows and columns of it: bool (z, y, x).

    The same as a maximum filter of 2 reach + 1 rows and columns.
    """
    result = mask.copy()
    for axis in (1, 2):
        lines = result.swapaxes(0, axis)
        done = 0
        # Each step doubles what the ones before reached, first up and then down the axis.
        while done < reach:
            step = min(done + 1, reach - done)
            lines[step:] |= lines[:-step]
            done += step
        while done > 0:
            step = min(reach - done + 1, done)
            lines[:-step] |= lines[step:]
            done -= step
    return result


def shrunk(mask: Mask, reach: int) -> Mask:
    """A mask without all within `reach` rows and columns of its outside, as a minimum filter; the sides stay."""
    return np.logical_not(grown(np.logical_not(mask), reach))
