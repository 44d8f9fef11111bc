"""[audit.syslog]: the audit trail as DICOM audit messages to an audit record repository."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from config.section import Section
from config.values import Port, host_or_none

HostOrNone = Annotated[str, AfterValidator(host_or_none)]


class SyslogSettings(Section):
    """[audit.syslog]: send the audit trail as DICOM audit messages (PS3.15 A.5) to a repository, by syslog over TLS.

    The messages hold patient IDs and UIDs, as the standard wants.
    """

    host: Annotated[HostOrNone, Field(examples=["audit.hospital.example"])] = ""
    """Host of the repository; empty: no messages are sent."""
    port: Port = 6514
    """Its port."""
    tls: bool = True
    """Connect with TLS 1.2 or later. Without TLS, only to this machine, unless plain_beyond_this_machine says so."""
    plain_beyond_this_machine: bool = False
    """Send without TLS to another machine: everybody on the line can read patient data and change messages."""
    tls_authorities: Path | None = Field(default=None, examples=["authorities.pem"])
    """PEM: the authorities that may have issued the repository's certificate; empty: those of the operating system."""
    tls_certificate: Path | None = Field(default=None, examples=["node.pem"])
    """PEM: the certificate that the node shows, with its chain; empty: it shows none. Most repositories want one."""
    tls_key: Path | None = Field(default=None, examples=["node.key"])
    """PEM: its private key."""
    tls_check_host: bool = True
    """The repository's certificate must name `host`. False if certificates name something else."""
    app_name: str = Field(default="dicom-node", pattern=r"^[!-~]{1,48}$")
    """APP-NAME of the syslog header."""
    message_id: str = Field(default="IHE+RFC-3881", pattern=r"^[!-~]{1,32}$")
    """MSGID of the syslog header; some repositories want "DICOM+RFC3881"."""
    byte_order_mark: bool = False
    """Begin each message with the UTF-8 byte order mark, as RFC 5424 asks for and some repositories do not take."""
    source_id: str = Field(default="", max_length=64)
    """AuditSourceID: what the repository knows this node by; empty: the receiver's AE title."""
    site_id: str = Field(default="", max_length=64)
    """AuditEnterpriseSiteID; empty: left out."""
    from_the_beginning: bool = False
    """At the first start with a repository: send what the trail holds already, archives included. Otherwise, what
    happens from then on."""
    archives: Path | None = Field(default=None, examples=["/mnt/archives"])
    """Folder of the archives of the audit trail, if they are not in audit/ in the data folder. It is needed only if
    rows are archived before they were sent."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Time for the repository to take a connection, a message, and the end of a connection."""
    gather_s: float = Field(default=60.0, gt=0)
    """Instances of one study that one peer sends are one message, made once no more come for this long, or at the end
    of the association."""
    head_hours: float = Field(default=1.0, gt=0)
    """How often the end of the trail (number and hash of its last row) is sent, so that it is known outside."""


class AuditSettings(Section):
    """[audit]: where else the audit trail goes."""

    syslog: SyslogSettings = SyslogSettings()
