"""What one attempt to deliver means, whatever it was that was sent."""

import socket
from dataclasses import dataclass
from enum import StrEnum


class AttemptOutcome(StrEnum):
    """How an attempt to deliver ended."""

    DELIVERED = "DELIVERED"
    UNANSWERED = "UNANSWERED"
    """Nothing was answered: the destination is away."""
    TRANSIENT = "TRANSIENT"
    """Trying again may help."""
    REFUSED = "REFUSED"
    """Trying again will hardly help."""
    WITHHELD = "WITHHELD"
    """It must not leave this machine."""


@dataclass(frozen=True)
class Verdict:
    """What one attempt means for its delivery.

    text: a reason or a remark for `status`, without patient data. sent: False if nothing can have reached the peer.
    """

    outcome: AttemptOutcome
    text: str
    sent: bool = True


def why_no_connection(error: BaseException) -> str:
    """What a failed connection says about the peer, in words; empty if that is not known."""
    if isinstance(error, socket.gaierror):
        return "the name of its host is not known here"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens at its port"
    return ""
