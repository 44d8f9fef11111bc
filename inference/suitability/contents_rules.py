"""What the images must hold: a patient of an adult's size, with lungs full of air and wholly in the field."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.reasons import ReasonCode
from inference.anatomy.cells import Floats
from inference.anatomy.parts import bounding_box, label, sizes_of
from inference.anatomy.regions import AIR_BELOW_HU, Air, beyond_field
from inference.anatomy.squares import grown, shrunk
from inference.arrays import Mask
from inference.errors import Evidence, UnsuitableSeries
from inference.finding import QualityCheck
from inference.suitability.policy import Policy

# Tissue is defined by its share of the way from darkest to brightest, so that wrong units are not taken for an empty
# table. There must be this much of it over 300 mm, thicker than a table's shell.
_TISSUE_SHARE, _PATIENT_ML, _PATIENT_OVER_MM = 0.3, 1000.0, 300.0
# Half-aerated lung. Apart from it only stool and the thin rims of air in the body have such values.
_HAZY_HU = (-600.0, -250.0)
# Effusion is uniform and next to lung; liver, spleen and muscle are at 50 to 60, blood at 30 to 45.
_FLUID_HU, _FLUID_SPREAD_HU, _FLUID_LEAST_ML, _BESIDE_LUNG_MM = (-12.0, 25.0), 22.0, 20.0, 8.0
_FLUID_RIM_HU = (-50.0, 60.0)
_SAID_FROM = 0.3
# Both lungs together are wider than the first; a trunk is deeper than the second.
_ONE_LUNG_MM, _TRUNK_MM = 170.0, 80.0


def check_patient(air: Air) -> None:
    """Raises UnsuitableSeries (NO_PATIENT) if there is hardly any tissue, as on an empty table."""
    hu = air.cells.hu
    low, high = np.percentile(hu[:: max(1, len(hu) // 20)], (1, 99.5))
    thick = shrunk(hu > low + _TISSUE_SHARE * (high - low), 2)
    seen_ml = float(thick.sum()) * air.cells.cell_ml
    if seen_ml < _PATIENT_ML * len(hu) * air.cells.spacing_mm[0] / _PATIENT_OVER_MM:
        raise UnsuitableSeries(
            ReasonCode.NO_PATIENT, f"Only {seen_ml:.0f} mL of soft tissue are seen: the images show no patient's trunk."
        )


def check_field(air: Air, policy: Policy) -> None:
    """Raises UnsuitableSeries (LUNG_OUTSIDE_FIELD) if the images' sides, or the round field, cut the lungs."""
    cells, lungs = air.cells, air.lungs
    # The cells that the field's edge half fills do not count as lung: look just inside them.
    rim = ndimage.binary_dilation(beyond_field(lungs.shape[1:], 0.99))
    inside = ndimage.binary_dilation(rim) & ~rim
    cut_cells = np.count_nonzero(lungs[:, inside], axis=1)
    cut_cm2 = float(cut_cells.sum()) * cells.spacing_mm[1] * cells.spacing_mm[0] / 100.0
    if _half_in_field(air, inside):
        raise UnsuitableSeries(
            ReasonCode.LUNG_OUTSIDE_FIELD,
            "The side of the field of view cuts the trunk through, and only one lung is in the images.",
        )
    if cut_cm2 > policy.cut_cm2:
        raise UnsuitableSeries(
            ReasonCode.LUNG_OUTSIDE_FIELD,
            f"The side of the field of view cuts the lungs over {cut_cm2:.0f} cm2: part of them is not in the images.",
            Evidence(cells.slice_of(int(cut_cells.argmax()))),
        )


def _half_in_field(air: Air, along_field: npt.NDArray[np.bool_]) -> bool:
    """True if there is at most one lung, and the trunk's whole depth reaches the field's edge on one side."""
    cells, lungs = air.cells, air.lungs
    levels = lungs.any(axis=(1, 2))
    columns = np.flatnonzero(lungs.any(axis=(0, 1)))
    if not len(columns) or (columns[-1] - columns[0]) * cells.spacing_mm[2] > _ONE_LUNG_MM:
        return False
    edge = cells.hu[levels][:, along_field] > AIR_BELOW_HU
    left = np.nonzero(along_field)[1] < along_field.shape[1] / 2
    cut_mm = [float(edge[:, side].sum(axis=1).mean()) * cells.spacing_mm[1] for side in (left, ~left)]
    return max(cut_mm) > _TRUNK_MM and min(cut_mm) < _TRUNK_MM / 2


def check_size(air: Air, policy: Policy) -> None:
    """Raises UnsuitableSeries (BODY_SIZE) if the lungs are wider and deeper, or smaller, than the card allows."""
    box = bounding_box(air.lungs)
    if box is None:
        return
    _, rows, columns = box
    depth, width = (
        (side.stop - side.start) * mm for side, mm in zip((rows, columns), air.cells.spacing_mm[1:], strict=True)
    )
    low, high = policy.lungs_box_cm2
    if not low <= depth * width / 100.0 <= high:
        raise UnsuitableSeries(
            ReasonCode.BODY_SIZE,
            f"The lungs measure {width:.0f} mm from side to side and {depth:.0f} mm from front to back, {low:g} to "
            f"{high:g} cm2 are accepted: not an adult's chest, or the pixel spacing is wrong.",
        )


def check_filling(air: Air, policy: Policy) -> tuple[QualityCheck, ...]:
    """Are the lungs full of air? Half-aerated lung, and fluid beside it, each as a share of all lung.

    Raises UnsuitableSeries (LUNG_DENSITY or PLEURAL_FLUID) above the share that the card allows. Less than that is
    only remarked on.
    """
    aerated = float(air.lungs.sum()) * air.cells.cell_ml
    found = []
    hazy, fluid = _hazy(air), fluid_ml(air)
    hazy_ml, beyond_ml = (float(part.sum()) * air.cells.cell_ml for part in (hazy, hazy & ~air.lungs))
    for code, amount, whole, most, what in (
        (
            ReasonCode.LUNG_DENSITY,
            hazy_ml,
            aerated + beyond_ml,
            policy.hazy_share,
            "is only half filled with air",
        ),
        (ReasonCode.PLEURAL_FLUID, fluid, aerated + fluid, policy.fluid_share, "is fluid beside it"),
    ):
        share = amount / whole if whole else 0.0
        sentence = f"Of the lungs' space {share:.0%}, {amount:.0f} mL, {what}"
        if share > most:
            raise UnsuitableSeries(code, f"{sentence}; at most {most:.0%} are accepted.")
        if share > _SAID_FROM:
            found.append(QualityCheck(str(code), f"{sentence}: the model saw few such lungs."))
    return tuple(found)


def _hazy(air: Air) -> Mask:
    """Lung between air and tissue: bool (z, y, x)."""
    hu = air.cells.hu
    inside = (hu > _HAZY_HU[0]) & (hu < _HAZY_HU[1]) & ~air.outside & ~beyond_field(hu.shape[1:], 0.99)
    # Only thick hazy parts count, each with its rim.
    return grown(shrunk(inside, 1), 1)


def fluid_ml(air: Air) -> float:
    """Uniform tissue of water's density next to lung, millilitres."""
    cells = air.cells
    fluid = np.stack([_uniform_fluid(hu) for hu in cells.hu])
    labels, count = label(fluid)
    keep = np.zeros(count + 1, bool)
    keep[labels[grown(air.lungs, cells.in_plane(_BESIDE_LUNG_MM)) & fluid]] = True
    keep &= sizes_of(labels, count) * cells.cell_ml >= _FLUID_LEAST_ML
    if not keep.any():
        return 0.0
    # Restores the rim that the window of 5 by 5 took away.
    rim = (cells.hu > _FLUID_RIM_HU[0]) & (cells.hu < _FLUID_RIM_HU[1])
    return float(np.count_nonzero(grown(keep[labels], 2) & rim)) * cells.cell_ml


def _uniform_fluid(hu: Floats) -> Mask:
    """Where the surroundings in a slice are uniform and of water's density: bool (y, x)."""
    mean = ndimage.uniform_filter(hu, 5)
    fluid: Mask = (mean > _FLUID_HU[0]) & (mean < _FLUID_HU[1])
    if fluid.any():
        fluid &= ndimage.uniform_filter(hu * hu, 5) - mean * mean < _FLUID_SPREAD_HU**2
    return fluid
