"""The data types of FHIR R4 that a bundle is built of: codings, identifiers, references, quantities, times."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from config.coding import Code

Element = dict[str, Any]

SYSTEMS = {
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "SCT": "http://snomed.info/sct",
    "LN": "http://loinc.org",
    "UCUM": "http://unitsofmeasure.org",
    "RADLEX": "http://www.radlex.org",
    "RFC5646": "urn:ietf:bcp:47",
}
"""How FHIR calls the coding schemes of DICOM. Source: PS3.16, 8, and FHIR R4, "Using Codes in Resources"."""
DICOM_UID = "urn:dicom:uid"
URI = "urn:ietf:rfc:3986"
HL7 = "http://terminology.hl7.org/CodeSystem"

_NAMESPACE = uuid.UUID("9a3c7a52-7f0b-4c57-8d1c-3c1f0f4f6a10")


def derived_uuid(*parts: str) -> str:
    """A UUID URN that is a function of its arguments."""
    return f"urn:uuid:{uuid.uuid5(_NAMESPACE, chr(0).join(parts))}"


def system_of(scheme: str, systems: Mapping[str, str]) -> str:
    """The URI of a coding scheme. systems: those that the site names.

    A private scheme without a URI gets one that is derived from its name, so that it is the same in every message.
    """
    return systems.get(scheme) or SYSTEMS.get(scheme) or derived_uuid("coding scheme", scheme)


def coding(code: Code, systems: Mapping[str, str]) -> Element:
    """A code of DICOM as a Coding."""
    return {"system": system_of(code.scheme, systems), "code": code.value, "display": code.meaning}


def concept(code: Code, systems: Mapping[str, str], text: str = "") -> Element:
    """A code of DICOM as a CodeableConcept. text: how a person should read it, if not by its meaning."""
    return {"coding": [coding(code, systems)], "text": text or code.meaning}


def hl7_concept(name: str, code: str, display: str) -> Element:
    """A code of one of HL7's own systems as a CodeableConcept."""
    return {"coding": [{"system": f"{HL7}/{name}", "code": code, "display": display}]}


def uid_identifier(uid: str) -> Element:
    """A DICOM UID as an Identifier. Source: FHIR R4, ImagingStudy.identifier."""
    return {"system": DICOM_UID, "value": f"urn:oid:{uid}"}


def condition(identifier: Mapping[str, str]) -> str:
    """The search for an identifier, as conditions and conditional references have it.

    What FHIR's searches or an address would read as a mark is escaped: nothing in an identifier widens the search.
    """
    return f"identifier={_escaped(identifier['system'])}|{_escaped(identifier['value'])}"


def _escaped(text: str) -> str:
    """Source: FHIR R4, "Escaping Search Parameters"; RFC 3986."""
    for mark in ("\\", "$", ",", "|"):
        text = text.replace(mark, "\\" + mark)
    return quote(text, safe=":/;")


def number(text: str) -> int | float:
    """A decimal string of DICOM as a JSON number of the same value."""
    return int(text) if text.strip().lstrip("+-").isdigit() else float(text)


def quantity(value: str, unit: Code) -> Element:
    """A number with its UCUM unit. value: as the report writes it."""
    return {"value": number(value), "unit": unit.value, "system": SYSTEMS["UCUM"], "code": unit.value}


def instant(moment: datetime) -> str:
    """A moment with its zone, to the millisecond."""
    return moment.isoformat(timespec="milliseconds")


def day(text: str) -> str:
    """A date of DICOM as a day; empty if it is none of the calendar, which servers refuse."""
    try:
        return datetime.strptime(text, "%Y%m%d").date().isoformat() if len(text) == 8 else ""
    except ValueError:
        return ""


def present(**members: Any) -> Element:
    """The members that have a value: FHIR knows no empty ones."""
    return {name: value for name, value in members.items() if value not in (None, "", [], {})}


def unique(elements: Sequence[Element]) -> list[Element]:
    """Each element once, in their order."""
    return [one for place, one in enumerate(elements) if one not in elements[:place]]
