"""Sections 5 to 8: media, CDA, character sets, security."""

from pydicom.charset import python_encoding

from config.settings import Settings
from dicom_node.conformance.document import Section, section, table
from dicom_node.gateways.audit_messages.table import TABLE
from dicom_node.report.sources import UTF_8
from dicom_node.scu.tls import DICOM_CIPHERS


def media() -> Section:
    """Section 5."""
    return section("Media Interchange", "Not supported.")


def cda(settings: Settings) -> Section:
    """Section 6."""
    kinds = sorted({one.kind for one in settings.destinations} & {"fhir", "hl7"})
    return section(
        "Transformation of DICOM to CDA",
        "Not supported. Other transformations, each only to destinations that a site configures "
        f"(here: {', '.join(kinds) or 'none'}): a FHIR R4 transaction, aligned with HL7's guide DICOM SR to FHIR "
        "Resource "
        "Mapping; and an HL7 v2.5.1 ORU^R01 message, aligned with chapters 2 and 7. They are told from the stored "
        "Structured Report. No conformance to IHE profiles is claimed.",
    )


def character_sets(settings: Settings) -> Section:
    """Section 7."""
    known = [term for term in python_encoding if term]
    return section(
        "Support of Character Sets",
        f"Objects that the node makes are in {UTF_8} (UTF-8). What they take from images is converted. Received "
        "instances are kept as they are, in whatever character set.",
        table("Specific Character Set that is read|Python codec", [(term, python_encoding[term]) for term in known]),
        "ISO 2022 code extensions are read. An instance with an unknown Specific Character Set is stored; its texts "
        "in the index have their unreadable characters replaced. The sender's queries (C-FIND) hold ASCII only unless "
        "a "
        "person gives other keys.",
        "Audit messages, FHIR and DICOMweb answers are UTF-8. HL7 messages are in the character set that each "
        f"destination is configured for. The index holds {_names(settings)}.",
    )


def _names(settings: Settings) -> str:
    if settings.storage.pseudonym_key.get_secret_value():
        return "no patient's name, and hashes of Patient ID and Accession Number"
    return "patients' names as they came, converted to Unicode"


def security(settings: Settings) -> Section:
    """Section 8."""
    return section("Security", _profiles(settings), _association(settings), _application(settings), _audit(settings))


def _profiles(settings: Settings) -> Section:
    receiver = settings.receiver
    rows = [
        ("Receiver", "TLS 1.2, TLS 1.3", DICOM_CIPHERS, "required", "yes" if receiver.tls_certificate else "off"),
        ("Sender, to each peer", "TLS 1.2, TLS 1.3", DICOM_CIPHERS, "if the peer asks", _sends(settings)),
        ("Audit messages", "TLS 1.2, TLS 1.3", DICOM_CIPHERS, "if the repository asks", _audits(settings)),
    ]  # fmt: skip
    return section(
        "Security Profiles",
        "Secure transport: the BCP 195 TLS profile (PS3.15 B.12). The ciphers are written as OpenSSL does. TLS 1.3 has "
        "its own. Renegotiation and compression are off.",
        table("Connection|Versions|Ciphers of TLS 1.2|Client certificate|Here", rows),
        "The peer's certificate must be of an authority that the site names. The receiver may bind AE titles to "
        "certificates (tls_peers). The peer's host name is checked against its certificate, unless tls_check_host is "
        "false. Certificates are read again when their files change.",
        "Digital signatures: bit-preserving for what is received; none is made or verified. No profile for media or "
        "de-identification is claimed.",
    )


def _sends(settings: Settings) -> str:
    encrypted = [one.name for one in settings.destinations if one.is_encrypted]
    encrypted += [one.name for one in settings.worklists if one.tls]
    return ", ".join(encrypted) or "off"


def _audits(settings: Settings) -> str:
    syslog_settings = settings.audit.syslog
    return "off" if not syslog_settings.host else "yes" if syslog_settings.tls else "without TLS"


def _association(settings: Settings) -> Section:
    return section(
        "Association Level Security",
        "Called and calling AE title, address, and certificate: see the receiver's acceptance policy. User identity "
        "negotiation (PS3.7 D.3.3.7): type 2, user name and passcode, over TLS only; "
        f"{'required' if settings.receiver.users else 'off: an identity is ignored'}. A positive response is sent if "
        "the requestor asks for one. Other types are refused where a user is required.",
    )


def _application(settings: Settings) -> Section:
    web = "on" if settings.web.port else "off"
    login = ", or a login of the hospital by OpenID Connect" if settings.web.oidc.issuer else ""
    return section(
        "Application Level Security",
        f"The node's pages for people ({web}) need an account with a role{login}. A third party's model runs in a "
        "process "
        "of its own, cut off from network and files.",
    )


def _audit(settings: Settings) -> Section:
    host = settings.audit.syslog.host
    told = [
        (
            event,
            f"{one.event.value} {one.event.meaning}",
            ", ".join(f"{kind.value} {kind.meaning}" for kind in one.types) or "none",
            one.action,
            one.outcome,
        )
        for event, one in TABLE.items()
    ]
    return section(
        "Audit Trail",
        "Every event is a row in the node's index, chained by hashes. The rows below become messages of the audit "
        "trail message format profile (PS3.15 A.5) and go to a repository by syslog over TLS (RFC 5424, RFC 5425), "
        f"facility 10, severity 5, MSGID {settings.audit.syslog.message_id}. It is aligned with the transport of IHE "
        f"ATNA. Here: {'to a repository' if host else 'off; host in [audit.syslog] turns it on'}.",
        table("Event|Event ID|Event type|Action|Outcome", told),
        "Other events of the trail have no counterpart in PS3.15 A.5 and stay in the index.",
    )
