"""Which model said something, and what it checked: plain data without torch, so that any process may import it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Algorithm:
    """A part of the model that made something of its own, such as one of two networks.

    name: inside the model, such as "U-Net".
    contribution: what it does, in a few words.
    sha256: of its weights' file; empty if it has none.
    parameters: "name=value", for the report.
    """

    name: str
    contribution: str
    sha256: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Words:
    """How a model's results are called.

    subject: what they are about, such as "COVID-19" or "Lung density"; begins titles and series descriptions.
    segmentation: what its segmentation shows, in a few words; empty: the segments' titles.
    caution: what a reader of the summary page must not take the number for; empty: nothing.
    """

    subject: str
    segmentation: str = ""
    caution: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.subject) <= 16 or not self.subject.isprintable() or "\\" in self.subject:
            raise ValueError("subject: expected 1 to 16 printable characters")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model made a finding.

    digest: SHA-256 over the card's preprocessing and all weight files; changes when any of them does.
    profile: name of its preprocessing, empty if it has none.  threshold: None if it decides by none.
    weights: SHA-256 of its weight files by role.
    verified: the weight files match digests pinned in a card that ships with the node or that this site published.
    demonstration: trained on synthetic phantoms only; its reports say so.
    """

    name: str
    version: str
    digest: str
    profile: str = ""
    threshold: float | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    algorithms: tuple[Algorithm, ...] = ()
    verified: bool = False
    demonstration: bool = False
    words: Words = field(default_factory=lambda: Words("AI result"))


@dataclass(frozen=True)
class QualityCheck:
    """One check that the series passed, for the report and the audit."""

    code: str
    sentence: str


@dataclass(frozen=True)
class Spread:
    """Lowest and highest certainty over harmless changes of the input, the finding's own included; 0 to 1."""

    low: float
    high: float
    changes: tuple[str, ...]

    def straddles(self, threshold: float) -> bool:
        """True if the changes alone decide between positive and negative."""
        return self.low < threshold <= self.high
