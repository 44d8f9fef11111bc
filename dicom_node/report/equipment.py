"""The node and its algorithms, as the equipment that made an object."""

from highdicom import ContributingEquipment
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    ObservationContext,
    ObserverContext,
)
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.uids import device_uid
from inference.finding import Algorithm, ModelIdentity

OBSERVER_DEVICE = CodedConcept("121007", "DCM", "Device")


def observer(context: ReportContext) -> ObservationContext:
    """TID 1001 with the node as the device observer (TID 1004)."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=OBSERVER_DEVICE,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=node_uid(context),
                name=context.device_name,
                manufacturer_name=context.manufacturer,
                model_name=context.device_name,
                serial_number=context.device_serial,
            ),
        )
    )


def node_uid(context: ReportContext) -> str:
    """Device UID of the node; the same over all its versions."""
    return device_uid(context.manufacturer, context.device_name, context.device_serial)


def algorithm_of(model: ModelIdentity, name: str) -> Algorithm:
    """A part of the model by its name; if there is none of that name, its first part."""
    named = [algorithm for algorithm in model.algorithms if algorithm.name == name]
    return (*named, *model.algorithms, Algorithm(model.name, "Analysis"))[0]


def family_of(algorithm: Algorithm) -> Code:
    """CID 7162: what was trained is artificial intelligence; what was written is not."""
    return codes.ARTIFICIAL_INTELLIGENCE if algorithm.sha256 else codes.MORPHOLOGICAL_OPERATIONS


def algorithm_identification(model: ModelIdentity, name: str, context: ReportContext) -> AlgorithmIdentification:
    """TID 4019 of a part of the model."""
    algorithm = algorithm_of(model, name)
    return AlgorithmIdentification(
        name=algorithm_name(model, algorithm),
        version=algorithm_version(model, algorithm.sha256),
        manufacturer=context.manufacturer,
        parameters=list(algorithm.parameters) or None,
        family=family_of(algorithm),
    )


def algorithm_name(model: ModelIdentity, algorithm: Algorithm) -> str:
    """The model's name and that of its part."""
    return model.name if algorithm.name == model.name else f"{model.name} {algorithm.name}"


def algorithm_version(model: ModelIdentity, weights_sha256: str) -> str:
    """Version of one part: the card's, and enough of the digest to tell two sets of weights apart."""
    return f"{model.version}+{weights_sha256[:12]}" if weights_sha256 else model.version


def contributing_equipment(
    model: ModelIdentity | None, context: ReportContext, source: Dataset
) -> list[ContributingEquipment]:
    """One item per algorithm, with a Device UID that changes with its weights; none if no model took part."""
    if model is None:
        return []
    return [_algorithm_item(model, context, source, algorithm) for algorithm in model.algorithms]


def _algorithm_item(
    model: ModelIdentity, context: ReportContext, source: Dataset, algorithm: Algorithm
) -> ContributingEquipment:
    item = ContributingEquipment(
        manufacturer=context.manufacturer[:64],
        purpose_of_reference=codes.PROCESSING_EQUIPMENT,
        manufacturer_model_name=algorithm_name(model, algorithm)[:64],
        software_versions=algorithm_version(model, algorithm.sha256)[:64],
        contribution_datetime=context.created_in_zone_of(source).replace(tzinfo=None),
        contribution_description=algorithm.contribution,
    )
    item.DeviceUID = device_uid(model.name, model.version, algorithm.name, algorithm.sha256 or model.digest)
    return item
