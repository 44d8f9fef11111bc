"""Bodies that differ from seed to seed: the sizes and positions of the organs, and the HU of each slice.

Lengths are millimetres in the frame of `grid.Grid`; z = 0 is the lowest point of the lungs.
"""

from dataclasses import dataclass

import numpy as np

from inference.arrays import Mask
from inference.phantom.grid import Floats

AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, MARROW_HU, CORTEX_HU = -1000, -100, 50, 42, 60, 180, 750
TABLE_HU = -350


@dataclass(frozen=True)
class Anatomy:
    """The measures of one body. Half-axes unless a name says otherwise; all in mm, densities in HU."""

    body_width: float
    body_depth: float
    fat: float
    cage_width: float
    cage_depth: float
    lung_height: float
    apex_start: float  # fraction of the lung height above which the lungs narrow
    squareness: float  # exponent of the superellipse of the chest: 2 is an ellipse
    dome_right: float
    dome_left: float
    mediastinum: float
    heart: tuple[float, float, float]
    heart_centre: tuple[float, float, float]  # (z, y, x)
    aorta: float
    vertebra: float
    spine_y: float
    rib_pitch: float
    rib_phase: float
    rib_slope: float
    trachea: float
    carina_z: float
    lung_hu: float
    gravity_hu: float  # how much denser the dependent lung is
    stomach_gas: float  # radius; 0 for none
    offset: tuple[float, float]  # (y, x) of the body from the centre of the field of view


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """An adult, drawn from wide but ordinary ranges."""
    u = rng.uniform
    fat, height = u(7, 26), u(185, 265)
    width, depth = u(135, 165) + fat, u(92, 116) + fat * 0.8
    cage_width, cage_depth = width - fat - u(17, 24), depth - fat - u(15, 21)
    spine_y = cage_depth * u(0.70, 0.78)
    return Anatomy(
        body_width=width,
        body_depth=depth,
        fat=fat,
        cage_width=cage_width,
        cage_depth=cage_depth,
        lung_height=height,
        apex_start=u(0.20, 0.40),
        squareness=u(2.1, 2.6),
        dome_right=height * u(0.24, 0.34),
        dome_left=height * u(0.18, 0.28),
        mediastinum=u(20, 28),
        heart=(height * u(0.19, 0.23), cage_depth * u(0.46, 0.56), cage_width * u(0.38, 0.46)),
        heart_centre=(height * u(0.28, 0.36), -cage_depth * u(0.22, 0.36), cage_width * u(0.12, 0.22)),
        aorta=u(10.5, 14.5),
        vertebra=u(16, 21),
        spine_y=spine_y,
        rib_pitch=u(23, 30),
        rib_phase=u(0, 30),
        rib_slope=u(0.35, 0.65),
        trachea=u(7.0, 9.5),
        carina_z=height * u(0.60, 0.68),
        lung_hu=u(-890, -810),
        gravity_hu=u(10, 80),
        stomach_gas=float(rng.choice([0.0, u(12, 30)])),
        offset=(u(-8, 8), u(-8, 8)),
    )


def _outside(x: Floats, y: Floats, width: float, depth: float, power: float = 2.0) -> Floats:
    """Roughly the distance in mm to a superellipse about the origin: negative inside."""
    width, depth = max(width, 1e-3), max(depth, 1e-3)
    norm = (np.abs(x / width) ** power + np.abs(y / depth) ** power) ** (1 / power)
    distance: Floats = (norm - 1) * min(width, depth)
    return distance


def _narrowing(anatomy: Anatomy, z: float) -> float:
    """0 where the chest is widest, 1 at the apex of the lungs and above."""
    start = anatomy.apex_start
    return float(np.clip((z / anatomy.lung_height - start) / (1 - start), 0, 1))


def cage_axes(anatomy: Anatomy, z: float) -> tuple[float, float]:
    """Half-axes (x, y) of the inside of the rib cage at height z."""
    u = _narrowing(anatomy, z)
    least = anatomy.mediastinum * 1.1
    width = least + (anatomy.cage_width - least) * np.sqrt(max(0.0, 1 - u**2.4))
    return float(width), float(anatomy.cage_depth * max(0.0, 1 - u**3.2) ** 0.6)


def pleural_depth(anatomy: Anatomy, z: float, x: Floats, y: Floats) -> Floats:
    """Roughly how deep a point lies inside a lung, in mm: (Y, X), positive inside.

    z: height in mm.  x: (1, X) and y: (Y, 1), or both (Y, X).
    """
    width, depth = cage_axes(anatomy, z)
    inside = -_outside(x, y, width, depth, anatomy.squareness)
    beside, above = _beside_mediastinum(anatomy, z, x, y), _above_diaphragm(anatomy, z, x, y)
    inside_mm: Floats = np.minimum(np.minimum(inside, beside), above)
    return inside_mm


def _beside_mediastinum(anatomy: Anatomy, z: float, x: Floats, y: Floats) -> Floats:
    front = np.clip((-y / anatomy.cage_depth - 0.35) * 3, 0, 1)  # the lungs nearly meet in front
    half_width = anatomy.mediastinum * (1 - 0.7 * front)
    depth = np.abs(x) - half_width
    hz, hy, hx = anatomy.heart
    cz, cy, cx = anatomy.heart_centre
    level = 1 - ((z - cz) / hz) ** 2
    if level > 0:
        scale = float(np.sqrt(level))
        depth = np.minimum(depth, _outside(x - cx, y - cy, hx * scale, hy * scale))
    spine = _outside(x, y - anatomy.spine_y, anatomy.vertebra + 7, anatomy.vertebra + 5)
    aorta = _outside(x - anatomy.vertebra - 4, y - anatomy.spine_y + 12, anatomy.aorta + 2, anatomy.aorta + 2)
    depth = np.minimum(depth, spine)
    beside: Floats = depth if z > anatomy.carina_z + 30 else np.minimum(depth, aorta)
    return beside


def _above_diaphragm(anatomy: Anatomy, z: float, x: Floats, y: Floats) -> Floats:
    centre = anatomy.cage_width * 0.5
    q = ((np.abs(x) - centre) / (anatomy.cage_width * 0.62)) ** 2
    q = q + ((y + anatomy.cage_depth * 0.15) / (anatomy.cage_depth * 1.1)) ** 2
    height = np.where(x < 0, anatomy.dome_right, anatomy.dome_left)
    # The recess behind the dome ends just below z = 0.
    return ((z - height * np.maximum(1 - q, -0.04)) * 0.7).astype(np.float32)


def _body_axes(anatomy: Anatomy, z: float) -> tuple[float, float]:
    """Half-axes (x, y) of the body at height z; the shoulders narrow towards the neck above the apex."""
    above = float(np.clip((z - anatomy.lung_height * 0.97) / 70, 0, 1))
    return anatomy.body_width * (1 - 0.5 * above), anatomy.body_depth * (1 - 0.35 * above)


def paint_body(anatomy: Anatomy, z: float, x: Floats, y: Floats) -> tuple[Floats, Mask]:
    """HU of one slice without lungs and airways, and the body's outline: both (Y, X)."""
    width, depth = _body_axes(anatomy, z)
    skin = _outside(x, y, width, depth, 2.3)
    hu = np.where(skin < 0, np.float32(FAT_HU), np.float32(AIR_HU))
    hu[(skin < 0) & (skin > -2)] = 0
    cage_width, cage_depth = cage_axes(anatomy, z)
    wall_width = max(cage_width + 13, anatomy.cage_width * 0.55)
    wall_depth = max(cage_depth + 12, anatomy.cage_depth * 0.6)
    wall = _outside(x, y, min(wall_width, width - 4), min(wall_depth, depth - 4), anatomy.squareness)
    hu[wall < 0] = MUSCLE_HU
    cavity = _outside(x, y, cage_width, cage_depth, anatomy.squareness)
    _paint_mediastinum(anatomy, z, x, y, hu, cavity < 0)
    _paint_abdomen(anatomy, z, x, y, hu, cavity < -2)
    _paint_bones(anatomy, z, x, y, hu, cavity)
    return hu, skin < 0


def _paint_mediastinum(anatomy: Anatomy, z: float, x: Floats, y: Floats, hu: Floats, cavity: Mask) -> None:
    hu[cavity] = -60  # mediastinal fat; the organs below are drawn over it
    hz, hy, hx = anatomy.heart
    cz, cy, cx = anatomy.heart_centre
    level = 1 - ((z - cz) / hz) ** 2
    if level > 0:
        scale = float(np.sqrt(level))
        hu[_outside(x - cx, y - cy, hx * scale - 2, hy * scale - 2) < 0] = BLOOD_HU
    arch_z = anatomy.carina_z + 18
    if z < arch_z + 12:
        hu[_outside(x - anatomy.vertebra - 4, y - anatomy.spine_y + 12, anatomy.aorta, anatomy.aorta) < 0] = BLOOD_HU
    if abs(z - arch_z) < 12:
        hu[_outside(x - 12, y - anatomy.spine_y * 0.2, anatomy.aorta * 0.9, anatomy.spine_y * 0.7) < 0] = BLOOD_HU
    elif cz < z < arch_z:
        hu[_outside(x - 2, y + 22, anatomy.aorta * 1.2, anatomy.aorta * 1.2) < 0] = BLOOD_HU
        hu[_outside(x + 20, y + 16, 8, 10) < 0] = BLOOD_HU
    elif z >= arch_z:
        for place in (-18, 2, 18):
            hu[_outside(x - place, y + 6, 5.5, 5.5) < 0] = BLOOD_HU
    hu[_outside(x - 4, y - anatomy.spine_y + anatomy.vertebra + 10, 6, 5) < 0] = 30  # oesophagus


def _paint_abdomen(anatomy: Anatomy, z: float, x: Floats, y: Floats, hu: Floats, cavity: Mask) -> None:
    below = cavity & (_above_diaphragm(anatomy, z, x, y) < -2)
    if not below.any():
        return
    hu[below & (x < 20)] = LIVER_HU
    left = below & (x >= 20)
    hu[left] = -90
    hu[left & (_outside(x - 62, y - 25, 34, 30) < 0)] = 50  # spleen
    hu[left & (_outside(x - 55, y + 35, 36, 28) < 0)] = 25  # stomach
    if anatomy.stomach_gas and z < anatomy.dome_left - 14:
        gas = anatomy.stomach_gas
        hu[left & (_outside(x - 55, y + 45, gas, gas * 0.6) < 0)] = -980


def _paint_bones(anatomy: Anatomy, z: float, x: Floats, y: Floats, hu: Floats, cavity: Floats) -> None:
    shell = (cavity > 2.5) & (cavity < 9.5)
    # Ribs run down towards the front, so one slice cuts several of them at once.
    course = z - anatomy.rib_phase - anatomy.rib_slope * y
    phase = np.abs((course / anatomy.rib_pitch) % 1 - 0.5)
    bony = shell & (phase < 0.22) & (z < anatomy.lung_height * 0.96) & (y > -anatomy.cage_depth * 0.93)
    hu[bony] = CORTEX_HU
    hu[bony & (cavity > 4.5) & (cavity < 7.5) & (phase < 0.16)] = MARROW_HU
    r, spine_y = anatomy.vertebra, anatomy.spine_y
    body = _outside(x, y - spine_y, r * 1.15, r)
    disc = ((z + anatomy.rib_phase) % anatomy.rib_pitch) < 5
    hu[body < 0] = 90 if disc else CORTEX_HU * 0.7
    hu[body < -2.5] = 85 if disc else MARROW_HU
    arch = _outside(x, y - spine_y - r * 1.7, r * 1.1, r * 0.8)
    hu[arch < 0] = CORTEX_HU * 0.6
    hu[_outside(x, y - spine_y - r * 1.45, r * 0.5, r * 0.45) < 0] = 35  # spinal canal
    sternum = _outside(x, y + anatomy.cage_depth + 6, 17, 5.5)
    if anatomy.lung_height * 0.25 < z < anatomy.lung_height * 0.85:
        hu[sternum < 0] = CORTEX_HU * 0.6
        hu[sternum < -2] = MARROW_HU
    if z > anatomy.lung_height * 0.62:  # shoulder blades
        blade = _outside(np.abs(x) - anatomy.cage_width * 0.72, y - anatomy.cage_depth * 0.86, 30, 4)
        hu[(blade < 0) & (cavity > 11)] = CORTEX_HU * 0.7


def paint_table(anatomy: Anatomy, x: Floats, y: Floats, hu: Floats) -> None:
    """Draw the curved, hollow table under the body; `hu` (Y, X) is changed in place."""
    top = anatomy.body_depth + 3 - 0.0009 * x**2
    below = y - top
    flat = np.abs(x) < 205
    free = hu < -900
    hu[free & flat & (below > 0) & (below < 3)] = TABLE_HU
    hu[free & flat & (below > 30) & (below < 33)] = TABLE_HU
    hu[free & flat & (below >= 3) & (below <= 30)] = -930
