"""What a site's studies looked like when the watching began: frozen, and named by a digest."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise

from dicom_node.watch.studies import NUMBERS, WORDS, Study, numbers, words
from dicom_node.watch.thresholds import FEWEST, REFERENCE_PERIOD, REFERENCE_STUDIES

WHOLE = ""  # the stream of all of a model's studies
OTHERS = "other scanners"  # the stream of the scanners that have too few studies for their own
FORM = 1  # of the JSON


class TooFewStudies(ValueError):
    """There are too few studies for a reference."""


@dataclass(frozen=True)
class Baseline:
    """The reference of one stream of studies.

    studies, arrived: how many were analysed, and how many there were with the others.  numbers: the sorted values of
    each fact, of accepted studies.  words: how often each word occurred.  judged, positives: results that are positive
    or negative, and the positive ones.  reasons: how often each reason code occurred.
    """

    studies: int
    arrived: int
    numbers: Mapping[str, tuple[float, ...]]
    words: Mapping[str, Mapping[str, int]]
    judged: int
    positives: int
    reasons: Mapping[str, int]

    @classmethod
    def of(cls, studies: Sequence[Study]) -> "Baseline":
        """What the watches need of the first 500 accepted studies, and of the refused ones among them."""
        taken = _first(studies)
        accepted = [study for study in taken if study.accepted]
        return cls(
            studies=len(accepted),
            arrived=len(taken),
            numbers={fact: tuple(sorted(numbers(accepted, fact))) for fact in NUMBERS},
            words={fact: dict(sorted(words(accepted, fact).items())) for fact in WORDS},
            judged=sum(study.positive is not None for study in accepted),
            positives=sum(study.positive is True for study in accepted),
            reasons=dict(sorted(Counter(study.reason for study in taken if study.reason).items())),
        )


@dataclass(frozen=True)
class Reference:
    """The reference of one model at one site.

    first, last: the times of the first and the last study in it.  baselines: by stream: WHOLE, each scanner with
    enough studies, and OTHERS if the rest have enough together.
    """

    first: datetime
    last: datetime
    baselines: Mapping[str, Baseline]

    @classmethod
    def of(cls, studies: Sequence[Study]) -> "Reference":
        """The reference that studies of one model make: those of the first 60 days, the first 500 of each stream.

        A site with fewer than 150 accepted ones in 60 days takes as many days as it needs.
        studies: in any order.  Raises TooFewStudies below 150 accepted ones.
        """
        taken = _of_the_period(studies)
        accepted = _accepted(taken)
        if accepted < FEWEST:
            raise TooFewStudies(
                f"a reference needs {FEWEST} analysed studies, and there are {accepted}; "
                f"wait for {FEWEST - accepted} more"
            )
        whole = Baseline.of(taken)
        streams = {WHOLE: whole} | {name: Baseline.of(part) for name, part in _by_scanner(taken).items()}
        return cls(taken[0].when, taken[-1].when, streams)

    @classmethod
    def due(cls, studies: Sequence[Study], now: datetime) -> bool:
        """Whether the reference can be frozen: 150 studies, and 60 days are over or each scanner seen has its 500."""
        taken = _of_the_period(studies)
        if _accepted(taken) < FEWEST:
            return False
        counts = Counter(study.scanner for study in taken if study.accepted)
        return now - taken[0].when >= REFERENCE_PERIOD or min(counts.values()) >= REFERENCE_STUDIES

    def stream_of(self, study: Study) -> str:
        """The stream whose numbers a study is compared with."""
        return study.scanner if study.scanner != WHOLE and study.scanner in self.baselines else OTHERS

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        content = {"form": FORM, "first": self.first.isoformat(), "last": self.last.isoformat()}
        streams = {name: asdict(baseline) for name, baseline in self.baselines.items()}
        return json.dumps({**content, "baselines": streams}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Reference":
        """Read back what `to_json` wrote. Raises ValueError if it is something else."""
        try:
            content = json.loads(text)
            if content["form"] != FORM:
                raise ValueError(f"form {content['form']} of a reference, and this version reads {FORM}")
            baselines = {name: _baseline(fields) for name, fields in content["baselines"].items()}
            first, last = (datetime.fromisoformat(content[end]) for end in ("first", "last"))
            return cls(first, last, baselines)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no reference of the watches: {error!r}") from error


def _baseline(fields: dict[str, object]) -> Baseline:
    values = fields["numbers"]
    if not isinstance(values, dict):
        raise TypeError("numbers")
    return Baseline(**{**fields, "numbers": {fact: tuple(each) for fact, each in values.items()}})  # type: ignore[arg-type]


def gathered(studies: Sequence[Study]) -> int:
    """How many accepted studies a reference of these would be chosen from; it needs 150. studies: in any order."""
    return _accepted(_of_the_period(studies))


def _of_the_period(studies: Sequence[Study]) -> list[Study]:
    """The studies of 60 days, or of as many as it takes to have 150 accepted ones.

    They begin with the first study. But a study with a wrong date, or a trial of long ago, begins nothing: the studies
    after a gap of more than 60 days do, if those before it are too few.
    """
    runs = _runs(sorted(studies, key=lambda study: study.when))
    run = next((run for run in runs if _accepted(run) >= FEWEST), runs[-1])
    taken, accepted = list[Study](), 0
    for study in run:
        if study.when - run[0].when > REFERENCE_PERIOD and accepted >= FEWEST:
            break
        taken.append(study)
        accepted += study.accepted
    return taken


def _runs(ordered: list[Study]) -> list[list[Study]]:
    """The studies between the gaps; at least one run, which may be empty."""
    runs = [ordered[:1]]
    for before, study in pairwise(ordered):
        if study.when - before.when > REFERENCE_PERIOD:
            runs.append([])
        runs[-1].append(study)
    return runs


def _accepted(studies: Sequence[Study]) -> int:
    return sum(study.accepted for study in studies)


def _first(studies: Sequence[Study]) -> list[Study]:
    """Up to the last of the first 500 accepted ones."""
    taken, accepted = [], 0
    for study in studies:
        if accepted == REFERENCE_STUDIES:
            break
        taken.append(study)
        accepted += study.accepted
    return taken


def _by_scanner(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """The studies of each scanner with enough of them, and of all the others together.

    Those without a scanner's name are among the others, whatever their number: "" names the stream of all.
    """
    counts = Counter(study.scanner for study in studies if study.accepted and study.scanner != WHOLE)
    parts: dict[str, list[Study]] = {}
    for study in studies:
        name = study.scanner if counts[study.scanner] >= FEWEST else OTHERS
        parts.setdefault(name, []).append(study)
    return {name: part for name, part in parts.items() if _accepted(part) >= FEWEST}
