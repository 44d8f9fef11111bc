"""The result once more, for viewers that show measurements only with a region: Comprehensive 3D SR, TID 1410.

OHIF shows no value of a report whose groups refer to segments. Here every group has an outline on one slice. It
stands in a series of its own and adds nothing to the report.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from highdicom.sr import (
    Comprehensive3DSR,
    GraphicTypeValues,
    ImageRegion,
    MeasurementReport,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    RelationshipTypeValues,
    SourceImageForRegion,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset

from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import observer
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of, silence
from dicom_node.report.planes import anatomy_of
from dicom_node.report.segmentation import LUNGS, is_multi_frame
from dicom_node.report.structured_report import (
    CLASSIFICATION,
    classification_content,
    lung_content,
    previous_versions,
    sentences_of,
)
from inference.finding import Finding
from inference.volume.ct_volume import CTVolume


def build_display_report(
    finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext
) -> Dataset:
    """The verdict and the lung volume, each with a box on the slice that the summary image shows."""
    origin = origin_of(finding, volume, sources, context)
    anatomy = anatomy_of(finding, volume)
    z = anatomy.turn.source_slice(anatomy.focus[0], anatomy.hu.shape[0])
    lungs = finding.lung_mask[z]
    region = lungs if finding.localisation is None or not finding.localisation[z].any() else finding.localisation[z]
    kind = Kind(f"display report on {'lungs' if region is lungs else 'localisation'}", 9003, "display")
    verdict = _group(CLASSIFICATION, region, z, volume, origin, classification_content(finding, origin))
    for sentence in sentences_of(finding, volume, origin):
        verdict[0].ContentSequence.append(TextContentItem(codes.COMMENT, sentence, RelationshipTypeValues.CONTAINS))
    with silence():
        content = MeasurementReport(
            observation_context=observer(context),
            procedure_reported=codes.CT_REPORTED,
            imaging_measurements=[verdict, _group(LUNGS, lungs, z, volume, origin, lung_content(finding, origin))],
            title=codes.IMAGING_MEASUREMENT_REPORT,
        )
        report = Comprehensive3DSR(
            evidence=origin.sources,
            content=content[0],
            is_complete=True,
            is_final=False,
            is_verified=False,
            previous_versions=previous_versions(origin, origin.uid(kind.name)),
            **identity(kind, origin),
        )
    finish(report, origin)
    return report


def _group(
    title: str,
    mask: npt.NDArray[np.bool_],
    z: int,
    volume: CTVolume,
    origin: Origin,
    content: dict[str, Any],
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    source = volume.slices[z]
    frames = [source.frame + 1] if is_multi_frame(source.sop_class_uid) else None
    box = ImageRegion(
        graphic_type=GraphicTypeValues.POLYLINE,
        graphic_data=outline_box(mask),
        source_image=SourceImageForRegion(source.sop_class_uid, source.sop_instance_uid, frames),
    )
    tracking = TrackingIdentifier(origin.uid(f"display tracking {title}"), wording.titled(title, origin.model))
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking, referenced_region=box, **content
    )


def outline_box(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Closed box around the mask's pixels, or around all of an empty mask: (column, row) from the image's corner."""
    rows, columns = np.nonzero(mask) if mask.any() else np.indices(mask.shape).reshape(2, -1)
    left, right = columns.min(), columns.max() + 1
    top, bottom = rows.min(), rows.max() + 1
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]], dtype=float)
