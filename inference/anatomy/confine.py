"""Confines the network's lung mask to the anatomy: what is lung stays, what cannot be lung goes."""

import numpy as np

from inference.anatomy.regions import AIR_BELOW_HU, Air
from inference.anatomy.squares import grown
from inference.arrays import Grey, Mask

# Dense voxels that the network calls lung may be vessels, consolidation or lung compressed by an effusion if they lie
# this close to air-filled lung. Farther away they are another organ.
_DENSE_WITHIN_MM = 40.0


def confine(raw: Grey, air: Air) -> Mask:
    """The part of a mask that may be lung: bool (Z, Y, X).

    raw: uint8 (Z, Y, X) on the volume's grid, not 0 where the network saw lung.  air: of the same volume.
    Kept: air-filled lung, and dense tissue near it in the same slice. Not kept: air of any other kind with the wall
    around it, and slices without air-filled lung.
    """
    cells, step = air.cells, air.cells.factors[0]
    kept = np.zeros(raw.shape, bool)
    for level in map(int, np.flatnonzero(air.lungs.any(axis=(1, 2)))):
        may_be_lung = cells.to_slice(_may_be_lung(air, level)).view(np.uint8)
        here = slice(level * step, (level + 1) * step)
        np.logical_and(raw[here], may_be_lung, out=kept[here])
    return kept


def _may_be_lung(air: Air, level: int) -> Mask:
    """The same for one level of cells, without regard to the network: bool (y, x)."""
    level_only = slice(level, level + 1)
    lungs, hu = air.lungs[level_only], air.cells.hu[level_only]
    near = grown(lungs, air.cells.in_plane(_DENSE_WITHIN_MM))
    edge = grown(lungs, 1)
    foreign = grown(air.outside[level_only] | air.airways[level_only] | air.other[level_only], 1)
    found: tuple[Mask] = tuple(lungs | (~foreign & (edge | (near & (hu >= AIR_BELOW_HU)))))
    return found[0]
