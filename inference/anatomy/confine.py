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
    cells = air.cells
    near = grown(air.lungs, cells.in_plane(_DENSE_WITHIN_MM))
    edge = grown(air.lungs, 1)
    foreign = grown(air.outside | air.airways | air.other, 1)
    may_be_lung = air.lungs | (~foreign & (edge | (near & (cells.hu >= AIR_BELOW_HU))))
    return np.logical_and(raw, cells.to_voxels(may_be_lung))
