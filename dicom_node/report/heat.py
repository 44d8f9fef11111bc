"""What drove the model as a map, coarse, for the node's own pages: a fractional Segmentation that is sent nowhere.

The map is interpolated from a grid that is far coarser than the images, so a quarter of their rows and columns hold all
of it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from config.headers import quiet
from dicom_node.report.context import ReportContext
from dicom_node.report.encoded import put_encoded
from dicom_node.report.equipment import algorithm_name, algorithm_of, algorithm_version, family_of
from dicom_node.report.frame import Kind, Origin, new_object, origin_of
from dicom_node.report.segmentation import (
    add_compression_history,
    add_dimensions,
    add_frame_of_reference,
    add_referenced_series,
    frame_groups,
    shared_groups,
)
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume

STEP = 4
"""Rows, and columns, of the images for one of the map."""
LABEL = "What drove the model, as heat"


def build_heat(
    finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext
) -> Dataset | None:
    """The finding's map as a FRACTIONAL Segmentation with a frame for each slice that is not cold; None if all are."""
    heat = finding.output.heat
    if heat is None or not heat.any():
        return None
    origin = origin_of(finding, volume, sources, context)
    coarse = reduced(heat)
    slices = np.flatnonzero(coarse.any(axis=(1, 2)))
    seg = new_object(SegmentationStorage, "SEG", Kind("heat", 6, "heat"), origin, content_qualification="RESEARCH")
    seg.ImageType = ["DERIVED", "PRIMARY"]
    seg.SegmentationType, seg.SegmentationFractionalType, seg.MaximumFractionalValue = "FRACTIONAL", "PROBABILITY", 255
    seg.SegmentsOverlap = "NO"
    seg.ContentLabel, seg.ContentDescription, seg.ContentCreatorName = "HEAT", f"Research only: {LABEL}", ""
    seg.SegmentSequence = [_segment(origin)]
    add_frame_of_reference(seg, origin)
    _add_pixels(seg, coarse[slices])
    add_dimensions(seg, origin)
    grid = _grid_of(volume)
    seg.SharedFunctionalGroupsSequence = [shared_groups(grid, origin.first)]
    put_encoded(seg, "PerFrameFunctionalGroupsSequence", frame_groups(grid, [slices]))
    add_referenced_series(seg, origin)
    add_compression_history(seg, volume, origin.first)
    return seg


def reduced(heat: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The mean of each block of STEP x STEP pixels of (Z, Y, X), rounded; blocks at an edge count what they have."""
    z, y, x = heat.shape
    padded = np.pad(heat.astype(np.float32), ((0, 0), (0, -y % STEP), (0, -x % STEP)), mode="edge")
    blocks = padded.reshape(z, padded.shape[1] // STEP, STEP, padded.shape[2] // STEP, STEP)
    return np.asarray(np.rint(blocks.mean(axis=(2, 4))), dtype=np.uint8)


def _grid_of(volume: CTVolume) -> CTVolume:
    """Spacing and positions of the map; no voxels."""
    z, y, x = volume.spacing_mm
    aside = volume.affine[:3, :2].sum(axis=1) * (STEP - 1) / 2  # from the first pixel's centre to the first block's
    places = [np.array(one.position_mm) + aside for one in volume.slices]
    moved = [dataclasses.replace(s, position_mm=tuple(p.tolist())) for s, p in zip(volume.slices, places, strict=True)]
    affine = volume.affine @ np.diag([STEP, STEP, 1.0, 1.0])
    affine[:3, 3] += aside
    return dataclasses.replace(volume, spacing_mm=(z, y * STEP, x * STEP), affine=affine, slices=tuple(moved))


def _segment(origin: Origin) -> SegmentDescription:
    model = origin.model
    assert model is not None  # noqa: S101 - origin_of always names it
    algorithm = algorithm_of(model, "")
    with quiet():
        return SegmentDescription(
            segment_number=1,
            segment_label=LABEL,
            segmented_property_category=CodedConcept("309825002", "SCT", "Spatial and Relational Concept"),
            segmented_property_type=CodedConcept("130401", "DCM", "Visual explanation"),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence(
                name=algorithm_name(model, algorithm)[:64],
                family=family_of(algorithm),
                version=algorithm_version(model, algorithm.sha256)[:64],
                source=origin.context.manufacturer[:64],
            ),
            tracking_uid=origin.tracking_uid("heat"),
            tracking_id=LABEL,
            display_color=CIELabColor(70.0, 45.0, 60.0),
        )


def _add_pixels(seg: Dataset, frames: npt.NDArray[np.uint8]) -> None:
    seg.SamplesPerPixel = 1
    seg.PhotometricInterpretation = "MONOCHROME2"
    seg.NumberOfFrames, seg.Rows, seg.Columns = frames.shape
    seg.BitsAllocated = seg.BitsStored = 8
    seg.HighBit = 7
    seg.PixelRepresentation = 0
    data = frames.tobytes()
    seg.PixelData = data + b"\0" * (len(data) % 2)
    seg["PixelData"].VR = "OB"
