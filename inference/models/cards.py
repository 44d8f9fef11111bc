"""Model cards: what a model is, where it comes from, and every step of its preprocessing."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from inference.errors import ModelError
from inference.finding import ModelIdentity
from inference.models.toml_fields import build, plain, read_toml, write_toml

CARD_FILE = "card.toml"
Precision = Literal["float32", "bfloat16", "float16"]
Statistics = Literal["batch", "running"]


@dataclass(frozen=True)
class RawClamp:
    """Limits on stored pixel values, applied before the rescale to HU.

    Values below `low` become `low_becomes`; values above `high` become `high`.
    """

    low: int
    low_becomes: int
    high: int


@dataclass(frozen=True)
class Circle:
    """A reconstruction circle, given for a matrix of `matrix` pixels and scaled to others.

    Pixels `radius_px` or farther from `centre_px` (row, column) are lowered by `lower_by_hu`.
    """

    centre_px: tuple[float, float]
    radius_px: float
    lower_by_hu: int
    matrix: int


@dataclass(frozen=True)
class Intensity:
    """From HU to 8-bit grey: floor(255 x) of the window."""

    window_hu: tuple[float, float]
    raw_clamp: RawClamp | None = None
    circle: Circle | None = None

    def __post_init__(self) -> None:
        if self.window_hu[0] >= self.window_hu[1]:
            raise ValueError("window_hu: the lower edge must be below the upper")


@dataclass(frozen=True)
class Slices:
    """Order, spacing and choice of slices.

    spacing_mm: slices are resampled to this distance with a spline of `interpolation_order`, edges
        repeated; absent leaves them as they are.
    lung_range, verdict_range: shares of the slices, `int(share * n)`, that are kept for the verdict: first
        `lung_range` of all slices, then `verdict_range` of those.
    """

    order: Literal["ascending", "descending"]
    spacing_mm: float | None = None
    interpolation_order: Literal[1, 3] = 3
    lung_range: tuple[float, float] = (0.0, 1.0)
    verdict_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("lung_range", "verdict_range"):
            start, stop = getattr(self, name)
            if not 0 <= start < stop <= 1:
                raise ValueError(f"{name}: expected 0 <= start < stop <= 1")
        if self.spacing_mm is not None and self.spacing_mm <= 0:
            raise ValueError("spacing_mm: must be above 0")


@dataclass(frozen=True)
class UnetInput:
    """What the U-Net gets: slices of `size` (rows, columns), resampled in plane if they differ."""

    size: tuple[int, int]
    interpolation_order: Literal[1, 3]
    statistics: Statistics


@dataclass(frozen=True)
class DecovnetInput:
    """What DeCoVNet gets: image and mask of `size` (rows, columns), slices untouched.

    crop: "mask-box" crops both to the mask's bounding box in z, y and x, each upper bound exclusive of the
        last index; "none" keeps the whole slice.
    mask: "raw" as the U-Net gives it, "cleaned" after keeping its largest connected components.
    """

    size: tuple[int, int]
    interpolation_order: Literal[1, 3]
    statistics: Statistics
    crop: Literal["mask-box", "none"]
    mask: Literal["raw", "cleaned"]


Change = Literal["one row higher", "one row lower", "without its lowest slice", "without its highest slice"]
"""A change of the part of the images that DeCoVNet gets: moved by one row of pixels, or one slice shorter."""


@dataclass(frozen=True)
class SpreadRule:
    """When to try how far harmless changes move the output, and which ones; each costs one more run of DeCoVNet.

    band: probabilities, inclusive; outside of it nothing is tried.
    """

    band: tuple[float, float]
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.band[0] < self.band[1] <= 1:
            raise ValueError("band: expected 0 <= low < high <= 1")

    def applies(self, probability: float) -> bool:
        """True if a probability is near enough to the threshold."""
        return self.band[0] <= probability <= self.band[1]


@dataclass(frozen=True)
class Profile:
    """Every step between HU and the two networks."""

    name: str
    intensity: Intensity
    slices: Slices
    unet: UnetInput
    decovnet: DecovnetInput


@dataclass(frozen=True)
class Weights:
    """One network's weights.

    file: safetensors file in the folder of the card; sha256 of its bytes, empty if the card ships without weights.
    checkpoint_sha256: of the published file that it was imported from, empty if there was none.
    """

    file: str
    sha256: str = ""
    checkpoint_sha256: str = ""

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file or self.file in ("", ".", ".."):
            raise ValueError("file: must be a plain file name in the folder of the card")


@dataclass(frozen=True)
class Limits:
    """What a third party's model may take for one volume, in a process of its own.

    memory_mb: MiB, apart from the volume.  time_s: from the start of its process to its answer.
    scratch_mb: MiB of files.
    """

    memory_mb: int = 8192
    time_s: float = 600.0
    scratch_mb: int = 1024

    def __post_init__(self) -> None:
        for name in ("memory_mb", "time_s", "scratch_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: must be above 0")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its results on the data named in `source`."""

    name: str
    threshold: float
    sensitivity: float
    specificity: float
    source: str


@dataclass(frozen=True)
class Card:
    """A model card.

    precisions: number formats that the U-Net may run in on the slices that the verdict is made from; formats
        other than float32 only if a measured difference allows them.
    reporting_precisions: the same for slices that only the reported mask needs; they cannot change the verdict.
    suitability: the rules that a series must pass, read by `inference.suitability.check`.
    spread: how the stability of a borderline output is tried; None: not at all.
    published: `models publish` wrote the card for exactly these weights.
    limits: of a third party's model, None for the usual ones; the node's own run in the node's process, without.
    training, evaluation: what it was trained on and how, and how well it did; figures without patient data.
    """

    name: str
    version: str
    title: str
    source: str
    licence: str
    intended_use: str
    threshold: float
    precisions: tuple[Precision, ...]
    unet: Weights
    decovnet: Weights
    profile: Profile
    reporting_precisions: tuple[Precision, ...] = ("float32",)
    demonstration: bool = False
    suitability: Mapping[str, object] = field(default_factory=dict)
    operating_points: tuple[OperatingPoint, ...] = ()
    spread: SpreadRule | None = None
    published: bool = False
    limits: Limits | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError("threshold: must lie between 0 and 1")
        if "float32" not in self.precisions:
            raise ValueError('precisions: must hold "float32"')

    @property
    def verified(self) -> bool:
        """True if a card that ships with the node, or that this site published, pins both weight files' digests."""
        return self.published or (self.unet.sha256, self.decovnet.sha256) in _pinned()

    def digest(self) -> str:
        """SHA-256 hex over the preprocessing, the threshold and both weight files."""
        content = [plain(self.profile), self.threshold, self.unet.sha256, self.decovnet.sha256]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def identity(self) -> ModelIdentity:
        """What a finding says about its model."""
        return ModelIdentity(
            name=self.name,
            version=self.version,
            profile=self.profile.name,
            digest=self.digest(),
            unet_sha256=self.unet.sha256,
            decovnet_sha256=self.decovnet.sha256,
            threshold=self.threshold,
            verified=self.verified,
            demonstration=self.demonstration,
        )


def read_card(folder: Path) -> Card:
    """The card of a model folder.

    Raises ModelError naming the file and the key of the first mistake.
    """
    path = folder / CARD_FILE
    return build(Card, read_toml(path), str(path))


def write_card(card: Card, folder: Path) -> Path:
    """Write the card into an existing folder and return its path; reading it gives the same card."""
    path = folder / CARD_FILE
    path.write_text(write_toml(plain(card)), encoding="utf-8")
    return path


def shipped_folder() -> Path:
    """The folder of the model cards that come with the node."""
    return Path(str(files("config"))) / "models"


@cache
def _pinned() -> frozenset[tuple[str, str]]:
    cards = [read_card(path.parent) for path in sorted(shipped_folder().glob(f"*/{CARD_FILE}"))]
    return frozenset((card.unet.sha256, card.decovnet.sha256) for card in cards if card.unet.sha256)


def require_weights(card: Card, folder: Path) -> None:
    """Raises ModelError if the card names no weights or a file is missing."""
    for weights in (card.unet, card.decovnet):
        if not weights.sha256:
            raise ModelError(f"{folder / CARD_FILE}: the card has no weights; import or train the model first")
        if not (folder / weights.file).is_file():
            raise ModelError(f"{folder / weights.file}: missing")
