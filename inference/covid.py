"""Replay of a chest CT result: the same files through the same model, and how far the numbers moved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.finding import Finding
from inference.pipeline import Pipeline
from inference.volume import load

# Same input, model and device give the same bytes; another device or back end adds its sums in another order.
TOLERANCE_OTHER_DEVICE = 1e-3


@dataclass(frozen=True)
class Recorded:
    """What a stored result says about itself."""

    input_digest: str
    model_digest: str
    device: str
    precision: str
    versions: dict[str, str]
    probability: float
    lung_volume_ml: float


@dataclass(frozen=True)
class Replay:
    """A recomputed result beside the recorded one.

    differences: what differs in input, model or surroundings, by name.
    """

    finding: Finding
    recorded: Recorded
    differences: tuple[str, ...]

    @property
    def probability_moved(self) -> float:
        """Absolute difference of the probabilities."""
        return abs(self.finding.probability - self.recorded.probability)

    @property
    def agrees(self) -> bool:
        """Equal where nothing around it differs, within the tolerance where only the surroundings do."""
        if {"input_digest", "model_digest"} & set(self.differences):
            return False
        allowed = TOLERANCE_OTHER_DEVICE if self.differences else 0.0
        return self.probability_moved <= allowed


def replay(paths: Sequence[Path], pipeline: Pipeline, recorded: Recorded) -> Replay:
    """Recompute a result from the files of its series and compare.

    Raises UnsuitableSeries or CorruptInstance where the files now give no result.
    """
    finding = pipeline.run(load(paths))
    found = recorded_of(finding)
    names = ("input_digest", "model_digest", "device", "precision", "versions")
    return Replay(finding, recorded, tuple(name for name in names if getattr(found, name) != getattr(recorded, name)))


def recorded_of(finding: Finding) -> Recorded:
    """What a result must record so that it can be replayed."""
    return Recorded(
        finding.input_digest,
        finding.model.digest,
        finding.device,
        finding.precision,
        finding.versions,
        finding.probability,
        finding.lung_volume_ml,
    )
