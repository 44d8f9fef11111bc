"""The loop guard's rule: which images this node made or had a part in, told from the equipment that they name.

A PACS may route them back. They are never analysed. The site can also name senders from which they are not stored.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from config.settings import ReportSettings

Device = tuple[str, str]
"""Manufacturer and Manufacturer's Model Name, without padding."""


@dataclass(frozen=True)
class OwnEquipment:
    """manufacturer, device_name: of this node, as its reports name it."""

    manufacturer: str
    device_name: str

    @classmethod
    def of(cls, report: ReportSettings) -> "OwnEquipment":
        """The node of these settings."""
        return cls(report.manufacturer, report.device_name)

    def had_a_part(self, device: Device, contributors: Iterable[Device]) -> bool:
        """True if the node made an image or contributed to it.

        device: what made the image. contributors: of its Contributing Equipment Sequence. A contribution names the
        algorithm as its model, so only its manufacturer is compared. A contributor that is the device which made the
        image is passed over: a scanner of the same manufacturer may name itself there.
        """
        if device == (self.manufacturer, self.device_name):
            return True
        return any(one[0] == self.manufacturer and one != device for one in contributors)
