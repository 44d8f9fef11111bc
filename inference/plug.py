"""The plug between the node and a model: what a model is given, and what it gives back.

Plain data, free of torch and of pydicom, so that any process may import it, and pass it to another one. A model sees a
volume and its own card. It sees no socket, no database and no patient.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from config.coding import NEGATIVE as NEGATIVE
from config.coding import POSITIVE as POSITIVE
from config.coding import Code as Code
from config.coding import is_positive
from inference.finding import Algorithm as Algorithm
from inference.finding import ModelIdentity, QualityCheck, Spread
from inference.models.cards import Card
from inference.volume.ct_volume import CTVolume

MOST_COLUMNS, MOST_ROWS = 6, 12
"""What a `Table` may have: the summary page has room for no more."""
MOST_DECIMALS = 10
"""What a report may state of a measurement: its numbers have 16 characters."""


@dataclass(frozen=True)
class Qualifier:
    """A number that a measurement depends on, such as the threshold of an attenuation, with its UCUM unit."""

    concept: Code
    value: float
    unit: Code

    def __post_init__(self) -> None:
        _require_number(self.value, self.unit)


@dataclass(frozen=True)
class Measurement:
    """One number that the model measured.

    concept: what was measured, such as (118565006, SCT, "Volume").
    unit: of scheme UCUM, such as ("mL", "UCUM", "milliliter").
    site, laterality: where; None means where its segment is.
    topography: which part of the site, such as its upper third.
    segment: title of the `Segment` that it was measured on.
    derivation: how many values became one, such as (373098007, SCT, "Mean").  method: how it was measured.
    qualifiers: what it depends on.
    decimals: how many the report states, 0 to MOST_DECIMALS; the index keeps the value as it is.
    """

    concept: Code
    value: float
    unit: Code
    site: Code | None = None
    laterality: Code | None = None
    topography: Code | None = None
    segment: str | None = None
    derivation: Code | None = None
    method: Code | None = None
    qualifiers: tuple[Qualifier, ...] = ()
    decimals: int = 2

    def __post_init__(self) -> None:
        _require_number(self.value, self.unit)
        if not 0 <= self.decimals <= MOST_DECIMALS:
            raise ValueError(f"decimals: expected 0 to {MOST_DECIMALS}, found {self.decimals!r}")


@dataclass(frozen=True)
class FindingByCode:
    """One statement of the model about the volume: a disease or a sign, and whether it is there.

    title: of its group in the report, such as "COVID-19 classification".
    certainty: 0 to 1, as the model gives it; None if it gives none.
    interpretation: `POSITIVE`, `NEGATIVE` or another code, such as "indeterminate".
    threshold: the certainty from which it is positive, if that is how it was decided.
    category: what the concept is, such as (64572001, SCT, "Disease").
    segment: title of the `Segment` that it is about.  algorithm: name of the `Algorithm` that it is from.
    spread: how far harmless changes of the input move the certainty; None if that was not tried.
    """

    title: str
    concept: Code
    interpretation: Code
    certainty: float | None = None
    threshold: float | None = None
    category: Code | None = None
    site: Code | None = None
    laterality: Code | None = None
    segment: str | None = None
    algorithm: str = ""
    spread: Spread | None = None

    def __post_init__(self) -> None:
        spread = (self.spread.low, self.spread.high) if self.spread else ()
        stated = [("certainty", self.certainty), ("threshold", self.threshold), *(("spread", one) for one in spread)]
        for name, value in stated:
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, found {value!r}")

    @property
    def positive(self) -> bool | None:
        """True if positive, False if negative, None for any other interpretation."""
        return is_positive(self.interpretation)

    @property
    def unstable(self) -> Spread | None:
        """The spread if it reaches to both sides of the threshold, else None."""
        if self.spread is None or self.threshold is None:
            return None
        return self.spread if self.spread.straddles(self.threshold) else None


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of the volume.

    title: its name among the model's segments.  label: its name in viewers; empty: the title.  legend: what the
        summary page calls it; empty: the label.
    mask: bool (Z, Y, X) on the grid of the volume.
    category, type: such as (91723000, SCT, "Anatomical Structure") and (39607008, SCT, "Lung").
    purpose: "anatomy": where the model looked, shown with every result. "finding": what it found there. A finding
        without a voxel has no group in the report.
    drawn: how the summary page shows it: as an "outline", or as a coloured "area" if it is many small spots.
    site, laterality: for the report's group; None: nothing is said about it.
    comments: what must be said with it.
    colour_lab: CIELab of its outline in viewers; None: one that the node chooses.
    """

    title: str
    mask: npt.NDArray[np.bool_]
    category: Code
    type: Code
    purpose: Literal["anatomy", "finding"]
    label: str = ""
    legend: str = ""
    site: Code | None = None
    laterality: Code | None = None
    algorithm: str = ""
    comments: tuple[str, ...] = ()
    colour_lab: tuple[float, float, float] | None = None
    drawn: Literal["outline", "area"] = "outline"

    def __post_init__(self) -> None:
        lightness, *others = self.colour_lab or (0.0, 0.0, 0.0)
        if not 0 <= lightness <= 100 or not all(-128 <= one <= 127 for one in others):
            raise ValueError(f"colour_lab: expected 0 to 100 and twice -128 to 127, found {self.colour_lab}")


@dataclass(frozen=True)
class Line:
    """A line of the summary page. tone: "plain"; "caution" for what must not be overlooked; "finding": in the colour in
    which the segments of findings are drawn."""

    text: str
    tone: Literal["plain", "caution", "finding"] = "plain"


@dataclass(frozen=True)
class Histogram:
    """A distribution for the summary page.

    title: what is counted, and of what.  unit: of the horizontal axis.  count_unit: of the vertical one, such as "%".
    edges: ascending, one more than counts, in `unit`.  marks: (value, what it is) to be marked on the axis.
    highlight: from and to, in `unit`: bars in it are drawn in the colour of findings.
    """

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[float, ...]
    marks: tuple[tuple[float, str], ...] = ()
    count_unit: str = ""
    highlight: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        ascending = list(self.edges) == sorted(self.edges)
        if (
            not self.counts
            or len(self.edges) != len(self.counts) + 1
            or not ascending
            or self.edges[0] == self.edges[-1]
        ):
            raise ValueError("edges: expected ascending numbers, one more than counts")
        drawable = all(one == 0 or 1e-12 <= abs(one) <= 1e12 for one in (*self.edges, *self.counts))
        if not drawable or min(self.counts) < 0:
            raise ValueError("edges, counts: expected 0 or numbers of a size from 1e-12 to 1e12, no count below 0")


@dataclass(frozen=True)
class Table:
    """Numbers side by side for the summary page.

    columns: (name, unit) of each; the first column names the rows.  rows: as many texts as there are columns; the first
    row is drawn in the colour of findings.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.columns) <= MOST_COLUMNS or not 1 <= len(self.rows) <= MOST_ROWS:
            raise ValueError(f"expected 1 to {MOST_COLUMNS} columns and 1 to {MOST_ROWS} rows")
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("rows: expected one text for each column")


@dataclass(frozen=True)
class Run:
    """With what an output was computed.

    device: such as "cpu: AMD EPYC".  precision: number formats, in words.  versions: of packages, by name.
    timings_s: seconds by stage.
    """

    device: str = "cpu"
    precision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Output:
    """What a model says of one volume.

    heat: uint8 (Z, Y, X), what drove the output, 255 at its strongest; None if there is no such map.
    checks: what the volume passed, for the report and the audit.
    statements: sentences of the report that say what the result is, and what it is not; the node's warnings come first.
    remarks: sentences that limit it, such as a value that is not comparable.
    table: numbers at the top of the summary page's text.
    lines: what the summary page says beside its pictures; empty: the measurements, one a line, unless there is a table.
    slices: lowest and highest z of the slices that the output was computed from; None: all of them.
    trace: intermediate values by name (JSON types only), for `analyse --trace`.
    """

    measurements: tuple[Measurement, ...] = ()
    findings: tuple[FindingByCode, ...] = ()
    segments: tuple[Segment, ...] = ()
    heat: npt.NDArray[np.uint8] | None = None
    algorithms: tuple[Algorithm, ...] = ()
    checks: tuple[QualityCheck, ...] = ()
    statements: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    table: Table | None = None
    lines: tuple[Line, ...] = ()
    histogram: Histogram | None = None
    slices: tuple[int, int] | None = None
    run: Run = field(default_factory=Run)
    trace: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Finding:
    """What a model said of one volume, and which model it was.

    pixel_digest: SHA-256 hex of the volume and its geometry, see `CTVolume.digest`.
    """

    model: ModelIdentity
    output: Output
    pixel_digest: str


@dataclass(frozen=True)
class DeviceChoice:
    """Where and how a model is to compute.

    device: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".
    precision: "exact": float32; "fast": a lower one if the card allows it.
    threads: CPU threads; 0: as many as there are cores.
    trace: keep intermediate values in `Output.trace`.
    """

    device: str = "auto"
    precision: Literal["exact", "fast"] = "exact"
    threads: int = 0
    trace: bool = False


class LoadedModel(Protocol):
    """A model on a device, ready for volumes."""

    def analyse(self, volume: CTVolume) -> Output:
        """What the model says of a volume.

        Raises UnsuitableSeries (`inference.errors`), with a ReasonCode and a sentence, if it was not made for it.
        """


class Model(Protocol):
    """A kind of model: the object that an entry point of the group `dicom_node.models` names."""

    def load(self, folder: Path, card: Card, device: DeviceChoice) -> LoadedModel:
        """Make a model ready for volumes. folder: of its card and weights.

        Raises ModelError if a file is missing, altered or does not fit, or if the device is not available.
        """


@dataclass(frozen=True)
class Occlusion:
    """What was taken away of a volume, its percentage of the lungs, and the certainty without it.

    log_odds: of that certainty; unlike it, they do not saturate when the model is very sure.
    """

    what: str
    percent_of_lungs: float
    probability: float
    log_odds: float


@dataclass(frozen=True)
class Explanation:
    """A model's certainty with the whole volume, its threshold, and the certainty without each part."""

    probability: float
    threshold: float
    positive: bool
    log_odds: float
    occlusions: tuple[Occlusion, ...]


@runtime_checkable
class Explains(Protocol):
    """A loaded model that can show on what its output rests."""

    def explain(self, volume: CTVolume, progress: Callable[[str], None]) -> Explanation:
        """Analyse a volume without each of its parts. progress: called with what is taken away next.

        Raises UnsuitableSeries if the volume gives no result.
        """


@runtime_checkable
class Imports(Protocol):
    """A kind of model whose published files the node can take in."""

    def import_files(self, files: Mapping[str, Path], models_dir: Path, *, allow_unverified: bool) -> Card:
        """Verify the files, by role, keep them in the node's format beside a card, and make the model active.

        allow_unverified: also take files of the same architecture whose SHA-256 is not known.
        Raises ModelError if a file is missing, unknown or does not fit.
        """


def _require_number(value: float, unit: Code) -> None:
    if not math.isfinite(value):
        raise ValueError(f"value: expected a finite number, found {value!r}")
    if unit.scheme != "UCUM":
        raise ValueError(f"unit: expected a code of UCUM, found {unit.scheme}")
