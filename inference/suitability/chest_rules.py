"""What the pixels must show before a model sees them: a whole chest, the right way up, every slice of one body."""

from config.reasons import ReasonCode
from inference.errors import Evidence, UnsuitableSeries
from inference.finding import QualityCheck
from inference.suitability.body import Chest, Coarse
from inference.suitability.landmarks import Landmarks, find_landmarks
from inference.suitability.policy import Policy, require

# Less lung than this in an end slice is not worth mentioning.
_TIP_CM2 = 2.0
_WIDTH_UPSIDE_DOWN, _WIDTH_UPRIGHT = 0.9, 1.1
_BACK_OFFSET_MM = 5.0
_WIDTH_TO_DEPTH = 0.85
# The neck shows the windpipe in nearly every slice; below the lungs gas in the bowel may lie in the middle too.
_WINDPIPE = 0.5
# A windpipe shows beside the upper lungs in 0.7 to 1.0 of the slices, beside their bases in 0.05 to 0.5.
_WINDPIPE_BESIDE, _NO_WINDPIPE_BESIDE = 0.65, 0.25
_HEART_RIGHT_MM, _HEART_RIGHT_OF_CAGE_MM = -5.0, -2.0
# Images that were stored turned or mirrored must show this too: the anatomy must agree with their header.
_TURNED_BONE_MM, _MIRRORED_HEART_MM = 20.0, 2.5
_DISAGREES = "The header says that the images are stored turned or mirrored, and the anatomy does not agree."


def check_chest(coarse: Coarse, chest: Chest | None, flipped: tuple[bool, bool], policy: Policy) -> QualityCheck:
    """Raises UnsuitableSeries at the first rule that the chest breaks, and otherwise returns what was found.

    chest: None if nothing in the volume is a lung.  flipped: rows and columns, see `CTVolume.flipped`.
    """
    if chest is None:
        raise UnsuitableSeries(ReasonCode.NOT_CHEST, "No air-filled lungs are found in the images.")
    for end, area, z in (
        ("lowest", chest.first_cm2, coarse.levels[0]),
        ("highest", chest.last_cm2, coarse.levels[-1]),
    ):
        if area > policy.cut_cm2:
            raise UnsuitableSeries(
                ReasonCode.LUNG_CUT_OFF,
                f"The {end} slice still shows {area:.0f} cm2 of lung; at most {policy.cut_cm2:g} are accepted.",
                Evidence(z),
            )
    require(
        chest.volume_ml, policy.aerated_ml, ReasonCode.NOT_CHEST, "The air-filled lung in the images measures", " mL"
    )
    require(chest.height_mm, policy.lung_height_mm, ReasonCode.NOT_CHEST, "The lungs' height is", " mm")
    landmarks = find_landmarks(coarse, chest.lungs)
    if landmarks.smaller_side_share < policy.smaller_side_share:
        raise UnsuitableSeries(
            ReasonCode.LUNG_BALANCE, f"One side holds only {landmarks.smaller_side_share:.0%} of the air-filled lung."
        )
    _check_way_up(chest, landmarks, flipped)
    _check_sides(landmarks, flipped)
    if landmarks.windpipe_beside < _NO_WINDPIPE_BESIDE and landmarks.windpipe_above < _WINDPIPE:
        raise UnsuitableSeries(
            ReasonCode.NOT_CHEST, "There is air, but no windpipe beside or above it, so it is not lung."
        )
    return QualityCheck(
        "CHEST", f"{chest.volume_ml:.0f} mL of air-filled lung over {chest.height_mm:.0f} mm, {_how_whole(chest)}."
    )


def _how_whole(chest: Chest) -> str:
    """Whether the scan's ends cut the lungs, in words."""
    cut = [
        f"{area:.0f} cm2 in the {end} slice"
        for end, area in (("lowest", chest.first_cm2), ("highest", chest.last_cm2))
        if area > _TIP_CM2
    ]
    return f"whole but for a tip of {' and '.join(cut)}" if cut else "whole"


def _check_way_up(chest: Chest, landmarks: Landmarks, flipped: tuple[bool, bool]) -> None:
    """Check the head's end against the positions, and the back against the orientation.

    The lungs are wider at the base than at the apex: 1.3 to 1.45 times in the scans at hand, hence 0.7 to 0.76 times
    upside down. The ratio is smaller if one lung has lost its base, so the windpipe, which leaves the lungs at their
    apex, must not contradict it.
    The lungs' lowest part lies towards the back, as does the spine. An image counts as turned over only if both say
    so: effusions move the one, and contrast in the heart the other.
    """
    above, below = landmarks.windpipe_above >= _WINDPIPE, landmarks.windpipe_below >= _WINDPIPE
    beside, width = landmarks.windpipe_beside >= _WINDPIPE_BESIDE, chest.base_to_apex_width
    by_width = width < _WIDTH_UPSIDE_DOWN and not beside and not (above and not below)
    by_windpipe = below and not above and not beside and width < _WIDTH_UPRIGHT
    if by_width or by_windpipe:
        raise UnsuitableSeries(
            ReasonCode.UPSIDE_DOWN, "The lungs lie with their apex down: slice positions run the wrong way."
        )
    base, bone = chest.base_offset_mm, chest.bone_offset_mm
    front = (base < -_BACK_OFFSET_MM and bone < 0) or (base < _BACK_OFFSET_MM and bone < -_TURNED_BONE_MM)
    if any(flipped) and bone < _TURNED_BONE_MM:
        raise UnsuitableSeries(ReasonCode.ORIENTATION, f"{_DISAGREES} The spine does not lie at the back.")
    if front:
        raise UnsuitableSeries(ReasonCode.TURNED_OVER, "The spine is where the patient's front must be.")
    if chest.width_to_depth < _WIDTH_TO_DEPTH:
        raise UnsuitableSeries(ReasonCode.TURNED_OVER, "The chest is deeper than wide: the images lie on their side.")


def _check_sides(landmarks: Landmarks, flipped: tuple[bool, bool]) -> None:
    """The heart must lie to the left. If it lies near the middle, a mirror image cannot be recognised."""
    of_body, of_cage = landmarks.heart_left_mm, landmarks.heart_left_of_cage_mm
    if flipped[0] != flipped[1] and (of_body < _MIRRORED_HEART_MM or of_cage < 0):
        raise UnsuitableSeries(ReasonCode.ORIENTATION, f"{_DISAGREES} The heart does not lie on the patient's left.")
    if of_body < _HEART_RIGHT_MM and of_cage < _HEART_RIGHT_OF_CAGE_MM:
        raise UnsuitableSeries(
            ReasonCode.MIRRORED,
            "The heart lies on the patient's right: the images are mirrored, or the patient's organs are.",
        )
