"""Sections 1 to 3: overview, contents, introduction."""

from collections.abc import Sequence

from config.settings import Settings
from dicom_node.conformance.document import Contents, Items, Section, Table, section, table
from dicom_node.conformance.services import Service, network_services, web_services

OUTLINE = (
    "It follows the outline of DICOM PS3.2, Annex A, as of the 2020 edition. Annex N, which orders a statement anew in "
    "later editions, is not followed."
)
_TERMS = (
    ("Node", "This program, with all its processes on one or several machines."),
    ("Receiver, sender", "The node's two application entities: who takes images, and who calls others."),
    ("Source, destination", "Who may send to the node; where its results go. Both are in its settings."),
    ("Result", "What a model found in a series, or a reason why there is none, with the objects that say so."),
    ("Index", "The node's database."),
    ("On, off", "What is off is in the program, and does nothing until a site sets what is named beside it."),
)
_ABBREVIATIONS = (
    ("AE", "Application Entity"),
    ("ANAP", "Attribute Not Always Present"),
    ("CAD", "Computer-Aided Detection"),
    ("IOD", "Information Object Definition"),
    ("IOCM", "Imaging Object Change Management"),
    ("KO", "Key Object Selection"),
    ("PDU", "Protocol Data Unit"),
    ("QIDO-RS, STOW-RS, UPS-RS, WADO-RS", "DICOMweb: search, store, worklist, retrieve"),
    ("SC", "Secondary Capture"),
    ("SCP, SCU", "Service Class Provider, Service Class User"),
    ("SEG", "Segmentation"),
    ("SR", "Structured Report"),
    ("TID", "Template Identifier"),
    ("UPS", "Unified Procedure Step"),
    ("VNAP", "Value Not Always Present"),
)
_REFERENCES = (
    "NEMA PS3, Digital Imaging and Communications in Medicine (DICOM) Standard: https://www.dicomstandard.org/current",
    "IETF RFC 5424, The Syslog Protocol, and RFC 5425, Transport Layer Security (TLS) Transport Mapping for Syslog",
    "IETF BCP 195, Recommendations for Secure Use of TLS and DTLS",
)


def overview(settings: Settings) -> Section:
    """Section 1."""
    return section(
        "Conformance Statement Overview",
        "The node receives chest CT over the network, stores it, analyses it with one or several models, and sends the "
        "results as DICOM objects: a Structured Report, and beside it a Segmentation and a Secondary Capture image. It "
        "is for research use, and not for diagnosis.",
        "The tables list every service that the program has, and whether the settings of this installation turn it on.",
        _services("Network services, SOP Class", network_services(settings)),
        _services("DICOMweb, transaction", web_services(settings)),
        "Media storage is not supported.",
    )


def _services(heading: str, services: Sequence[Service]) -> Table:
    rows = [(one.name, one.uid, one.role, "on" if one.on else "off", one.turned_on_by) for one in services]
    if any(one.uid for one in services):
        return table(f"{heading}|UID|Role|Here|What turns it on", rows)
    return table(f"{heading}|Role|Here|What turns it on", [(row[0], *row[2:]) for row in rows])


def contents() -> Section:
    """Section 2."""
    return section("Table of Contents", Contents())


def introduction(version: str) -> Section:
    """Section 3. version: of the program."""
    return section(
        "Introduction",
        section(
            "Revision History",
            "The program writes this statement from the tables that it works by. So there is one for each version and "
            "each set of settings.",
            table("Program|Version", [("dicom-node", version)]),
        ),
        section(
            "Audience",
            "Administrators of PACS and networks, integrators, and auditors. They are expected to know DICOM.",
        ),
        section(
            "Remarks",
            OUTLINE,
            "A statement of conformance alone does not guarantee that two systems work together. Compare the "
            "statements of both, and test them together.",
        ),
        section("Terms and Definitions", table("Term|Meaning", _TERMS)),
        section(
            "Basics of DICOM Communication",
            "Two application entities first agree on an association: which SOP Classes (kinds of objects and services) "
            "they exchange, each in which transfer syntax (encoding), and who is user (SCU) and provider (SCP). The "
            "one "
            "that opens it proposes presentation contexts, the other accepts or refuses each. Then they exchange "
            "messages. Each request has a response with a status.",
        ),
        section("Abbreviations", table("Abbreviation|Meaning", _ABBREVIATIONS)),
        section("References", Items(_REFERENCES)),
    )
