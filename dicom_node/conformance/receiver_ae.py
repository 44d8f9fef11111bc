"""Section 4.2.1: the receiver, which takes images."""

from config.settings import Settings
from dicom_node.conformance.associations import (
    CONTEXTS,
    asynchronous,
    implementation,
    limits,
    seconds,
    statuses,
)
from dicom_node.conformance.document import Section, Table, section, table
from dicom_node.conformance.services import name_of, network_services, offers
from dicom_node.receiver.access import REJECTIONS
from dicom_node.receiver.acse import VERIFICATION
from dicom_node.receiver.pdu import ABORTS
from dicom_node.receiver.reception import HEAD_BYTES
from dicom_node.statuses import STORAGE
from dicom_node.statuses import VERIFICATION as ECHO_STATUSES

_RESULTS = {1: "1, rejected-permanent", 2: "2, rejected-transient"}
_SOURCES = {1: "1, service-user", 2: "2, service-provider (ACSE)", 3: "3, service-provider (presentation)"}
_ABORT_SOURCES = {0: "0, service-user", 2: "2, service-provider"}


def receiver_ae(settings: Settings) -> Section:
    """The whole section."""
    return section(
        f"Receiver: {settings.receiver.ae_title}",
        section(
            "SOP Classes",
            "This application entity provides Standard Conformance to these SOP Classes as SCP.",
            _classes(settings),
        ),
        section("Association Policies", _general(settings), _number(settings), asynchronous(), implementation()),
        section("Association Initiation Policy", "This application entity opens no association."),
        _acceptance(settings),
    )


def _classes(settings: Settings) -> Table:
    scp = [one for one in network_services(settings) if one.role == "SCP"]
    return table("SOP Class|UID|SCU|SCP", [(one.name, one.uid, "No", "Yes" if one.on else "Off") for one in scp])


def _general(settings: Settings) -> Section:
    receiver = settings.receiver
    return section(
        "General",
        "The DICOM application context name is 1.2.840.10008.3.1.1.1; any other is refused.",
        limits(
            [
                ("Largest PDU that is taken, bytes", receiver.max_pdu_bytes),
                ("Largest data set that is taken, bytes", receiver.max_instance_bytes),
                ("Time for a TLS handshake, and for the association request", seconds(receiver.acse_timeout_s)),
                ("Time for a PDU from its first byte on", seconds(receiver.pdu_deadline_s)),
                ("Time without anything until an association is aborted", seconds(receiver.idle_timeout_s)),
                ("Slowest data set on average, KiB a second", f"{receiver.min_kib_per_s:g}"),
                ("Time after which that counts", seconds(receiver.slow_patience_s)),
                ("Longest header that is read in memory, bytes; a longer one is read from the file", HEAD_BYTES),
            ]
        ),
    )  # fmt: skip


def _number(settings: Settings) -> Section:
    receiver = settings.receiver
    return section(
        "Number of Associations",
        "Each holds for one process of [receiver] processes, of which there are "
        f"{receiver.processes}. More associations are refused as transient.",
        limits(
            [
                ("Most associations at once", receiver.max_associations),
                ("Of those, from one address (IPv6: one /64 network)", receiver.max_associations_per_address),
                ("Of those, with one calling AE title", receiver.max_associations_per_ae),
                ("From one AE title, and from one address, in a minute", receiver.max_associations_per_minute),
                ("Instances from one AE title, and from one address, in a minute", receiver.max_instances_per_minute),
                ("MiB from one AE title, and from one address, in a minute", receiver.max_mb_per_minute),
            ]
        ),
    )


def _acceptance(settings: Settings) -> Section:
    return section(
        "Association Acceptance Policy",
        *_who(settings),
        table(
            "Result|Source|Reason|When",
            [
                (_RESULTS[result], _SOURCES[source], f"{reason}, {meaning}", when)
                for (result, source, reason), (meaning, when) in REJECTIONS.items()
            ],
        ),
        "An association is aborted with:",
        table(
            "Source|Reason|When",
            [
                (_ABORT_SOURCES[source], f"{reason}, {meaning}", when)
                for (source, reason), (meaning, when) in ABORTS.items()
            ],
        ),
        _activity(
            "Verify", "Somebody asks whether the node answers.", _contexts(settings, storage=False), _verifying()
        ),
        _activity(
            "Store images",
            "A source sends images, usually by a routing rule of a PACS. The node puts each instance on disk as it "
            "comes, and answers when file and row are durable. When a series is complete, it is analysed.",
            _contexts(settings, storage=True),
            _storing(settings),
        ),
    )


def _who(settings: Settings) -> list[str]:
    called = "is checked" if settings.receiver.check_called_ae else "is not checked"
    known = (
        "An association is accepted from the sources that section 4.4 lists, from their addresses. With no source "
        "configured, this machine alone may associate, under any calling AE title."
    )
    return [
        f"{known} The called AE title {called}.",
        "Of each presentation context the node accepts one transfer syntax, or refuses it with result 3 (abstract "
        "syntax not supported) or 4 (transfer syntaxes not supported). It takes the first syntax of the requestor's "
        "list "
        "that it supports, with two exceptions: Explicit VR goes before Implicit VR, and a syntax that is always "
        "lossless goes before one that may be lossy. Roles, asynchronous operations, and extended negotiation of SOP "
        "Classes are not answered, which means the defaults. A refused association says:",
    ]


def _activity(title: str, what: str, accepted: Table, conformance: Section) -> Section:
    return section(
        title,
        section("Description and Sequencing of Activities", what),
        section("Accepted Presentation Contexts", accepted),
        conformance,
    )


def _contexts(settings: Settings, *, storage: bool) -> Table:
    """Every pair of class and syntax, with who may propose it."""
    found: dict[tuple[str, str], list[str]] = {}
    for sender, offer in offers(settings).items():
        for uid, syntaxes in offer.items():
            for syntax in syntaxes if (uid != VERIFICATION) == storage else ():
                found.setdefault((uid, syntax), []).append(sender)
    rows = [
        (name_of(uid), uid, name_of(syntax), syntax, "SCP", "None", ", ".join(senders))
        for (uid, syntax), senders in sorted(found.items(), key=lambda one: tuple(map(name_of, one[0])))
    ]
    return table(f"{CONTEXTS}|Accepted from", rows)


def _verifying() -> Section:
    return section(
        "SOP Specific Conformance for the Verification SOP Class", "C-ECHO is answered with:", statuses(ECHO_STATUSES)
    )


def _storing(settings: Settings) -> Section:
    own = [one.ae_title for one in settings.sources if one.own_images == "refuse"]
    return section(
        "SOP Specific Conformance for Storage SOP Classes",
        "The level of conformance is 2 (Full): every attribute is kept, private ones too, as the bytes that came. "
        "Nothing is coerced. Digital signatures stay valid, and are not verified. Pixel data are not decoded on "
        "receipt.",
        "After a success the node has the instance until retention deletes it "
        f"({_retention(settings)}). The node makes no promise of storage commitment.",
        "An instance that was stored before is answered with success and gives no new work. Other bytes under its SOP "
        "Instance UID are kept aside: the first ones stay.",
        f"Images that this node had a part in are refused from: {', '.join(own) or 'no source'}.",
        statuses(STORAGE),
    )  # fmt: skip


def _retention(settings: Settings) -> str:
    days = settings.storage.retention_days
    return "never, with these settings" if days is None else f"{days:g} days after its results were delivered"
