"""Do the shadow model and the one that reports say the same of the same studies?"""

from collections.abc import Sequence

import numpy as np

from dicom_node.watch.assessment import Assessment, Level
from dicom_node.watch.distributions import DECILES, level_of
from dicom_node.watch.reference import WHOLE
from dicom_node.watch.statistics import binned, chi_square, jensen_shannon
from dicom_node.watch.thresholds import FEWEST, JS_ALARM, JS_WARN
from dicom_node.watch.wording import studies as count_of


def against_shadow(pairs: Sequence[tuple[float, float]]) -> Assessment:
    """The Jensen-Shannon divergence of both models' probabilities, over the tenths of all of them.

    pairs: of each study of the window, the probability of the model that reports and of its shadow.
    """
    if len(pairs) < FEWEST:
        sentence = f"Probability beside the shadow model: {count_of(len(pairs))} of both, and {FEWEST} are needed."
        return _assessment(Level.TOO_FEW, "studies", float(len(pairs)), float(FEWEST), sentence)
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    edges = np.unique(np.quantile([*ours, *theirs], DECILES))
    counts = binned(edges, ours), binned(edges, theirs)
    divergence, p = jensen_shannon(*counts), chi_square(*map(_named, counts))
    level = level_of(divergence, JS_WARN, JS_ALARM, p)
    sentence = (
        f"Probability beside the shadow model: median {np.median(ours):.2f}, of the shadow "
        f"{np.median(theirs):.2f}, of the same {count_of(len(pairs))}; divergence {divergence:.3f} bits, p {p:.2g}. "
        f"An alarm begins at {JS_ALARM:g}."
    )
    return _assessment(level, "JS, bits", divergence, JS_ALARM, sentence)


def _named(counts: Sequence[int]) -> dict[str, int]:
    return {str(place): count for place, count in enumerate(counts) if count}


def _assessment(level: Level, statistic: str, value: float, threshold: float, sentence: str) -> Assessment:
    return Assessment("shadow model", "probability", WHOLE, level, statistic, value, threshold, sentence)
