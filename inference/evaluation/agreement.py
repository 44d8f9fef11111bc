"""How often readers or labels agree with a model, with intervals. Readers saw its result: this is not its accuracy."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from inference.evaluation.intervals import Interval, Z, wilson

FEWEST = 50
"""Verdicts that say anything, below which a rate would mislead: only counts are given."""


@dataclass(frozen=True)
class Judged:
    """One reader's verdict on one result, or a label of its scan.

    agrees: None if the reader could not say. positive: what the model said; None if it gave no finding.
    label: whether the reader calls the scan positive; None if that is not known.
    case: name of the case, to count cases. groups: by title, the subgroup that the scan is in, such as its scanner.
    result: number of the result.
    """

    case: str
    reader: str
    model: str
    agrees: bool | None
    positive: bool | None
    label: bool | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    result: int | None = None


@dataclass(frozen=True)
class Agreement:
    """Of one group of verdicts.

    share: 0 to 1, of those that say anything; kappa: Cohen's, of the model's sign and the readers'. None if fewer than
    FEWEST say anything, or if it is not defined.
    """

    name: str
    verdicts: int
    cases: int
    agree: int
    disagree: int
    cannot_say: int
    share: float | None
    interval: Interval | None
    kappa: float | None
    kappa_interval: Interval | None


def agreement(name: str, judged: Iterable[Judged]) -> Agreement:
    """How often the readers agree, of the verdicts that say so or not; Wilson's interval.

    Several verdicts on one case count each, which makes the interval somewhat too narrow.
    """
    rows = list(judged)
    agree, disagree = sum(row.agrees is True for row in rows), sum(row.agrees is False for row in rows)
    said = agree + disagree
    enough = said >= FEWEST
    cases = len({row.case for row in rows})
    kappa, of_kappa = cohens_kappa(rows)
    return Agreement(
        name,
        len(rows),
        cases,
        agree,
        disagree,
        len(rows) - said,
        agree / said if enough else None,
        wilson(agree, said) if enough else None,
        kappa,
        of_kappa,
    )


def cohens_kappa(rows: Sequence[Judged]) -> tuple[float | None, Interval | None]:
    """Agreement of the model's sign with the readers' beyond chance, with its large-sample interval.

    None for fewer than FEWEST verdicts with both, or if both always say the same one thing.
    Source: Cohen 1960; Fleiss, Cohen and Everitt 1969 for the standard error.
    """
    pairs = [(row.positive, row.label) for row in rows if row.positive is not None and row.label is not None]
    if len(pairs) < FEWEST:
        return None, None
    signs = (False, True)
    share = {(i, j): pairs.count((i, j)) / len(pairs) for i in signs for j in signs}
    model = {i: sum(share[i, j] for j in signs) for i in signs}
    reader = {j: sum(share[i, j] for i in signs) for j in signs}
    chance = sum(model[i] * reader[i] for i in signs)
    if chance == 1.0:
        return None, None
    kappa = (sum(share[i, i] for i in signs) - chance) / (1 - chance)
    agreed = sum(share[i, i] * (1 - (model[i] + reader[i]) * (1 - kappa)) ** 2 for i in signs)
    apart = (1 - kappa) ** 2 * sum(share[i, j] * (reader[i] + model[j]) ** 2 for i in signs for j in signs if i != j)
    variance = (agreed + apart - (kappa - chance * (1 - kappa)) ** 2) / (len(pairs) * (1 - chance) ** 2)
    half = Z * math.sqrt(max(0.0, variance))
    return kappa, Interval(max(-1.0, kappa - half), min(1.0, kappa + half), "Fleiss, Cohen and Everitt")


def agreements(judged: Iterable[Judged]) -> list[Agreement]:
    """In all, of positive and of negative results, of those without a finding, of each model, reader and subgroup."""
    rows = list(judged)
    groups: list[tuple[str, list[Judged]]] = [("all", rows)]
    for sign, positive in (("positive", True), ("negative", False), ("no finding", None)):
        groups.append((f"the model says {sign}", [row for row in rows if row.positive is positive]))
    for model in sorted({row.model for row in rows}):
        groups.append((f"model {model}", [row for row in rows if row.model == model]))
    for reader in sorted({row.reader for row in rows}):
        groups.append((f"reader {reader}", [row for row in rows if row.reader == reader]))
    groups += _subgroups(rows)
    return [agreement(name, found) for name, found in groups if found or name == "all"]


def _subgroups(rows: Sequence[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    found: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for row in rows:
        for title, value in row.groups.items():
            found[title, value].append(row)
    for title, value in sorted(found):
        yield f"{title} {value}", found[title, value]


def disagreements(judged: Iterable[Judged]) -> list[Judged]:
    """What a person should look at again: every verdict that disagrees, those on positive results first."""
    apart = [row for row in judged if row.agrees is False]
    return sorted(apart, key=lambda row: (row.positive is not True, row.case, row.reader))
