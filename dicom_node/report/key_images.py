"""The slices that matter most -> Key Object Selection, TID 2010."""

import copy
import math
from collections.abc import Sequence

import numpy as np
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext
from pydicom.dataset import Dataset

from config.headers import quiet
from dicom_node.report import codes, wording
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import OBSERVER_DEVICE, node_uid
from dicom_node.report.frame import Kind, Origin, finish, identity, origin_of
from dicom_node.report.planes import mask_of
from dicom_node.report.segmentation import is_multi_frame
from dicom_node.report.sources import complete
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume, SourceSlice

MOST_IMAGES = 5
APART_MM = 10.0
"""Slices nearer than this show nearly the same."""


def build_key_images(finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext) -> Dataset:
    """The slices with most of the localisation as key objects.

    Raises ValueError when the finding has no localisation.
    """
    origin = origin_of(finding, volume, sources, context)
    slices = [volume.slices[z] for z in most_affected(finding, volume)]
    if not slices:
        raise ValueError("localisation: without one no slice matters most")
    chosen = [_image(origin, uid, volume) for uid in dict.fromkeys(slice_.sop_instance_uid for slice_ in slices)]
    with quiet():
        content = KeyObjectSelection(
            document_title=codes.OF_INTEREST,
            referenced_objects=chosen,
            observer_device_context=_observer(context),
            description=" ".join([*wording.warnings_of(finding.model), wording.KEY_IMAGES]),
        )
        selection = KeyObjectSelectionDocument(
            evidence=_with_patient(chosen, origin),
            content=content,
            **identity(Kind("key images", 5, "key images"), origin),
        )
    _repair(selection, slices)
    finish(selection, origin)
    return selection


def most_affected(finding: Finding, volume: CTVolume) -> list[int]:
    """z of at most `MOST_IMAGES` slices with most voxels of the localisation, at least `APART_MM` apart, ascending."""
    area = np.count_nonzero(mask_of(finding, "finding", volume), axis=(1, 2))
    apart = math.ceil(APART_MM / volume.spacing_mm[0])
    chosen: list[int] = []
    for z in np.argsort(-area, kind="stable"):
        if area[z] == 0 or len(chosen) == MOST_IMAGES:
            break
        if all(abs(int(z) - other) >= apart for other in chosen):
            chosen.append(int(z))
    return sorted(chosen)


def _image(origin: Origin, sop_instance_uid: str, volume: CTVolume) -> Dataset:
    """The header of an instance, with the size by which highdicom knows an image."""
    image = copy.copy(next(source for source in origin.sources if source.SOPInstanceUID == sop_instance_uid))
    image.Rows, image.Columns = volume.hu.shape[1:]
    return image


def _with_patient(chosen: Sequence[Dataset], origin: Origin) -> list[Dataset]:
    """The evidence, the first of which patient and study are taken from: always the completed header's."""
    stand_in = complete(origin.first)
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        setattr(stand_in, keyword, chosen[0].get(keyword))
    return [stand_in, *chosen[1:]]


def _observer(context: ReportContext) -> ObserverContext:
    return ObserverContext(
        observer_type=OBSERVER_DEVICE,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=node_uid(context), name=context.device_name, manufacturer_name=context.manufacturer
        ),
    )


def _repair(root: Dataset, slices: Sequence[SourceSlice]) -> None:
    """Take away the concept name that highdicom puts on images, and name the frames of multi-frame ones.

    Done last: highdicom itself looks for the concept name while it collects the evidence.
    """
    for item in root.ContentSequence:
        if item.ValueType != "IMAGE":
            continue
        if "ConceptNameCodeSequence" in item:
            del item.ConceptNameCodeSequence
        reference = item.ReferencedSOPSequence[0]
        frames = [s.frame + 1 for s in slices if s.sop_instance_uid == reference.ReferencedSOPInstanceUID]
        if is_multi_frame(reference.ReferencedSOPClassUID):
            reference.ReferencedFrameNumber = frames
