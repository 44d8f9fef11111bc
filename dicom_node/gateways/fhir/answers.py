"""What a FHIR server's answer to a transaction means for a delivery."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dicom_node.gateways.http import Answer
from dicom_node.gateways.verdict import AttemptOutcome, Verdict

_ISSUES = (
    "invalid structure required value invariant security login unknown expired forbidden suppressed processing "
    "not-supported duplicate multiple-matches not-found deleted too-long code-invalid extension too-costly "
    "business-rule conflict transient lock-error no-store exception timeout incomplete throttled informational"
)
_DONE = re.compile(r"2\d\d(\D|$)", re.ASCII)
ISSUES = frozenset(_ISSUES.split())
"""The issue types of FHIR R4: what a server writes in their place may be anything."""


def verdict_of(answer: Answer, entries: int) -> Verdict:
    """What an answer to a transaction of so many entries means.

    It has one entry for each, in their order (FHIR R4, http.html#trules). The text has statuses and issue codes, never
    diagnostics: those may name a patient.
    """
    said = _object(answer.body)
    if not answer.ok:
        return _not_done(answer, said)
    statuses = _statuses(said)
    if said.get("resourceType") != "Bundle" or said.get("type") != "transaction-response" or not statuses:
        return Verdict(AttemptOutcome.TRANSIENT, f"{answer.words}, but no answer to a transaction")
    failed = [status for status in statuses if not _DONE.match(status)]
    if failed:
        number = failed[0][:3] if failed[0][:3].isdecimal() else "that is not one"
        return Verdict(AttemptOutcome.REFUSED, f"an entry of the transaction has a status {number}")
    if len(statuses) != entries:
        said_of = f"{len(statuses)} of the transaction's {entries} entries"
        return Verdict(AttemptOutcome.TRANSIENT, f"{answer.words}, but an answer about {said_of}")
    return Verdict(AttemptOutcome.DELIVERED, "")


def existed(answer: Answer) -> bool:
    """Whether the last entry of a transaction was there already."""
    return _statuses(_object(answer.body))[-1:] != [] and _statuses(_object(answer.body))[-1].startswith("200")


def total_of(answer: Answer) -> int | None:
    """How many resources a search found; None if the answer does not say."""
    total = _object(answer.body).get("total") if answer.ok else None
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def _not_done(answer: Answer, said: Mapping[str, Any]) -> Verdict:
    issues = _issues(said)
    words = f"{answer.words} ({', '.join(issues)})" if issues else answer.words
    # Servers answer so if a condition finds nothing, such as the patient: that is about this result alone.
    outcome = AttemptOutcome.REFUSED if answer.status == 404 and issues else answer.outcome
    return Verdict(outcome, words)


def _issues(said: Mapping[str, Any]) -> list[str]:
    """The issue codes of an OperationOutcome, which are words of the standard."""
    if said.get("resourceType") != "OperationOutcome":
        return []
    codes = [one.get("code") for one in _listed(said.get("issue")) if isinstance(one, dict)]
    return [code for code in sorted(ISSUES) if code in codes][:3]


def _statuses(said: Mapping[str, Any]) -> list[str]:
    """The status of each entry; empty if any has none."""
    responses = [one.get("response") for one in _listed(said.get("entry")) if isinstance(one, dict)]
    statuses = [one.get("status") for one in responses if isinstance(one, dict)]
    texts = [status for status in statuses if isinstance(status, str)]
    return texts if len(texts) == len(_listed(said.get("entry"))) else []


def _listed(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
