"""The card of the two networks: its own fields, and how reports name its parts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference.errors import ModelError
from inference.finding import Algorithm, Words
from inference.models.cards import CARD_FILE, Card, Weights, read_card
from inference.models.profile import Precision, Profile, SpreadRule
from inference.models.toml_fields import plain

KIND = "zheng2020"
UNET, DECOVNET = "U-Net", "DeCoVNet"
SUBJECT = "COVID-19"
WORDS = Words(
    SUBJECT,
    segmentation="lungs, and what drove the model",
    caution="How sure the model is, not the probability of the disease. Other lung diseases can score as high.",
)


@dataclass(frozen=True, kw_only=True)
class ZhengCard(Card):
    """A card of the U-Net and DeCoVNet.

    precisions: number formats that the U-Net may run in on the slices that the verdict is made from; formats
        other than float32 only if a measured difference allows them.
    reporting_precisions: the same for slices that only the reported mask needs; they cannot change the verdict.
    suitability: read by `inference.suitability.check`.
    spread: how the stability of a borderline output is tried; None: not at all.
    """

    kind: str = KIND
    threshold: float
    precisions: tuple[Precision, ...]
    unet: Weights
    decovnet: Weights
    profile: Profile
    reporting_precisions: tuple[Precision, ...] = ("float32",)
    spread: SpreadRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "float32" not in self.precisions:
            raise ValueError('precisions: must hold "float32"')

    def weight_files(self) -> Mapping[str, Weights]:
        """Both networks' files."""
        return {"unet": self.unet, "decovnet": self.decovnet}

    def digest(self) -> str:
        """SHA-256 hex over the preprocessing, the threshold and both weight files."""
        content = [plain(self.profile), self.threshold, self.unet.sha256, self.decovnet.sha256]
        content += self.calibration_content()
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def words(self) -> Words:
        """How its results are called."""
        return WORDS

    def profile_name(self) -> str:
        """Name of its preprocessing."""
        return self.profile.name

    def algorithms(self) -> tuple[Algorithm, ...]:
        """The two networks."""
        unet, decovnet = self.unet.sha256, self.decovnet.sha256
        by_site = (f"calibration={self.calibration.method}",) if self.calibration else ()
        return algorithms_of(self.profile.name, self.threshold, unet, decovnet, self.digest(), by_site)


def algorithms_of(
    profile: str, threshold: float, unet: str, decovnet: str, digest: str, more: tuple[str, ...] = ()
) -> tuple[Algorithm, ...]:
    """The two networks, as reports name them. unet, decovnet: SHA-256 of their weights. more: parameters."""
    by = f"profile={profile}"
    parameters = (
        f"threshold={_threshold_text(threshold)}",
        by,
        f"weights_sha256={decovnet}",
        f"lung_mask_weights_sha256={unet}",
        f"model_digest={digest}",
        *more,
    )
    return (
        Algorithm(UNET, "Lung mask", unet, (by, f"weights_sha256={unet}")),
        Algorithm(DECOVNET, f"{SUBJECT} classification and its localisation", decovnet, parameters),
    )


def _threshold_text(threshold: float) -> str:
    """The threshold with at least two decimals and no more than it has."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else repr(threshold)


def read_zheng_card(folder: Path) -> ZhengCard:
    """The card of a model of these two networks. Raises ModelError for a mistake in it, or another kind."""
    card = read_card(folder)
    if not isinstance(card, ZhengCard):
        raise ModelError(f"{folder / CARD_FILE}: a model of kind {card.kind}; this needs one of kind {KIND}")
    return card
