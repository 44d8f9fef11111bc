"""A model as a site has calibrated it: the same weights, under a card of another version."""

import shutil
from dataclasses import replace
from pathlib import Path

from inference.errors import ModelError
from inference.models.calibration import Calibration
from inference.models.cards import Card, OperatingPoint, read_card, require_weights
from inference.models.kinds import calibrates, find_kind
from inference.models.registry import install_folder, list_models, model_folders

POINT = "own calibration"


def base_of(folder: Path, models_dir: Path, card: Card) -> tuple[Path, Card]:
    """The model that a card's calibration was made for, or the card itself: folder and card.

    Raises ModelError if it is no longer there, or if models of its kind cannot be calibrated.
    """
    if card.threshold is None or not calibrates(find_kind(card.kind)):
        raise ModelError(f"{card.name}: models of kind {card.kind} give no certainty that could be calibrated")
    if card.calibration is None:
        return folder, card
    for other in model_folders(models_dir):
        found = read_card(other)
        if found.digest() == card.calibration.base_digest:
            return other, found
    raise ModelError(
        f"{card.name} {card.version} is calibrated, and the model that it was made from is not there; import it again"
    )


def calibrated_card(base: Card, version: str, calibration: Calibration, point: OperatingPoint) -> Card:
    """The base's card with a calibration and the threshold of its operating point, in another version."""
    return replace(base, version=version, calibration=calibration, threshold=point.threshold, operating_points=(point,))


def install_calibrated(card: Card, base: Path, models_dir: Path, *, activate: bool) -> Path:
    """Write a calibrated model's folder durably, all or nothing: the card, and the weights of `base`.

    activate: also make it the one that is used where the settings name none. Returns the folder.
    Raises ModelError if weights are missing, or if another model has this name and version.
    """
    require_weights(card, base)
    for other in list_models(models_dir):
        if (other.name, other.version) == (card.name, card.version) and other.digest() != card.digest():
            raise ModelError(f"another model is called {card.name} {card.version}; choose another version")

    def fill(folder: Path) -> None:
        for weights in card.weight_files().values():
            target = folder / weights.file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base / weights.file, target)

    return install_folder(card, models_dir, fill, activate=activate)
