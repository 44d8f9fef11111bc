"""The first model's sentences: what a reader could act on, and what its output is not."""

import numpy as np

from inference.covid.verdict import Verdict
from inference.numerals import percent, share
from inference.volume.ct_volume import CTVolume

LOCALISATION = (
    "This region is the dense part of the lungs that drove the model's output, from its class activation map. It is "
    "not the boundary of a lesion, and its volume is not that of one."
)


def statement(verdict: Verdict) -> str:
    """The result in one sentence, and what it is not."""
    threshold = verdict.threshold
    side = "at or above the threshold" if verdict.positive else "below the threshold"
    sign = "positive" if verdict.positive else "negative"
    return (
        f"The model's output for COVID-19 is {percent(verdict.probability, threshold)} %, {side} of "
        f"{100 * threshold:.10g} %: {sign}. It says how sure the model is about the whole scan. It is not the "
        "probability that the patient has COVID-19: other lung diseases can score as high." + _calibration(verdict)
    )


def _calibration(verdict: Verdict) -> str:
    """What the networks themselves gave, and whose calibration made another number of it; empty without one."""
    if verdict.calibration is None or verdict.uncalibrated is None:
        return ""
    if verdict.uncalibrated == verdict.probability:
        return f" The threshold is this site's own ({verdict.calibration})."
    return (
        f" The networks' own output is {100 * verdict.uncalibrated:.1f} %; the number above is that output as this "
        f"site has calibrated it ({verdict.calibration})."
    )


def nothing_localised(verdict: Verdict) -> str:
    """Why no region is marked; empty if one is, or if none was asked for."""
    if verdict.localisation is None or verdict.localisation.any():
        return ""
    if verdict.positive:
        return (
            "No dense part of the lungs stands out as what drove the model's output. Look at the whole scan, and doubt "
            "the result."
        )
    return "No region is marked when the result is negative. That does not mean that the lungs are free of lesions."


def lungs_line(verdict: Verdict) -> str:
    """The volumes of the lungs, for the summary page."""
    lungs = f"Lungs {verdict.lung_volume_ml:.0f} mL"
    if verdict.left_lung_ml > 0 or verdict.right_lung_ml > 0:
        lungs += f" (right {verdict.right_lung_ml:.0f}, left {verdict.left_lung_ml:.0f})"
    return lungs


def region_line(verdict: Verdict, volume: CTVolume) -> str:
    """The volume of what drove the model, for the summary page. verdict: with a localisation."""
    assert verdict.localisation is not None  # noqa: S101 - the caller looked
    words = f"Region that drove the model {np.count_nonzero(verdict.localisation) * volume.voxel_ml:.0f} mL"
    inside, lungs = (int(np.count_nonzero(m)) for m in (verdict.localisation & verdict.lung_mask, verdict.lung_mask))
    if lungs:
        words += f", {share(inside, lungs)} % of the lungs"
    return words + ". Not a lesion boundary."
