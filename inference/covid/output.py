"""What the two networks say of a volume, in the form of the plug: by code, with the words that go with it."""

import numpy as np

from config.coding import BILATERAL, LUNG, MILLILITRE, VOLUME
from inference.covid.words import LOCALISATION, lungs_line, nothing_localised, region_line, verdict
from inference.finding import Finding, ModelIdentity
from inference.plug import (
    NEGATIVE,
    POSITIVE,
    Algorithm,
    Code,
    FindingByCode,
    Line,
    Measurement,
    Output,
    Run,
    Segment,
)
from inference.volume.ct_volume import CTVolume

CLASSIFICATION = "COVID-19 classification"
LUNGS = "Lungs"
REGION = "What drove the model"
UNET, DECOVNET = "U-Net", "DeCoVNet"

COVID_19 = Code("840539006", "SCT", "COVID-19")
DISEASE = Code("64572001", "SCT", "Disease")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
SPATIAL_CONCEPT = Code("309825002", "SCT", "Spatial and Relational Concept")
# What a network looked at: not a lesion, and not an opacity.
VISUAL_EXPLANATION = Code("130401", "DCM", "Visual explanation")
LEFT = Code("7771000", "SCT", "Left")
RIGHT = Code("24028007", "SCT", "Right")
SHARE_OF_LUNG = Code("LUNG_SHARE", "99DICOMNODE", "Share of lung volume")
PERCENT = Code("%", "UCUM", "Percent")

_LUNG_COLOUR = (70.0, -25.0, -25.0)
_REGION_COLOUR = (65.0, 45.0, 60.0)


def output_of(finding: Finding, volume: CTVolume) -> Output:
    """The finding of a volume as an output of the plug. volume: that it was made from, as stored."""
    remark = nothing_localised(finding)
    return Output(
        measurements=(*_lung_volumes(finding), *_region_measurements(finding, volume)),
        findings=(_classification(finding),),
        segments=_segments(finding),
        heat=finding.heat,
        algorithms=algorithms(finding.model),
        checks=finding.checks,
        statements=(verdict(finding),),
        remarks=(remark,) if remark else (),
        lines=_lines(finding, volume),
        slices=finding.verdict_slices,
        run=Run(finding.device, finding.precision, finding.versions, finding.timings_s),
        trace=finding.trace,
    )


def algorithms(model: ModelIdentity) -> tuple[Algorithm, ...]:
    """The two networks, as the report names them."""
    profile = f"profile={model.profile}"
    return (
        Algorithm(UNET, "Lung mask", model.unet_sha256, (profile, f"weights_sha256={model.unet_sha256}")),
        Algorithm(
            DECOVNET,
            "COVID-19 classification and its localisation",
            model.decovnet_sha256,
            (
                f"threshold={_threshold_text(model.threshold)}",
                profile,
                f"weights_sha256={model.decovnet_sha256}",
                f"lung_mask_weights_sha256={model.unet_sha256}",
                f"model_digest={model.digest}",
            ),
        ),
    )


def _threshold_text(threshold: float) -> str:
    """The threshold with at least two decimals and no more than it has."""
    return f"{threshold:.2f}" if round(threshold, 2) == threshold else repr(threshold)


def _classification(finding: Finding) -> FindingByCode:
    return FindingByCode(
        CLASSIFICATION,
        COVID_19,
        POSITIVE if finding.positive else NEGATIVE,
        certainty=finding.probability,
        threshold=finding.model.threshold,
        category=DISEASE,
        site=LUNG,
        laterality=BILATERAL,
        segment=LUNGS,
        algorithm=DECOVNET,
    )


def _lung_volumes(finding: Finding) -> list[Measurement]:
    """The total, then each side if the two could be told apart."""
    volumes = [_volume(finding.lung_volume_ml, BILATERAL)]
    if finding.left_lung_ml > 0 or finding.right_lung_ml > 0:
        volumes += [_volume(finding.left_lung_ml, LEFT), _volume(finding.right_lung_ml, RIGHT)]
    return volumes


def _volume(millilitres: float, laterality: Code) -> Measurement:
    return Measurement(VOLUME, float(millilitres), MILLILITRE, LUNG, laterality, segment=LUNGS, decimals=1)


def _region_measurements(finding: Finding, volume: CTVolume) -> list[Measurement]:
    """The localisation's volume, and the share of the lungs that it covers; none if nothing is localised."""
    if finding.localisation is None or not finding.localisation.any():
        return []
    millilitres = float(np.count_nonzero(finding.localisation) * volume.voxel_ml)
    measured = [Measurement(VOLUME, millilitres, MILLILITRE, LUNG, segment=REGION, decimals=1)]
    lung_voxels = np.count_nonzero(finding.lung_mask)
    if lung_voxels:
        share = float(100 * np.count_nonzero(finding.localisation & finding.lung_mask) / lung_voxels)
        measured.append(Measurement(SHARE_OF_LUNG, share, PERCENT, LUNG, segment=REGION))
    return measured


def _segments(finding: Finding) -> tuple[Segment, ...]:
    """The lungs, then the localisation if it was asked for."""
    lungs = Segment(
        LUNGS,
        finding.lung_mask,
        ANATOMICAL_STRUCTURE,
        LUNG,
        "anatomy",
        legend="lungs as found by the U-Net",
        site=LUNG,
        laterality=BILATERAL,
        algorithm=UNET,
        colour_lab=_LUNG_COLOUR,
    )
    if finding.localisation is None:
        return (lungs,)
    region = Segment(
        REGION,
        finding.localisation,
        SPATIAL_CONCEPT,
        VISUAL_EXPLANATION,
        "finding",
        label="What drove the model, no lesion boundary",
        legend="what drove the model, not a lesion boundary",
        site=LUNG,
        algorithm=DECOVNET,
        comments=(LOCALISATION,),
        colour_lab=_REGION_COLOUR,
    )
    return lungs, region


def _lines(finding: Finding, volume: CTVolume) -> tuple[Line, ...]:
    lines = [Line(lungs_line(finding))]
    if finding.localisation is not None:
        remark = nothing_localised(finding)
        lines.append(Line(remark, "caution") if remark else Line(region_line(finding, volume), "finding"))
    return tuple(lines)
