"""What a gateway does. The outbox does the rest: leases, waits, pauses, counting refusals, keeping what was composed.

A gateway that tells a result in a message of its protocol is a `Gateway`; one that takes the result's DICOM objects as
they are stored is an `ObjectGateway`.
"""

from collections.abc import Sequence
from typing import Protocol

from dicom_node.errors import NodeError
from dicom_node.gateways.reported import ReportedResult
from dicom_node.gateways.verdict import AttemptOutcome as AttemptOutcome
from dicom_node.gateways.verdict import Verdict as Verdict
from dicom_node.scu.store import EchoAnswer as EchoAnswer
from dicom_node.scu.store import InstanceFile, StoreResult
from storage.messages import Message as Message


class CannotCompose(NodeError):
    """The message cannot be made of this result; trying again will not help. Its text holds no patient data."""


class Gateway(Protocol):
    """Tells results to one destination in messages."""

    def compose(self, result: ReportedResult) -> Message:
        """The message that tells a result. The same result gives the same bytes; nothing else is asked or read.

        Raises CannotCompose.
        """
        ...

    def send(self, message: Message) -> Verdict:
        """Send a message once and judge the answer. Never raises for what the network does."""
        ...

    def anew(self, message: Message) -> Message:
        """The same message so that the receiver does not take it for a repetition of one that it has."""
        ...

    def test(self) -> EchoAnswer:
        """Whether the destination answers, as far as its protocol can tell without a result."""
        ...


class ObjectGateway(Protocol):
    """Brings the DICOM objects of results to one destination."""

    def store(self, instances: Sequence[InstanceFile]) -> list[StoreResult]:
        """Send instances in their order, their bytes unchanged. One result for each; never raises for the network."""
        ...

    def test(self) -> EchoAnswer:
        """Whether the destination answers."""
        ...
