"""In section 4.2.2: the ports at which the sender takes what others tell it by themselves."""

from config.settings import Settings
from dicom_node.conformance.associations import contexts, seconds, statuses
from dicom_node.conformance.document import Section, section
from dicom_node.performer.events import LIMITS
from dicom_node.scu.contexts import COMMIT, UPS_EVENT, application_entity
from dicom_node.statuses import COMMITMENT, COMMITMENT_ASKED, STEP_ASKED, STEP_EVENTS

LARGEST_PDU = f"Largest PDU that is taken there, in bytes: {application_entity('ANY').maximum_pdu_size}."


def commitment_answers(settings: Settings) -> Section:
    """The port for answers to storage commitment."""
    wanted = settings.sender.commitment
    port = str(wanted.port) if wanted.port else "none: the answer must come on the node's own association"
    return section(
        "Answers to storage commitment",
        section(
            "Description and Sequencing of Activities",
            f"Port: {port}. Only hosts of destinations that are asked for commitment may connect, under their AE "
            f"titles. Most connections: {wanted.max_connections}, of those {wanted.max_connections_per_address} from "
            "one "
            f"address; most data: {wanted.max_kib} KiB in {seconds(wanted.association_s)}. {LARGEST_PDU}",
        ),
        section("Accepted Presentation Contexts", contexts([COMMIT], "SCU (N-EVENT-REPORT)")),
        section(
            "SOP Specific Conformance for the Storage Commitment Push Model SOP Class",
            "The requestor may name the SCP role, or no roles. N-EVENT-REPORT is answered with:",
            statuses(COMMITMENT),
            "N-ACTION is answered with:",
            statuses(COMMITMENT_ASKED),
        ),
    )


def step_events(settings: Settings) -> Section:
    """The ports for events of worklists."""
    ports = [f"{one.name}: {one.event_port}" for one in settings.worklists if one.event_port]
    return section(
        "Events of a worklist",
        section(
            "Description and Sequencing of Activities",
            f"Ports: {', '.join(ports) or 'none'}. Only the worklist's host may connect, under its AE title. Most "
            f"connections: {LIMITS.connections}, of those {LIMITS.per_address} from one address; most data: "
            f"{LIMITS.bytes // 1024} KiB in {seconds(LIMITS.association_s)}. {LARGEST_PDU}",
        ),
        section("Accepted Presentation Contexts", contexts([UPS_EVENT], "SCU (N-EVENT-REPORT)")),
        section(
            "SOP Specific Conformance for the UPS Event SOP Class",
            "Event types 1 to 5 are taken. Type 2, a request to cancel, ends a step that is in hand unless it is "
            "decided already how it ends; the others make the node ask for steps at once. N-EVENT-REPORT is answered "
            "with:",
            statuses(STEP_EVENTS),
            "Any other operation is answered with:",
            statuses(STEP_ASKED),
        ),
    )
