"""Control charts: has something moved since the reference, study by study?"""

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np

from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.distributions import too_few
from dicom_node.watch.reference import Baseline
from dicom_node.watch.statistics import Floats, ewma, ewma_sd, normal_scores
from dicom_node.watch.studies import MEASURED, NUMBERS, Study
from dicom_node.watch.thresholds import EWMA_LAMBDA, EWMA_LIMIT, FEWEST, RECENT
from dicom_node.watch.wording import amount, name, start
from dicom_node.watch.wording import studies as count_of


def measured_charts(baseline: Baseline, studies: list[Study], scanner: str, now: datetime) -> Iterator[Assessment]:
    """HU of air, windpipe and lungs, noise and lung volume of one stream: an EWMA of normal scores."""
    for fact, number in MEASURED.items():
        known = baseline.numbers[fact]
        found = [study for study in studies if number(study) is not None]
        if len(known) < FEWEST or not found:
            yield too_few("control chart", fact, scanner, len(known), len(found))
        else:
            yield _assessment(fact, known, found, scanner, now)


def chart(known: Sequence[float], values: Sequence[float]) -> tuple[Floats, float]:
    """The EWMA after each value in standard deviations of the chart, and its limit. known: sorted."""
    scores = normal_scores(known, values)
    return ewma(scores, EWMA_LAMBDA) / ewma_sd(EWMA_LAMBDA, len(known)), EWMA_LIMIT


def _assessment(fact: str, known: Sequence[float], found: list[Study], scanner: str, now: datetime) -> Assessment:
    values = [value for study in found if (value := NUMBERS[fact](study)) is not None]
    deviations, limit = chart(known, values)
    recent = np.array([now - study.when <= RECENT for study in found])
    worst = float(np.abs(deviations[recent]).max()) if recent.any() else float(abs(deviations[-1]))
    level = Level.ALARM if worst > limit else Level.OK
    latest, before = (amount(fact, float(np.median(each))) for each in (values[-20:], known))
    sentence = f"{start(name(fact))}: median {latest} in the last {count_of(len(values[-20:]))}, {before} in the "
    sentence += f"reference; the chart reached {worst:.1f} SD. An alarm begins at {limit:g}."
    return Assessment("control chart", fact, scanner, level, "EWMA, SD", worst, limit, sentence)
