"""Why a series was not analysed, for a person: the sentence, what can be done, and where the images show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from config.reasons import ReasonCode
from dicom_node.web.pages.charts import holes_of, positions, signed
from dicom_node.web.viewer.opened import OpenedSeries
from dicom_node.web.viewer.planes import Plane
from storage.results import EVIDENCE

R = ReasonCode
# What positions show, and what a slice shows. Other reasons lie in headers, or in what a program did.
OF_POSITIONS = frozenset(
    {
        R.MISSING_SLICES,
        R.IRREGULAR_SPACING,
        R.SINGLE_SLICE,
        R.CONFLICTING_SLICES,
        R.MIXED_ACQUISITIONS,
        R.TOO_FEW_SLICES,
    }
    | {R.GAPS_BETWEEN_SLICES, R.SLICE_SPACING, R.EXTENT, R.SIDEWAYS_SHIFT, R.REFUSED_INSTANCES}
)
OF_PIXELS = frozenset(
    {R.ORIENTATION, R.TURNED_OVER, R.UPSIDE_DOWN, R.MIRRORED, R.HU_IMPLAUSIBLE, R.QUANTISED, R.CONSTANT, R.BLANK_SLICES}
    | {R.HU_STEP, R.REPEATED_SLICES, R.NOT_CHEST, R.NO_PATIENT, R.BODY_SIZE, R.LUNG_DENSITY, R.PLEURAL_FLUID}
    | {R.SLICE_ORDER, R.SLICES_DO_NOT_MATCH, R.LUNG_CUT_OFF, R.LUNG_BALANCE, R.NO_LUNG_MASK, R.LUNG_VOLUME}
    | {R.LUNG_OUTSIDE_FIELD, R.MASK_FRAGMENTED, R.MASK_MISSES_LUNG, R.MASK_OFF_GROUND, R.CROP_IMPLAUSIBLE}
    | {R.NOT_AXIAL, R.LOCALIZER, R.BURNED_IN, R.PHANTOM_OR_QA, R.FIELD_OF_VIEW, R.MATRIX, R.DERIVED, R.SPECTRAL_MAP}
)
# From head to foot they show more than one slice does.
_SEEN_FROM_THE_SIDE = frozenset({R.UPSIDE_DOWN, R.SLICE_ORDER, R.SLICES_DO_NOT_MATCH, R.HU_STEP, R.REPEATED_SLICES})


@dataclass(frozen=True)
class Picture:
    """An image of the series that shows the reason. index: from 0."""

    plane: Plane
    index: int
    caption: str


@dataclass(frozen=True)
class Why:
    """A reason. meaning, advice: empty for a code of another version.  plot: the positions of the images, or None."""

    code: str
    sentence: str
    meaning: str
    advice: str
    pictures: tuple[Picture, ...] = ()
    plot: Markup | None = None
    plot_says: str = ""


def why(code: str, sentence: str, checks: Sequence[Mapping[str, Any]], opened: OpenedSeries | None) -> Why:
    """A reason with what the images show of it. opened: None if they are not looked at."""
    known = R.__members__.get(code)
    meaning, advice = (known.meaning, known.advice) if known else ("", "")
    if known is None or opened is None or not opened.frames:
        return Why(code, sentence, meaning, advice)
    plot, says = _plot(opened) if known in OF_POSITIONS else (None, "")
    pictures = tuple(_pictures(known, sentence, checks, opened)) if known in OF_PIXELS else ()
    return Why(code, sentence, meaning, advice, pictures, plot, says)


def needs_images(code: str) -> bool:
    """Whether the images show a reason of this code."""
    return code in OF_POSITIONS or code in OF_PIXELS


def _plot(opened: OpenedSeries) -> tuple[Markup | None, str]:
    heights = opened.heights_mm()
    if not heights:
        return None, ""
    usual, holes = holes_of(heights)
    if not holes:
        return positions(heights), f"Each line is an image, from foot to head; they lie {usual:.2f} mm apart."
    places = "; between ".join(f"{signed(low)} and {signed(high)} mm" for low, high in holes[:4])
    more = f", and at {len(holes) - 4} more places" if len(holes) > 4 else ""
    return positions(heights), f"Each line is an image, from foot to head. Nothing lies between {places}{more}."


def _pictures(code: R, sentence: str, checks: Sequence[Mapping[str, Any]], opened: OpenedSeries) -> list[Picture]:
    count = len(opened.frames)
    uids = [frame.instance.sop_instance_uid for frame in opened.frames]
    noted = next((one.get("sop_instance_uid") for one in checks if one.get("code") == EVIDENCE), None)
    if noted in uids:
        found = [_axial(uids.index(noted), count, "the slice that shows it best")]
    elif code is R.LUNG_CUT_OFF:
        ends = (("lowest", 0), ("highest", count - 1))
        named = [(end, z) for end, z in ends if end in sentence] or ends
        found = [_axial(z, count, f"the {end} slice") for end, z in named]
    else:
        found = [_axial(count // 2, count, "the middle slice")]
    if code in _SEEN_FROM_THE_SIDE and Plane.CORONAL in opened.shapes:
        middle = opened.shapes[Plane.CORONAL].count // 2
        found.append(Picture(Plane.CORONAL, middle, "The same from the front: the middle coronal image"))
    return found


def _axial(index: int, count: int, what: str) -> Picture:
    return Picture(Plane.AXIAL, index, f"Slice {index + 1} of {count}: {what}")
