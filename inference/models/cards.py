"""Model cards: what a model is, where it comes from, what it was made for, and who may use it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from config.coding import Code
from inference.errors import ModelError
from inference.finding import Algorithm, ModelIdentity, Words
from inference.models.calibration import Calibration
from inference.models.kinds import card_type
from inference.models.toml_fields import build, plain, read_toml, write_toml

CARD_FILE = "card.toml"
_NON_COMMERCIAL = re.compile(r"(?i:non[ -]?commercial)|\bNC\b")


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
        path = PurePosixPath(self.file)
        if not path.name or path.is_absolute() or ".." in path.parts:
            raise ValueError("file: must name a file in the folder of the card or below it")


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and its results on the data named in `source`."""

    name: str
    threshold: float
    sensitivity: float
    specificity: float
    source: str


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
class Card:
    """A model card: what every kind of model has. A kind may add fields, see `CardKind`.

    kind: name of the plug-in, an entry point of the group `dicom_node.models`.
    non_commercial: its licence or that of its weights forbids commercial use. Also true if the words of the licence say
        so, such as "CC BY-NC 4.0": whoever writes a card may forget the key.
    subject: see `Words`; empty: the model's name.
    weights: its weight files by role.  codes: what it measures and finds; another code in its output ends the job.
    settings: for the plug-in alone.
    limits: of a third party's model, None for the usual ones; the node's own run in the node's process, without.
    suitability: the rules that a series must pass, read by the plug-in.
    threshold: the certainty from which it is positive; None if it decides by none.
    operating_points: what is published about its thresholds.
    calibration: how a site reads its output, None: as it is. The threshold is then one of the calibrated output.
    published: `models publish` wrote the card for exactly these weights.
    training, evaluation: what it was trained on and how, and how well it did; figures without patient data.
    """

    name: str
    version: str
    title: str
    source: str
    licence: str
    intended_use: str
    kind: str = ""
    non_commercial: bool = False
    subject: str = ""
    threshold: float | None = None
    demonstration: bool = False
    published: bool = False
    weights: Mapping[str, Weights] = field(default_factory=dict)
    codes: tuple[Code, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    limits: Limits | None = None
    suitability: Mapping[str, object] = field(default_factory=dict)
    operating_points: tuple[OperatingPoint, ...] = ()
    calibration: Calibration | None = None
    training: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError("threshold: must lie between 0 and 1")
        if _NON_COMMERCIAL.search(self.licence):
            object.__setattr__(self, "non_commercial", True)

    def weight_files(self) -> Mapping[str, Weights]:
        """Its weight files by role, in the order in which reports name them."""
        return self.weights

    @property
    def verified(self) -> bool:
        """True if a card that ships with the node, or that this site published, pins the digests of all weight files.

        A model without weights is what its program is.
        """
        return self.published or not self.weight_files() or _digests(self) in _pinned()

    def digest(self) -> str:
        """SHA-256 hex over all that can change an output: program, settings, suitability and weights."""
        content = [self.kind, self.name, self.version, self.threshold, plain(self.settings), plain(self.suitability)]
        content += self.calibration_content()
        return hashlib.sha256(json.dumps([*content, _digests(self)], sort_keys=True).encode()).hexdigest()

    def calibration_content(self) -> list[object]:
        """What a digest says about its calibration: nothing if it has none."""
        return [] if self.calibration is None else [plain(self.calibration)]

    def calibrated(self, output: float) -> float:
        """The certainty that this model reports for an output of its networks, both 0 to 1."""
        return output if self.calibration is None else self.calibration.apply(output)

    def words(self) -> Words:
        """How its results are called."""
        return Words(self.subject or self.name[:16])

    def algorithms(self) -> tuple[Algorithm, ...]:
        """Its parts, as reports name them: one for each weight file, or the model itself."""
        files = self.weight_files().items()
        parts = [
            Algorithm(role, role, weights.sha256, (f"weights_sha256={weights.sha256}",)) for role, weights in files
        ]
        return tuple(parts) or (Algorithm(self.name, self.title[:64]),)

    def profile_name(self) -> str:
        """Name of its preprocessing, empty if it has none."""
        return ""

    def identity(self) -> ModelIdentity:
        """What a finding says about its model."""
        return ModelIdentity(
            name=self.name,
            version=self.version,
            digest=self.digest(),
            profile=self.profile_name(),
            threshold=self.threshold,
            weights={role: weights.sha256 for role, weights in self.weight_files().items()},
            algorithms=self.algorithms(),
            verified=self.verified,
            demonstration=self.demonstration,
            words=self.words(),
        )


def read_card(folder: Path) -> Card:
    """The card of a model folder.

    Raises ModelError naming the file and the key of the first mistake.
    """
    path = folder / CARD_FILE
    table = read_toml(path)
    return build(card_type(table, str(path)), table, str(path))


def write_card(card: Card, folder: Path) -> Path:
    """Write the card into an existing folder and return its path; reading it gives the same card."""
    path = folder / CARD_FILE
    path.write_text(write_toml(plain(card)), encoding="utf-8")
    return path


def shipped_folder() -> Path:
    """The folder of the model cards that come with the node."""
    return Path(str(files("config"))) / "models"


def _digests(card: Card) -> tuple[str, ...]:
    return tuple(weights.sha256 for weights in card.weight_files().values())


@cache
def _pinned() -> frozenset[tuple[str, ...]]:
    cards = [read_card(path.parent) for path in sorted(shipped_folder().glob(f"*/{CARD_FILE}"))]
    return frozenset(_digests(card) for card in cards if all(_digests(card)))


def require_weights(card: Card, folder: Path) -> None:
    """Raises ModelError if the card names no weights or a file is missing."""
    for weights in card.weight_files().values():
        if not weights.sha256:
            raise ModelError(f"{folder / CARD_FILE}: the card has no weights; import or train the model first")
        if not (folder / weights.file).is_file():
            raise ModelError(f"{folder / weights.file}: missing")
