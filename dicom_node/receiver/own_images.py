"""Images that this node had a part in, told from their header: for senders that must not store them here."""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError

_MANUFACTURER, _MODEL, _CONTRIBUTORS = 0x00080070, 0x00081090, 0x0018A001
# What pydicom raises for bytes that are no data set. The instance was walked and found whole before.
_UNREADABLE = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError,
    NotImplementedError, OverflowError, RecursionError, struct.error,
)  # fmt: skip


@dataclass(frozen=True)
class OwnImages:
    """manufacturer, device_name: of this node, as its reports name it. refused_from: AE titles of those senders."""

    manufacturer: str
    device_name: str
    refused_from: frozenset[str]

    def refuses(self, calling_ae: str, path: Path) -> bool:
        """True for an image that this sender must not store. An unreadable header is not this rule's matter."""
        if calling_ae not in self.refused_from:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom's warnings quote values
                tags = [_MANUFACTURER, _MODEL, _CONTRIBUTORS]
                header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
                return self._is_own(header)
        except _UNREADABLE:
            return False

    def _is_own(self, header: Dataset) -> bool:
        contributors = header.get("ContributingEquipmentSequence") or []
        if any(str(item.get("Manufacturer", "")).strip() == self.manufacturer for item in contributors):
            return True
        made_by = (str(header.get("Manufacturer", "")).strip(), str(header.get("ManufacturerModelName", "")).strip())
        return made_by == (self.manufacturer, self.device_name)
