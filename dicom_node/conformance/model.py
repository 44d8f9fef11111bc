"""Section 4.1: the implementation model."""

from config.settings import Settings
from dicom_node.conformance.document import Items, Section, section, table

_FLOWS = (
    ("A source sends images", "Source", "Receiver", "C-STORE"),
    ("Somebody asks whether the node answers", "Source", "Receiver", "C-ECHO"),
    ("A series may be complete", "Sender", "PACS", "C-FIND, C-GET or C-MOVE; QIDO-RS, WADO-RS"),
    ("A series is reported", "Sender", "Destination", "C-STORE; STOW-RS"),
    ("A result was taken", "Sender", "Destination", "N-ACTION (storage commitment), or C-FIND"),
    ("The PACS commits itself", "Destination", "Sender", "N-EVENT-REPORT"),
    ("Steps wait on a worklist", "Sender", "Worklist", "C-FIND, N-GET, N-SET, N-ACTION; UPS-RS"),
    ("A worklist tells of a step", "Worklist", "Sender", "N-EVENT-REPORT"),
    ("A person looks at results", "Web viewer", "Node", "QIDO-RS, WADO-RS"),
    (
        "Images are rejected",
        "Source",
        "Receiver",
        "C-STORE of a rejection note (aligned with IHE IOCM)",
    ),
)


def model(settings: Settings) -> Section:
    """The whole section."""
    return section(
        "Implementation Model",
        section(
            "Application Data Flow",
            "Each arrow is an association or a connection; the one named first opens it.",
            table(
                "Real-world activity|From|To|Service",
                _FLOWS,
            ),
        ),
        section(
            "Functional Definition of AEs",
            section(
                f"Receiver: {settings.receiver.ae_title}",
                "Waits for associations, without and with TLS, in one or several processes. Decides by called and "
                "calling AE title, address, certificate and user who may associate. Puts instances on disk and into "
                "the "
                "index, and answers when both are durable.",
            ),
            section(
                f"Sender: {settings.sender.calling_ae_title}",
                "Sends results to each destination by itself, keeps what could not be sent and tries again, asks "
                "PACS about series and results, fetches what is missing, and performs the steps of worklists. It "
                "listens "
                "at ports of its own for answers to storage commitment and for events of worklists, if a site opens "
                "them.",
            ),
            section("DICOMweb", "Does the same over HTTP, and serves the node's own results to web viewers."),
        ),
        section(
            "Sequencing of Real-World Activities",
            Items(
                (
                    "A source sends the instances of a series, on one or several associations, in any order.",
                    f"The series closes after {settings.completion.quiet_s:g} s without a new instance, or once the "
                    "PACS "
                    "that the node asks says that it is complete. Missing instances are fetched first.",
                    "The node analyses the series, or finds a reason not to.",
                    "It sends the objects of the result, the report first, and tries again until they are taken or "
                    "refused for good.",
                    "If the destination is configured for that, it asks whether the objects are kept.",
                    "An instance that comes later begins a new revision of the series. Its report names the former "
                    "one as its predecessor.",
                )
            ),
        ),
    )
