"""What a watch says."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a watch stands, the worst last; TOO_FEW is no answer."""

    TOO_FEW = "too_few"
    OK = "ok"
    WARN = "warn"
    ALARM = "alarm"


@dataclass(frozen=True)
class Assessment:
    """What one watch says of one fact.

    watch: "distribution", "mix", "new value", "control chart", "positive rate", "refusals", "turnaround", "queue",
    "shadow model", "failures" or "delivery age".
    fact: a name of `studies.NUMBERS` or `studies.WORDS`, a reason code, or what else the watch is about.
    scanner: the stream of studies, "" for all of the model's studies; of a new value that value, as the header has it.
    statistic: the name of the value, such as "D".  value, threshold: None if there is none; beyond the threshold the
    level changes.  sentence: the same in words, without patients.
    (watch, fact, scanner) is unique within one call of `assess`.
    """

    watch: str
    fact: str
    scanner: str
    level: Level
    statistic: str
    value: float | None
    threshold: float | None
    sentence: str
