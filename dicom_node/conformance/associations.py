"""What the sections on both application entities have in common: policies, contexts and statuses as tables."""

from collections.abc import Iterable, Sequence

from config.settings import Settings
from dicom_node.conformance.document import Section, Table, section, table
from dicom_node.conformance.services import name_of
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.scu.contexts import Service
from dicom_node.statuses import Returned

CONTEXTS = "Abstract Syntax|UID|Transfer Syntax|UID|Role|Extended Negotiation"
STATUSES = "Service status|Code|Meaning|When the node returns it"


def context_rows(service: Service, role: str) -> list[tuple[str, ...]]:
    """A row for each transfer syntax of each class."""
    return [
        (name_of(uid), uid, name_of(syntax), syntax, role, "None")
        for uid in service.classes
        for syntax in service.transfer_syntaxes
    ]


def contexts(services: Iterable[Service], role: str) -> Table:
    """A table of presentation contexts."""
    return table(CONTEXTS, [row for service in services for row in context_rows(service, role)])


def statuses(returned: Sequence[Returned]) -> Table:
    """A table of statuses that the node returns."""
    return table(STATUSES, [(one.kind, hexadecimal(one.status), one.meaning, one.when) for one in returned])


def hexadecimal(status: int) -> str:
    """A status as people write it."""
    return f"0x{status:04X}"


def asynchronous() -> Section:
    """No more than one operation at a time."""
    return section(
        "Asynchronous Nature",
        "Asynchronous operations are not negotiated.",
        table("Outstanding operations|Value", [("Most at a time on an association", 1)]),
    )


def implementation() -> Section:
    """How the node names itself."""
    return section(
        "Implementation Identifying Information",
        "The same for both application entities, and in the files that the node writes. The name is without the "
        "program's version.",
        table(
            "Item|Value",
            [
                ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
                ("Implementation Version Name", IMPLEMENTATION_VERSION_NAME),
            ],
        ),
    )


def limits(rows: Sequence[tuple[str, object]]) -> Table:
    """Limits with the values of this installation."""
    return table("Limit|Value", rows)


def seconds(value: float) -> str:
    """A time in words."""
    return f"{value:g} s"


def tls_ports(settings: Settings) -> str:
    """Whether the port with TLS is open."""
    receiver = settings.receiver
    return f"{receiver.tls_port}, with TLS" if receiver.tls_certificate else "none"
