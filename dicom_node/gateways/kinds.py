"""Which gateway serves a destination: one entry for each kind."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from config.settings import AnyDestination, Settings
from dicom_node.errors import NodeError
from dicom_node.gateways.interface import Gateway, ObjectGateway

Made = TypeVar("Made")


def _stow(destination: Any, settings: Settings) -> ObjectGateway:
    from dicom_node.gateways.stow import Stow

    return Stow(destination, settings.sender)


def _fhir(destination: Any, settings: Settings) -> Gateway:
    from dicom_node.gateways.fhir.gateway import FhirGateway

    return FhirGateway(destination, settings.sender)


def _hl7(destination: Any, settings: Settings) -> Gateway:
    from dicom_node.gateways.hl7.gateway import Hl7

    return Hl7(destination)


# Imported when one is first needed: each may need a library that not every site has installed.
OBJECTS: Mapping[str, Callable[[Any, Settings], ObjectGateway]] = {"stow": _stow}
MESSAGES: Mapping[str, Callable[[Any, Settings], Gateway]] = {"fhir": _fhir, "hl7": _hl7}


def object_gateway(destination: AnyDestination, settings: Settings) -> ObjectGateway:
    """The gateway that brings objects to a destination of one of the kinds of `OBJECTS`. Raises NodeError."""
    return _made(OBJECTS[destination.kind], destination, settings)


def message_gateway(destination: AnyDestination, settings: Settings) -> Gateway:
    """The gateway that tells results to a destination of one of the kinds of `MESSAGES`. Raises NodeError."""
    return _made(MESSAGES[destination.kind], destination, settings)


def gateway(destination: AnyDestination, settings: Settings) -> Gateway | ObjectGateway:
    """The gateway of a destination that is no DICOM peer. Raises NodeError."""
    return (object_gateway if destination.kind in OBJECTS else message_gateway)(destination, settings)


def _made(make: Callable[[Any, Settings], Made], destination: AnyDestination, settings: Settings) -> Made:
    try:
        return make(destination, settings)
    except ModuleNotFoundError as error:
        missing = f"destination {destination.name} needs {error.name}: pip install 'dicom-node[gateways]'"
        raise NodeError(missing) from None
