"""Masks grown and shrunk by squares in each slice: what scipy's filters do, but on whole slices at a time."""

import numpy as np

from inference.arrays import Mask

Reach = int | tuple[int, int]
"""Rows and columns, or one number for both."""


def grown(mask: Mask, reach: Reach) -> Mask:
    """A mask with all within `reach` rows and columns of it: bool (z, y, x).

    The same as a maximum filter of 2 reach + 1 rows and columns.
    """
    result = mask.copy()
    for plane in result:
        for lines, far in zip((plane, plane.T), _both(reach), strict=True):
            _grow(lines, far)
    return result


def _grow(lines: Mask, reach: int) -> None:
    """Spread each line over `reach` lines before and after it, in place."""
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


def shrunk(mask: Mask, reach: Reach) -> Mask:
    """A mask without all within `reach` rows and columns of its outside, as a minimum filter; the sides stay."""
    return np.logical_not(grown(np.logical_not(mask), reach))


def touching(mask: Mask) -> Mask:
    """A mask with the cell before, behind, left and right of each of its own, in its slice: bool (z, y, x)."""
    result = mask.copy()
    for found, plane in zip(result, mask, strict=True):
        for lines, own in ((found, plane), (found.T, plane.T)):
            lines[1:] |= own[:-1]
            lines[:-1] |= own[1:]
    return result


def enclosed(mask: Mask) -> Mask:
    """Cells with some of the mask before and some behind them in their column, or of the mask: bool (z, y, x)."""
    before, behind = mask.copy(), mask.copy()
    for front, back in zip(before, behind, strict=True):
        step = 1
        while step < len(front):
            front[step:] |= front[:-step]
            back[:-step] |= back[step:]
            step *= 2
    before &= behind
    return before


def opened(mask: Mask, reach: Reach) -> Mask:
    """The parts of a mask that hold squares of 2 reach + 1 rows and columns; there is no mask beyond the sides."""
    small = shrunk(mask, reach)
    for axis, lost in zip((1, 2), _both(reach), strict=True):
        lines = small.swapaxes(0, axis)
        lines[:lost] = False
        lines[len(lines) - lost :] = False
    return grown(small, reach)


def _both(reach: Reach) -> tuple[int, int]:
    return reach if isinstance(reach, tuple) else (reach, reach)
