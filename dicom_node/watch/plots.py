"""Figures of a watch, for the extra `evaluate`: the reference against the window, and charts from study to study."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dicom_node.watch import wording
from dicom_node.watch.charts import chart
from dicom_node.watch.rates import rate_charts
from dicom_node.watch.reference import WHOLE, Reference
from dicom_node.watch.studies import MEASURED, NUMBERS, WORDS, Study, numbers, words
from dicom_node.watch.thresholds import CUSUM_LIMIT
from dicom_node.watch.watches import in_window, stream
from inference.evaluation.plots import BLUE, GREY, ORANGE, RED, WIDE, axes_of, rendered, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS, MOST_WORDS = 24, 12


def draw(reference: Reference, studies: Sequence[Study], folder: Path) -> list[Path]:
    """Draw every fact of every stream, as PNG and SVG, up to the latest study; returns the files.

    studies: as for `assess`, at least one.  The files are numbered by stream, because a scanner's name comes from the
    network; the titles have the names.
    Raises MissingExtra without matplotlib, OSError if the folder cannot be written.
    """
    now = max(study.when for study in studies)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, files in _all(reference, studies, now):
        for form, content in files.items():
            paths.append(folder / f"{name}.{form}")
            paths[-1].write_bytes(content)
    return paths


def _all(reference: Reference, studies: Sequence[Study], now: datetime) -> Iterator[tuple[str, dict[str, bytes]]]:
    yield "positive-rate", draw_rate(reference, studies, now)
    for number, (scanner, baseline) in enumerate(sorted(reference.baselines.items())):
        facts = [fact for fact, values in baseline.numbers.items() if values] + (list(WORDS) if not number else [])
        for fact in facts:
            yield f"{fact}-{number}", draw_distribution(reference, studies, now, fact, scanner)
        for fact in MEASURED:
            if scanner != WHOLE and baseline.numbers[fact]:
                yield f"{fact}-{number}-chart", draw_chart(reference, studies, now, fact, scanner)


def draw_distribution(
    reference: Reference, studies: Sequence[Study], now: datetime, fact: str, scanner: str = WHOLE
) -> dict[str, bytes]:
    """A fact's shares in the reference and in the window, as {"png": ..., "svg": ...}.

    studies, now: as for `assess`.  fact: of `studies.NUMBERS`, or of `studies.WORDS`, which are of all scanners.
    Raises MissingExtra without matplotlib, KeyError for a stream or a fact that is not in the reference.
    """
    baseline = reference.baselines[scanner]
    window = in_window([study for study in stream(reference, studies, scanner) if study.accepted], now)
    with style():
        figure, axes = axes_of(WIDE, title=_title(fact, scanner), x=_label(fact), y="share of the studies")
        if fact in NUMBERS:
            _histograms(axes, baseline.numbers[fact], numbers(window, fact))
        else:
            _bars(axes, baseline.words[fact], words(window, fact))
        axes.legend()
        return rendered(figure)


def draw_chart(
    reference: Reference, studies: Sequence[Study], now: datetime, fact: str, scanner: str
) -> dict[str, bytes]:
    """The EWMA of a measured fact over the window with its limits. Arguments, result and errors as above."""
    window = in_window([study for study in stream(reference, studies, scanner) if study.accepted], now)
    values = numbers(window, fact)
    deviations, limit = chart(reference.baselines[scanner].numbers[fact], values)
    with style():
        figure, axes = axes_of(WIDE, title=_title(fact, scanner), x="study of the window", y="EWMA, SD")
        axes.plot(np.arange(1, len(values) + 1), deviations, color=BLUE)
        _limits(axes, -limit, limit)
        return rendered(figure)


def draw_rate(reference: Reference, studies: Sequence[Study], now: datetime) -> dict[str, bytes]:
    """The CUSUMs of positive results over the window, the one downwards drawn below 0."""
    window = in_window([study for study in stream(reference, studies, WHOLE) if study.accepted], now)
    charts = rate_charts(reference.baselines[WHOLE], [study.positive for study in window if study.positive is not None])
    with style():
        figure, axes = axes_of(WIDE, title="positive results", x="study of the window", y="CUSUM, log-likelihood ratio")
        axes.plot(charts["up"], color=ORANGE, label="more of them")
        axes.plot(-charts["down"], color=BLUE, label="fewer")
        _limits(axes, -CUSUM_LIMIT, CUSUM_LIMIT)
        axes.legend()
        return rendered(figure)


def _histograms(axes: Axes, known: Sequence[float], found: Sequence[float]) -> None:
    edges = np.histogram_bin_edges(np.concatenate((known, found)), bins=BINS)
    for values, colour, label in ((known, GREY, "reference"), (found, BLUE, "window")):
        weights = np.full(len(values), 1 / max(1, len(values)))
        axes.hist(values, list(edges), weights=weights, color=colour, alpha=0.5, label=f"{label}, {len(values)}")


def _bars(axes: Axes, known: Mapping[str, int], found: Mapping[str, int]) -> None:
    names = [name for name, _ in (Counter(known) + Counter(found)).most_common(MOST_WORDS)]
    places = np.arange(len(names))
    for counts, colour, label, aside in ((known, GREY, "reference", -0.2), (found, BLUE, "window", 0.2)):
        total = max(1, sum(counts.values()))
        shares = [counts.get(name, 0) / total for name in names]
        axes.bar(places + aside, shares, 0.4, color=colour, label=f"{label}, {sum(counts.values())}")
    axes.set_xticks(places, names, rotation=20, ha="right")


def _limits(axes: Axes, *limits: float) -> None:
    for limit in limits:
        axes.axhline(limit, color=RED, linestyle="--", linewidth=1)


def _title(fact: str, scanner: str) -> str:
    return f"{wording.name(fact)}, {scanner or 'all scanners'}"


def _label(fact: str) -> str:
    name, unit = wording.FACTS[fact]
    return f"{name},{unit}" if unit else name
