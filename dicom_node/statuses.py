"""DIMSE statuses: those that the node returns, for which service and when, and what those of others mean.

The program answers by these names, and the conformance statement prints these tables. A test holds every status that
the program can return to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_EVENT_TYPE = 0x0113
CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNISED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
CLASS_MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True)
class Returned:
    """A status that the node returns. kind: "Success" or "Failure".  meaning: the standard's.  when: the node's."""

    status: int
    kind: str
    meaning: str
    when: str


VERIFICATION = (Returned(SUCCESS, "Success", "Success", "Always."),)
"""C-ECHO at the receiver."""

STORAGE = (
    Returned(
        SUCCESS,
        "Success",
        "Success",
        "The file and its row in the index are durable; or the same instance was stored before. Other bytes under a "
        "known SOP Instance UID are kept aside for a person to look at; they replace nothing.",
    ),
    Returned(
        OUT_OF_RESOURCES,
        "Failure",
        "Refused: Out of resources",
        "No disk space, the index or the object store cannot be written, or the sender is over a limit for a minute. "
        "The same instance may be sent again later.",
    ),
    Returned(
        CLASS_MISMATCH,
        "Failure",
        "Error: Data Set does not match SOP Class",
        "The SOP Classes of presentation context, command and data set are not the same.",
    ),
    Returned(
        CANNOT_UNDERSTAND,
        "Failure",
        "Error: Cannot understand",
        "The data set is not whole, has no valid UIDs, or has another SOP Instance UID than the command; or a rule of "
        "the site refuses images that this node had a part in.",
    ),
)
"""C-STORE at the receiver. A failure has an Error Comment of up to 64 characters, without patient data."""

RETRIEVAL = (
    Returned(SUCCESS, "Success", "Success", "The file and its row in the index are durable."),
    Returned(OUT_OF_RESOURCES, "Failure", "Refused: Out of resources", "The instance cannot be stored now."),
    Returned(
        CANNOT_UNDERSTAND,
        "Failure",
        "Error: Cannot understand",
        "The data set cannot be read, or is of another SOP Class than its context, or is not what was asked for.",
    ),
)
"""C-STORE sub-operations of a C-GET by the node."""

COMMITMENT = (
    Returned(SUCCESS, "Success", "Success", "The answer was recorded."),
    Returned(
        PROCESSING_FAILURE,
        "Failure",
        "Processing failure",
        "The answer cannot be read, or is to a transaction that this peer was not asked for.",
    ),
    Returned(NO_SUCH_EVENT_TYPE, "Failure", "No such event type", "The Event Type ID is neither 1 nor 2."),
)
"""N-EVENT-REPORT of storage commitment."""

COMMITMENT_ASKED = (
    Returned(
        UNRECOGNISED_OPERATION,
        "Failure",
        "Unrecognized operation",
        "Always: the node commits to nothing, because images may be deleted once they are analysed.",
    ),
)
"""N-ACTION of storage commitment, asked of the node."""

STEP_EVENTS = (
    Returned(SUCCESS, "Success", "Success", "The event was taken."),
    Returned(PROCESSING_FAILURE, "Failure", "Processing failure", "A request to cancel could not be written down."),
    Returned(
        NO_SUCH_EVENT_TYPE,
        "Failure",
        "No such event type",
        "The Event Type ID is not 1 to 5, or the SOP Class is not UPS Push.",
    ),
)
"""N-EVENT-REPORT of a worklist."""

STEP_ASKED = (
    Returned(UNRECOGNISED_OPERATION, "Failure", "Unrecognized operation", "Always: the node keeps no procedure steps."),
)
"""Any other operation of Unified Procedure Steps, asked of the node."""

RETURNED: Mapping[str, tuple[Returned, ...]] = {
    "C-ECHO": VERIFICATION,
    "C-STORE": STORAGE,
    "C-STORE sub-operation of C-GET": RETRIEVAL,
    "N-EVENT-REPORT (storage commitment)": COMMITMENT,
    "N-ACTION (storage commitment)": COMMITMENT_ASKED,
    "N-EVENT-REPORT (unified procedure step)": STEP_EVENTS,
    "N-ACTION, N-CREATE, N-GET, N-SET, C-FIND (unified procedure step)": STEP_ASKED,
}
"""By service, all statuses that the node returns."""
