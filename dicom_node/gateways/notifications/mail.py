"""A notification as a mail: the same bytes at each attempt, with a Message-ID that tells a repeated one."""

import contextlib
import json
import re
import smtplib
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from config.gateways.notifications import MailSettings
from dicom_node.errors import NodeError
from dicom_node.gateways.identities import read_secret
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
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
    except (OSError, smtplib.SMTPException) as error:
        return Verdict(AttemptOutcome.UNANSWERED, f"no answer ({type(error).__name__})")
    return Verdict(AttemptOutcome.DELIVERED, f"{len(refused)} recipients are not accepted" if refused else "")


@contextlib.contextmanager
def _session(settings: MailSettings) -> Iterator[smtplib.SMTP]:
    """A connection to the server, encrypted and logged in as the settings say."""
    where = (settings.host, settings.port)
    if settings.security == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=settings.timeout_s, context=_context(settings))
    else:
        server = smtplib.SMTP(*where, timeout=settings.timeout_s)
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


def _log_in(server: smtplib.SMTP, settings: MailSettings) -> None:
    try:
        server.login(settings.user, read_secret(settings.credentials, settings.credentials_variable))
    except smtplib.SMTPServerDisconnected:
        raise NodeError("the server ended the connection at the login: user or password may be wrong") from None


def _context(settings: MailSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=settings.tls_authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _judged(code: int, what: str) -> Verdict:
    """By the status of RFC 5321: 5yz is final, all else may pass. A login that is refused is for a person to mend."""
    final = code >= 500 and code not in (530, 535)
    return Verdict(AttemptOutcome.REFUSED if final else AttemptOutcome.TRANSIENT, f"SMTP status {code}: {what}")
