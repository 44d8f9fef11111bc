"""The sentences of the report: every word that a reader could act on."""

from collections.abc import Sequence

from inference.evaluation.prevalence import ppv_npv
from inference.finding import ModelIdentity, QualityCheck, Spread
from inference.models.cards import OperatingPoint
from inference.numerals import percent
from inference.plug import FindingByCode

RESEARCH = "For research use only. Not for diagnosis, treatment or any other clinical decision."
DEMONSTRATION = (
    "DEMONSTRATION MODEL: it was trained on synthetic phantoms only, so its output says nothing about this patient."
)
UNVERIFIED = "No model card pins these weights: nothing that was published about the model applies to them."
KEY_IMAGES = (
    "The slices with the most of the region that drove the model's output. That region is not the boundary of a lesion."
)
_ABBREVIATIONS = frozenset({"HU"})
_PREDICTIVE = "Predictive values depend on how common the disease is among those examined."

_SERIES_DESCRIPTION = "{subject} CT AI {what}, RESEARCH, not for diagnosis"
# The kind before the rest: lists of series, such as OHIF's, show some twenty characters.
_DEMONSTRATION_DESCRIPTION = "DEMO MODEL {what}: {subject}, RESEARCH, not for diagnosis"


def series_description(what: str, model: ModelIdentity | None) -> str:
    """Series Description, at most 64 characters, of one kind of result."""
    demonstration = model is not None and model.demonstration
    subject = "Chest" if model is None else model.words.subject
    return (_DEMONSTRATION_DESCRIPTION if demonstration else _SERIES_DESCRIPTION).format(subject=subject, what=what)[
        :64
    ]


def titled(title: str, model: ModelIdentity | None) -> str:
    """A title inside the report, marked if a demonstration model made it."""
    return f"{title} (DEMONSTRATION MODEL)" if model is not None and model.demonstration else title


def warnings_of(model: ModelIdentity | None) -> list[str]:
    """What must be said before anything else."""
    sentences = [RESEARCH]
    if model is not None and model.demonstration:
        sentences.append(DEMONSTRATION)
    elif model is not None and not model.verified:
        sentences.append(UNVERIFIED)
    return sentences


def threshold_text(threshold: float) -> str:
    """The threshold with at least two decimals and no more than it has."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else repr(threshold)


def coded_percent(certainty: float, threshold: float | None) -> str:
    """The percentage for machines. Below 1 and above 99, where a percent is much, it has one decimal: 0.1 to 99.9."""
    shown = percent(certainty, threshold)
    if shown[0] in "<>":
        return f"{min(max(100 * certainty, 0.1), 99.9):.1f}"
    return shown


def unstable(finding: FindingByCode) -> str:
    """How far harmless changes move the output if they decide its sign; empty if they do not."""
    spread = finding.unstable
    if spread is None:
        return ""
    moved = span(spread, finding.threshold)
    return (
        f"The sign is uncertain: harmless changes of the input move the output from {moved}, to both "
        f"sides of the threshold ({', '.join(spread.changes)})."
    )


def span(spread: Spread, threshold: float | None) -> str:
    """From where to where the output moves."""
    return f"{percent(spread.low, threshold)} to {percent(spread.high, threshold)} %"


def operating_points(points: Sequence[OperatingPoint], threshold: float | None, prevalence: float | None) -> list[str]:
    """What the card publishes about its thresholds, the one in use first, with the right names."""
    ordered = sorted(points, key=lambda point: (point.threshold != threshold, point.threshold))
    sentences = [_operating_point(point) for point in ordered]
    in_use = [point for point in ordered if point.threshold == threshold]
    if prevalence is not None and in_use:
        sentences.append(_at_prevalence(in_use[0], prevalence))
    if sentences:
        sentences.append(_PREDICTIVE)
    return sentences


def verdict_slices(used: int, count: int, lowest: str, highest: str) -> str:
    """Which slices the output was computed from.  lowest, highest: how the source calls the outermost two."""
    return f"The output rests on {used} of {count} slices, from {lowest} up to {highest}. The others did not count."


def acquisition(description: str, kernel: str, thickness_mm: float | None) -> str:
    """What was analysed: the series' own description, its kernel and its slice thickness."""
    kernel = f"kernel {kernel}" if kernel else "kernel not stated"
    thickness = f"slice thickness {thickness_mm:.3g} mm" if thickness_mm else "slice thickness not stated"
    series = f'Series "{description}"' if description else "Series without description"
    return f"{series}, {kernel}, {thickness}."


def part_analysed(part: str) -> str:
    """Which of the series' volumes this is about; empty for a whole series."""
    return f"The series holds several volumes. This one was analysed: {part}." if part else ""


def check_name(code: str) -> str:
    """A check's code as words."""
    return code if code in _ABBREVIATIONS else code.replace("_", " ").lower()


def checks_passed(checks: Sequence[QualityCheck]) -> str:
    """The quality checks that the series passed, in one text; empty if there were none."""
    if not checks:
        return ""
    return "Checks passed: " + " ".join(f"{check.code}: {check.sentence}" for check in checks)


def _operating_point(point: OperatingPoint) -> str:
    return (
        f'Operating point "{point.name}": at threshold {threshold_text(point.threshold)} sensitivity '
        f"{point.sensitivity:.3f}, specificity {point.specificity:.3f} ({point.source})."
    )


def _at_prevalence(point: OperatingPoint, prevalence: float) -> str:
    values = ppv_npv(point.sensitivity, point.specificity, prevalence)
    if values.ppv is None or values.npv is None:
        return f"Predictive values are not defined at a prevalence of {100 * prevalence:.3g} %."
    return (
        f"At this site's prevalence of {100 * prevalence:.3g} % that operating point would give a positive predictive "
        f"value of {values.ppv:.3f} and a negative predictive value of {values.npv:.3f}."
    )
