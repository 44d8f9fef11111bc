"""[mail] and [[notifications]]: whom the node tells by itself, of what."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from config.gateways.destination import DestinationName
from config.gateways.http import HttpUrlOrNone
from config.section import Section
from config.values import Port, host_or_none

Kind = Literal["positive", "not-analysed", "delivery-stuck", "health", "drift-alarm", "canary-failed"]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9.-]+$", max_length=254)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$|^$")]


class MailSettings(Section):
    """[mail]: the mail server that takes notifications."""

    host: Annotated[str, AfterValidator(host_or_none), Field(examples=["mail.hospital.example"])] = ""
    """Its host; empty: the node sends no mail."""
    port: Port = 587
    """Its port."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """"starttls": TLS begins on the connection; "tls": from its first byte (port 465); "none": only to this machine."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued its certificate; empty: those of the operating system."""
    user: str = ""
    """User to log in with; empty: no login."""
    credentials: Path | None = Field(default=None, examples=["/etc/dicom-node/mail-password"])
    """File with nothing but the password; it is read each time one is needed."""
    credentials_variable: Variable = ""
    """Name of the environment variable that holds it, in place of a file."""
    sender: Address = "dicom-node@localhost"
    """Address that mails come from."""
    timeout_s: float = Field(default=20.0, gt=0, le=60)
    """Time for the server to take the connection and to answer each command."""


class NotificationRule(Section):
    """[[notifications]]: one rule: whom to tell, of what. No patient data unless it says so."""

    name: DestinationName
    """Its name, in the index and on the command line: letters, digits, - and _."""
    on: Annotated[tuple[Kind, ...], Field(min_length=1, examples=[("delivery-stuck", "health")])]
    """What it tells: "positive": a result with a positive finding; "not-analysed": a series without one;
    "delivery-stuck": a destination that takes nothing, or a delivery that failed; "health": a problem of `/health`;
    "drift-alarm" and "canary-failed": those of the monitoring."""
    mail_to: tuple[Address, ...] = ()
    """Addresses that get a mail; [mail] names the server."""
    webhook: HttpUrlOrNone = ""
    """Address that gets a POST with JSON. Needs the extra: pip install 'dicom-node[gateways]'."""
    credentials: Path | None = Field(default=None, examples=["/etc/dicom-node/webhook-secret"])
    """File with the secret that signs what the webhook gets (HMAC-SHA-256); it is read each time one is needed."""
    credentials_variable: Variable = ""
    """Name of the environment variable that holds it, in place of a file."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued the webhook's certificate; empty: those of the operating system."""
    patient_data: bool = False
    """Also name the patient, by ID and accession number. Mail is then readable at every server on its way."""
    at_most_per_hour: int = Field(default=10, ge=1, le=1000)
    """Messages in an hour. What is above that is counted, and told in one message when the hour is over."""
    stuck_minutes: float = Field(default=30.0, gt=0)
    """A destination that has taken nothing for this long, while something waits for it, is stuck."""
    repeat_hours: float = Field(default=24.0, gt=0)
    """A problem that goes on is told again after this time."""
