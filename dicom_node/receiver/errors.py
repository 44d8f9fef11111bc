"""Everything that the receiver raises on purpose. No message holds anything from a data set.

ReceiverError
├── Refused             an instance is not kept; the sender gets a failure status, the association goes on
│   ├── OutOfResources  A700: no space, index busy, or over a limit; later may help
│   ├── ClassMismatch   A900: command, presentation context and data set name different SOP classes
│   ├── Unreadable      C000: not a data set, or its UIDs are not acceptable
│   └── OwnImage        C000: a rule of the site refuses images that this node had a part in
├── ProtocolError       the peer broke the upper layer protocol, a deadline or a limit: A-ABORT
└── Closed              the connection is gone
"""

from dicom_node.errors import NodeError
from dicom_node.statuses import CANNOT_UNDERSTAND, CLASS_MISMATCH, OUT_OF_RESOURCES
from storage.errors import DatabaseBusy, DatabaseReadOnly, StorageError, StorageFull, StoreReplaced, StoreUnavailable

MAX_COMMENT = 64  # characters of (0000,0902) Error Comment, VR LO


class ReceiverError(NodeError):
    """Base of the receiver's errors."""


class Refused(ReceiverError):
    """An instance is not kept. The message goes to the sender as the Error Comment: no patient data, 64 characters."""

    status = CANNOT_UNDERSTAND


class OutOfResources(Refused):
    """The instance cannot be kept now; later may help."""

    status = OUT_OF_RESOURCES


class ClassMismatch(Refused):
    """The SOP classes of command, presentation context and data set are not the same."""

    status = CLASS_MISMATCH


class Unreadable(Refused):
    """The data set cannot be understood, or its identifiers are not acceptable."""

    status = CANNOT_UNDERSTAND


class OwnImage(Refused):
    """This node had a part in the image, and the site does not want those back from this sender."""


class ProtocolError(ReceiverError):
    """The association is aborted.

    reason: provider reason of the A-ABORT, PS3.8 Table 9-26 (1 unrecognised PDU, 2 unexpected PDU,
    6 invalid parameter value, 0 not specified).
    """

    def __init__(self, message: str, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason


class Closed(ReceiverError):
    """The peer, or this node, closed the connection."""


# What the C-STORE response says for an error of the storage package; anything else is answered like Unreadable.
STATUS: tuple[tuple[type[StorageError], int, str], ...] = (
    (StorageFull, OUT_OF_RESOURCES, "out of storage space"),
    (DatabaseBusy, OUT_OF_RESOURCES, "index busy"),
    (DatabaseReadOnly, OUT_OF_RESOURCES, "index cannot be written"),
    (StoreUnavailable, OUT_OF_RESOURCES, "object store not available"),
    (StoreReplaced, OUT_OF_RESOURCES, "index or files were replaced"),
    (StorageError, OUT_OF_RESOURCES, "storage not available"),
)


def answer_for(error: BaseException) -> tuple[int, str]:
    """Status and Error Comment of the C-STORE response for an error."""
    if isinstance(error, Refused):
        return error.status, str(error)[:MAX_COMMENT]
    for kind, status, comment in STATUS:
        if isinstance(error, kind):
            return status, comment
    if isinstance(error, OSError):
        return OUT_OF_RESOURCES, "storage not available"
    return CANNOT_UNDERSTAND, "instance could not be processed"
