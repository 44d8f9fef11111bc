"""The pipeline's result, as the networks' own code knows it: plain data without torch."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from inference.finding import QualityCheck, Spread


@dataclass(frozen=True)
class Verdict:
    """What the networks say of one volume.

    probability: P(COVID-19) as the model gives it, 0 to 1; if the site has calibrated it, as the site reads it.
    lung_mask: bool (Z, Y, X) on the grid of the source volume; cleaned (connected components).
    lung_volume_ml, left_lung_ml, right_lung_ml: millilitres of the cleaned mask.
    localisation: bool (Z, Y, X), the part of the lungs that drove a positive result. It is empty for a negative
        result, or if the verdict rested on nothing that stands out in the lungs; None if it was not asked for.
    heat: uint8 (Z, Y, X), the map that `localisation` is cut from, 255 at its strongest; all 0 for a negative
        result, None if it was not asked for.
    threshold: the probability from which it is positive.
    verdict_slices: lowest and highest z of the source slices that the probability was computed from; None means
        all of them.
    uncalibrated: P(COVID-19) as the networks gave it; None if the model has no calibration.
    calibration: where that comes from, in words; None without one.
    spread: how far harmless changes move the probability; None if it is clear, or the card asks for no such check.
    timings_s: seconds by stage.
    trace: intermediate values by name (JSON types only); empty unless asked for.
    """

    probability: float
    lung_mask: npt.NDArray[np.bool_]
    lung_volume_ml: float
    left_lung_ml: float
    right_lung_ml: float
    localisation: npt.NDArray[np.bool_] | None
    heat: npt.NDArray[np.uint8] | None
    threshold: float
    device: str
    precision: str
    versions: dict[str, str]
    timings_s: dict[str, float]
    checks: tuple[QualityCheck, ...] = ()
    trace: dict[str, object] = field(default_factory=dict)
    verdict_slices: tuple[int, int] | None = None
    spread: Spread | None = None
    uncalibrated: float | None = None
    calibration: str | None = None

    @property
    def positive(self) -> bool:
        """True at or above the model's threshold."""
        return self.probability >= self.threshold
