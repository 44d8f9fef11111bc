"""A notification as a mail: the same bytes at each attempt, with a Message-ID that tells a repeated one."""

import contextlib
import json
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import Any

from config.gateways.notifications import MailSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.identities import read_secret
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from dicom_node.scu.tls import client_context
from storage.notifications import Notification

SUBJECTS = {
    "positive": "positive result",
    "not-analysed": "series not analysed",
    "delivery-stuck": "results do not get through",
    "health": "the node has a problem",
    "drift-alarm": "drift alarm",
    "canary-failed": "canary failed",
    "summary": "more notifications",
    "test": "test",
}
SESSION_S = 240.0
"""The longest that one mail may take, however lively its server is; less than the lease on it."""
MOST_REPLIES = 1 << 18
"""The most bytes that a server may answer in one session. Its answers have a few hundred."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def compose(one: Notification, settings: MailSettings, to: Sequence[str], node: str) -> bytes:
    """The mail. node: the name that its subject begins with."""
    said = json.loads(one.content)
    mail = EmailMessage(policy=SMTP)
    mail["From"], mail["To"] = settings.sender, ", ".join(to)
    mail["Subject"] = f"[{node}] {SUBJECTS.get(one.kind, one.kind)}"
    mail["Date"] = format_datetime(datetime.fromtimestamp(one.created_at, UTC))
    mail["Message-ID"] = f"<{one.uid}@{settings.sender.partition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    patient = [f"{name.replace('_', ' ')}: {value}" for name, value in said.get("patient", {}).items()]
    lines = [said["what"], *patient, "", f"To look at it: {said['to_do']}", f"Rule: {one.rule}"]
    mail.set_content("\n".join(_CONTROL.sub("?", line) for line in lines) + "\n")
    return mail.as_bytes()


def send(content: bytes, settings: MailSettings, to: Sequence[str]) -> Verdict:
    """One attempt. The verdict's text holds nothing that the server chose but its status."""
    try:
        with _session(settings) as server:
            refused = server.sendmail(settings.sender, list(to), content)
    except NodeError as error:
        return Verdict(AttemptOutcome.TRANSIENT, str(error))
    except smtplib.SMTPRecipientsRefused as error:
        return _judged(max(code for code, _ in error.recipients.values()), "no recipient is accepted")
    except smtplib.SMTPResponseException as error:
        return _judged(error.smtp_code, type(error).__name__.removeprefix("SMTP"))
    except ssl.SSLCertVerificationError as error:
        return Verdict(AttemptOutcome.UNANSWERED, f"its certificate is not trusted: {error.verify_message}")
    except smtplib.SMTPNotSupportedError:
        return Verdict(
            AttemptOutcome.TRANSIENT, "the server does not offer what the settings want: STARTTLS or a login"
        )
    except (OSError, smtplib.SMTPException) as error:
        return Verdict(AttemptOutcome.UNANSWERED, f"no answer ({type(error).__name__})")
    return Verdict(AttemptOutcome.DELIVERED, f"{len(refused)} recipients are not accepted" if refused else "")


@contextlib.contextmanager
def _session(settings: MailSettings) -> Iterator[smtplib.SMTP]:
    """A connection to the server, encrypted and logged in as the settings say."""
    where = (settings.host, settings.port)
    if settings.security == "tls":
        server: smtplib.SMTP = _BoundedTls(*where, timeout=settings.timeout_s, context=_context(settings))
    else:
        server = _Bounded(*where, timeout=settings.timeout_s)
    try:
        if settings.security == "starttls":
            server.starttls(context=_context(settings))
        if settings.user:
            _log_in(server, settings)
        yield server
    finally:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            server.quit()
        server.close()


class _Replies:
    """What a server answers, line by line, until it has said too much or taken too long: smtplib bounds neither."""

    def __init__(self, connection: socket.socket, patience_s: float) -> None:
        self._connection, self._patience_s = connection, patience_s
        self._deadline = time.monotonic() + SESSION_S
        self._received, self._rest = 0, b""

    def readline(self, limit: int) -> bytes:
        """The next line, or `limit` bytes of it; empty at the end. Raises OSError."""
        while b"\n" not in self._rest and len(self._rest) < limit and (more := self._more()):
            self._rest += more
        line = self._rest[: self._rest.find(b"\n") + 1 or limit][:limit]
        self._rest = self._rest[len(line) :]
        return line

    def close(self) -> None:
        """The connection is smtplib's to close."""

    def _more(self) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0 or self._received > MOST_REPLIES:
            raise TimeoutError
        self._connection.settimeout(min(left, self._patience_s))
        more = self._connection.recv(4096)
        self._received += len(more)
        return more


class _Bounded(smtplib.SMTP):
    """A session whose answers are bounded in length and time; anew after STARTTLS."""

    file: Any

    def getreply(self) -> tuple[int, bytes]:
        """As smtplib's, which reads from `file` and makes it if there is none."""
        if self.file is None and self.sock is not None:
            self.file = _Replies(self.sock, self.timeout)
        return super().getreply()


class _BoundedTls(_Bounded, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


def _log_in(server: smtplib.SMTP, settings: MailSettings) -> None:
    try:
        server.login(settings.user, read_secret(settings.credentials, settings.credentials_variable))
    except smtplib.SMTPServerDisconnected:
        raise NodeError("the server ended the connection at the login: user or password may be wrong") from None
    except UnicodeEncodeError:
        raise NodeError("[mail] user and password may hold ASCII characters only: a login has no others") from None
    except ValueError:
        raise NodeError("the server asks for the login in a way that cannot be understood") from None


def _context(settings: MailSettings) -> ssl.SSLContext:
    try:
        return client_context(settings.tls_authorities)
    except OSError as error:  # an SSLError is one: the file holds no certificate
        why = error.strerror or type(error).__name__
        raise NodeError(f"[mail] tls_authorities: {settings.tls_authorities} cannot be used: {why}") from None


def _judged(code: int, what: str) -> Verdict:
    """By the status of RFC 5321: 5yz is final, all else may pass. A login that is refused is for a person to mend."""
    final = code >= 500 and code not in (530, 535)
    return Verdict(AttemptOutcome.REFUSED if final else AttemptOutcome.TRANSIENT, f"SMTP status {code}: {what}")
