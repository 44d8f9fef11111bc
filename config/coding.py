"""Coded concepts: what a number or a statement is about, in words that other systems share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """A coded concept: what the value means in its scheme, such as ("39607008", "SCT", "Lung").

    scheme: "DCM", "SCT", "LN", "UCUM", or a private one that begins with "99".
    meaning: what a person reads, at most 64 characters.
    """

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        for name, longest in (("value", 64), ("scheme", 16), ("meaning", 64)):
            text = getattr(self, name)
            if not text or len(text) > longest or text != text.strip() or not text.isprintable() or "\\" in text:
                raise ValueError(f"{name}: expected 1 to {longest} printable characters, found {text!r}")

    def is_same(self, other: "Code") -> bool:
        """True for the same concept; its meaning is only how it is called."""
        return (self.value, self.scheme) == (other.value, other.scheme)


POSITIVE = Code("10828004", "SCT", "Positive")
NEGATIVE = Code("260385009", "SCT", "Negative")


def is_positive(interpretation: Code | None) -> bool | None:
    """True if positive, False if negative, None for none or any other."""
    if interpretation is None or not (interpretation.is_same(POSITIVE) or interpretation.is_same(NEGATIVE)):
        return None
    return interpretation.is_same(POSITIVE)


LUNG = Code("39607008", "SCT", "Lung")
BILATERAL = Code("51440002", "SCT", "Bilateral")
VOLUME = Code("118565006", "SCT", "Volume")
MILLILITRE = Code("mL", "UCUM", "milliliter")

_PRINTED_UNITS = {"[hnsf'U]": "HU", "1": ""}


def unit_text(ucum: str) -> str:
    """A UCUM unit as people print it: "HU" for "[hnsf'U]", nothing for "1"; without the braces of an annotation."""
    return _PRINTED_UNITS.get(ucum, ucum.strip("{}"))


FORMER_FINDING = Code("840539006", "SCT", "COVID-19")
"""What `probability` and `positive` of an index's results were about while they were columns."""

UNCALIBRATED_OUTPUT = Code("RAW_OUTPUT", "99DICOMNODE", "Output before calibration")
"""What a model gave, in percent, where a site's calibration made another number of it."""
