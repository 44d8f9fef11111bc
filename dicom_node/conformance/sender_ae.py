"""Section 4.2.2: the sender, which calls others, and takes what they answer on associations of their own."""

from collections.abc import Sequence

from pydicom import Dataset

from config.settings import Settings
from dicom_node.completion.retrieve import SLOWEST_S_PER_INSTANCE, UIDS_AT_ONCE, storage_contexts
from dicom_node.conformance.associations import (
    CONTEXTS,
    asynchronous,
    context_rows,
    contexts,
    hexadecimal,
    implementation,
    limits,
    seconds,
    statuses,
)
from dicom_node.conformance.document import Block, Section, Table, section, table
from dicom_node.conformance.sender_ports import commitment_answers, step_events
from dicom_node.conformance.services import Service, name_of, network_services
from dicom_node.gateways.worklist.interface import STATUSES
from dicom_node.report.lower_classes import CLASSES
from dicom_node.scu.association import MAX_PDU_BYTES, SMALLEST_PDU
from dicom_node.scu.contexts import COMMIT, FIND, GET, MOVE, UPS_PULL, UPS_WATCH, VERIFY
from dicom_node.scu.query import QUESTIONS
from dicom_node.scu.store import MAX_CONTEXTS, REACTIONS, SLOWEST_BYTES_PER_S, UNCOMPRESSED, StoreOutcome
from dicom_node.statuses import COMMITMENT, RETRIEVAL

_REACTIONS = {
    StoreOutcome.STORED: "The object counts as stored.",
    StoreOutcome.WARNING: "The object counts as stored; the remark is kept.",
    StoreOutcome.TRANSIENT: "The delivery is tried again, after a wait that doubles each time.",
    StoreOutcome.PERMANENT: "The object counts as refused; after some such answers the delivery has failed.",
}


def sender_ae(settings: Settings, made: Sequence[Dataset]) -> Section:
    """The whole section. made: one object of each kind that is sent."""
    return section(
        f"Sender: {settings.sender.calling_ae_title}",
        section(
            "SOP Classes",
            "This application entity provides Standard Conformance to these SOP Classes as SCU.",
            _classes([one for one in network_services(settings) if one.role == "SCU"]),
        ),
        section("Association Policies", _general(settings), _number(settings), asynchronous(), implementation()),
        section(
            "Association Initiation Policy",
            "An association is opened for one piece of work and released after it. If it is refused or lost, the work "
            "is done later on another one. No extended negotiation of SOP Classes is proposed.",
            _verify(),
            _store(settings, made),
            _commit(settings),
            _query(),
            _get(),
            _move(settings),
            _perform(),
            _subscribe(),
        ),
        section("Association Acceptance Policy", commitment_answers(settings), step_events(settings)),
    )


def _classes(services: Sequence[Service]) -> Table:
    return table("SOP Class|UID|SCU|SCP", [(one.name, one.uid, "Yes" if one.on else "Off", "No") for one in services])


def _general(settings: Settings) -> Section:
    sender = settings.sender
    return section(
        "General",
        "The DICOM application context name is 1.2.840.10008.3.1.1.1.",
        limits(
            [
                ("Largest PDU that is taken on its own associations, bytes", MAX_PDU_BYTES),
                ("Smallest maximum PDU of a peer that it sends to, bytes", SMALLEST_PDU),
                ("Time for the connection", seconds(sender.connect_timeout_s)),
                ("Time for the association, and for each response", seconds(sender.response_timeout_s)),
                ("Besides, for an object to be sent: its size at, bytes a second", SLOWEST_BYTES_PER_S),
                ("Besides, for a retrieval: for each instance", seconds(SLOWEST_S_PER_INSTANCE)),
            ]
        ),
    )


def _number(settings: Settings) -> Section:
    return section(
        "Number of Associations",
        "One at a time to each destination for its results, one for questions about open series, and one to each "
        "worklist. Commands of a person open others.",
        limits(
            [
                ("Destinations that get results by C-STORE", sum(d.send_results for d in settings.dicom_destinations)),
                ("Most presentation contexts in a proposal", MAX_CONTEXTS),
            ]
        ),
    )


def _activity(title: str, what: str, proposed: Table, specific: str, *conformance: Block) -> Section:
    return section(
        title,
        section("Description and Sequencing of Activities", what),
        section("Proposed Presentation Contexts", proposed),
        section(f"SOP Specific Conformance for {specific}", *conformance),
    )


def _verify() -> Section:
    return _activity(
        "Verify a peer",
        "A person asks at the command line or on the pages whether a destination answers.",
        contexts([VERIFY], "SCU"),
        "the Verification SOP Class",
        "Any status but 0x0000 is shown as a failure.",
    )


def _store(settings: Settings, made: Sequence[Dataset]) -> Section:
    rows = [
        (hexadecimal(one.first) + (f" to {hexadecimal(one.last)}" if one.last > one.first else ""),
         one.meaning, _REACTIONS[one.outcome])
        for one in REACTIONS
    ]  # fmt: skip
    lower = ", then ".join(name_of(str(uid)) for uid in CLASSES.values())
    return _activity(
        "Send results",
        "When a series is reported, each destination of its source gets the result's objects, the report first. Their "
        "bytes are on disk before the first attempt, so every attempt sends the same instances. A result that replaces "
        "another names it, and goes to every destination that may have the former one.",
        contexts_of_objects(made),
        "Storage SOP Classes",
        "Each class is proposed in the transfer syntax that the object has, and in the other uncompressed one, each in "
        "a context of its own. Only if the destination takes nothing but the other one is the object converted. "
        f"A destination that refuses the report's class gets it in the next one: {lower}.",
        "dicom-node send sends files of any storage class that a person names, in the same way: in the transfer "
        "syntax that each file has.",
        table("Status|Meaning|What the node does", rows),
        f"The first wait is {seconds(settings.sender.first_retry_s)}, the longest "
        f"{seconds(settings.sender.longest_retry_s)}; a delivery has failed after "
        f"{settings.sender.max_permanent_failures} final refusals. No answer at all is tried again without end.",
    )


def contexts_of_objects(made: Sequence[Dataset]) -> Table:
    """What is proposed for the objects of results: their classes, and those of a report in a lower one."""
    classes = sorted({str(one.SOPClassUID) for one in made} | set(map(str, CLASSES.values())), key=name_of)
    return table(
        CONTEXTS,
        [
            (name_of(uid), uid, name_of(str(syntax)), str(syntax), "SCU", "None")
            for uid in classes
            for syntax in UNCOMPRESSED
        ],
    )


def _commit(settings: Settings) -> Section:
    wanted = settings.sender.commitment
    return _activity(
        "Ask for storage commitment",
        'After a delivery to a destination with commitment = "request", the node asks for commitment to its objects '
        "(N-ACTION) and keeps the association open for the answer "
        f"for {seconds(wanted.wait_s)}. A later answer comes on an association of the peer's own, see below.",
        contexts([COMMIT], "SCU"),
        "the Storage Commitment Push Model SOP Class",
        "The Transaction UID is new for each request. Storage Media File-Set attributes are not used. Any status but "
        f"0x0000 means that commitment is not offered: C-FIND decides instead. Without an answer, the node asks again "
        f"after {seconds(wanted.timeout_s)} and then after longer waits, {wanted.attempts} times by commitment and "
        f"{wanted.max_questions} times in all. Objects that are not kept are sent again, up to {wanted.max_resends} "
        "times. N-EVENT-REPORT is answered with:",
        statuses(COMMITMENT),
    )


def _query() -> Section:
    rows = [
        (what, one.level, ", ".join(one.matched) or "as given", ", ".join(one.returned))
        for what, one in QUESTIONS.items()
    ]
    return _activity(
        "Query a PACS",
        "The node asks how many instances a series has, also while it arrives if it is analysed ahead, which, and "
        "which other CT series its study has; whether results are still there; and, for a batch, which series match. "
        "It asks by the Study Root model and, if that gives no answer, by Patient Root.",
        contexts([FIND], "SCU"),
        "Query SOP Classes",
        "Queries are hierarchical. Relational queries and extended negotiation are not used. With Patient Root, "
        "Patient ID is a further key.",
        table("Question|Level|Keys that are matched|Keys that are returned", rows),
        "Responses are read to the last one. A final status but 0x0000 is a failure: of open series the quiet time "
        "then "
        "decides. C-CANCEL is not sent.",
    )


def _get() -> Section:
    found = storage_contexts()
    rows = [
        (name_of(str(one.abstract_syntax)), str(one.abstract_syntax), name_of(syntax), syntax, "SCP", "Role selection")
        for one in found
        for syntax in map(str, one.transfer_syntax)
    ]
    asked = context_rows(GET, "SCU")
    return _activity(
        "Retrieve by C-GET",
        "Instances that the PACS has and the node does not are fetched, and so are the images of a worklist's steps "
        f"and of a batch. A request names up to {UIDS_AT_ONCE} SOP Instance UIDs at IMAGE level.",
        table(CONTEXTS, [*asked, *rows]),
        "Retrieve SOP Classes (C-GET)",
        "Storage contexts have one transfer syntax each; those that the series' other instances have come first. What "
        "became of each instance is seen from what arrived, not from the counts of sub-operations. C-STORE "
        "sub-operations are answered with:",
        statuses(RETRIEVAL),
    )


def _move(settings: Settings) -> Section:
    return _activity(
        "Retrieve by C-MOVE",
        'With retrieve = "move", the PACS sends the instances to the receiver instead: '
        f"the move destination is {settings.receiver.ae_title}, which the PACS must know.",
        contexts([MOVE], "SCU"),
        "Retrieve SOP Classes (C-MOVE)",
        "What became of each instance is seen from what arrived.",
    )


def _perform() -> Section:
    rows = [(hexadecimal(code), text, str(answer)) for code, (answer, text) in sorted(STATUSES.items())]
    return _activity(
        "Perform steps of a worklist",
        "The node asks for scheduled steps (C-FIND), claims one (N-ACTION, state IN PROGRESS), reads it (N-GET), "
        "fetches "
        "its images, says how far it is (N-SET), and ends it (N-SET and N-ACTION, COMPLETED or CANCELED). It is "
        "aligned "
        "with the task performer of IHE's AIW-I profile.",
        contexts([UPS_PULL], "SCU"),
        "the UPS Pull SOP Class",
        "Requests name the UPS Push SOP Class on a context of UPS Pull, as PS3.4 CC.2 wants. Keys that are matched: "
        "Procedure Step State SCHEDULED, Input Readiness State READY, and, as configured, Worklist Label, Scheduled "
        "Station Name Code Sequence, and Scheduled Workitem Code Sequence. The Transaction UID is stored before a step "
        "is claimed.",
        table("Status|Meaning|What it means for the step", rows),
        "0x0000, 0x0001, 0x0107, 0x0116 and Bxxx mean DONE. Any other status means LATER: the request is made again.",
    )


def _subscribe() -> Section:
    return _activity(
        "Subscribe to a worklist's events",
        "With event_port, the node subscribes to the events of all steps (N-ACTION type 3 on the well-known instance "
        "1.2.840.10008.5.1.4.34.5) at its start and each hour, without deletion lock.",
        contexts([UPS_WATCH], "SCU"),
        "the UPS Watch SOP Class",
        "Nothing depends on events: steps are found by asking as well. Any failure is logged.",
    )
