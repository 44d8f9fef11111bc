"""Minimal Lower Layer Protocol: one message out, one acknowledgement back, on a connection of their own.

Source: HL7 v2.5.1, 2.9 (acknowledgements) and appendix C.4 (the frame).
"""

import re
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dicom_node.gateways.verdict import AttemptOutcome, Verdict, why_no_connection
from dicom_node.scu.store import EchoAnswer
from dicom_node.scu.tls import client_context, connect

START, END = b"\x0b", b"\x1c\r"
MOST_ANSWER_BYTES = 1 << 18
"""An acknowledgement has a few hundred bytes."""
_ACCEPTED = ("AA", "CA")
_REFUSED = ("AE", "AR", "CE", "CR")


class Listener(Protocol):
    """Where an interface engine listens; `config.gateways.hl7.Hl7Destination` is one."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def connect_timeout_s(self) -> float: ...
    @property
    def response_timeout_s(self) -> float: ...
    @property
    def tls(self) -> bool: ...
    @property
    def tls_authorities(self) -> Path | None: ...
    @property
    def tls_certificate(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_check_host(self) -> bool: ...


@dataclass(frozen=True)
class Acknowledgement:
    """MSA-1, MSA-2, and the code of ERR-3 if it is a plain one; what else the peer wrote may quote a patient."""

    code: str
    control_id: str
    error: str


def exchange(listener: Listener, message: bytes, control_id: str) -> Verdict:
    """Send a message and wait for its acknowledgement.

    control_id: the message's MSH-10. An acknowledgement whose MSA-2 is another is none.
    """
    deadline = time.monotonic() + listener.connect_timeout_s + listener.response_timeout_s
    try:
        connection = _connect(listener)
    except OSError as error:
        return Verdict(AttemptOutcome.UNANSWERED, _failure(error), sent=False)
    try:
        with connection:
            _send(connection, START + message + END, deadline)
            return _await(connection, control_id, deadline)
    except OSError as error:
        return Verdict(AttemptOutcome.UNANSWERED, _failure(error))


def reach(listener: Listener) -> EchoAnswer:
    """Whether somebody listens there, with TLS if the site wants it. Nothing is sent."""
    try:
        _connect(listener).close()
    except OSError as error:
        return EchoAnswer(False, _failure(error))
    return EchoAnswer(True, "it listens; no message was sent")


def read_acknowledgement(frame: bytes) -> Acknowledgement | None:
    """What an answer says, or None if it is not an HL7 acknowledgement."""
    # Every character set of HL7 leaves what is read here as ASCII.
    text = frame.decode("latin-1")
    if not text.startswith("MSH") or len(text) < 8:
        return None
    segments = [one.split(text[3]) for one in re.split(r"[\r\n]+", text)]
    stated = next((one for one in segments if one[0] == "MSA" and len(one) >= 3), None)
    if stated is None:
        return None
    error = next((one[3].partition(text[4])[0] for one in segments if one[0] == "ERR" and len(one) > 3), "")
    return Acknowledgement(stated[1].strip(), stated[2].strip(), error if re.fullmatch(r"\d{1,5}", error) else "")


def _connect(listener: Listener) -> socket.socket:
    files = listener.tls_authorities, listener.tls_certificate, listener.tls_key
    context = client_context(*files, check_host=listener.tls_check_host) if listener.tls else None
    return connect(listener.host, listener.port, context, listener.connect_timeout_s)


def _failure(error: OSError) -> str:
    """What went wrong with the connection, without a word of the peer's choice."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({(error.reason or 'error').lower()})"
    if isinstance(error, FileNotFoundError):
        return "TLS: a file that the settings name is not there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"no connection: {why_no_connection(error) or type(error).__name__}"


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    """Send all of it, however slowly the peer reads, but not for longer than the deadline."""
    connection.settimeout(_left(deadline))
    connection.sendall(data)


def _await(connection: socket.socket, control_id: str, deadline: float) -> Verdict:
    """Read answers until one is the message's own, the peer hangs up, or time or room is over."""
    received = b""
    wrong = ""
    while True:
        frame, end, rest = received.partition(END)
        if end:
            verdict = _judge(frame, control_id)
            if isinstance(verdict, Verdict):
                return verdict
            received, wrong = rest, verdict
            continue
        if len(received) > MOST_ANSWER_BYTES:
            return Verdict(AttemptOutcome.TRANSIENT, f"an answer of more than {MOST_ANSWER_BYTES >> 10} KiB")
        try:
            connection.settimeout(_left(deadline))
            more = connection.recv(1 << 16)
        except TimeoutError:
            return _without(received, wrong, "no answer in time")
        if not more:
            return _without(received, wrong, "the connection was closed without an acknowledgement")
        received += more


def _without(received: bytes, wrong: str, silent: str) -> Verdict:
    """The verdict if no answer was the message's own. A peer that said something is not away."""
    if wrong or received:
        return Verdict(AttemptOutcome.TRANSIENT, wrong or "an answer without an end")
    return Verdict(AttemptOutcome.UNANSWERED, silent)


def _judge(frame: bytes, control_id: str) -> Verdict | str:
    """What one answer means, or why it is no acknowledgement of the message."""
    before, start, content = frame.partition(START)
    found = read_acknowledgement(content) if start and not before.strip() else None
    if found is None:
        return "an answer that is not an HL7 acknowledgement"
    if found.control_id != control_id:
        return "an acknowledgement of another message (MSA-2)"
    if found.code in _ACCEPTED:
        return Verdict(AttemptOutcome.DELIVERED, "")
    if found.code in _REFUSED:
        error = f", error {found.error} (ERR-3)" if found.error else ""
        return Verdict(AttemptOutcome.REFUSED, f"{found.code} (MSA-1){error}")
    return "an acknowledgement with an unknown code (MSA-1)"


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
