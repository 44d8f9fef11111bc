"""The plug of the lung densitometry: it has no weights, so that its card is all there is to load."""

from pathlib import Path

from inference.densitometry.model import Densitometry
from inference.densitometry.settings import Settings
from inference.models.cards import CARD_FILE, Card
from inference.plug import DeviceChoice
from inference.suitability.policy import Policy


class DensitometryKind:
    """The kind of models that measure the density of the lungs."""

    def load(self, folder: Path, card: Card, device: DeviceChoice) -> Densitometry:
        """A densitometry by its card, always on the CPU. Raises ModelError naming a wrong key of the card."""
        where = str(folder / CARD_FILE)
        settings = Settings.from_table(card.settings, f"{where}: [settings]")
        return Densitometry(settings, Policy.from_table(card.suitability, f"{where}: [suitability]"))


PLUG = DensitometryKind()
