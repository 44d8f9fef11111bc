"""The gateway to a FHIR server: composes the bundle of a result, and posts it."""

import json
import time
from typing import Any

from config.gateways.fhir import FhirDestination
from config.settings import SenderSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.fhir.answers import existed, total_of, verdict_of
from dicom_node.gateways.fhir.bundle import bundle_of, encoded
from dicom_node.gateways.fhir.elements import condition, uid_identifier
from dicom_node.gateways.http import Answer, HttpPeer
from dicom_node.gateways.identities import Tokens
from dicom_node.gateways.interface import EchoAnswer, Message
from dicom_node.gateways.reported import ReportedResult
from dicom_node.gateways.smart import token_request
from dicom_node.gateways.verdict import AttemptOutcome, Verdict

MEDIA_TYPE = "application/fhir+json"
_HEADERS = {"Content-Type": MEDIA_TYPE, "Accept": MEDIA_TYPE, "Prefer": "return=minimal"}


class FhirGateway:
    """Tells results to one FHIR server."""

    def __init__(self, destination: FhirDestination, sender: SenderSettings) -> None:
        self._destination = destination
        self._peer = HttpPeer(destination, sender)
        if destination.auth == "smart":
            tokens = Tokens(
                destination.token_url, lambda: (token_request(destination, time.time()), {}), self._peer.exchange
            )
            self._peer = HttpPeer(destination, sender, tokens)

    def compose(self, result: ReportedResult) -> Message:
        """The transaction that tells a result; empty if the settings want it untold. Its key is the report's UID.

        Raises CannotCompose.
        """
        bundle = bundle_of(result, self._destination)
        return Message(b"" if bundle is None else encoded(bundle), MEDIA_TYPE, result.report_uid)

    def send(self, message: Message) -> Verdict:
        """Post a transaction once and judge the answer. Never raises for what the network does."""
        if not message.content:
            return Verdict(AttemptOutcome.DELIVERED, "not told: tell_not_analysed is false")
        try:
            answer = self._peer.ask("POST", "", message.content, _HEADERS)
            entries = json.loads(message.content)["entry"]
            verdict = verdict_of(answer, len(entries))
            if verdict.outcome == AttemptOutcome.DELIVERED and existed(answer) and _creates(entries):
                return self._verdict_on_existing(message)
            return verdict
        except NodeError as error:
            return Verdict(AttemptOutcome.UNANSWERED, str(error))

    def anew(self, message: Message) -> Message:
        """The same: a transaction sets what is there to what it says, however often it comes."""
        return message

    def test(self) -> EchoAnswer:
        """Whether the server answers with its capabilities, and gives a token if it wants one."""
        return self._peer.test("/metadata?_summary=true", {"Accept": MEDIA_TYPE})

    def _verdict_on_existing(self, message: Message) -> Verdict:
        """After a lost answer this report is there. If another one is, the node does not know of it: an index was lost,
        or two nodes serve the series. Then this result was told to nobody, which must not pass for delivered."""
        answer = self._asked_for(message)
        found = total_of(answer)
        if found == 0:
            return Verdict(
                AttemptOutcome.REFUSED, "the server holds another report on this series, which this index does not know"
            )
        if found is None and answer.status not in (401, 403):
            return Verdict(AttemptOutcome.TRANSIENT, f"whether it holds the report is not known: {answer.words}")
        return Verdict(AttemptOutcome.DELIVERED, "" if found else "it was there already; the node may not read it")

    def _asked_for(self, message: Message) -> Answer:
        wanted = condition(uid_identifier(message.key))
        return self._peer.ask("GET", f"/DiagnosticReport?{wanted}&_summary=count", headers={"Accept": MEDIA_TYPE})


def _creates(entries: list[Any]) -> bool:
    """Whether a transaction creates its report, which is its last entry."""
    return bool(entries[-1]["request"]["method"] == "POST")
