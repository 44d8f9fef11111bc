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

from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.uids import device_uid
from dicom_node.report.wording import threshold_text
from inference.finding import ModelIdentity

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


def classifier(model: ModelIdentity, context: ReportContext) -> AlgorithmIdentification:
    """TID 4019 of the network that gives the probability."""
    return AlgorithmIdentification(
        name=f"{model.name} DeCoVNet",
        version=algorithm_version(model, model.decovnet_sha256),
        manufacturer=context.manufacturer,
        parameters=[
            f"threshold={threshold_text(model.threshold)}",
            f"profile={model.profile}",
            f"weights_sha256={model.decovnet_sha256}",
            f"lung_mask_weights_sha256={model.unet_sha256}",
            f"model_digest={model.digest}",
        ],
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


def lung_segmenter(model: ModelIdentity, context: ReportContext) -> AlgorithmIdentification:
    """TID 4019 of the network that gives the lung mask."""
    return AlgorithmIdentification(
        name=f"{model.name} U-Net",
        version=algorithm_version(model, model.unet_sha256),
        manufacturer=context.manufacturer,
        parameters=[f"profile={model.profile}", f"weights_sha256={model.unet_sha256}"],
        family=codes.ARTIFICIAL_INTELLIGENCE,
    )


def algorithm_version(model: ModelIdentity, weights_sha256: str) -> str:
    """Version of one network: the card's, and enough of the digest to tell two sets of weights apart."""
    return f"{model.version}+{weights_sha256[:12]}"


def contributing_equipment(
    model: ModelIdentity | None, context: ReportContext, source: Dataset
) -> list[ContributingEquipment]:
    """One item per algorithm, with a Device UID that changes with its weights; none if no model took part."""
    if model is None:
        return []
    networks = (
        ("U-Net", model.unet_sha256, "Lung mask"),
        ("DeCoVNet", model.decovnet_sha256, "COVID-19 classification and its localisation"),
    )
    return [_algorithm_item(model, context, source, *network) for network in networks]


def _algorithm_item(
    model: ModelIdentity, context: ReportContext, source: Dataset, network: str, sha256: str, contribution: str
) -> ContributingEquipment:
    item = ContributingEquipment(
        manufacturer=context.manufacturer[:64],
        purpose_of_reference=codes.PROCESSING_EQUIPMENT,
        manufacturer_model_name=f"{model.name} {network}"[:64],
        software_versions=algorithm_version(model, sha256)[:64],
        contribution_datetime=context.created_in_zone_of(source).replace(tzinfo=None),
        contribution_description=contribution,
    )
    item.DeviceUID = device_uid(model.name, model.version, network, sha256)
    return item
