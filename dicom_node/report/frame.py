"""What every object of the node has in common around its content: identity, series, times, equipment."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from highdicom import UID, ContributingEquipment, SOPClass
from pydicom import dcmwrite
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from config.headers import quiet
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.report.context import ReportContext
from dicom_node.report.equipment import contributing_equipment
from dicom_node.report.sources import UTF_8, complete
from dicom_node.report.uids import digest_of_uids, result_uid
from dicom_node.report.wording import series_description
from inference.finding import ModelIdentity
from inference.plug import Finding
from inference.volume.ct_volume import CTVolume


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    name: inside UIDs.  place: of its series among the model's series numbers.  description: in the Series Description.
    """

    name: str
    place: int
    description: str


@dataclass(frozen=True)
class Origin:
    """What an object is made from.

    sources: completed headers, at least one.
    left_out: SOP Instance UIDs of instances that came in but are not in the volume.
    """

    sources: Sequence[Dataset]
    context: ReportContext
    model: ModelIdentity | None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources: a result needs at least one source image")

    @property
    def first(self) -> Dataset:
        """The header that patient and study are taken from."""
        return self.sources[0]

    def uid(self, kind: str) -> str:
        """The derived UID of one kind of result from these sources by this model."""
        digest = self.context.instances_digest or digest_of_uids(
            [*(str(source.SOPInstanceUID) for source in self.sources), *self.left_out]
        )
        return result_uid(kind, str(self.first.SeriesInstanceUID), digest, self.model.digest if self.model else "")

    def tracking_uid(self, title: str) -> str:
        """UID of what a group of the report or a segment is about."""
        return self.uid(f"tracking {title}")


def origin_of(finding: Finding, volume: CTVolume, sources: Sequence[Dataset], context: ReportContext) -> Origin:
    """The origin of the results of an analysed series."""
    if not sources:
        raise ValueError("sources: a result needs at least one source image")
    # Patient and study come from the first alone; of the others only identifiers are used.
    return Origin([complete(sources[0]), *sources[1:]], context, finding.model, (*volume.dropped, *volume.passed_over))


def identity(kind: Kind, origin: Origin) -> dict[str, Any]:
    """The keyword arguments that highdicom's constructors share."""
    context = origin.context
    created = context.created_in_zone_of(origin.first).replace(tzinfo=None)
    return {
        "series_instance_uid": origin.uid(f"{kind.name} series"),
        "series_number": context.series_numbers + kind.place,
        "sop_instance_uid": origin.uid(kind.name),
        "instance_number": context.revision,
        "manufacturer": context.manufacturer[:64],
        "manufacturer_model_name": context.device_name[:64],
        "software_versions": context.software_version[:64],
        "device_serial_number": context.device_serial[:64],
        "series_description": series_description(kind.description, origin.model),
        "content_date": created.date(),
        "content_time": created.time(),
        "specific_character_set": UTF_8,
        "contributing_equipment": contributing_equipment(origin.model, context, origin.first),
    }


def new_object(sop_class_uid: str, modality: str, kind: Kind, origin: Origin, **attributes: Any) -> SOPClass:
    """An object with patient, study, series, equipment and times, and no content yet."""
    first = origin.first
    arguments = identity(kind, origin)
    equipment = arguments.pop("contributing_equipment")
    with quiet():
        created = SOPClass(
            study_instance_uid=first.StudyInstanceUID,
            sop_class_uid=sop_class_uid,
            modality=modality,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            patient_id=first.PatientID,
            patient_name=first.PatientName,
            patient_birth_date=first.PatientBirthDate,
            patient_sex=first.PatientSex,
            accession_number=first.AccessionNumber,
            study_id=first.StudyID,
            study_date=first.StudyDate,
            study_time=first.StudyTime,
            referring_physician_name=first.ReferringPhysicianName,
            **arguments,
            **attributes,
        )
        created.copy_patient_and_study_information(first)
        created.ContributingEquipmentSequence = [*_scanner(first), *equipment]
    finish(created, origin)
    return created


def _scanner(source: Dataset) -> list[ContributingEquipment]:
    """The scanner, if the source names its manufacturer."""
    try:
        return [ContributingEquipment.for_image_acquisition(source)]
    except (AttributeError, ValueError, TypeError):
        return []


def finish(dataset: Dataset, origin: Origin) -> None:
    """State zone, times and institution, which highdicom leaves to the caller or takes from the clock."""
    created = origin.context.created_in_zone_of(origin.first)
    dataset.InstanceCreationDate = created.strftime("%Y%m%d")
    dataset.InstanceCreationTime = created.strftime("%H%M%S.%f")
    dataset.SeriesDate = dataset.InstanceCreationDate
    dataset.SeriesTime = dataset.InstanceCreationTime
    # Without one in the source its times are taken for local ones, as the node's are.
    dataset.TimezoneOffsetFromUTC = created.strftime("%z")[:5]
    if origin.context.institution:
        dataset.InstitutionName = origin.context.institution[:64]
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def to_part10(dataset: Dataset) -> bytes:
    """The object as the bytes of a DICOM file (PS3.10)."""
    buffer = io.BytesIO()
    with quiet():
        dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
