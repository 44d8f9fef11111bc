"""Do the studies of the window come from the reference's distributions? And is there a value never seen before?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.reference import WHOLE, Baseline
from dicom_node.watch.statistics import (
    benjamini_hochberg,
    binned,
    chi_square,
    kolmogorov_smirnov,
    population_stability,
)
from dicom_node.watch.studies import ACQUISITION, WORDS, Study, numbers, words
from dicom_node.watch.thresholds import (
    FEWEST,
    KS_ALARM,
    KS_WARN,
    NEW_VALUES_NAMED,
    NEW_VALUES_SHOWN,
    PSI_ALARM,
    PSI_WARN,
    Q,
)
from dicom_node.watch.wording import amount, name, start
from dicom_node.watch.wording import studies as count_of

DECILES = np.arange(0.1, 0.95, 0.1)


class _Compared(NamedTuple):
    """One fact in reference and window. psi: None if it is not asked for."""

    fact: str
    distance: float
    psi: float | None
    p: float
    said: str


def number_distributions(baseline: Baseline, studies: list[Study], scanner: str) -> Iterator[Assessment]:
    """Acquisition facts, age and probability of one stream, by Kolmogorov and Smirnov; the probability by PSI, too."""
    compared = []
    for fact in (*ACQUISITION, "probability"):
        known, found = baseline.numbers[fact], numbers(studies, fact)
        if min(len(known), len(found)) < FEWEST:
            yield too_few("distribution", fact, scanner, len(known), len(found))
        else:
            compared.append(_compared(fact, known, found))
    for each, q in zip(compared, benjamini_hochberg([each.p for each in compared]), strict=True):
        yield _number_assessment(each, q, scanner)


def _compared(fact: str, known: Sequence[float], found: list[float]) -> _Compared:
    distance, p = kolmogorov_smirnov(known, found)
    psi = None
    if fact == "probability":
        edges = np.unique(np.quantile(known, DECILES))
        psi = population_stability(binned(edges, known), binned(edges, found))
    now, before = (amount(fact, float(np.median(values))) for values in (found, known))
    said = f"{start(name(fact))}: median {now} in {count_of(len(found))}, {before} in the reference"
    return _Compared(fact, distance, psi, p, said)


def _number_assessment(compared: _Compared, q: float, scanner: str) -> Assessment:
    distance, psi = compared.distance, compared.psi or 0.0
    by_psi = psi / PSI_ALARM > distance / KS_ALARM
    level = level_of(distance, KS_WARN, KS_ALARM, q) if not by_psi else level_of(psi, PSI_WARN, PSI_ALARM, q)
    statistic, value, threshold = ("PSI", psi, PSI_ALARM) if by_psi else ("D", distance, KS_ALARM)
    both = f"D {distance:.2f}" + ("" if compared.psi is None else f", PSI {psi:.2f}")
    sentence = f"{compared.said}; {both}, q {q:.2g}. An alarm begins at {statistic} {threshold:g}."
    return Assessment("distribution", compared.fact, scanner, level, statistic, value, threshold, sentence)


def level_of(value: float, warn: float, alarm: float, q: float) -> Level:
    """An effect must be large, and not by chance."""
    if q >= Q or value <= warn:
        return Level.OK
    return Level.ALARM if value > alarm else Level.WARN


def mixes(baseline: Baseline, studies: list[Study]) -> Iterator[Assessment]:
    """The shares of scanners, kernels, software versions and sexes, by PSI and chi-square."""
    compared = []
    for fact in WORDS:
        known, found = baseline.words[fact], words(studies, fact)
        if min(sum(known.values()), sum(found.values())) < FEWEST:
            yield too_few("mix", fact, WHOLE, sum(known.values()), sum(found.values()))
        else:
            compared.append((fact, known, found, chi_square(known, found)))
    for (fact, known, found, _), q in zip(compared, benjamini_hochberg([each[3] for each in compared]), strict=True):
        everything = sorted({*known, *found})
        before, now = ([counts.get(word, 0) for word in everything] for counts in (known, found))
        psi = population_stability(before, now)
        sentence = f"{start(name(fact))}: {_most_changed(everything, before, now)}; PSI {psi:.2f}, q {q:.2g}. "
        sentence += f"An alarm begins at PSI {PSI_ALARM:g}."
        yield Assessment("mix", fact, WHOLE, level_of(psi, PSI_WARN, PSI_ALARM, q), "PSI", psi, PSI_ALARM, sentence)


def _most_changed(everything: list[str], before: list[int], now: list[int]) -> str:
    shares = np.array(before) / sum(before), np.array(now) / sum(now)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    return f"{everything[most]} in {shares[1][most]:.0%} of {count_of(sum(now))}, {shares[0][most]:.0%} before"


def new_values(baseline: Baseline, studies: list[Study]) -> Iterator[Assessment]:
    """Words that the reference does not have: one Assessment for each, or one for all of a kind if there are many.

    studies: analysed ones, as in the reference: what is always refused may come from a scanner that it cannot have.
    """
    for fact in WORDS:
        of_known = [study for study in studies if fact in ("scanner", "sex") or _known_scanner(baseline, study)]
        new = {word: count for word, count in words(of_known, fact).items() if word not in baseline.words[fact]}
        told = {WHOLE: sum(new.values())} if len(new) > NEW_VALUES_SHOWN else new
        for word, count in sorted(told.items()):
            said = f"{word} is" if word else _and_more(new)
            sentence = f"{start(name(fact))} {said} not in the reference and came with {count_of(count)}."
            yield Assessment("new value", fact, word, Level.ALARM, "studies", float(count), 0.0, sentence)
        if not new:
            sentence = f"{start(name(fact))}: no value that the reference does not have."
            yield Assessment("new value", fact, WHOLE, Level.OK, "studies", 0.0, 0.0, sentence)


def _and_more(new: Mapping[str, int]) -> str:
    commonest = sorted(new, key=lambda word: (-new[word], word))[:NEW_VALUES_NAMED]
    return f"{'; '.join(commonest)} and {len(new) - len(commonest)} more are"


def _known_scanner(baseline: Baseline, study: Study) -> bool:
    """All kernels of a new scanner are new: the scanner is said, and they are not."""
    return study.device in baseline.words["scanner"]


def too_few(watch: str, fact: str, scanner: str, known: int, found: int) -> Assessment:
    """What a watch says that needs FEWEST values in the reference and now."""
    what = FACT_NAMES.get(fact) or name(fact)
    sentence = f"{start(what)}: {count_of(known)} in the reference and {found} now, and {FEWEST} of each are needed."
    return Assessment(watch, fact, scanner, Level.TOO_FEW, "studies", float(min(known, found)), float(FEWEST), sentence)


FACT_NAMES = {"positive": "positive results"}
