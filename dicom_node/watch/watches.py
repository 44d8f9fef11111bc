"""Has anything changed since the reference? Each watch answers for each fact and each stream of studies."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from dicom_node.watch.assessment import Assessment
from dicom_node.watch.charts import measured_charts
from dicom_node.watch.distributions import mixes, new_values, number_distributions
from dicom_node.watch.rates import positive_rate, refusals
from dicom_node.watch.reference import WHOLE, Reference
from dicom_node.watch.service import spans
from dicom_node.watch.studies import Study
from dicom_node.watch.thresholds import FEWEST, WINDOW


def assess(reference: Reference, studies: Sequence[Study], now: datetime) -> list[Assessment]:
    """Compare studies with the reference.

    studies: of the same model, in any order: all of the last 28 days, and the latest LOOK_BACK_STUDIES (600) if
        those are more. Studies of the reference itself and those after `now` are left out.
    Returns one Assessment for each watch, fact and stream, in a fixed order. A scanner that sent nothing in the last 28
    days, while others did, has none.
    """
    since = stream(reference, [study for study in studies if study.when <= now], WHOLE)
    return [*_of_all(reference, since, now), *_of_each_stream(reference, since, now)]


def stream(reference: Reference, studies: Sequence[Study], scanner: str) -> list[Study]:
    """The studies of a stream since the reference, in order."""
    since = sorted((study for study in studies if study.when > reference.last), key=lambda study: study.when)
    return [study for study in since if scanner in (WHOLE, reference.stream_of(study))]


def in_window(studies: list[Study], now: datetime) -> list[Study]:
    """The studies of the last 28 days, or the latest FEWEST if those are more. studies: in order."""
    first = sum(now - study.when > WINDOW for study in studies)
    return studies[min(first, max(0, len(studies) - FEWEST)) :]


def _of_all(reference: Reference, since: list[Study], now: datetime) -> Iterator[Assessment]:
    baseline = reference.baselines[WHOLE]
    arrived = in_window(since, now)
    accepted = in_window([study for study in since if study.accepted], now)
    yield from new_values(baseline, accepted)
    yield from mixes(baseline, accepted)
    yield from positive_rate(baseline, accepted, now)
    yield from refusals(baseline, arrived, now)
    yield from spans(baseline, accepted, now)


def _of_each_stream(reference: Reference, since: list[Study], now: datetime) -> Iterator[Assessment]:
    seen = {reference.stream_of(study) for study in since if now - study.when <= WINDOW}
    # If nothing came from anywhere, no scanner was retired: the node or the model stood still.
    streams = [name for name in reference.baselines if name != WHOLE and (name in seen or not seen)]
    parts: dict[str, list[Study]] = {name: [] for name in streams}
    for study in since:
        stream = reference.stream_of(study)
        if study.accepted and stream in parts:
            parts[stream].append(study)
    for name, part in parts.items():
        window = in_window(part, now)
        yield from number_distributions(reference.baselines[name], window, name)
        yield from measured_charts(reference.baselines[name], window, name, now)
