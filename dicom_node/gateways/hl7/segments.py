"""A message as segments of fields, repetitions, components and subcomponents, and how it is written."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dicom_node.gateways.hl7.encoding import COMPONENT, ESCAPE, FIELD, REPETITION, SUBCOMPONENT, Encoding

_INSIDE = (REPETITION, COMPONENT, SUBCOMPONENT)


class Place(NamedTuple):
    """Where a value stands in its segment, each counted from 1 as HL7 does."""

    field: int
    repetition: int = 1
    component: int = 1
    subcomponent: int = 1


@dataclass
class Segment:
    """One segment. values: by place; what is missing is empty."""

    name: str
    values: dict[Place, str] = field(default_factory=dict)

    def put(self, number: int, *components: str, repetition: int = 1) -> "Segment":
        """Set a field, or a repetition of it, from its components."""
        for component, text in enumerate(components, 1):
            self.values[Place(number, repetition, component)] = text
        return self

    def put_lines(self, number: int, lines: Iterable[str]) -> "Segment":
        """Set a field of type TX: each repetition is a line (HL7 v2.5.1, 2.A.79)."""
        for repetition, line in enumerate(lines, 1):
            self.put(number, line, repetition=repetition)
        return self

    def replace(self, number: int, component: int | None, subcomponent: int | None, text: str) -> None:
        """Put a text into a field, a component of it or a subcomponent, instead of all that stood there."""
        for place in list(self.values):
            if _covers(place, number, component, subcomponent):
                del self.values[place]
        self.values[Place(number, 1, component or 1, subcomponent or 1)] = text

    def write(self, encoding: Encoding) -> str:
        """The segment as text, without its end. Raises DoesNotFit."""
        texts = {p: encoding.escape(text, f"{self.name}-{p.field}") for p, text in self.values.items() if text}
        if self.name == "MSH":  # MSH-1 is the delimiter itself; MSH-2 names the others and is not escaped
            fields = [COMPONENT + REPETITION + ESCAPE + SUBCOMPONENT, *_split(texts, 3)]
        else:
            fields = _split(texts, 1)
        return FIELD.join([self.name, *fields])


def write_message(segments: Sequence[Segment], encoding: Encoding) -> bytes:
    """The message as bytes, each segment ended by a carriage return. Raises DoesNotFit."""
    return "".join(segment.write(encoding) + "\r" for segment in segments).encode(encoding.codec)


def _covers(place: Place, number: int, component: int | None, subcomponent: int | None) -> bool:
    if place.field != number or component is None:
        return place.field == number
    if (place.repetition, place.component) != (1, component):
        return False
    return subcomponent is None or place.subcomponent == subcomponent


def _split(texts: Mapping[Place, str], first: int) -> list[str]:
    """The fields from number `first` to the last that has a value."""
    last = max((place.field for place in texts), default=0)
    return [
        _join({tuple(p[1:]): text for p, text in texts.items() if p.field == number}, _INSIDE)
        for number in range(first, last + 1)
    ]


def _join(texts: Mapping[tuple[int, ...], str], delimiters: Sequence[str]) -> str:
    """The values below one place, by their numbers on the levels that `delimiters` separate."""
    if not texts or not delimiters:
        return "".join(texts.values())
    last = max(numbers[0] for numbers in texts)
    below = [{n[1:]: text for n, text in texts.items() if n[0] == number} for number in range(1, last + 1)]
    return delimiters[0].join(_join(part, delimiters[1:]) for part in below)
