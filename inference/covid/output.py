"""What the two networks say of a volume, in the form of the plug: by code, with the words that go with it."""

import numpy as np

from config.coding import BILATERAL, LUNG, MILLILITRE, UNCALIBRATED_OUTPUT, VOLUME
from inference.covid.card import DECOVNET, SUBJECT, UNET
from inference.covid.verdict import Verdict
from inference.covid.words import LOCALISATION, lungs_line, nothing_localised, region_line, statement
from inference.finding import ModelIdentity
from inference.plug import (
    NEGATIVE,
    POSITIVE,
    Code,
    FindingByCode,
    Line,
    Measurement,
    Output,
    Run,
    Segment,
)
from inference.volume.ct_volume import CTVolume

CLASSIFICATION = f"{SUBJECT} classification"
LUNGS = "Lungs"
REGION = "What drove the model"

COVID_19 = Code("840539006", "SCT", SUBJECT)
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


def output_of(verdict: Verdict, volume: CTVolume, model: ModelIdentity) -> Output:
    """The verdict on a volume as an output of the plug. volume: that it was made from, as stored."""
    remark = nothing_localised(verdict)
    return Output(
        measurements=(*_lung_volumes(verdict), *_region_measurements(verdict, volume), *_uncalibrated(verdict)),
        findings=(_classification(verdict),),
        segments=_segments(verdict),
        heat=verdict.heat,
        algorithms=model.algorithms,
        checks=verdict.checks,
        statements=(statement(verdict),),
        remarks=(remark,) if remark else (),
        lines=_lines(verdict, volume),
        slices=verdict.verdict_slices,
        run=Run(verdict.device, verdict.precision, verdict.versions, verdict.timings_s),
        trace=verdict.trace,
    )


def _classification(verdict: Verdict) -> FindingByCode:
    return FindingByCode(
        CLASSIFICATION,
        COVID_19,
        POSITIVE if verdict.positive else NEGATIVE,
        certainty=verdict.probability,
        threshold=verdict.threshold,
        category=DISEASE,
        site=LUNG,
        laterality=BILATERAL,
        segment=LUNGS,
        algorithm=DECOVNET,
        spread=verdict.spread,
    )


def _uncalibrated(verdict: Verdict) -> list[Measurement]:
    if verdict.uncalibrated is None:
        return []
    return [Measurement(UNCALIBRATED_OUTPUT, 100 * verdict.uncalibrated, PERCENT, LUNG, BILATERAL, decimals=2)]


def _lung_volumes(verdict: Verdict) -> list[Measurement]:
    """The total, then each side if the two could be told apart."""
    volumes = [_volume(verdict.lung_volume_ml, BILATERAL)]
    if verdict.left_lung_ml > 0 or verdict.right_lung_ml > 0:
        volumes += [_volume(verdict.left_lung_ml, LEFT), _volume(verdict.right_lung_ml, RIGHT)]
    return volumes


def _volume(millilitres: float, laterality: Code) -> Measurement:
    return Measurement(VOLUME, float(millilitres), MILLILITRE, LUNG, laterality, segment=LUNGS, decimals=1)


def _region_measurements(verdict: Verdict, volume: CTVolume) -> list[Measurement]:
    """The localisation's volume, and the share of the lungs that it covers; none if nothing is localised."""
    if verdict.localisation is None or not verdict.localisation.any():
        return []
    millilitres = float(np.count_nonzero(verdict.localisation) * volume.voxel_ml)
    measured = [Measurement(VOLUME, millilitres, MILLILITRE, LUNG, segment=REGION, decimals=1)]
    lung_voxels = np.count_nonzero(verdict.lung_mask)
    if lung_voxels:
        share = float(100 * np.count_nonzero(verdict.localisation & verdict.lung_mask) / lung_voxels)
        measured.append(Measurement(SHARE_OF_LUNG, share, PERCENT, LUNG, segment=REGION))
    return measured


def _segments(verdict: Verdict) -> tuple[Segment, ...]:
    """The lungs, then the localisation if it was asked for."""
    lungs = Segment(
        LUNGS,
        verdict.lung_mask,
        ANATOMICAL_STRUCTURE,
        LUNG,
        "anatomy",
        legend="lungs as found by the U-Net",
        site=LUNG,
        laterality=BILATERAL,
        algorithm=UNET,
        colour_lab=_LUNG_COLOUR,
    )
    if verdict.localisation is None:
        return (lungs,)
    region = Segment(
        REGION,
        verdict.localisation,
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


def _lines(verdict: Verdict, volume: CTVolume) -> tuple[Line, ...]:
    lines = [Line(lungs_line(verdict))]
    if verdict.localisation is not None:
        remark = nothing_localised(verdict)
        lines.append(Line(remark, "caution") if remark else Line(region_line(verdict, volume), "finding"))
    return tuple(lines)
