"""A result as one transaction bundle: done whole or not at all, and the second time without effect.

The first result on a series is created unless its slots are taken (If-None-Exist). A later one updates what is in them:
the status of what it replaces becomes "amended", and what it no longer says becomes "entered-in-error".
"""

import json
from collections.abc import Iterator

from config.gateways.fhir import FhirDestination
from config.reasons import ReasonCode
from dicom_node.gateways.fhir.elements import Element, condition, derived_uuid
from dicom_node.gateways.fhir.patients import subject_of
from dicom_node.gateways.fhir.resources import ENTERED_IN_ERROR, Resources
from dicom_node.gateways.fhir.slots import Slots, Statement
from dicom_node.gateways.reported import ReportedResult


def bundle_of(result: ReportedResult, destination: FhirDestination) -> Element | None:
    """The transaction that tells a result; None if there is nothing to tell. Raises CannotCompose."""
    if not result.analysed and result.replaces is None and not destination.tell_not_analysed:
        return None
    return _Bundle(result, destination).built()


def encoded(bundle: Element) -> bytes:
    """A bundle as bytes: the same each time, and readable for a person."""
    return json.dumps(bundle, ensure_ascii=False, indent=1).encode() + b"\n"


class _Bundle:
    def __init__(self, result: ReportedResult, destination: FhirDestination) -> None:
        self._result = result
        self._slots = Slots(result)
        self._resources = Resources(result, destination, *subject_of(result.patient, destination))
        self._is_first = result.replaces is None
        self._destination = destination
        self._tells_reason = self._is_told(result.reason_code)
        self._before = self._said_before()

    def built(self) -> Element:
        result, slots = self._result, self._slots
        entries = [self._study()]
        if result.model.digest:
            entries.insert(0, self._device())
        observations = list(self._observations())
        report = self._resources.report(slots.report, self._report_status(), [one["fullUrl"] for one in observations])
        entries += [*observations, *self._taken_back(), self._entry(slots.report, report)]
        return {"resourceType": "Bundle", "type": "transaction", "entry": entries}

    def _device(self) -> Element:
        return _created(self._resources.device_url, self._resources.device())

    def _study(self) -> Element:
        return _created(self._resources.study_url, self._resources.study())

    def _observations(self) -> Iterator[Element]:
        """What is said now."""
        result = self._result
        for slot, said in self._slots.of(result.findings, result.numbers):
            status = "amended" if slot in self._before else "preliminary"
            yield self._entry(slot, self._resources.observation(slot, said, status))
        if self._tells_reason:
            slot = self._slots.reason
            reason = self._resources.reason(slot, "cancelled", result.reason_code, result.reason_text)
            yield self._entry(slot, reason)

    def _taken_back(self) -> Iterator[Element]:
        """What was said before and is no longer."""
        now = {slot for slot, _ in self._slots.of(self._result.findings, self._result.numbers)}
        for slot, said in self._before.items():
            if slot not in now:
                yield self._entry(slot, self._resources.observation(slot, said, ENTERED_IN_ERROR))
        codes = [former.reason_code for former in self._result.formers if self._is_told(former.reason_code)]
        if codes and not self._tells_reason:
            slot = self._slots.reason
            yield self._entry(slot, self._resources.reason(slot, ENTERED_IN_ERROR, codes[0], ""))

    def _is_told(self, reason_code: str) -> bool:
        """Whether a reason has an Observation. Of what was taken back there is nothing to say but that."""
        return self._destination.tell_not_analysed and reason_code not in ("", ReasonCode.WITHDRAWN)

    def _said_before(self) -> dict[str, Statement]:
        """The statements of all results that this one replaces, the latest of each slot."""
        found: dict[str, Statement] = {}
        for former in self._result.formers:
            for slot, said in self._slots.of(former.findings, former.numbers):
                found.setdefault(slot, said)
        return found

    def _report_status(self) -> str:
        if not self._result.analysed:
            stood = any(not former.reason_code for former in self._result.formers)
            return ENTERED_IN_ERROR if stood else "cancelled"
        return "amended" if not self._is_first else "preliminary"

    def _entry(self, slot: str, resource: Element) -> Element:
        # Not the slot itself: servers put the resource's address wherever its fullUrl stands, in identifiers too.
        url = derived_uuid("entry", slot)
        if self._is_first:
            return _created(url, resource)
        wanted = condition(resource["identifier"][0])
        request = {"method": "PUT", "url": f"{resource['resourceType']}?{wanted}"}
        return {"fullUrl": url, "resource": resource, "request": request}


def _created(url: str, resource: Element) -> Element:
    """Create a resource, unless its first identifier is there."""
    wanted = condition(resource["identifier"][0])
    request = {"method": "POST", "url": resource["resourceType"], "ifNoneExist": wanted}
    return {"fullUrl": url, "resource": resource, "request": request}
