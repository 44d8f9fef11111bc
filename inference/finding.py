"""A pipeline's result: plain data without torch, so that any process may import it."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ModelIdentity:
    """Which model made a finding.

    digest: SHA-256 over the card's preprocessing and both weight files; changes when any of them does.
    verified: the weight files match digests pinned in a card that ships with the node or that this site published.
    demonstration: trained on synthetic phantoms only; its reports say so.
    """

    name: str
    version: str
    profile: str
    digest: str
    unet_sha256: str
    decovnet_sha256: str
    threshold: float
    verified: bool
    demonstration: bool


@dataclass(frozen=True)
class QualityCheck:
    """One check that the series passed, for the report and the audit."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Spread:
    """Lowest and highest probability over harmless changes of the input, the finding's own included; 0 to 1."""

    low: float
    high: float
    changes: tuple[str, ...]

    def straddles(self, threshold: float) -> bool:
        """True if the changes alone decide between positive and negative."""
        return self.low < threshold <= self.high


@dataclass(frozen=True)
class Finding:
    """The result of one analysed series.

    probability: P(COVID-19) as the model gives it, 0 to 1.
    lung_mask: bool (Z, Y, X) on the grid of the source volume; cleaned (connected components).
    lung_volume_ml, left_lung_ml, right_lung_ml: millilitres of the cleaned mask.
    localisation: bool (Z, Y, X), the part of the lungs that drove a positive result. It is empty for a negative
        result, or if the verdict rested on nothing that stands out in the lungs; None if it was not asked for.
    heat: uint8 (Z, Y, X), the map that `localisation` is cut from, 255 at its strongest; all 0 for a negative
        result, None if it was not asked for.
    verdict_slices: lowest and highest z of the source slices that the probability was computed from; None means
        all of them.
    pixel_digest: SHA-256 hex of the HU volume and its geometry as the pipeline saw them.
    timings_s: seconds by stage.
    trace: intermediate values by name (JSON types only); empty unless asked for.
    spread: how far harmless changes move the probability; None if it is clear, or the card asks for no such check.
    """

    probability: float
    lung_mask: npt.NDArray[np.bool_]
    lung_volume_ml: float
    left_lung_ml: float
    right_lung_ml: float
    localisation: npt.NDArray[np.bool_] | None
    heat: npt.NDArray[np.uint8] | None
    pixel_digest: str
    model: ModelIdentity
    device: str
    precision: str
    versions: dict[str, str]
    timings_s: dict[str, float]
    checks: tuple[QualityCheck, ...] = ()
    trace: dict[str, object] = field(default_factory=dict)
    verdict_slices: tuple[int, int] | None = None
    spread: Spread | None = None

    @property
    def positive(self) -> bool:
        """True at or above the model's threshold."""
        return self.probability >= self.model.threshold

    @property
    def unstable(self) -> Spread | None:
        """The spread if it reaches to both sides of the threshold, else None."""
        return self.spread if self.spread is not None and self.spread.straddles(self.model.threshold) else None
