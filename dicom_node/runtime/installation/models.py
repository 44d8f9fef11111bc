"""The models in use: their cards, the plug-ins that they need, and their weights to the last byte."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from config.settings import Settings
from dicom_node.runtime.installation.found import Found, good, look, wrong
from inference.errors import InferenceError, ModelError
from inference.models.cards import Card, read_card, require_weights
from inference.models.kinds import find_kind
from inference.models.registry import find_model

AGAIN = "import the model again (dicom-node models import)"


def models(settings: Settings) -> Iterator[Found]:
    """One line for each model of the settings."""
    for entry in settings.model_entries:
        part = f"model {entry.name or 'in use'}"
        try:
            folder = find_model(settings.models_dir, entry.name or None, entry.version or None)
            card = read_card(folder)
            find_kind(card.kind)
            require_weights(card, folder)
            _require_digests(card, folder)
        except InferenceError as error:
            yield wrong(part, str(error), AGAIN)
            continue
        says = f"{card.name} {card.version}: {len(card.weight_files())} files of weights, as its card says"
        if card.identity().demonstration and not settings.model.allow_demonstration_model:
            do = "import a model that was trained on people: results of this one go to no other machine"
            yield look(part, f"{says}; it is a demonstration, trained on phantoms", do)
        else:
            yield good(part, says)


def _require_digests(card: Card, folder: Path) -> None:
    """Raises ModelError for a file that is not what the card says."""
    for weights in card.weight_files().values():
        with open(folder / weights.file, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != weights.sha256:
                raise ModelError(f"{folder / weights.file}: altered: its SHA-256 is not the card's")
