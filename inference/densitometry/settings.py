"""What the card of a densitometry says: thresholds, limits of comparability, and reference values with their source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from inference.models.toml_fields import build

Range = tuple[float, float]


@dataclass(frozen=True)
class Reference:
    """What healthy people have, as published.

    measure: "laa_percent", "perc15_hu" or "mean_hu", of both lungs.  mean, deviation: in its unit.
    people: who was measured.  source: where it was published.
    """

    measure: Literal["laa_percent", "perc15_hu", "mean_hu"]
    mean: float
    deviation: float
    people: str
    source: str

    def __post_init__(self) -> None:
        if not self.source.strip() or not self.people.strip():
            raise ValueError("source, people: a reference needs both")


@dataclass(frozen=True)
class Settings:
    """The [densitometry] table of a card.

    threshold_hu: lung below it counts as low attenuation.  percentile: of the percentile density.
    thickest_mm: thicker slices give values that are not comparable.
    sharp_kernels: "refuse" such a series, or "filter" it in plane, with a Gaussian of `filter_sigma_mm`, and say so.
    air_hu: what air in the windpipe should be.
    noise_hu: above it, noise raises the share; a limit of ours, from phantoms (docs/densitometry.md).
    inspired_ml, inspired_mean_hu: smaller or denser lungs may not be fully inflated.
    reference: values of healthy people.
    """

    threshold_hu: int = -950
    percentile: float = 15.0
    thickest_mm: float = 2.5
    sharp_kernels: Literal["refuse", "filter"] = "filter"
    filter_sigma_mm: float = 1.0
    air_hu: Range = (-1020, -960)
    noise_hu: float = 15.0
    inspired_ml: float = 2500.0
    inspired_mean_hu: float = -750.0
    reference: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        if not -1050 <= self.threshold_hu <= -800 or not 0 < self.percentile < 100 or self.filter_sigma_mm <= 0:
            raise ValueError(
                "threshold_hu lies from -1050 to -800, percentile between 0 and 100, filter_sigma_mm above 0"
            )

    @classmethod
    def from_table(cls, table: Mapping[str, object], where: str = "[densitometry]") -> "Settings":
        """The settings of a card's table. Raises ModelError for an unknown key or a wrong type."""
        return build(cls, table, where)
