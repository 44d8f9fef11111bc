"""What can be wrong with a lung: the lesions of COVID-19, and findings that are not COVID-19.

Everything here adds density to lung, in HU above the healthy lung, on the phantom's grid.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from inference.phantom.anatomy import Anatomy, pleural_depth
from inference.phantom.grid import Floats, Grid, SmoothField

LESIONS = ("none", "ground-glass", "consolidation", "mixed")
CONFOUNDERS = ("motion", "nodules", "effusion", "vessels", "emphysema", "dependent")
COARSE_MM = 5.0
Densities = npt.NDArray[np.int16]


@dataclass(frozen=True)
class LesionSettings:
    """Ranges from which the lesions of one phantom are drawn.

    count: number of foci.  radius_mm: of one focus.  ground_glass_hu, consolidation_hu: above healthy lung.
    peripheral: share of the foci that touch the pleura; the rest lie deeper.
    """

    count: tuple[int, int] = (4, 10)
    radius_mm: tuple[float, float] = (11, 30)
    ground_glass_hu: tuple[float, float] = (170, 420)
    consolidation_hu: tuple[float, float] = (650, 900)
    peripheral: float = 0.85


class LungSpace:
    """Points of the two lungs on a coarse grid, used to place lesions and vessels.

    points: (N, 3) mm as (z, y, x).  depth_mm: (N,) distance to the lung's surface.
    """

    def __init__(self, anatomy: Anatomy):
        half = (anatomy.cage_depth + COARSE_MM, anatomy.cage_width + COARSE_MM)
        counts = [int(np.ceil(anatomy.lung_height / COARSE_MM)) + 3, *(int(2 * mm / COARSE_MM) + 1 for mm in half)]
        z, y, x = (np.arange(n, dtype=np.float32) * COARSE_MM for n in counts)
        z, y, x = z - COARSE_MM, y - np.float32(half[0]), x - np.float32(half[1])
        lungs = np.stack([pleural_depth(anatomy, float(height), x[None, :], y[:, None]) > 0 for height in z])
        depth = distance_transform_edt(lungs, sampling=COARSE_MM)
        at = np.nonzero(lungs)
        self.points = np.stack([z[at[0]], y[at[1]], x[at[2]]], axis=1).astype(np.float32)
        self.depth_mm = depth[at].astype(np.float32)
        self._anatomy = anatomy

    def draw(self, rng: np.random.Generator, count: int, side: int, weights: Floats | None = None) -> Floats:
        """`count` random points (count, 3) in the lung of `side` (-1 right, 1 left)."""
        weight = (np.sign(self.points[:, 2]) == side).astype(np.float64)
        if weights is not None:
            weight = weight * weights
        if weight.sum() == 0:
            weight = np.ones(len(self.points))
        chosen = rng.choice(len(self.points), count, p=weight / weight.sum())
        return self.points[chosen] + rng.uniform(-0.4, 0.4, (count, 3)).astype(np.float32) * COARSE_MM

    def covid_weights(self, peripheral: bool) -> Floats:
        """Weights of the points: COVID-19 prefers the lower, posterior and outer lung."""
        z, y = self.points[:, 0] / self._anatomy.lung_height, self.points[:, 1] / self._anatomy.cage_depth
        outer = (self.depth_mm < 12) if peripheral else (self.depth_mm >= 12)
        facing_chest = np.abs(self.points[:, 2]) > 0.45 * self._anatomy.cage_width
        weights: Floats = outer * (0.3 + facing_chest) * np.exp(-1.2 * z) * np.exp(1.0 * y)
        return weights


def add_blob(
    rng: np.random.Generator, grid: Grid, centre: Floats, radii: Floats, density: float, into: Densities, rough: float
) -> None:
    """Raise `into` (Z, Y, X) to `density` HU inside an ellipsoid with a ragged, soft edge.

    centre, radii: (z, y, x) mm.  rough: 0 gives a smooth ellipsoid.
    """
    reach = radii * (1 + rough)
    box = grid.box(centre - reach, centre + reach)
    if box is None:
        return
    z, y, x = grid.inside(box)
    norm = ((z - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((x - centre[2]) / radii[2]) ** 2
    norm = np.sqrt(norm)
    shape = norm.shape
    edge = 0.12
    level: Floats | float = 1.0
    if rough:
        norm = norm + rough * 0.4 * SmoothField(rng, shape, 2 * reach, 9.0).volume()
        level = 1 + 0.22 * SmoothField(rng, shape, 2 * reach, 4.0).volume()
        edge = 0.25
    blob = np.clip((1 - norm) / edge, 0, 1) * (density * level)
    np.maximum(into[box], blob.astype(np.int16), out=into[box])


def add_covid(
    rng: np.random.Generator,
    grid: Grid,
    lungs: LungSpace,
    kind: str,
    settings: LesionSettings,
    into: Densities,
) -> None:
    """Draw bilateral, multifocal, mostly peripheral lesions of `kind` into `into` (Z, Y, X), in HU above lung."""
    count = int(rng.integers(settings.count[0], settings.count[1] + 1))
    first = int(rng.choice([-1, 1]))
    for number in range(count):
        side = first if number % 2 == 0 else -first
        peripheral = bool(rng.random() < settings.peripheral)
        centre = lungs.draw(rng, 1, side, lungs.covid_weights(peripheral))[0]
        radius = rng.uniform(*settings.radius_mm)
        radii = (radius * rng.uniform(0.7, 1.3, 3)).astype(np.float32)
        solid = kind == "consolidation" or (kind == "mixed" and number % 2 == 1)
        density = rng.uniform(*(settings.consolidation_hu if solid else settings.ground_glass_hu))
        add_blob(rng, grid, centre, radii, density, into, rough=0.5)
        if solid:  # consolidation sits in a halo of ground glass
            halo = rng.uniform(*settings.ground_glass_hu)
            add_blob(rng, grid, centre, radii * np.float32(1.35), halo, into, rough=0.5)


def add_nodules(rng: np.random.Generator, grid: Grid, lungs: LungSpace, into: Densities) -> None:
    """One to five round, sharply bordered nodules of 3 to 9 mm radius."""
    for _ in range(int(rng.integers(1, 6))):
        centre = lungs.draw(rng, 1, int(rng.choice([-1, 1])))[0]
        radius = rng.uniform(3, 9)
        radii = np.full(3, radius, np.float32)
        add_blob(rng, grid, centre, radii, rng.uniform(750, 900), into, rough=0.0)


def add_emphysema(rng: np.random.Generator, grid: Grid, lungs: LungSpace, into: Densities) -> None:
    """Dark bullae in the upper lung: HU below the healthy lung, as negative numbers."""
    upper: Floats = np.exp(3 * lungs.points[:, 0] / lungs.points[:, 0].max())
    holes = np.zeros_like(into)
    for _ in range(int(rng.integers(8, 40))):
        centre = lungs.draw(rng, 1, int(rng.choice([-1, 1])), upper)[0]
        radii = np.full(3, rng.uniform(3, 12), np.float32)
        add_blob(rng, grid, centre, radii, rng.uniform(60, 130), holes, rough=0.2)
    np.subtract(into, holes, out=into, where=into == 0)


def effusion_level(rng: np.random.Generator, anatomy: Anatomy) -> dict[int, tuple[float, float]]:
    """Fluid behind one or both lungs: by side, the y (mm) behind which it lies at the base, and its top z (mm)."""
    sides = [(-1,), (1,), (-1, 1)][int(rng.integers(3))]
    return {
        side: (anatomy.cage_depth * rng.uniform(0.45, 0.7), anatomy.lung_height * rng.uniform(0.3, 0.5))
        for side in sides
    }
