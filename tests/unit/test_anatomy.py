"""Air told apart by its pixels, and the network's mask confined to the lungs."""

import numpy as np
import pytest

from inference.anatomy.cells import cells_of
from inference.anatomy.confine import confine
from inference.anatomy.regions import Air, find_air
from inference.evaluation.overlap import dice
from inference.phantom.chest import Phantom, Scanner, make_phantom
from inference.volume.ct_volume import CTVolume


def volume_of(phantom: Phantom) -> CTVolume:
    """The phantom as a volume without files."""
    affine = np.diag([*phantom.spacing_mm[::-1], 1.0])
    return CTVolume(phantom.hu, phantom.spacing_mm, affine, (), "1.2.3", "1.2.4")


def air_of(phantom: Phantom) -> Air:
    return find_air(cells_of(volume_of(phantom)))


def everything(phantom: Phantom) -> np.ndarray:
    """The mask of a network that takes all air for lung, outside, in the airways and in the bowel."""
    return ((phantom.hu < -300) | phantom.lung_mask).astype(np.uint8)


@pytest.mark.parametrize("spacing", [1.25, 3.0, 8.0])
def test_a_network_that_takes_all_air_for_lung_is_confined_to_the_lungs(spacing: float) -> None:
    phantom = make_phantom(4, size=256, spacing_mm=(spacing, 1.4, 1.4), scanner=Scanner(below_mm=60, above_mm=60))
    found = confine(everything(phantom), air_of(phantom))
    assert dice(found, phantom.lung_mask) > 0.96
    assert found.sum() == pytest.approx(phantom.lung_mask.sum(), rel=0.03)
    ends = np.flatnonzero(phantom.lung_mask.any(axis=(1, 2)))
    assert not found[: max(0, ends[0] - 1)].any() and not found[ends[-1] + 2 :].any()
