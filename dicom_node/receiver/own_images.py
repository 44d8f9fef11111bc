"""Images that this node had a part in, recognised by their headers: for senders that must not store them here."""

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset

from config.headers import UNREADABLE, bounded, quiet
from config.own_equipment import Device, OwnEquipment

_MANUFACTURER, _MODEL, _CONTRIBUTORS = 0x00080070, 0x00081090, 0x0018A001


@dataclass(frozen=True)
class OwnImages:
    """own: this node. refused_from: AE titles of those senders."""

    own: OwnEquipment
    refused_from: frozenset[str]

    def refuses(self, calling_ae: str, path: Path) -> bool:
        """True for an image that this sender must not store. An unreadable header is not this rule's concern."""
        if calling_ae not in self.refused_from:
            return False
        try:
            with quiet():
                header = read_equipment(path)
                contributors = map(device_of, header.get("ContributingEquipmentSequence") or [])
                return self.own.had_a_part(device_of(header), contributors)
        except (OSError, *UNREADABLE):
            return False


def read_equipment(path: Path) -> Dataset:
    """The elements of a file that name equipment. Raises what pydicom raises for bytes that are no data set."""
    with path.open("rb") as file:
        return pydicom.dcmread(
            bounded(file), stop_before_pixels=True, specific_tags=[_MANUFACTURER, _MODEL, _CONTRIBUTORS]
        )


def device_of(dataset: Dataset) -> Device:
    """What made an image, or contributed to it."""
    return str(dataset.get("Manufacturer", "")).strip(), str(dataset.get("ManufacturerModelName", "")).strip()
