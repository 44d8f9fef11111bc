"""The resources of a bundle: Device, ImagingStudy, Observation and DiagnosticReport.

As HL7's guide "DICOM SR to FHIR Resource Mapping" maps TID 1500, as far as a report of the node goes.
"""

from collections.abc import Sequence
from datetime import datetime, tzinfo

from pydicom.sr.coding import Code as SRCode

from config.coding import Code, is_positive
from config.gateways.fhir import FhirDestination
from dicom_node.gateways.fhir import elements, slots
from dicom_node.gateways.fhir.elements import Element, concept, hl7_concept, present, quantity, uid_identifier
from dicom_node.gateways.fhir.slots import Statement
from dicom_node.gateways.reported import FindingSaid, ReportedResult, StudySaid
from dicom_node.gateways.sr_content import Number
from dicom_node.report import codes

AI_ASSERTED = {
    "system": f"{elements.HL7}/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
"""The label of what no person has asserted."""
ENTERED_IN_ERROR = "entered-in-error"
IMAGING = hl7_concept("observation-category", "imaging", "Imaging")
RADIOLOGY = hl7_concept("v2-0074", "RAD", "Radiology")
ACCESSION = hl7_concept("v2-0203", "ACSN", "Accession ID")
NOT_PERFORMED = {"system": f"{elements.HL7}/data-absent-reason", "code": "not-performed", "display": "Not Performed"}


def _own(code: SRCode) -> Code:
    return Code(code.value, code.scheme_designator, code.meaning)


CERTAINTY, PERCENT, FINDING = _own(codes.CERTAINTY), _own(codes.PERCENT), _own(codes.FINDING)
REPORT, CT, MODEL = _own(codes.DIAGNOSTIC_IMAGING_REPORT), _own(codes.CT), _own(codes.ARTIFICIAL_INTELLIGENCE)
LATERALITY = Code("272741003", "SCT", "Laterality")
TOPOGRAPHY = Code("106233006", "SCT", "Topographical modifier")
DERIVATION = Code("121401", "DCM", "Derivation")


class Resources:
    """The resources that tell one result. subject: the Reference to its patient.  contained: what it leads to."""

    def __init__(
        self, result: ReportedResult, destination: FhirDestination, subject: Element, contained: Sequence[Element]
    ) -> None:
        self._result = result
        self._systems = destination.coding_systems
        self._accession_system = destination.accession_system
        self._subject, self._contained = subject, list(contained)
        self.device_url = elements.derived_uuid("device", result.model.digest)
        self.study_url = elements.derived_uuid("study", result.study.study_uid)

    def device(self) -> Element:
        """The model."""
        model = self._result.model
        return {
            "resourceType": "Device",
            "identifier": [{"system": elements.URI, "value": f"nih:sha-256;{model.digest}"}],
            "status": "active",
            "deviceName": [{"name": model.name, "type": "model-name"}],
            "type": self._concept(MODEL),
            "version": [{"value": model.version}],
        }

    def study(self) -> Element:
        """The study, with the series that was analysed."""
        study = self._result.study
        return {
            "resourceType": "ImagingStudy",
            **present(contained=self._contained),
            "identifier": [uid_identifier(study.study_uid), *self._accession()],
            "status": "available",
            "subject": self._subject,
            **present(started=started(study, self._result.created.tzinfo), description=study.description),
            "series": [{"uid": self._result.series_uid, "modality": elements.coding(CT, self._systems)}],
        }

    def observation(self, slot: str, said: Statement, status: str) -> Element:
        """One statement of the result, or of one that it replaces and that another model may have made."""
        told = self._finding(said) if isinstance(said, FindingSaid) else self._number(said)
        return {
            **self._observed(status),
            "identifier": [slots.identifier(slot), uid_identifier(said.observation_uid)],
            **told,
        }

    def reason(self, slot: str, status: str, code: str, sentence: str) -> Element:
        """Why there is no result: an Observation without a value, so that nobody takes it for a finding."""
        absent = Code(code, codes.PRIVATE_SCHEME, code.replace("_", " ").capitalize()[:64])
        return {
            **self._observed(status),
            "identifier": [slots.identifier(slot)],
            "code": self._concept(FINDING),
            "dataAbsentReason": present(coding=[NOT_PERFORMED, elements.coding(absent, self._systems)], text=sentence),
        }

    def report(self, slot: str, status: str, observation_urls: Sequence[str]) -> Element:
        """The report."""
        result = self._result
        return {
            "resourceType": "DiagnosticReport",
            "meta": {"security": [AI_ASSERTED]},
            **present(contained=self._contained),
            "identifier": [slots.identifier(slot), uid_identifier(result.report_uid)],
            "status": status,
            "category": [RADIOLOGY],
            "code": self._concept(REPORT),
            "subject": self._subject,
            **present(effectiveDateTime=started(result.study, result.created.tzinfo)),
            "issued": elements.instant(result.created),
            **present(result=[{"reference": url} for url in observation_urls]),
            "imagingStudy": [{"reference": self.study_url}],
            **present(conclusion="\n".join(result.sentences)),
        }

    def _observed(self, status: str) -> Element:
        """What all observations of a result have in common."""
        result = self._result
        is_of_this_model = bool(result.model.digest) and status != ENTERED_IN_ERROR
        return {
            "resourceType": "Observation",
            "meta": {"security": [AI_ASSERTED]},
            **present(contained=self._contained),
            "identifier": [],
            "status": status,
            "category": [IMAGING],
            "code": {},
            "subject": self._subject,
            **present(effectiveDateTime=started(result.study, result.created.tzinfo)),
            "issued": elements.instant(result.created),
            **present(device={"reference": self.device_url} if is_of_this_model else None),
            "derivedFrom": [{"reference": self.study_url}],
        }

    def _finding(self, said: FindingSaid) -> Element:
        """The certainty, and of what; without a certainty, the finding itself."""
        if said.percent:
            told = {
                "code": self._concept(CERTAINTY, f"{CERTAINTY.meaning}: {said.concept.meaning}"),
                "valueQuantity": quantity(said.percent, PERCENT),
            }
            components = [self._component(FINDING, said.concept)]
        else:
            told = {"code": self._concept(FINDING), "valueCodeableConcept": self._concept(said.concept)}
            components = []
        components += self._components([(LATERALITY, said.laterality)])
        return {
            **told,
            **present(
                interpretation=self._interpretation(said.interpretation),
                bodySite=self._site(said.site),
                referenceRange=_positive_from(said.threshold) if said.percent else None,
                component=components,
            ),
        }

    def _number(self, said: Number) -> Element:
        where = [code.meaning for code in (said.site, said.laterality, said.topography) if code is not None]
        said_of = [said.derivation.meaning] if said.derivation else []
        about = [f"({said.finding.meaning})"] if said.finding not in (None, said.site) else []
        text = " ".join([", ".join([said.concept.meaning, *said_of, *where]), *about])
        components = self._components(
            [
                (FINDING, said.finding),
                (LATERALITY, said.laterality),
                (TOPOGRAPHY, said.topography),
                (DERIVATION, said.derivation),
            ]
        )
        components += [
            {"code": self._concept(name), "valueQuantity": quantity(value, unit)}
            for name, value, unit in said.qualifiers
        ]
        return {
            "code": self._concept(said.concept, text),
            "valueQuantity": quantity(said.value, said.unit),
            **present(
                bodySite=self._site(said.site),
                method=None if said.method is None else self._concept(said.method),
                component=components,
            ),
        }

    def _components(self, pairs: Sequence[tuple[Code, Code | None]]) -> list[Element]:
        return [self._component(name, value) for name, value in pairs if value is not None]

    def _component(self, name: Code, value: Code) -> Element:
        return {"code": self._concept(name), "valueCodeableConcept": self._concept(value)}

    def _site(self, site: Code | None) -> Element | None:
        return None if site is None else self._concept(site)

    def _interpretation(self, said: Code | None) -> list[Element]:
        """In HL7's code, and in the report's."""
        if said is None:
            return []
        positive = is_positive(said)
        code, display = {True: ("POS", "Positive"), False: ("NEG", "Negative"), None: ("IND", "Indeterminate")}[
            positive
        ]
        told = hl7_concept("v3-ObservationInterpretation", code, display)
        return [{"coding": [*told["coding"], elements.coding(said, self._systems)]}]

    def _accession(self) -> list[Element]:
        study = self._result.study
        if not study.accession_number:
            return []
        assigner = {"display": study.accession_issuer} if study.accession_issuer else None
        named = present(system=self._accession_system, value=study.accession_number, assigner=assigner)
        return [{"type": ACCESSION, **named}]

    def _concept(self, code: Code, text: str = "") -> Element:
        return concept(code, self._systems, text)


def _positive_from(threshold: float | None) -> list[Element]:
    """The threshold of the model as the highest value that is not positive."""
    if threshold is None:
        return []
    percent = quantity(f"{100 * threshold:.10g}", PERCENT)
    return [{"high": percent, "text": f"positive from {percent['value']} %"}]


def started(study: StudySaid, zone: tzinfo | None) -> str:
    """When the study began: a day, or a moment if the report has its time; empty if it has no date of the calendar.

    zone: in which the report's times are.
    """
    day, time = elements.day(study.date), study.time.split(".")[0]
    if not day or len(time) < 4 or zone is None:
        return day
    try:
        moment = datetime.strptime(f"{study.date}{time.ljust(6, '0')}", "%Y%m%d%H%M%S")
    except ValueError:
        return day  # no time of a clock
    return moment.replace(tzinfo=zone).isoformat()
