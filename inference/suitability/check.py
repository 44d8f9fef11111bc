"""Whether the model was made for a volume; every rule has its own stable code.

`check` looks at headers, sampling and pixels before a network runs, `check_mask` at the lung mask afterwards.
Both raise UnsuitableSeries at the first rule that does not hold, and otherwise return what was found.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from config.reasons import ReasonCode
from inference.anatomy.parts import bounding_box
from inference.anatomy.regions import Air, air_in
from inference.anatomy.unsupervised import label_volume
from inference.errors import Evidence, UnsuitableSeries
from inference.finding import QualityCheck
from inference.interrupt import checkpoint
from inference.suitability.body import Coarse, measure_chest, shrink
from inference.suitability.chest_rules import check_chest
from inference.suitability.contents_rules import check_field, check_filling, check_patient, check_size
from inference.suitability.header_rules import check_header
from inference.suitability.landmarks import body_middle, smaller_side
from inference.suitability.policy import Policy, require
from inference.suitability.stack_rules import check_far_off, check_scale, check_stack
from inference.volume.ct_volume import CTVolume, upright

__all__ = ["Accepted", "Policy", "accept", "check", "check_mask", "check_outline"]

# Air around the patient. In the windpipe, scatter and partial-volume walls raise it to between -1000 and -940.
_AIR_HU, _AIRWAY_HU = (-1050.0, -940.0), (-1050.0, -900.0)
_LUNG_OVER_AIR_HU = 30.0
_TISSUE_HU = (-140.0, 100.0)
_TISSUE_SHARE = 0.05
_FEWEST_VALUES = 300
_PART_SHARE = 0.02


@dataclass(frozen=True)
class Accepted:
    """A volume that a model may see. checks: what was checked and found, in order.  air: on its upright copy."""

    checks: tuple[QualityCheck, ...]
    air: Air


def check(volume: CTVolume, policy: Policy) -> tuple[QualityCheck, ...]:
    """Check a volume before any model runs.

    Returns what was checked and found, in order.
    Raises UnsuitableSeries at the first rule that does not hold.
    """
    return accept(volume, policy).checks


def accept(volume: CTVolume, policy: Policy) -> Accepted:
    """Like `check`, but also returns the air that it found in the volume."""
    volume = upright(volume)
    outline = _checked_outline(volume, policy)
    with _in_picture():
        _check_slices_differ(volume)
    air = air_in(volume)
    checkpoint()
    with _in_picture(air):
        check_patient(air)
        check_far_off(air)
        hu = _check_hu(volume, air)
        coarse = shrink(volume)
        checkpoint()
        with _first_of_one_body(coarse):
            check_field(air, policy)
            filling = check_filling(air, policy)
        chest = check_chest(coarse, measure_chest(coarse, air), volume.flipped, policy)
        check_scale(air)
        check_stack(coarse)
        check_size(air, policy)
    return Accepted((*outline, hu, chest, *filling), air)


@contextmanager
def _in_picture(air: Air | None = None) -> Iterator[None]:
    """Let a picture show the refusals from inside the block.  air: whose lungs it shows, unless the rule has others."""
    try:
        yield
    except UnsuitableSeries as refusal:
        refusal.evidence = refusal.evidence or Evidence()
        if air is not None and refusal.evidence.lungs is None:
            refusal.evidence = replace(refusal.evidence, lungs=air.cells.to_voxels(air.lungs))
        raise


@contextmanager
def _first_of_one_body(coarse: Coarse) -> Iterator[None]:
    """Before a refusal from inside the block stands: are all slices of one body? Others look like any disease."""
    try:
        yield
    except UnsuitableSeries:
        check_stack(coarse)
        raise


def check_outline(volume: CTVolume, policy: Policy) -> tuple[QualityCheck, ...]:
    """The rules of `check` that need no pixels: headers, sampling and orientation. Raises UnsuitableSeries."""
    return tuple(_outline_checks(upright(volume), policy))


def _outline_checks(volume: CTVolume, policy: Policy) -> Iterator[QualityCheck]:
    yield from check_header(volume.header, policy.derived_primary)
    yield from _check_age(volume, policy)
    if volume.part:
        yield QualityCheck("SERIES_SPLIT", f"The series holds several volumes; this is {volume.part}.")
    if volume.dropped:
        yield QualityCheck("DUPLICATES_DROPPED", f"{len(volume.dropped)} exact duplicates were left out.")
    yield from _check_sampling(volume, policy)
    yield _check_orientation(volume)


def _checked_outline(volume: CTVolume, policy: Policy) -> tuple[QualityCheck, ...]:
    try:
        return tuple(_outline_checks(volume, policy))
    except UnsuitableSeries as refusal:
        if refusal.code == ReasonCode.EXTENT:
            # A head or an abdomen is shorter or longer than a chest, but its length is not what is wrong with it.
            _check_is_chest(volume, policy)
        raise


def _check_is_chest(volume: CTVolume, policy: Policy) -> None:
    """Raises UnsuitableSeries (NOT_CHEST) for another part of the body."""
    coarse, air = shrink(volume), air_in(volume)
    try:
        with _in_picture(air):
            check_chest(coarse, measure_chest(coarse, air), volume.flipped, policy)
    except UnsuitableSeries as refusal:
        if refusal.code == ReasonCode.NOT_CHEST:
            raise


def _check_age(volume: CTVolume, policy: Policy) -> Iterator[QualityCheck]:
    age = volume.header.age_years
    if age is None:
        yield QualityCheck("AGE_UNKNOWN", "The header does not tell the patient's age; the model was made for adults.")
    elif not policy.age_years[0] <= age <= policy.age_years[1]:
        low, high = policy.age_years
        raise UnsuitableSeries(
            ReasonCode.PATIENT_AGE, f"The patient's age is not within the {low:g} to {high:g} years of the model card."
        )


def _check_sampling(volume: CTVolume, policy: Policy) -> Iterator[QualityCheck]:
    depth, rows, columns = volume.hu.shape
    spacing, *pixel = volume.spacing_mm
    extent = depth * spacing
    require(
        depth,
        policy.slices,
        ReasonCode.TOO_FEW_SLICES if depth < policy.slices[0] else ReasonCode.TOO_MANY_SLICES,
        "Slices:",
    )
    require(spacing, policy.spacing_mm, ReasonCode.SLICE_SPACING, "The distance from slice to slice is", " mm")
    _check_gaps(volume, policy)
    require(extent, policy.extent_mm, ReasonCode.EXTENT, "Along the patient the series covers", " mm")
    require(min(rows, columns), policy.matrix, ReasonCode.MATRIX, "The image matrix has a side of")
    require(max(pixel), policy.pixel_mm, ReasonCode.PIXEL_SPACING, "The pixel spacing is", " mm")
    require(min(pixel), policy.pixel_mm, ReasonCode.PIXEL_SPACING, "The pixel spacing is", " mm")
    _check_diameter(volume)
    require(
        min(rows * pixel[0], columns * pixel[1]), policy.field_mm, ReasonCode.FIELD_OF_VIEW, "The image measures", " mm"
    )
    yield QualityCheck("SAMPLING", f"{depth} slices, {spacing:g} mm apart without a gap, cover {extent:.0f} mm.")


def _check_diameter(volume: CTVolume) -> None:
    """Refuse a pixel spacing of exactly 1 mm, which converters write, if it contradicts the field of view."""
    diameter, (_, y_mm, x_mm) = volume.header.reconstruction_diameter_mm, volume.spacing_mm
    measured = max(volume.hu.shape[1] * y_mm, volume.hu.shape[2] * x_mm)
    if diameter and diameter > 0 and y_mm == x_mm == 1.0 and not 0.9 <= measured / diameter <= 1.1:
        raise UnsuitableSeries(
            ReasonCode.PIXEL_SPACING,
            f"The pixel spacing of 1 mm contradicts the field of view of {diameter:.0f} mm that the scanner states.",
        )


def _check_gaps(volume: CTVolume, policy: Policy) -> None:
    """Slices lost at regular steps leave no hole, so the spacing is compared with the rest of the header."""
    spacing, header = volume.spacing_mm[0], volume.header
    # Vendors interpret Spacing Between Slices in several ways; instance numbers without a hole outweigh it.
    if _made_closer(spacing, header.spacing_between_slices_mm) and header.number_step != 1:
        raise UnsuitableSeries(
            ReasonCode.MISSING_SLICES,
            f"The slices lie {spacing:g} mm apart, and were made {header.spacing_between_slices_mm:g} mm apart: some "
            "are missing.",
        )
    counted = header.images_in_acquisition > 1.5 * len(volume.slices)
    if header.number_step > 1 and (counted or spacing < policy.thinned_mm):
        raise UnsuitableSeries(
            ReasonCode.MISSING_SLICES,
            f"Only one of every {header.number_step} images is here, by their instance numbers.",
        )
    thickness = header.slice_thickness_mm
    if thickness:
        require(thickness, policy.thickness_mm, ReasonCode.SLICE_THICKNESS, "The slice thickness is", " mm")
        if spacing / thickness > policy.gap_ratio:
            raise UnsuitableSeries(
                ReasonCode.GAPS_BETWEEN_SLICES,
                f"Slices of {thickness:g} mm lie {spacing:g} mm apart: most of the lung between them is unseen.",
            )


def _made_closer(spacing: float, stated: float | None) -> bool:
    """True when the spacing is 2, 3, ... times the scanner's own; other ratios come from vendors' interpretations."""
    if not stated or stated <= 0:
        return False
    ratio = spacing / stated
    return ratio > 1.5 and abs(ratio - round(ratio)) < 0.05 * ratio


def _check_orientation(volume: CTVolume) -> QualityCheck:
    """Rows must run from the patient's right to left and columns from front to back, as in the model's own images.

    `upright` has turned images of prone or feet-first patients that are stored otherwise; the pixels must agree.
    """
    row, column = volume.affine[:3, 0] / volume.spacing_mm[2], volume.affine[:3, 1] / volume.spacing_mm[1]
    if row[0] < 0.99 or column[1] < 0.99:
        raise UnsuitableSeries(
            ReasonCode.ORIENTATION,
            "The images are turned in their plane: rows must run from side to side of the patient.",
            Evidence(),
        )
    turned = " after turning the stored images" if any(volume.flipped) else ""
    return QualityCheck("ORIENTATION", f"Axial, rows to the patient's left, columns to the back{turned}.")


def _check_slices_differ(volume: CTVolume) -> None:
    """Refuse a constant volume, an empty slice and a repeated slice: noise makes every real slice unique."""
    sample = np.ascontiguousarray(volume.hu[:, ::4, ::4])
    low, high = sample.min(axis=(1, 2)), sample.max(axis=(1, 2))
    if low.min() == high.max():
        raise UnsuitableSeries(ReasonCode.CONSTANT, "All pixels have the same value.")
    blank = np.flatnonzero(low == high)
    if len(blank):
        raise UnsuitableSeries(ReasonCode.BLANK_SLICES, f"{len(blank)} slices are empty.", Evidence(int(blank[0])))
    first: dict[bytes, int] = {}
    repeated = [z for z, plane in enumerate(sample) if first.setdefault(plane.tobytes(), z) != z]
    if repeated:
        raise UnsuitableSeries(
            ReasonCode.REPEATED_SLICES,
            f"{len(repeated)} slices repeat the pixels of another at another place.",
            Evidence(repeated[0]),
        )


def _check_hu(volume: CTVolume, air_found: Air) -> QualityCheck:
    """Air must be near -1000 HU and soft tissue near 0, with as many grey levels as a scanner gives.

    Air is the background's most common value or, in an image without background, the purest air in the airways.
    Scanners are kept within 4 HU of water and about 10 of air. The rule detects a slope that is wrong by a seventh or
    an intercept that is wrong by 60. Values at or below -1150 are padding.
    """
    counts = np.zeros(4151, np.intp)
    for plane in volume.hu[:, ::4, ::4]:
        counts += np.bincount((np.clip(plane, -1150, 3000) + 1150).ravel(), minlength=4151)
    if int((counts[1:] > 0).sum()) < _FEWEST_VALUES:
        raise UnsuitableSeries(ReasonCode.QUANTISED, "The images have too few grey levels for CT, as screenshots do.")
    air, allowed = _mode(counts, -1149, -700), _AIR_HU
    inside = air_found.lungs | air_found.airways
    if air > _AIR_HU[1] and inside.any():
        purest = float(np.percentile(air_found.cells.hu[inside], 0.1))
        if purest < air - _LUNG_OVER_AIR_HU:  # the most common value is lung: the image shows no background
            air, allowed = purest, _AIRWAY_HU
    tissue = _mode(counts, -300, 300)
    share = float(counts[1150 - 200 : 1150 + 200].sum()) / max(1.0, float(counts[1:].sum()))
    if not (allowed[0] <= air <= allowed[1] and _TISSUE_HU[0] <= tissue <= _TISSUE_HU[1] and share >= _TISSUE_SHARE):
        raise UnsuitableSeries(
            ReasonCode.HU_IMPLAUSIBLE,
            f"The values are not Hounsfield units: air is at {air:.0f} (must be near -1000), tissue at {tissue:.0f} "
            f"(must be near 0), {share:.0%} of the image.",
        )
    return QualityCheck("HU", f"Air at {air:.0f} HU, tissue at {tissue:.0f} HU.")


def _mode(counts: npt.NDArray[np.intp], low: int, high: int) -> float:
    """The most common value from low to high, over 10 HU."""
    smooth = ndimage.uniform_filter1d(counts[low + 1150 : high + 1150].astype(np.float64), 10, mode="nearest")
    return float(low + int(smooth.argmax()))


def check_mask(
    volume: CTVolume, lung_mask: npt.NDArray[np.bool_], policy: Policy, air: Air
) -> tuple[QualityCheck, ...]:
    """Check the lung mask of a volume that passed `accept`.

    lung_mask: bool (Z, Y, X), confined to the lungs and cleaned.  air: as `accept` found it.
    Raises UnsuitableSeries: NO_LUNG_MASK, LUNG_VOLUME, LUNG_CUT_OFF, LUNG_OUTSIDE_FIELD, LUNG_BALANCE,
    MASK_FRAGMENTED or MASK_MISSES_LUNG.
    """
    try:
        return _checked_mask(volume, lung_mask, policy, air)
    except UnsuitableSeries as refusal:
        refusal.evidence = replace(refusal.evidence or Evidence(), lungs=lung_mask)
        raise


def _checked_mask(
    volume: CTVolume, lung_mask: npt.NDArray[np.bool_], policy: Policy, air: Air
) -> tuple[QualityCheck, ...]:
    z_mm, y_mm, x_mm = volume.spacing_mm
    areas = np.array([np.count_nonzero(plane) for plane in lung_mask]) * (y_mm * x_mm / 100.0)
    volume_ml = float(areas.sum()) * z_mm / 10.0
    if not volume_ml:
        raise UnsuitableSeries(ReasonCode.NO_LUNG_MASK, "The network found no lung.")
    require(volume_ml, policy.mask_ml, ReasonCode.LUNG_VOLUME, "The lung mask measures", " mL")
    for end, z in (("lowest", 0), ("highest", len(areas) - 1)):
        if areas[z] > policy.cut_cm2:
            raise UnsuitableSeries(
                ReasonCode.LUNG_CUT_OFF,
                f"The lung mask still has {areas[z]:.0f} cm2 in the {end} slice: the lung is cut off.",
                Evidence(z),
            )
    sides = sum(int(np.count_nonzero(side)) * mm for side, mm in _sides(lung_mask, y_mm, x_mm)) * z_mm / 100.0
    if sides > policy.cut_cm2:
        raise UnsuitableSeries(ReasonCode.LUNG_OUTSIDE_FIELD, "The lung mask reaches over the side of the image.")
    coarse = shrink(volume)
    small = coarse.shrink_mask(lung_mask)
    share = smaller_side(small, body_middle(coarse, small))
    if share < policy.smaller_side_share:
        raise UnsuitableSeries(ReasonCode.LUNG_BALANCE, f"One side holds only {share:.0%} of the lung mask.")
    scattered = _in_fragments(small, coarse.shrink_cells(air.lungs, air.cells))
    if scattered > policy.fragments_share:
        raise UnsuitableSeries(ReasonCode.MASK_FRAGMENTED, f"{scattered:.0%} of the lung mask lies in small pieces.")
    covered = _covered(air, lung_mask)
    if covered < policy.mask_covers:
        raise UnsuitableSeries(
            ReasonCode.MASK_MISSES_LUNG, f"The lung mask holds only {covered:.0%} of the air-filled lung."
        )
    sentence = f"{volume_ml:.0f} mL, smaller side {share:.0%}, {covered:.0%} of the air-filled lung."
    return (QualityCheck("LUNG_MASK", sentence),)


def _sides(mask: npt.NDArray[np.bool_], y_mm: float, x_mm: float) -> list[tuple[npt.NDArray[np.bool_], float]]:
    """The four sides of the images, each with the length of one of its pixels."""
    return [(mask[:, 0], x_mm), (mask[:, -1], x_mm), (mask[:, :, 0], y_mm), (mask[:, :, -1], y_mm)]


def _in_fragments(mask: npt.NDArray[np.bool_], lungs: npt.NDArray[np.bool_]) -> float:
    """Share of a mask outside its largest parts: two, or as many as the air-filled lungs have (a pneumothorax)."""
    whole = int((_part_sizes(lungs) >= _PART_SHARE * lungs.sum()).sum())
    sizes = _part_sizes(mask)
    return float(sizes[: -max(2, whole)].sum()) / float(mask.sum())


def _part_sizes(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Cells of each part, the largest last; parts touch by corners."""
    _, sizes = label_volume(mask)
    return np.sort(sizes[1:])


def _covered(air: Air, mask: npt.NDArray[np.bool_]) -> float:
    box = bounding_box(air.lungs)
    if box is None:
        return 1.0
    lungs = float(np.count_nonzero(air.lungs))
    return float(air.cells.share_of(mask, box)[air.lungs[box]].sum()) / lungs
