"""What a model is given to compare a result with an earlier one of the same patient.

Like all that a model sees, it names nobody: days, numbers, and how the scans were made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol, runtime_checkable

from inference.plug import Measurement
from inference.volume.ct_volume import SeriesHeader


@dataclass(frozen=True)
class Scan:
    """How a scan was made, as far as measurements depend on it; empty or None if the header does not say."""

    kernel: str = ""
    thickness_mm: float | None = None
    scanner: str = ""
    contrast: bool = False

    @classmethod
    def of(cls, header: SeriesHeader) -> "Scan":
        """How a series was made."""
        scanner = f"{header.manufacturer} {header.manufacturer_model}".strip()
        return cls(header.kernel, header.slice_thickness_mm, scanner, header.contrast)

    def agreement(self, other: "Scan") -> int:
        """In how much two scans were made alike: the number of equal fields."""
        return sum(getattr(self, name) == getattr(other, name) for name in self.__dataclass_fields__)


@dataclass(frozen=True)
class Examination:
    """One result. day: of the scan.  measurements: as the model gave them.  model: changes with it; not for readers."""

    day: date
    measurements: Sequence[Measurement]
    scan: Scan
    model: str


@runtime_checkable
class Compares(Protocol):
    """A loaded model that can say how a result differs from an earlier one of the same patient."""

    def compare(self, now: Examination, before: Examination) -> tuple[str, ...]:
        """The change in one sentence, then what may explain it apart from the patient, one sentence each.

        Depends on nothing but what it is given. Empty if nothing can be compared.
        """
