"""What a recorded result says, by name, and whether another one says the same: for a replay, and for a canary."""

from collections.abc import Mapping
from dataclasses import dataclass

from storage.coded import Content

# The same input, model, device and versions give the same bytes; others add in a different order.
PROBABILITY_TOLERANCE = 1e-3
MEASUREMENT_TOLERANCE = 1e-3  # share of the measurement
PROBABILITY = "probability"
CHANGE = "change"

SURROUNDINGS = ("device", "precision", "versions")
COLUMNS = ("outcome", "reason_code", "pixel_digest", "model_digest", *SURROUNDINGS)


@dataclass(frozen=True)
class Replay:
    """A recorded result and the recomputed one.

    recorded, found: values by name: what it says, what it is of, and with what it was computed.
    """

    result_id: int
    series_instance_uid: str
    recorded: dict[str, object]
    found: dict[str, object]

    @property
    def differences(self) -> tuple[str, ...]:
        """Names of the values that are not the same."""
        names = dict.fromkeys([*self.recorded, *self.found])
        return tuple(name for name in names if self.recorded.get(name) != self.found.get(name))

    @property
    def agrees(self) -> bool:
        """Equal, or within the tolerances if device, precision or versions differ from those of the recorded result."""
        elsewhere = set(SURROUNDINGS) & set(self.differences)
        return not (self.breaches if elsewhere else self.differences)

    @property
    def breaches(self) -> tuple[str, ...]:
        """Names of the values that differ by more than another device may make them differ."""
        # The words of a change hold rounded numbers; the numbers themselves are compared too.
        allowed = {name for name in self.differences if self._is_close(name) or name.startswith(CHANGE)}
        return tuple(name for name in self.differences if name not in allowed.union(SURROUNDINGS))

    def _is_close(self, name: str) -> bool:
        recorded, found = self.recorded.get(name), self.found.get(name)
        if not isinstance(recorded, float) or not isinstance(found, float):
            return False
        allowed = PROBABILITY_TOLERANCE if name.startswith(PROBABILITY) else MEASUREMENT_TOLERANCE * abs(recorded)
        return abs(found - recorded) <= allowed


def values_of(row: Mapping[str, object]) -> dict[str, object]:
    """What a recorded result says, of what, and with what it was computed, by name. row: as `results.get_result`."""
    content = row["content"]
    assert isinstance(content, Content)  # noqa: S101 - as `get_result` says
    return {name: row[name] for name in COLUMNS} | said(content)


def said(content: Content) -> dict[str, object]:
    """What a result says, by name: `probability` and `positive` of its finding, and each measurement."""
    found: dict[str, object] = {}
    for number, finding in enumerate(content.findings, 1):
        of = "" if number == 1 else f" of {finding.concept.meaning}"
        found |= {f"{PROBABILITY}{of}": finding.certainty, f"positive{of}": finding.positive}
    return found | {measured.name: measured.value for measured in content.measurements}
