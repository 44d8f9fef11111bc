"""The whole statement, for the settings of a site."""

from importlib.metadata import version

from config.settings import Settings
from config.shown import all_shown
from dicom_node.conformance.annexes import annexes, objects_of
from dicom_node.conformance.configuration import configuration, interfaces
from dicom_node.conformance.document import Document, section
from dicom_node.conformance.introduction import OUTLINE, contents, introduction, overview
from dicom_node.conformance.model import model
from dicom_node.conformance.receiver_ae import receiver_ae
from dicom_node.conformance.security import cda, character_sets, media, security
from dicom_node.conformance.sender_ae import sender_ae
from dicom_node.conformance.specimen import specimens
from dicom_node.conformance.web_ae import web_ae


def _whose(settings: Settings) -> str:
    is_default = all_shown(settings) == all_shown(Settings.model_construct())
    return "its default settings" if is_default else "the settings of one installation"


def statement(settings: Settings) -> Document:
    """What the node does on the network with these settings; made in some seconds."""
    program = version("dicom-node")
    walked = specimens()
    return Document(
        "DICOM Conformance Statement: dicom-node",
        (
            f"dicom-node {program}. For research use; not for diagnosis.",
            f"Written by the program from the tables that it works by, for {_whose(settings)}.",
            OUTLINE,
        ),
        (
            overview(settings),
            contents(),
            introduction(program),
            section(
                "Networking",
                model(settings),
                section(
                    "AE Specifications",
                    receiver_ae(settings),
                    sender_ae(settings, objects_of(walked[0])),
                    web_ae(settings),
                ),
                interfaces(settings),
                configuration(settings),
            ),
            media(),
            cda(settings),
            character_sets(settings),
            security(settings),
            annexes(walked),
        ),
    )
