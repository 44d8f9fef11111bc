"""Assembles a chest from anatomy, trees and lesions, and scans it with blur, noise and a field of view."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from inference.phantom.anatomy import (
    Anatomy,
    draw_anatomy,
    paint_body,
    paint_table,
    pleural_depth,
)
from inference.phantom.emphysema import Clusters, Emphysema, EmphysemaSettings
from inference.phantom.extras import ARM_RADIUS_MM, Extras, check_names
from inference.phantom.grid import Floats, Grid, SmoothField
from inference.phantom.lesions import (
    CONFOUNDERS,
    LESIONS,
    Densities,
    LesionSettings,
    LungSpace,
    add_covid,
    add_emphysema,
    add_nodules,
    effusion_level,
)
from inference.phantom.trees import Bytes, Tube, airways, draw_tubes, grow_tree, hilum_of, main_airways

LESION_FROM_HU = 80  # density above healthy lung from which a voxel counts as lesion
DENSEST_HU = 45.0
LUMEN_HU, WALL_MM = -985, 1.3
FLUID_HU = 12


@dataclass(frozen=True)
class Scanner:
    """How the chest is imaged.

    noise_hu: standard deviation in the body, after the kernel.  blur_mm: sigma of the kernel.
    padding_hu: value outside the circular field of view; None leaves air there (-1000).
    field_mm: width of the field of view; None fits it to the body.
    below_mm, above_mm: how far the scan extends beyond the lungs.
    kernel: what the headers call the kernel.
    """

    noise_hu: float = 18.0
    blur_mm: float = 0.75
    padding_hu: int | None = None
    field_mm: float | None = None
    below_mm: float = 28.0
    above_mm: float = 18.0
    table: bool = True
    kernel: str = "B50f"


@dataclass(frozen=True)
class Phantom:
    """A synthetic chest CT and the truth about it.

    hu: int16 (Z, Y, X), z towards the head, y to the back, x to the patient's left.
    lung_mask: bool (Z, Y, X): both lungs with their vessels, small airways and lesions; no trachea or main bronchi
        outside the lungs.
    lesion_mask: bool (Z, Y, X): lesions of COVID-19 only, a part of lung_mask.
    emphysema: of a known share, if it was asked for.
    spacing_mm: (z, y, x).
    """

    seed: int
    hu: npt.NDArray[np.int16]
    lung_mask: npt.NDArray[np.bool_]
    lesion_mask: npt.NDArray[np.bool_]
    spacing_mm: tuple[float, float, float]
    lesions: str
    confounders: tuple[str, ...]
    scanner: Scanner = field(default_factory=Scanner)
    emphysema: Emphysema | None = None

    @property
    def covid(self) -> bool:
        """The truth that the classifier should find."""
        return self.lesions != "none"

    @property
    def lung_volume_ml(self) -> float:
        """Millilitres of the true lung mask."""
        z, y, x = self.spacing_mm
        return float(np.count_nonzero(self.lung_mask)) * z * y * x / 1000.0


@dataclass(frozen=True)
class _Contents:
    """What fills the lungs: shares 0..255 and densities above healthy lung, all (Z, Y, X). tubes: of the walls."""

    vessels: Bytes
    lumen: Bytes
    walls: Bytes
    covid: Densities
    other: Densities
    tubes: list[Tube]
    clusters: Clusters | None = None


def make_phantom(
    seed: int,
    *,
    slices: int | None = None,
    size: int = 512,
    spacing_mm: tuple[float, float, float] | None = None,
    lesions: str = "none",
    lesion_settings: LesionSettings | None = None,
    confounders: Collection[str] = (),
    extras: Collection[str] = (),
    scanner: Scanner | None = None,
    emphysema: EmphysemaSettings | None = None,
) -> Phantom:
    """Scan one synthetic chest.

    seed: decides the body and everything in it; the same arguments give the same phantom.
    slices: number of slices; None gives 110, or what `spacing_mm` needs to cover the lungs.
    size: rows and columns.
    spacing_mm: (z, y, x); None covers the lungs with `slices` and the body with `size`.
    lesions: one of LESIONS.  confounders: any of CONFOUNDERS.  extras: any of EXTRAS.
    emphysema: clusters of air of a known share; all other lung then has one density.
    Raises ValueError for an unknown name, or a volume too small to hold a chest.
    """
    if lesions not in LESIONS or not set(confounders) <= set(CONFOUNDERS):
        raise ValueError(f"lesions are one of {LESIONS}, confounders any of {CONFOUNDERS}")
    scanner = scanner or Scanner()
    body_seed, content_seed, scan_seed, cluster_seed = np.random.SeedSequence(seed).spawn(4)
    anatomy = draw_anatomy(np.random.default_rng(body_seed))
    extra = Extras(anatomy, check_names(extras), side=1 if seed % 2 else -1)
    if "arms" in extra.names and scanner.field_mm is None:
        scanner = replace(scanner, field_mm=2 * (anatomy.body_width + 2 * ARM_RADIUS_MM) + 48)
    grid = _place(anatomy, scanner, slices, size, spacing_mm)
    rng = np.random.default_rng(content_seed)
    contents = _fill(rng, anatomy, grid, lesions, lesion_settings or LesionSettings(), confounders)
    if emphysema:
        contents = replace(contents, clusters=_clusters(cluster_seed, anatomy, grid, emphysema, contents))
    fluid = effusion_level(rng, anatomy) if "effusion" in confounders else {}
    hu, lung_mask, lesion_mask = _scan(
        np.random.default_rng(scan_seed), anatomy, grid, contents, fluid, confounders, extra, scanner
    )
    truth = contents.clusters.truth() if contents.clusters else None
    return Phantom(
        seed, hu, lung_mask, lesion_mask, grid.spacing_mm, lesions, tuple(sorted(confounders)), scanner, truth
    )


def _place(
    anatomy: Anatomy,
    scanner: Scanner,
    slices: int | None,
    size: int,
    spacing_mm: tuple[float, float, float] | None,
) -> Grid:
    extent = anatomy.lung_height + scanner.below_mm + scanner.above_mm
    if spacing_mm is None:
        count = 110 if slices is None else slices
        field_mm = scanner.field_mm or 2 * anatomy.body_width + 24
        pixel = round(field_mm / size, 4)
        spacing_mm = (round(extent / max(count, 1) + 0.0005, 3), pixel, pixel)
    else:
        count = slices or int(np.ceil(extent / spacing_mm[0]))
    if count < 1 or size < 32:
        raise ValueError(f"{count} slices of {size} x {size} cannot hold a chest")
    height = (count - 1) * spacing_mm[0]
    middle = (anatomy.lung_height + scanner.above_mm - scanner.below_mm) / 2
    first_y = anatomy.offset[0] + 12 - (size - 1) / 2 * spacing_mm[1]
    first_x = anatomy.offset[1] - (size - 1) / 2 * spacing_mm[2]
    return Grid((count, size, size), spacing_mm, (middle - height / 2, first_y, first_x))


def _fill(
    rng: np.random.Generator,
    anatomy: Anatomy,
    grid: Grid,
    lesions: str,
    settings: LesionSettings,
    confounders: Collection[str],
) -> _Contents:
    lungs = LungSpace(anatomy)
    vessels, lumen, walls = (np.zeros(grid.shape, np.uint8) for _ in range(3))
    covid, other = (np.zeros(grid.shape, np.int16) for _ in range(2))
    thick = 1.5 if "vessels" in confounders else 1.0
    for side in (-1, 1):
        for _ in range(2):  # arteries and veins
            tips = lungs.draw(rng, int(rng.integers(90, 140)), side)
            root = hilum_of(anatomy, side) + rng.normal(0, 4, 3).astype(np.float32)
            draw_tubes(grid, grow_tree(rng, root, tips, tip_radius_mm=rng.uniform(0.7, 1.0) * thick), vessels)
    tubes = airways(rng, anatomy, {side: lungs.draw(rng, 5, side) for side in (-1, 1)})
    outer = [Tube(tube.start, tube.end, tube.radius_mm + WALL_MM) for tube in tubes]
    draw_tubes(grid, outer, walls)
    draw_tubes(grid, tubes, lumen)
    if lesions != "none":
        add_covid(rng, grid, lungs, lesions, settings, covid)
    if "nodules" in confounders:
        add_nodules(rng, grid, lungs, other)
    if "emphysema" in confounders:
        add_emphysema(rng, grid, lungs, other)
    return _Contents(vessels, lumen, walls, covid, other, outer)


def _clusters(
    seed: np.random.SeedSequence, anatomy: Anatomy, grid: Grid, settings: EmphysemaSettings, contents: _Contents
) -> Clusters:
    solid = (contents.vessels > 0) | (contents.walls > 0)
    clusters = Clusters(np.random.default_rng(seed), anatomy, grid, settings, solid)
    clusters.leave_out(grid, main_airways(contents.tubes))
    return clusters


def _scan(
    rng: np.random.Generator,
    anatomy: Anatomy,
    grid: Grid,
    contents: _Contents,
    fluid: dict[int, tuple[float, float]],
    confounders: Collection[str],
    extra: Extras,
    scanner: Scanner,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    hu = np.empty(grid.shape, np.int16)
    lungs, lesions = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    extent = np.array(grid.shape, np.float32) * np.array(grid.spacing_mm, np.float32)
    texture = SmoothField(rng, grid.shape, extent, 11.0)
    dependent = float(rng.uniform(120, 320)) if "dependent" in confounders else 0.0
    y, x = grid.axis(1)[:, None], grid.axis(2)[None, :]
    for index, z in enumerate(map(float, grid.axis(0))):
        plane, _ = paint_body(anatomy, z, x, y)
        extra.around(plane, z, x, y)
        depth = pleural_depth(anatomy, z, x, y)
        lung = depth > 0
        extra.change_lungs(plane, lung, z, x, y)
        _pour(plane, lung, fluid, anatomy, z, x, y)
        healthy = anatomy.lung_hu + anatomy.gravity_hu * (y / anatomy.cage_depth) + 14 * texture.slice(index)
        if dependent:  # the back of the lung collapses a little under its own weight
            healthy = healthy + dependent * np.exp(-np.maximum(depth, 0) / 7) * np.clip(y / anatomy.cage_depth, 0, 1)
        _breathe(plane, lung, healthy, contents, index)
        extra.fill(plane, lung, z, x, y)
        extra.airway(plane, z, x, y)
        lungs[index] = lung
        lesions[index] = lung & (contents.covid[index] >= LESION_FROM_HU)
        if "motion" in confounders:
            plane = _smear(rng, plane, z, anatomy, grid)
        if scanner.table:
            paint_table(anatomy, x, y, plane)
        if contents.clusters:
            contents.clusters.note(index, _through_kernel(plane, grid, scanner), lung)
        hu[index] = _image(rng, plane, x, y, grid, scanner)
    return hu, lungs, lesions


def _pour(
    plane: Floats,
    lung: npt.NDArray[np.bool_],
    fluid: dict[int, tuple[float, float]],
    anatomy: Anatomy,
    z: float,
    x: Floats,
    y: Floats,
) -> None:
    """Replace lung by effusion; the effusion is no longer part of the lung."""
    for side, (behind, top) in fluid.items():
        height = np.clip(z / top, 0, 1)
        wet = lung & (np.sign(x) == side) & (y > behind + (anatomy.cage_depth - behind) * height)
        plane[wet] = FLUID_HU
        lung[wet] = False


def _breathe(plane: Floats, lung: npt.NDArray[np.bool_], healthy: Floats, contents: _Contents, index: int) -> None:
    """Fill the lungs and the airways of one slice: (Y, X), changed in place."""
    density = np.maximum(contents.covid[index], 0) + contents.other[index]
    if contents.clusters:
        air = np.minimum(contents.clusters.lung(index) + density, DENSEST_HU)
    else:
        air = np.clip(healthy + density, -990, DENSEST_HU)
    vessel = contents.vessels[index].astype(np.float32) / 255
    air = air + vessel * (DENSEST_HU - air)
    plane[lung] = air[lung]
    wall = contents.walls[index].astype(np.float32) / 255
    plane += np.where(plane < 0, wall, 0) * (0 - plane)
    lumen = contents.lumen[index].astype(np.float32) / 255
    plane += lumen * (LUMEN_HU - plane)


def _smear(rng: np.random.Generator, plane: Floats, z: float, anatomy: Anatomy, grid: Grid) -> Floats:
    """Breathing and heartbeat: double contours that are strongest near the diaphragm and the heart."""
    strength = float(np.exp(-(((z - anatomy.heart_centre[0]) / (anatomy.lung_height * 0.25)) ** 2)))
    shift = round(float(rng.uniform(3, 9)) * strength / grid.spacing_mm[1])
    if shift == 0:
        return plane
    moved = np.roll(plane, shift, axis=0) * 0.5 + np.roll(plane, -shift // 2, axis=1) * 0.5
    share = float(rng.uniform(0.3, 0.6))
    smeared: Floats = plane * (1 - share) + moved * share
    return smeared


def _through_kernel(plane: Floats, grid: Grid, scanner: Scanner) -> Floats:
    if not scanner.blur_mm:
        return plane
    sigma = (scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[2])
    blurred: Floats = gaussian_filter(plane, sigma, truncate=3)
    return blurred


def _image(
    rng: np.random.Generator, plane: Floats, x: Floats, y: Floats, grid: Grid, scanner: Scanner
) -> npt.NDArray[np.int16]:
    """Apply noise and kernel, then the field of view: int16 (Y, X)."""
    sigma = (scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[2])
    # The blur below reduces the spread of white noise by this factor.
    kept = 1 / np.sqrt(max(1.0, 4 * np.pi * sigma[0] * sigma[1]))
    white = rng.standard_normal(plane.shape, dtype=np.float32) * np.float32(scanner.noise_hu / kept)
    noisy = plane + white * np.where(plane < -950, np.float32(0.45), np.float32(1))
    image = _through_kernel(noisy, grid, scanner)
    image = np.clip(np.rint(image), -1024, 3071)
    if scanner.padding_hu is not None:
        radius = min(plane.shape[0] * grid.spacing_mm[1], plane.shape[1] * grid.spacing_mm[2]) / 2
        outside = (x - x.mean()) ** 2 + (y - y.mean()) ** 2 > radius**2
        image[outside] = scanner.padding_hu
    values: npt.NDArray[np.int16] = image.astype(np.int16)
    return values
