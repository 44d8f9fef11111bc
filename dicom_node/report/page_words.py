"""What the summary page says beside its pictures."""

from config.coding import unit_text
from dicom_node.report import wording
from dicom_node.report.frame import Origin
from dicom_node.report.naming import acquisition, verdict_slices
from dicom_node.report.planes import REGION_COLOUR
from dicom_node.report.study_words import study_statement
from dicom_node.report.typesetting import Paragraph
from inference.plug import Finding, Line, Measurement, Output
from inference.volume.ct_volume import CTVolume

WHITE = (240, 240, 240)
GREY = (165, 165, 165)
AMBER = (255, 190, 60)


_TONES = {"plain": (15, WHITE), "caution": (14, AMBER), "finding": (15, REGION_COLOUR)}


def paragraphs(finding: Finding, volume: CTVolume, origin: Origin) -> list[Paragraph]:
    """From what the number means down to what made it."""
    caution = finding.model.words.caution
    unstable = [wording.unstable(one) for one in finding.output.findings]
    return [
        *((words, 15, AMBER) for words in (study_statement(finding, origin), *unstable) if words),
        *([(caution, 14, AMBER)] if caution else []),
        *([(_published(finding, origin), 14, WHITE)] if finding.model.threshold is not None else []),
        *_change(origin),
        *((line.text, *_TONES[line.tone]) for line in finding.output.lines or _measured(finding.output)),
        (_analysed(volume, origin), 14, GREY),
        *([(verdict, 14, WHITE)] if (verdict := verdict_slices(finding, volume, origin)) else []),
        *([(wording.part_analysed(volume.part), 14, AMBER)] if volume.part else []),
        (_checks(finding), 14, GREY),
        (_model(finding), 13, GREY),
        (made_by(origin), 13, GREY),
    ]


def _change(origin: Origin) -> list[Paragraph]:
    """How the result differs from an earlier one; what may explain that apart from the patient stands out."""
    change = origin.context.change
    said = () if change is None else change.said
    return [(sentence, *_TONES["caution" if number else "plain"]) for number, sentence in enumerate(said)]


def _measured(output: Output) -> list[Line]:
    """The measurements, one a line, for a model that gives neither lines nor a table; then its remarks."""
    lines = [] if output.table else [Line(measured_text(one)) for one in output.measurements]
    return [*lines, *(Line(remark, "caution") for remark in output.remarks)]


def measured_text(measured: Measurement) -> str:
    """A measurement in words: what, where, and the number with its unit."""
    parts = (measured.site, measured.laterality, measured.topography, measured.derivation)
    words = [measured.concept.meaning, *(code.meaning for code in parts if code is not None)]
    return f"{', '.join(words)}: {measured.value:.{measured.decimals}f} {unit_text(measured.unit.value)}".rstrip()


def _published(finding: Finding, origin: Origin) -> str:
    model, context = finding.model, origin.context
    point = [p for p in context.operating_points if p.threshold == model.threshold][:1]
    sentences = wording.operating_points(point, model.threshold, context.prevalence)
    return " ".join(sentences) or "No operating point is published for this model."


def _analysed(volume: CTVolume, origin: Origin) -> str:
    slices, spacing_mm = volume.hu.shape[0], volume.spacing_mm[0]
    coverage = f"Coverage: {slices} slices, {slices * spacing_mm:.0f} mm, spacing {spacing_mm:.3g} mm."
    return f"{acquisition(volume, origin)} {coverage}"


def _checks(finding: Finding) -> str:
    return "Checks passed: " + (
        ", ".join(wording.check_name(check.code) for check in finding.output.checks) or "none recorded"
    )


def _model(finding: Finding) -> str:
    model = finding.model
    parts = [f"Model {model.name} {model.version}", f"profile {model.profile}" if model.profile else ""]
    digests = " / ".join(one.sha256[:8] for one in model.algorithms if one.sha256)
    verified = "" if model.verified else " (not verified)"
    parts.append(f"weights {digests}{verified}" if digests else "")
    return ", ".join(filter(None, parts))


def made_by(origin: Origin) -> str:
    """Which node made the object, and when."""
    context = origin.context
    created = context.created_in_zone_of(origin.first)
    zone = created.strftime("%z")
    moment = f"{created:%Y-%m-%d %H:%M} UTC{zone[:3]}:{zone[3:5]}"
    return f"{context.device_name} {context.software_version}, {moment}, revision {context.revision}"
