"""What a receiver reads of one result, from the report itself and from the message of each gateway.

Each reader knows its own format only, and nothing of the program. To add one: a function from the bytes that a receiver
gets to a `Reading`, and its line in `tests/integration/test_gateways_agree.py`.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pydicom
from pydicom.dataset import Dataset

SCHEMES = {
    "http://dicom.nema.org/resources/ontology/DCM": "DCM",
    "http://snomed.info/sct": "SCT",
    "http://loinc.org": "LN",
    "http://unitsofmeasure.org": "UCUM",
}
CERTAINTY, FINDING, INTERPRETATION, GROUP = "111012", "121071", "363713009", "125007"
STUDY = "113014"
ANSWERS = {"10828004": "POS", "260385009": "NEG"}


@dataclass(frozen=True, order=True)
class Value:
    """One number. code: with its scheme, as "111012 DCM".  unit: likewise."""

    code: str
    number: Decimal
    unit: str


@dataclass(frozen=True)
class Reading:
    """What is read of a result: all numbers, and whether each finding, by code, is "POS" or "NEG"."""

    values: tuple[Value, ...]
    findings: tuple[tuple[str, str], ...]
    study_uid: str


def from_report(part10: bytes) -> Reading:
    """Of the Structured Report."""
    report = pydicom.dcmread(io.BytesIO(part10))
    groups = [item for item in _items(report) if item.ValueType == "CONTAINER" and _named(item, GROUP)]
    values = [_number(child) for group in groups for child in group.ContentSequence if child.ValueType == "NUM"]
    findings = []
    for group in groups:
        coded = {_name(child).CodeValue: child for child in group.ContentSequence if child.ValueType == "CODE"}
        if INTERPRETATION in coded:
            answer = ANSWERS[str(coded[INTERPRETATION].ConceptCodeSequence[0].CodeValue)]
            findings.append((_code(coded[FINDING].ConceptCodeSequence[0]), answer))
    return Reading(tuple(sorted(values)), tuple(findings), str(report.StudyInstanceUID))


def from_fhir(bundle: bytes) -> Reading:
    """Of a bundle, by the DiagnosticReport's results."""
    entries = {one["fullUrl"]: one["resource"] for one in json.loads(bundle)["entry"]}
    (report,) = [one for one in entries.values() if one["resourceType"] == "DiagnosticReport"]
    observations = [entries[one["reference"]] for one in report["result"]]
    study = entries[report["imagingStudy"][0]["reference"]]
    values = [_quantity(one) for one in observations]
    findings = [_answered(one) for one in observations if "interpretation" in one]
    uid = next(one["value"] for one in study["identifier"] if one.get("system") == "urn:dicom:uid")
    return Reading(tuple(sorted(values)), tuple(findings), uid.removeprefix("urn:oid:"))


def from_oru(message: bytes) -> Reading:
    """Of an ORU^R01 in UTF-8, by its OBX: those with one OBX-4 belong together; what is taken back (W) is not said."""
    segments = [line.split("|") for line in message.decode().split("\r")]
    standing = [one for one in segments if one[0] == "OBX" and one[11] != "W"]
    observed = [(one[2], _coded(one[3]), one[4], one[5], one[6]) for one in standing]
    values = [Value(name, Decimal(text), _coded(unit)) for kind, name, _, text, unit in observed if kind == "NM"]
    found = {group: _coded(text) for _, name, group, text, _ in observed if name.startswith(FINDING)}
    answers = {group: _coded(text) for _, name, group, text, _ in observed if name.startswith(INTERPRETATION)}
    findings = [(found[group], ANSWERS[answer.split()[0]]) for group, answer in answers.items()]
    (uid,) = [text for _, name, _, text, _ in observed if name.startswith(STUDY)]
    return Reading(tuple(sorted(values)), tuple(findings), uid)


def _coded(field: str) -> str:
    value, _, scheme = field.split("^")
    return f"{value} {scheme}"


def _items(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", []):
        yield child
        yield from _items(child)


def _name(item: Dataset) -> Dataset:
    return item.ConceptNameCodeSequence[0]


def _named(item: Dataset, code: str) -> bool:
    return bool(item.get("ConceptNameCodeSequence")) and _name(item).CodeValue == code


def _code(item: Dataset) -> str:
    return f"{item.CodeValue} {item.CodingSchemeDesignator}"


def _number(item: Dataset) -> Value:
    (measured,) = item.MeasuredValueSequence
    number = Decimal(measured.NumericValue.original_string.strip())
    return Value(_code(_name(item)), number, _code(measured.MeasurementUnitsCodeSequence[0]))


def _coding(concept: Any) -> str:
    first = concept["coding"][0]
    return f"{first['code']} {SCHEMES.get(first['system'], first['system'].rpartition(':')[2])}"


def _quantity(observation: Any) -> Value:
    told = observation["valueQuantity"]
    unit = f"{told['code']} {SCHEMES[told['system']]}"
    return Value(_coding(observation["code"]), Decimal(str(told["value"])), unit)


def _answered(observation: Any) -> tuple[str, str]:
    (finding,) = [one for one in observation["component"] if _coding(one["code"]).startswith(FINDING)]
    return _coding(finding["valueCodeableConcept"]), observation["interpretation"][0]["coding"][0]["code"]
