"""How a bundle names the patient: by a search that the server makes, by identifier alone, or as a resource in it."""

from config.gateways.fhir import FhirDestination
from dicom_node.gateways.fhir.elements import Element, condition, day, present
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.reported import PatientSaid

GENDERS = {"M": "male", "F": "female", "O": "other"}
INSIDE = "patient"


def subject_of(patient: PatientSaid, destination: FhirDestination) -> tuple[Element, list[Element]]:
    """The Reference to a patient, and what must be contained for it.

    An ID means nobody without the system that it is of: another system may have given the same one to somebody else.
    Raises CannotCompose if the settings name no system for its issuer.
    """
    system = destination.patient_systems.get(patient.issuer)
    if destination.patient == "contained":
        return {"reference": f"#{INSIDE}"}, [_contained(patient, system)]
    if not patient.patient_id:
        raise CannotCompose("it has no Patient ID")
    if system is None:
        raise CannotCompose("patient_systems has no entry for the issuer of its Patient ID")
    identifier = {"system": system, "value": patient.patient_id}
    if destination.patient == "identifier":
        return {"type": "Patient", "identifier": identifier}, []
    return {"reference": f"Patient?{condition(identifier)}"}, []


def _contained(patient: PatientSaid, system: str | None) -> Element:
    identifier = present(
        system=system,
        value=patient.patient_id,
        assigner={"display": patient.issuer} if patient.issuer else None,
    )
    return {
        "resourceType": "Patient",
        "id": INSIDE,
        **present(
            identifier=[identifier] if patient.patient_id else [],
            name=_name(patient),
            gender=GENDERS.get(patient.sex),
            birthDate=day(patient.birth_date),
        ),
    }


def _name(patient: PatientSaid) -> list[Element]:
    name = patient.name
    given = [one for one in (name.given, name.middle) if one]
    prefix, suffix = ([one] if one else [] for one in (name.prefix, name.suffix))
    named = present(family=name.family, given=given, prefix=prefix, suffix=suffix)
    return [named] if named else []
