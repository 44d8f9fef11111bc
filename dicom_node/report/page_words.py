"""What the summary page says beside its pictures."""

import numpy as np

from dicom_node.report import wording
from dicom_node.report.frame import Origin
from dicom_node.report.naming import acquisition, verdict_slices
from dicom_node.report.planes import REGION_COLOUR
from dicom_node.report.study_words import study_statement
from dicom_node.report.typesetting import Paragraph
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume

WHITE = (240, 240, 240)
GREY = (165, 165, 165)
AMBER = (255, 190, 60)


def paragraphs(finding: Finding, volume: CTVolume, origin: Origin) -> list[Paragraph]:
    """From what the number means down to what made it."""
    return [
        *((words, 15, AMBER) for words in (study_statement(finding, origin), wording.unstable(finding)) if words),
        (
            "How sure the model is, not the probability of the disease. Other lung diseases can score as high.",
            14,
            AMBER,
        ),
        (_published(finding, origin), 14, WHITE),
        (_lungs(finding), 15, WHITE),
        *_region(finding, volume),
        (_analysed(volume, origin), 14, GREY),
        *([(verdict, 14, WHITE)] if (verdict := verdict_slices(finding, volume, origin)) else []),
        *([(wording.part_analysed(volume.part), 14, AMBER)] if volume.part else []),
        (_checks(finding), 14, GREY),
        (_model(finding), 13, GREY),
        (made_by(origin), 13, GREY),
    ]


def _published(finding: Finding, origin: Origin) -> str:
    model, context = finding.model, origin.context
    point = [p for p in context.operating_points if p.threshold == model.threshold][:1]
    sentences = wording.operating_points(point, model.threshold, context.prevalence)
    return " ".join(sentences) or "No operating point is published for this model."


def _lungs(finding: Finding) -> str:
    lungs = f"Lungs {finding.lung_volume_ml:.0f} mL"
    if finding.left_lung_ml > 0 or finding.right_lung_ml > 0:
        lungs += f" (right {finding.right_lung_ml:.0f}, left {finding.left_lung_ml:.0f})"
    return lungs


def _region(finding: Finding, volume: CTVolume) -> list[Paragraph]:
    if finding.localisation is None:
        return []
    if not finding.localisation.any():
        return [(wording.nothing_localised(finding), 14, AMBER)]
    words = f"Region that drove the model {np.count_nonzero(finding.localisation) * volume.voxel_ml:.0f} mL"
    inside, lungs = (int(np.count_nonzero(m)) for m in (finding.localisation & finding.lung_mask, finding.lung_mask))
    if lungs:
        words += f", {wording.share(inside, lungs)} % of the lungs"
    return [(words + ". Not a lesion boundary.", 15, REGION_COLOUR)]


def _analysed(volume: CTVolume, origin: Origin) -> str:
    slices, spacing_mm = volume.hu.shape[0], volume.spacing_mm[0]
    coverage = f"Coverage: {slices} slices, {slices * spacing_mm:.0f} mm, spacing {spacing_mm:.3g} mm."
    return f"{acquisition(volume, origin)} {coverage}"


def _checks(finding: Finding) -> str:
    return "Checks passed: " + (
        ", ".join(wording.check_name(check.code) for check in finding.checks) or "none recorded"
    )


def _model(finding: Finding) -> str:
    model = finding.model
    verified = "" if model.verified else " (not verified)"
    digests = f"weights {model.unet_sha256[:8]} / {model.decovnet_sha256[:8]}{verified}"
    return f"Model {model.name} {model.version}, profile {model.profile}, {digests}"


def made_by(origin: Origin) -> str:
    """Which node made the object, and when."""
    context = origin.context
    created = context.created_in_zone_of(origin.first)
    zone = created.strftime("%z")
    moment = f"{created:%Y-%m-%d %H:%M} UTC{zone[:3]}:{zone[3:5]}"
    return f"{context.device_name} {context.software_version}, {moment}, revision {context.revision}"
