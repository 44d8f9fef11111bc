"""What ordinary patients have and the plain phantom lacks: neck, arms, bowel, and altered lungs.

Each is drawn into one slice at a time, in mm of the phantom: z from the lungs' lowest point, x to the left, y to the
back.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from inference.arrays import Mask
from inference.phantom.anatomy import AIR_HU, CORTEX_HU, FAT_HU, MUSCLE_HU, Anatomy, cage_axes, pleural_depth
from inference.phantom.grid import Floats

EXTRAS = (
    "neck",
    "arms",
    "bowel",
    "stomach",
    "tracheostomy",
    "hiatal-hernia",
    "azygos-lobe",
    "pneumonectomy",
    "collapsed-lobe",
    "bulla",
    "pneumothorax",
)
GAS_HU, FLUID_HU, WALL_HU, COLLAPSED_HU = -990, 15, 40, 35
ARM_RADIUS_MM = 40.0
_DIAPHRAGM_MM = 3.0
_NECK_ABOVE_MM, _SHOULDER_MM, _STOMA_ABOVE_MM = 4.0, 40.0, 40.0


@dataclass(frozen=True)
class Extras:
    """The extras of one phantom. side: the altered lung, -1 right or 1 left."""

    anatomy: Anatomy
    names: frozenset[str]
    side: int = -1

    def around(self, hu: Floats, z: float, x: Floats, y: Floats) -> None:
        """Neck and arms: `hu` (Y, X) is changed in place."""
        if "neck" in self.names and z > self.anatomy.lung_height + _NECK_ABOVE_MM:
            slope = float(np.clip((z - self.anatomy.lung_height - _NECK_ABOVE_MM) / _SHOULDER_MM, 0, 1))
            width, depth = (
                slope * neck + (1 - slope) * body
                for neck, body in zip((65, 62), (self.anatomy.body_width, self.anatomy.body_depth), strict=True)
            )
            outside = (x / width) ** 2 + ((y - 10 * slope) / depth) ** 2 > 1
            hu[outside] = AIR_HU
            hu[((x / 14) ** 2 + ((y - 35) / 13) ** 2) < 1] = CORTEX_HU * 0.6
        if "arms" in self.names and z < self.anatomy.lung_height:
            # The arms leave the trunk at the armpit: above it, the gap between arm and chest is closed.
            gap = 4.0 if z < 0.6 * self.anatomy.lung_height else -6.0
            centre = self.anatomy.body_width + gap + ARM_RADIUS_MM
            distance = np.hypot(np.abs(x) - centre, y - 10)
            for within, value in (
                (ARM_RADIUS_MM, FAT_HU),
                (ARM_RADIUS_MM - 8, MUSCLE_HU),
                (12.0, CORTEX_HU),
                (7.0, 80),
            ):
                hu[distance < within] = value
            if gap < 0:
                hu[(np.abs(y - 10) > 30) & (np.abs(y - 10) < 42) & (np.abs(np.abs(x) - centre + 40) < 14)] = FAT_HU

    def change_lungs(self, hu: Floats, lung: Mask, z: float, x: Floats, y: Floats) -> None:
        """Draw what takes space from the lungs: `hu` and `lung` (Y, X) are changed in place."""
        anatomy = self.anatomy
        if "pneumonectomy" in self.names:
            lost = lung & (np.sign(x) == self.side)
            hu[lost] = FLUID_HU
            lung[lost] = False
        if "hiatal-hernia" in self.names:
            centre = 0.34 * anatomy.lung_height, anatomy.spine_y - 34, 6.0
            radius2 = 30.0**2 - (z - centre[0]) ** 2
            if radius2 > 0:
                distance2 = (x - centre[2]) ** 2 + (y - centre[1]) ** 2
                whole = distance2 < radius2
                hu[whole] = WALL_HU
                lung[whole] = False
                inside = distance2 < max(0.0, np.sqrt(radius2) - 4) ** 2
                hu[inside & (y < centre[1] + 5)] = GAS_HU
                hu[inside & (y >= centre[1] + 5)] = FLUID_HU

    def fill(self, hu: Floats, lung: Mask, z: float, x: Floats, y: Floats) -> None:
        """Draw what lies in and below the lungs, after they are filled with air: `hu` (Y, X) is changed in place."""
        anatomy, height = self.anatomy, self.anatomy.lung_height
        mine = lung & (np.sign(x) == self.side)
        if "azygos-lobe" in self.names and z > 0.72 * height:
            # A double fold of pleura, with the azygos vein in its lower edge, separates the apex of the right lung.
            sheet = lung & (np.abs(x + 42 - 10 * np.cos(y / 30)) < 1.2)
            hu[sheet] = 0
        if "collapsed-lobe" in self.names and z < 0.45 * height:
            lobe = mine & (y > anatomy.cage_depth * (0.05 + 0.3 * z / height))
            hu[lobe] = COLLAPSED_HU
        if "bulla" in self.names:
            distance2 = ((z - 0.75 * height) / 45) ** 2 + ((y + 25) / 50) ** 2 + ((x - self.side * 62) / 38) ** 2
            hu[mine & (distance2 < 1)] = GAS_HU
        if "pneumothorax" in self.names:
            depth = pleural_depth(anatomy, z, x, y)
            outer = 1 - np.clip(np.abs(x) / max(cage_axes(anatomy, z)[0], 1.0), 0, 1)
            free = mine & (depth < 18) & ((y < 0) | (outer < 0.25))
            hu[free] = GAS_HU
            hu[mine & (depth >= 18) & (depth < 20) & ((y < 0) | (outer < 0.25))] = 0
        self._fill_abdomen(hu, lung, z, x, y)

    def _fill_abdomen(self, hu: Floats, lung: Mask, z: float, x: Floats, y: Floats) -> None:
        below = ~lung & (pleural_depth(self.anatomy, z + _DIAPHRAGM_MM, x, y) <= 0)
        width, depth = cage_axes(self.anatomy, max(z, 0.0))
        cavity = below & ((x / (width - 8)) ** 2 + (y / (depth - 8)) ** 2 < 1)
        if "stomach" in self.names:
            top = self.anatomy.dome_left - 6
            room = ((x - 58) / 42) ** 2 + ((y + 30) / 40) ** 2 + ((z - top + 45) / 45) ** 2
            hu[cavity & (room < 1) & (y < -22)] = GAS_HU
            hu[cavity & (room < 1) & (y >= -22)] = FLUID_HU
        if "bowel" in self.names:
            for number, (bx, by, radius) in enumerate(_LOOPS):
                dome = self.anatomy.dome_right if bx < 0 else self.anatomy.dome_left
                for step in range(4):
                    bz = dome - 12 - radius - step * 1.7 * radius
                    room = (x - bx) ** 2 + (y - by) ** 2 + (z - bz) ** 2
                    hu[cavity & (room < radius**2)] = GAS_HU if (number + step) % 3 else -550

    def airway(self, hu: Floats, z: float, x: Floats, y: Floats) -> None:
        """Draw a cannula through the front of the neck into the trachea: `hu` (Y, X) is changed in place."""
        if "tracheostomy" in self.names and abs(z - self.anatomy.lung_height - _STOMA_ABOVE_MM) < 5:
            hu[(np.abs(x) < 5) & (y < 0)] = GAS_HU


# Loops of bowel: (x, y) and radius; the uppermost lies under the diaphragm.
_LOOPS = ((-72.0, -45.0, 20.0), (-95.0, 0.0, 16.0), (88.0, -30.0, 22.0), (60.0, 45.0, 15.0))


def check_names(names: Collection[str]) -> frozenset[str]:
    """The names of extras as a set. Raises ValueError for one that is not in EXTRAS."""
    if not set(names) <= set(EXTRAS):
        raise ValueError(f"extras are any of {EXTRAS}")
    return frozenset(names)
