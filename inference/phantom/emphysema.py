"""Emphysema of a known share: clusters of air in lung of one density, and the exact truth about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inference.arrays import Mask
from inference.phantom.anatomy import Anatomy, pleural_depth
from inference.phantom.grid import Floats, Grid
from inference.phantom.lesions import LungSpace
from inference.phantom.trees import Bytes, Tube, draw_tubes

LOW_BELOW_HU = -950
# About halfway between inflated lung and blood: what lies above is vessel or wall, not parenchyma.
AIRY_BELOW_HU = -400


@dataclass(frozen=True)
class EmphysemaSettings:
    """Clusters of air.

    share: of the lung without vessels and airways, 0 to 1.  radius_mm: range of one cluster's radius.
    upper: 0 spreads the clusters evenly; above, they prefer the upper lung.
    side: -1 for the right lung only, 1 for the left; 0 for both.
    hu, around_hu: density of the clusters and of all other lung. They lie equally far from the threshold of -950 HU, so
        that the edge of a cluster moves least if a kernel blurs it.
    """

    share: float
    radius_mm: tuple[float, float] = (6.0, 14.0)
    upper: float = 0.0
    side: int = 0
    hu: float = -1000.0
    around_hu: float = -900.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 0.8 or self.side not in (-1, 0, 1) or not self.hu < LOW_BELOW_HU < self.around_hu:
            raise ValueError("share is 0 to 0.8, side -1, 0 or 1, and hu lies below -950 HU, around_hu above")


@dataclass(frozen=True, eq=False)
class Emphysema:
    """The truth: what the scanner shows of the clusters after its kernel, without its noise.

    parenchyma: bool (Z, Y, X), lung below -400 HU, without windpipe and main bronchi.
    low: bool (Z, Y, X), the part of it below -950 HU: the clusters, and the small bronchi in the lung.
    """

    parenchyma: Mask
    low: Mask

    @property
    def share(self) -> float:
        """Share of the parenchyma below -950 HU, 0 to 1."""
        return self.share_in(np.ones((1, 1, 1), bool))

    def share_in(self, part: Mask) -> float:
        """The same in a part of the volume: bool, of a shape that broadcasts to (Z, Y, X)."""
        return float(np.count_nonzero(self.low & part)) / max(1, int(np.count_nonzero(self.parenchyma & part)))


class Clusters:
    """Clusters placed in a phantom's lungs, to be drawn slice by slice."""

    def __init__(
        self, rng: np.random.Generator, anatomy: Anatomy, grid: Grid, settings: EmphysemaSettings, solid: Mask
    ) -> None:
        """solid: bool (Z, Y, X), vessels and airways, where no cluster lies."""
        self._settings = settings
        self._main = np.zeros(grid.shape, bool)
        free = _lungs(anatomy, grid) & ~solid
        if settings.side:
            free &= np.sign(grid.axis(2)) == settings.side
        self._drawn = _place(rng, grid, LungSpace(anatomy), settings, free)
        self._truth = Emphysema(np.zeros(grid.shape, bool), np.zeros(grid.shape, bool))

    def leave_out(self, grid: Grid, tubes: Sequence[Tube]) -> None:
        """Windpipe and main bronchi with their walls, which are not lung."""
        into: Bytes = np.zeros(grid.shape, np.uint8)
        draw_tubes(grid, list(tubes), into)
        self._main |= into > 0

    def lung(self, index: int) -> Floats:
        """HU of the lung in a slice: (Y, X)."""
        hu: Floats = np.where(self._drawn[index], self._settings.hu, self._settings.around_hu).astype(np.float32)
        return hu

    def note(self, index: int, plane: Floats, lung: Mask) -> None:
        """Keep the truth of a slice: its HU without noise, and its lung, (Y, X) each."""
        parenchyma = lung & (plane < AIRY_BELOW_HU) & ~self._main[index]
        self._truth.parenchyma[index] = parenchyma
        self._truth.low[index] = parenchyma & (plane < LOW_BELOW_HU)

    def truth(self) -> Emphysema:
        """What was noted."""
        return self._truth


def _lungs(anatomy: Anatomy, grid: Grid) -> Mask:
    y, x = grid.axis(1)[:, None], grid.axis(2)[None, :]
    return np.stack([pleural_depth(anatomy, float(z), x, y) > 0 for z in grid.axis(0)])


def _place(rng: np.random.Generator, grid: Grid, lungs: LungSpace, settings: EmphysemaSettings, free: Mask) -> Mask:
    """Balls at random places until they fill the share of the free lung."""
    weights: Floats = np.exp(settings.upper * lungs.points[:, 0] / lungs.points[:, 0].max())
    low = np.zeros(grid.shape, bool)
    wanted, have = settings.share * int(np.count_nonzero(free)), 0
    while have < wanted:
        side = settings.side or int(rng.choice([-1, 1]))
        centre, radius = lungs.draw(rng, 1, side, weights)[0], float(rng.uniform(*settings.radius_mm))
        box = grid.box(centre - radius, centre + radius)
        if box is None:
            continue
        z, y, x = (axis - float(at) for axis, at in zip(grid.inside(box), centre, strict=True))
        new = (z * z + y * y + x * x < radius**2) & free[box] & ~low[box]
        low[box] |= new
        have += int(np.count_nonzero(new))
    return low
