"""Sections 4.3 and 4.4: network interfaces, AE titles and addresses, parameters."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from config.settings import Settings
from config.shown import shown
from dicom_node.conformance.associations import tls_ports
from dicom_node.conformance.document import Section, section, table

SECTIONS = (
    "receiver",
    "completion",
    "report",
    "sender",
    "sender.commitment",
    "iocm",
    "web.dicomweb",
    "audit.syslog",
    "storage",
)
"""Of the settings, those that other systems notice."""
_INSIDE = {"bucket", "database_url", "pseudonym_key", "credentials", "archives"}
"""What nobody else needs to know."""


def interfaces(settings: Settings) -> Section:
    """Section 4.3."""
    receiver = settings.receiver
    return section(
        "Network Interfaces",
        section("Physical Network Interface", "Any that the operating system (Linux) has for TCP/IP."),
        section(
            "Additional Protocols",
            "DNS for names of peers. HTTP 1.1 for DICOMweb and FHIR, MLLP for HL7 v2, syslog for audit messages, SMTP "
            "and HTTP for notifications; each only if a site configures it. The clock is the operating system's; keep "
            "it "
            "by NTP.",
        ),
        section(
            "IPv4 and IPv6 Support",
            "Both. The receiver listens on one address, "
            f"{receiver.host}, which may be of either; the sender calls whatever a peer's host resolves to.",
        ),
    )


def configuration(settings: Settings) -> Section:
    """Section 4.4."""
    return section(
        "Configuration",
        section(
            "AE Title/Presentation Address Mapping",
            section("Local AE Titles", table("Application entity|AE title|Port", _local(settings))),
            section(
                "Remote AE Title/Presentation Address Mapping",
                "Senders of images:",
                table("AE title|Addresses|May store", _sources(settings)),
                "Systems that the node calls:",
                table("Name|Kind|AE title|Address|TLS", _destinations(settings)),
            ),
        ),
        section(
            "Parameters",
            "The settings that other systems notice, with their defaults and the values of this installation. All "
            "settings are in one file, which config/node.toml explains; dicom-node config show prints them.",
            table("Parameter|Default|Here|Meaning", list(_parameters(settings))),
        ),
    )


def _local(settings: Settings) -> list[tuple[str, ...]]:
    receiver = settings.receiver
    wanted = settings.sender.commitment
    rows: list[tuple[str, ...]] = [
        ("Receiver", receiver.ae_title, str(receiver.port) if receiver.plain else "none without TLS"),
        ("Receiver", receiver.ae_title, tls_ports(settings)),
        ("Sender", settings.sender.calling_ae_title, "none"),
    ]
    if wanted.port:
        title = wanted.ae_title or settings.sender.calling_ae_title
        rows.append(("Sender, answers to storage commitment", title, str(wanted.port)))
    rows += [
        (f"Sender, events of worklist {one.name}", settings.sender.calling_ae_title, str(one.event_port))
        for one in settings.worklists
        if one.event_port
    ]
    return rows


def _sources(settings: Settings) -> list[tuple[str, ...]]:
    if not settings.sources:
        return [("any", "this machine only", "ct, enhanced-ct, legacy-enhanced-ct")]
    return [(one.ae_title, ", ".join(one.addresses) or "any", ", ".join(one.classes)) for one in settings.sources]


def _destinations(settings: Settings) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (one.name, one.kind, getattr(one, "ae_title", ""), one.address, "yes" if one.is_encrypted else "no")
        for one in settings.destinations
    ]
    rows += [
        (one.name, "worklist", one.ae_title, f"{one.host}:{one.port}", "yes" if one.tls else "no")
        for one in settings.worklists
    ]
    return rows or [("none", "", "", "", "")]


def _parameters(settings: Settings) -> Iterator[tuple[str, str, str, str]]:
    for name in SECTIONS:
        here: BaseModel = settings
        for part in name.split("."):
            here = getattr(here, part)
        default = type(here)()
        for key, field in type(here).model_fields.items():
            value = getattr(here, key)
            if key not in _INSIDE and not isinstance(value, BaseModel):
                meaning = " ".join((field.description or "").split())
                yield f"[{name}] {key}", _value(getattr(default, key)), _value(value), meaning


def _value(value: object) -> str:
    """Without paths of this machine, secrets, and names of users."""
    if isinstance(value, Path):
        return "set"
    if isinstance(value, dict):
        return f"{len(value)} entries" if value else "none"
    return shown(value) or "none"
