"""The suitability policy of a model card: the ranges that a series must lie in, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass

from config.reasons import ReasonCode
from inference.errors import UnsuitableSeries
from inference.models.toml_fields import build

Range = tuple[float, float]


@dataclass(frozen=True)
class Policy:
    """What a series must be like, from the [suitability] table of a model card; ranges are inclusive.

    slices: number of slices. At least 20, which is 160 mm of the thickest slices allowed.
    extent_mm: slices times spacing. The paper's volumes have 73 to 250 slices, 141 on average with a deviation of 16.
        They are the 42.5% of 1 mm slices that its authors' code keeps: 172 to 588 mm, 332 on average with a
        deviation of 38. 450 is three deviations above: a chest with upper abdomen, not a trunk. 160 leaves room
        below 172 for small adults with whole lungs, which another rule checks.
    spacing_mm: slice to slice. Diagnostic chest CT is made at 0.5 to 8 mm; wider spacings lose structures.
    thickness_mm: nominal slice thickness, if the header has one.
    gap_ratio: largest spacing over thickness. Above 1 there is tissue that no slice shows; at 2, half of it is
        unseen. That is the most accepted: lesions of COVID-19 span several slices even then. A series of
        touching slices with every second one lost has a ratio of 2, and cannot be told from one that was made
        that way. A series already at 2 that loses half of its slices is refused.
    thinned_mm: if all instance numbers skip by the same step, images are missing. From this spacing on that is
        accepted: public archives thin 2 mm series out to 4 mm on purpose. At a finer spacing they are lost.
    matrix: rows and columns. Scanners reconstruct chests at 512 and more, some at 256; a smaller matrix was
        resampled after the scan.
    pixel_mm: pixel spacing; 500 mm at 256 pixels is 1.95.
    field_mm: smaller side of the image. Below 240 mm adult lungs do not fit.
    aerated_ml: air-filled lung found in the pixels alone. 600 mL is below a severely affected adult's.
    lung_height_mm: its height; an adult's lungs measure 150 to 300 mm.
    cut_cm2: largest area of lung in the first or last slice, from pixels and from the mask. The trachea has 2 to
        4, a tip just reached 10 to 30. In four whole scans, the area reaches 40 when 12 to 24 mm and at most 1.5% of
        the lungs are cut away: no more than the tips of the recesses, which everyday scans miss.
    mask_ml: lung volume of the network's mask: 1.5 to 8 L in adults, less in severe disease.
    smaller_side_share: share of the smaller lung in both; 0.45 is normal, 0 means one lung lost.
    fragments_share: share of the mask outside its two largest parts.
    mask_covers: share of the air-filled lung that the mask must hold.
    outside_lungs_share: share of the network's raw mask that is not lung by the pixels, in the slices that the
        verdict is made from. 0.003 to 0.007 in the scans at hand, from the airways.
    crop_excess: area of the image part that the verdict is made from, over that of the box around the lungs in it;
        1 in the scans at hand.
    age_years: of the patient, if the header states it.
    lungs_box_cm2: width times depth of the air-filled lungs. Adults' are 150 to 350 mm wide and 120 to 250 deep; 410 to
        460 in the scans at hand, and above 1000 in each of them if the pixel spacing is replaced by 1 mm.
    hazy_share: share of the lungs' space that is between air and tissue (-600 to -250 HU).
    fluid_share: share of the lungs' space that is fluid beside them.
    derived_primary: accept DERIVED\\PRIMARY axial images: some vendors label ordinary reconstructions this way.
    """

    slices: Range = (20, 2000)
    extent_mm: Range = (160, 450)
    spacing_mm: Range = (0.25, 8.5)
    thickness_mm: Range = (0.25, 10.0)
    gap_ratio: float = 2.1
    thinned_mm: float = 3.5
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
    outside_lungs_share: float = 0.25
    crop_excess: float = 1.5
    age_years: Range = (18, 120)
    lungs_box_cm2: Range = (150, 900)
    hazy_share: float = 0.6
    fluid_share: float = 0.4
    derived_primary: bool = True

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str = "[suitability]") -> "Policy":
        """The policy of a card's [suitability] table. Raises ModelError for an unknown key or a wrong type."""
        return build(cls, table, where)


def require(value: float, allowed: Range, code: ReasonCode, what: str, unit: str = "") -> None:
    """Raises UnsuitableSeries if a value lies outside the allowed range, naming both."""
    low, high = allowed
    if not low <= value <= high:
        raise UnsuitableSeries(code, f"{what} {value:.4g}{unit}; {low:g} to {high:g}{unit} are accepted.")
