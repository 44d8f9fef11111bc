"""Whether a volume is one that the model was made for; every rule has its own stable code.

`check` looks at headers, sampling and pixels before a network runs, `check_mask` at the lung mask afterwards.
Either raises UnsuitableSeries at the first rule that does not hold, and otherwise says what was found.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from inference.body import Chest, Coarse, measure_chest, shrink, weakest_match
from inference.ct import CTVolume
from inference.errors import UnsuitableSeries
from inference.finding import QualityCheck
from inference.header_rules import check_header
from inference.toml_fields import build

Range = tuple[float, float]

_AIR_HU = (-1050.0, -940.0)
_TISSUE_HU = (-140.0, 100.0)
_TISSUE_SHARE = 0.05
_FEWEST_VALUES = 300
_SLICES_MATCH = 0.75
_WIDTH_UPSIDE_DOWN = 0.9
_BACK_OFFSET_MM = -5.0
_WIDTH_TO_DEPTH = 0.85


@dataclass(frozen=True)
class Policy:
    """What a series must be like, from the [suitability] table of a model card; ranges are inclusive.

    slices: number of slices. At least 20, which is 160 mm of the thickest slices allowed.
    extent_mm: slices times spacing. The paper's volumes have 73 to 250 slices, 141 on average and 16 either way,
        of the 42.5% of 1 mm slices that its authors' code keeps: 172 to 588 mm, on average 332 and 38 either
        way. 450 is three deviations above: a chest with upper abdomen, not a trunk. 160 leaves room below 172
        for small adults whose lungs are whole, which is checked by itself.
    spacing_mm: slice to slice. Diagnostic chest CT is made at 0.5 to 8 mm; structures vanish between wider ones.
    thickness_mm: nominal slice thickness, where the header has one.
    gap_ratio: largest spacing over thickness. Above 1 there is tissue that no slice shows; at 2, half of it is
        unseen. That is the most accepted: lesions of COVID-19 span several slices even then. A series of
        touching slices with every second one lost sits at 2 and cannot be told from one that was made so; one
        already at 2 that loses half of its slices is refused.
    matrix: rows and columns. Scanners reconstruct chests at 512 and more, some at 256; a smaller matrix was
        resampled after the scan.
    pixel_mm: pixel spacing; 500 mm at 256 pixels is 1.95.
    field_mm: smaller side of the image. Below 240 mm adult lungs do not fit.
    aerated_ml: air-filled lung found in the pixels alone. 600 mL is below a severely affected adult's.
    lung_height_mm: its height; an adult's lungs measure 150 to 300 mm.
    cut_cm2: largest area of lung in the first or last slice, from pixels and from the mask. The trachea has 2 to
        4, a tip just reached 10 to 30. In four whole scans, 40 is reached where 12 to 24 mm and at most 1.5% of the
        lungs are cut away: the tips of the recesses that everyday scans miss, and no more.
    mask_ml: lung volume of the network's mask: 1.5 to 8 L in adults, less in severe disease.
    smaller_side_share: of the smaller lung in both; normal is 0.45, one lung lost 0.
    fragments_share: share of the mask outside of its two largest parts.
    mask_covers: share of the air-filled lung that the mask must hold.
    derived_primary: accept DERIVED\\PRIMARY axial images, as some vendors label ordinary reconstructions.
    """

    slices: Range = (20, 2000)
    extent_mm: Range = (160, 450)
    spacing_mm: Range = (0.25, 8.5)
    thickness_mm: Range = (0.25, 10.0)
    gap_ratio: float = 2.1
    matrix: Range = (256, 2048)
    pixel_mm: Range = (0.2, 2.0)
    field_mm: Range = (240, 800)
    aerated_ml: Range = (600, 12000)
    lung_height_mm: Range = (120, 420)
    cut_cm2: float = 40.0
    mask_ml: Range = (800, 12000)
    smaller_side_share: float = 0.15
    fragments_share: float = 0.1
    mask_covers: float = 0.6
    derived_primary: bool = True

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str = "[suitability]") -> "Policy":
        """The policy of a card's [suitability] table. Raises ModelError for an unknown key or a wrong type."""
        return build(cls, table, where)


def check(volume: CTVolume, policy: Policy) -> tuple[QualityCheck, ...]:
    """Check a volume before any model runs.

    Returns what was checked and found, in order.
    Raises UnsuitableSeries at the first rule that does not hold.
    """
    return tuple(_checks(volume, policy))


def _checks(volume: CTVolume, policy: Policy) -> Iterator[QualityCheck]:
    yield from check_header(volume.header, policy.derived_primary)
    if volume.part:
        yield QualityCheck("SERIES_SPLIT", f"The series holds several volumes; this is {volume.part}.")
    if volume.dropped:
        yield QualityCheck("DUPLICATES_DROPPED", f"{len(volume.dropped)} exact duplicates were left out.")
    yield from _check_sampling(volume, policy)
    yield from _check_orientation(volume)
    _check_slices_differ(volume)
    coarse = shrink(volume)
    chest = measure_chest(coarse)
    yield _check_hu(volume, coarse, chest)
    yield from _check_chest(coarse, chest, policy)


def _require(value: float, allowed: Range, code: str, what: str, unit: str = "") -> None:
    low, high = allowed
    if not low <= value <= high:
        raise UnsuitableSeries(code, f"{what} {value:.4g}{unit}; {low:g} to {high:g}{unit} are accepted.")


def _check_sampling(volume: CTVolume, policy: Policy) -> Iterator[QualityCheck]:
    depth, rows, columns = volume.hu.shape
    spacing, *pixel = volume.spacing_mm
    extent = depth * spacing
    _require(depth, policy.slices, "TOO_FEW_SLICES" if depth < policy.slices[0] else "TOO_MANY_SLICES", "Slices:")
    _require(spacing, policy.spacing_mm, "SLICE_SPACING", "The distance from slice to slice is", " mm")
    _check_gaps(volume, policy)
    _require(extent, policy.extent_mm, "EXTENT", "Along the patient the series covers", " mm")
    _require(min(rows, columns), policy.matrix, "MATRIX", "The image matrix has a side of")
    _require(max(pixel), policy.pixel_mm, "PIXEL_SPACING", "The pixel spacing is", " mm")
    _require(min(pixel), policy.pixel_mm, "PIXEL_SPACING", "The pixel spacing is", " mm")
    _require(min(rows * pixel[0], columns * pixel[1]), policy.field_mm, "FIELD_OF_VIEW", "The image measures", " mm")
    yield QualityCheck("SAMPLING", f"{depth} slices, {spacing:g} mm apart without a gap, cover {extent:.0f} mm.")


def _check_gaps(volume: CTVolume, policy: Policy) -> None:
    """Slices lost at regular steps leave no hole, so the spacing is held against what else the header says."""
    spacing, header = volume.spacing_mm[0], volume.header
    if _made_closer(spacing, header.spacing_between_slices_mm):
        raise UnsuitableSeries(
            "MISSING_SLICES",
            f"The slices lie {spacing:g} mm apart, and were made {header.spacing_between_slices_mm:g} mm apart: some "
            "are missing.",
        )
    if header.number_step > 1 and header.images_in_acquisition > 1.5 * len(volume.slices):
        raise UnsuitableSeries(
            "MISSING_SLICES",
            f"{header.images_in_acquisition} images were made, and only every {header.number_step}th is here.",
        )
    thickness = header.slice_thickness_mm
    if thickness:
        _require(thickness, policy.thickness_mm, "SLICE_THICKNESS", "The slice thickness is", " mm")
        if spacing / thickness > policy.gap_ratio:
            raise UnsuitableSeries(
                "GAPS_BETWEEN_SLICES",
                f"Slices of {thickness:g} mm lie {spacing:g} mm apart: most of the lung between them is unseen.",
            )


def _made_closer(spacing: float, stated: float | None) -> bool:
    """True when the spacing is twice the scanner's own or a higher multiple; other ratios are the vendors' readings."""
    if not stated or stated <= 0:
        return False
    ratio = spacing / stated
    return ratio > 1.5 and abs(ratio - round(ratio)) < 0.05 * ratio


def _check_orientation(volume: CTVolume) -> Iterator[QualityCheck]:
    """Rows from the patient's right to left, columns from front to back, as the model's images had them."""
    row, column = volume.affine[:3, 0] / volume.spacing_mm[2], volume.affine[:3, 1] / volume.spacing_mm[1]
    if row[0] < 0.99 or column[1] < 0.99:
        raise UnsuitableSeries(
            "ORIENTATION",
            "The images are mirrored or turned: rows must run to the patient's left, columns to the back.",
        )
    yield QualityCheck("ORIENTATION", "Axial, rows to the patient's left, columns to the back.")


def _check_slices_differ(volume: CTVolume) -> None:
    """No constant volume, no empty slice, no slice twice: noise makes each real slice its own."""
    sample = volume.hu[:, ::4, ::4]
    low, high = sample.min(axis=(1, 2)), sample.max(axis=(1, 2))
    if low.min() == high.max():
        raise UnsuitableSeries("CONSTANT", "All pixels have the same value.")
    blank = int((low == high).sum())
    if blank:
        raise UnsuitableSeries("BLANK_SLICES", f"{blank} slices are empty.")
    repeated = len(volume.hu) - len({plane.tobytes() for plane in sample})
    if repeated:
        raise UnsuitableSeries("REPEATED_SLICES", f"{repeated} slices repeat the pixels of another at another place.")


def _check_hu(volume: CTVolume, coarse: Coarse, chest: Chest | None) -> QualityCheck:
    """Air near -1000 HU and soft tissue near 0, and as many grey levels as a scanner gives.

    Air is the background's most common value, or, in an image without background, the purest air in the airways.
    Scanners are kept within 4 HU of water and about 10 of air; a slope wrong by a seventh or an intercept wrong
    by 60 is seen. Values at or below -1150 are padding.
    """
    values = volume.hu[:, ::4, ::4].ravel()
    counts = np.bincount(np.clip(values, -1150, 3000).astype(np.int32) + 1150)
    if int((counts[1:] > 0).sum()) < _FEWEST_VALUES:
        raise UnsuitableSeries("QUANTISED", "The images have too few grey levels for CT, as screenshots do.")
    air = _mode(counts, -1149, -700)
    if air > _AIR_HU[1] and chest is not None:
        air = float(np.percentile(coarse.hu[chest.lungs], 0.1))
    tissue = _mode(counts, -300, 300)
    share = float(counts[1150 - 200 : 1150 + 200].sum()) / max(1.0, float(counts[1:].sum()))
    if not (_AIR_HU[0] <= air <= _AIR_HU[1] and _TISSUE_HU[0] <= tissue <= _TISSUE_HU[1] and share >= _TISSUE_SHARE):
        raise UnsuitableSeries(
            "HU_IMPLAUSIBLE",
            f"The values are no Hounsfield units: air is at {air:.0f} (must be near -1000), tissue at {tissue:.0f} "
            f"(must be near 0), {share:.0%} of the image.",
        )
    return QualityCheck("HU", f"Air at {air:.0f} HU, tissue at {tissue:.0f} HU.")


def _mode(counts: npt.NDArray[np.intp], low: int, high: int) -> float:
    """The most common value from low to high, over 10 HU."""
    smooth = ndimage.uniform_filter1d(counts[low + 1150 : high + 1150].astype(np.float64), 10, mode="nearest")
    return float(low + int(smooth.argmax()))


def _check_chest(coarse: Coarse, chest: Chest | None, policy: Policy) -> Iterator[QualityCheck]:
    if chest is None:
        raise UnsuitableSeries("NOT_CHEST", "No air-filled lungs are found in the images.")
    for end, area in (("lowest", chest.first_cm2), ("highest", chest.last_cm2)):
        if area > policy.cut_cm2:
            raise UnsuitableSeries(
                "LUNG_CUT_OFF",
                f"The {end} slice still shows {area:.0f} cm2 of lung; at most {policy.cut_cm2:g} are accepted.",
            )
    _require(chest.volume_ml, policy.aerated_ml, "NOT_CHEST", "The air-filled lung in the images measures", " mL")
    _require(chest.height_mm, policy.lung_height_mm, "NOT_CHEST", "The lungs' height is", " mm")
    _check_way_up(chest)
    match = weakest_match(coarse)
    if match < _SLICES_MATCH:
        raise UnsuitableSeries("SLICES_DO_NOT_MATCH", "Neighbouring slices do not show the same body.")
    yield QualityCheck("CHEST", f"{chest.volume_ml:.0f} mL of air-filled lung over {chest.height_mm:.0f} mm, whole.")


def _check_way_up(chest: Chest) -> None:
    """The lungs' shape against the positions.

    The lungs are wider at the base than at the apex: 1.3 to 1.45 times in the scans at hand, so 0.7 to 0.76 upside
    down. Their lowest part lies towards the back, as does the spine: both must point forward to call an image
    turned over, as effusions move the one and contrast the other. A mirror image cannot be seen in the lungs.
    """
    if chest.base_to_apex_width < _WIDTH_UPSIDE_DOWN:
        raise UnsuitableSeries("UPSIDE_DOWN", "The lungs lie with their apex down: slice positions run the wrong way.")
    if chest.base_offset_mm < _BACK_OFFSET_MM and chest.bone_offset_mm < 0:
        raise UnsuitableSeries("TURNED_OVER", "The spine is where the patient's front must be.")
    if chest.width_to_depth < _WIDTH_TO_DEPTH:
        raise UnsuitableSeries("TURNED_OVER", "The chest is deeper than wide: the images lie on their side.")


def check_mask(volume: CTVolume, lung_mask: npt.NDArray[np.bool_], policy: Policy) -> tuple[QualityCheck, ...]:
    """Check the cleaned lung mask of a volume that passed `check`.

    lung_mask: bool (Z, Y, X).
    Raises UnsuitableSeries: NO_LUNG_MASK, LUNG_VOLUME, LUNG_CUT_OFF, LUNG_OUTSIDE_FIELD, LUNG_BALANCE,
    MASK_FRAGMENTED or MASK_MISSES_LUNG.
    """
    z_mm, y_mm, x_mm = volume.spacing_mm
    areas = np.count_nonzero(lung_mask, axis=(1, 2)) * (y_mm * x_mm / 100.0)
    volume_ml = float(areas.sum()) * z_mm / 10.0
    if not volume_ml:
        raise UnsuitableSeries("NO_LUNG_MASK", "The network found no lung.")
    _require(volume_ml, policy.mask_ml, "LUNG_VOLUME", "The lung mask measures", " mL")
    for end, area in (("lowest", float(areas[0])), ("highest", float(areas[-1]))):
        if area > policy.cut_cm2:
            raise UnsuitableSeries(
                "LUNG_CUT_OFF", f"The lung mask still has {area:.0f} cm2 in the {end} slice: the lung is cut off."
            )
    sides = sum(int(np.count_nonzero(side)) * mm for side, mm in _sides(lung_mask, y_mm, x_mm)) * z_mm / 100.0
    if sides > policy.cut_cm2:
        raise UnsuitableSeries("LUNG_OUTSIDE_FIELD", "The lung mask reaches over the side of the image.")
    coarse = shrink(volume)
    small = coarse.shrink_mask(lung_mask)
    share = _smaller_side(small)
    if share < policy.smaller_side_share:
        raise UnsuitableSeries("LUNG_BALANCE", f"One side holds only {share:.0%} of the lung mask.")
    scattered = _outside_two_largest(small)
    if scattered > policy.fragments_share:
        raise UnsuitableSeries("MASK_FRAGMENTED", f"{scattered:.0%} of the lung mask lies in small pieces.")
    covered = _covered(coarse, small)
    if covered < policy.mask_covers:
        raise UnsuitableSeries("MASK_MISSES_LUNG", f"The lung mask holds only {covered:.0%} of the air-filled lung.")
    sentence = f"{volume_ml:.0f} mL, smaller side {share:.0%}, {covered:.0%} of the air-filled lung."
    return (QualityCheck("LUNG_MASK", sentence),)


def _sides(mask: npt.NDArray[np.bool_], y_mm: float, x_mm: float) -> list[tuple[npt.NDArray[np.bool_], float]]:
    """The four sides of the images, each with the length of one of its pixels."""
    return [(mask[:, 0], x_mm), (mask[:, -1], x_mm), (mask[:, :, 0], y_mm), (mask[:, :, -1], y_mm)]


def _smaller_side(mask: npt.NDArray[np.bool_]) -> float:
    """Share of the smaller side, parted at the middle of the mask's own width."""
    columns = mask.sum(axis=(0, 1)).astype(np.float64)
    total = columns.sum()
    if not total:
        return 0.0
    present = np.flatnonzero(columns)
    middle = (present[0] + present[-1] + 1) / 2
    left = float(columns[: int(middle)].sum() + columns[int(middle)] * (middle - int(middle)))
    return float(min(left, total - left) / total)


def _outside_two_largest(mask: npt.NDArray[np.bool_]) -> float:
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if count <= 2:
        return 0.0
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    return float(sizes[:-2].sum() / sizes.sum())


def _covered(coarse: Coarse, mask: npt.NDArray[np.bool_]) -> float:
    chest = measure_chest(coarse)
    if chest is None:
        return 1.0
    return float((chest.lungs & mask).sum() / chest.lungs.sum())
