"""How often readers agree with a model, with intervals. The readers saw its result, so this is not its accuracy."""

from collections.abc import Iterable
from dataclasses import dataclass

from inference.evaluation.intervals import Interval, wilson


@dataclass(frozen=True)
class Judged:
    """One reader's verdict on one result.

    agrees: None if the reader could not say. positive: what the model said; None if it gave no finding.
    case: name of the case, to count cases.
    """

    case: str
    reader: str
    model: str
    agrees: bool | None
    positive: bool | None


@dataclass(frozen=True)
class Agreement:
    """Of one group of verdicts. share: 0 to 1, of those that say anything; None if none does."""

    name: str
    verdicts: int
    cases: int
    agree: int
    disagree: int
    cannot_say: int
    share: float | None
    interval: Interval | None


def agreement(name: str, judged: Iterable[Judged]) -> Agreement:
    """How often the readers agree, of the verdicts that say so or not; Wilson's interval.

    Several verdicts on one case count each, which makes the interval somewhat too narrow.
    """
    rows = list(judged)
    agree, disagree = sum(row.agrees is True for row in rows), sum(row.agrees is False for row in rows)
    said = agree + disagree
    share = agree / said if said else None
    cases = len({row.case for row in rows})
    return Agreement(name, len(rows), cases, agree, disagree, len(rows) - said, share, wilson(agree, said))


def agreements(judged: Iterable[Judged]) -> list[Agreement]:
    """In all, of positive and of negative results, of those without a finding, of each model and of each reader."""
    rows = list(judged)
    groups: list[tuple[str, list[Judged]]] = [("all", rows)]
    for sign, positive in (("positive", True), ("negative", False), ("no finding", None)):
        groups.append((f"the model says {sign}", [row for row in rows if row.positive is positive]))
    for model in sorted({row.model for row in rows}):
        groups.append((f"model {model}", [row for row in rows if row.model == model]))
    for reader in sorted({row.reader for row in rows}):
        groups.append((f"reader {reader}", [row for row in rows if row.reader == reader]))
    return [agreement(name, found) for name, found in groups if found or name == "all"]
