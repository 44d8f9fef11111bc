"""What the performer asks of a worklist, whichever way it is reached, and what the answers mean."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pydicom import Dataset

from dicom_node.gateways.worklist.contents import Workitem


class Answer(StrEnum):
    """What a worklist's answer means for the step that was asked about."""

    DONE = "DONE"
    NOT_OURS = "NOT_OURS"
    """The Transaction UID is not the one that it was claimed with."""
    IN_PROGRESS = "IN_PROGRESS"
    """It was claimed before."""
    NOT_IN_PROGRESS = "NOT_IN_PROGRESS"
    """Nobody has claimed it."""
    FINAL = "FINAL"
    """It has ended, and may no longer be changed."""
    UNMET = "UNMET"
    """It lacks attributes that it must have to end."""
    UNKNOWN = "UNKNOWN"
    """The worklist does not know it."""
    CONFLICT = "CONFLICT"
    """One of these; its state tells which."""
    REFUSED = "REFUSED"
    """Trying again will hardly help."""
    LATER = "LATER"
    """Trying again may help."""


@dataclass(frozen=True)
class Said:
    """An answer. text: what was answered, for a person: without patient data."""

    answer: Answer
    text: str = ""


class Worklist(Protocol):
    """A worklist. Every method raises PeerUnavailable or NoContext if it cannot be asked, or does not answer."""

    def scheduled(self, limit: int) -> list[str]:
        """SOP Instance UIDs of steps that wait for a performer like this node, their images ready; so many at most."""
        ...

    def claim(self, uid: str, transaction_uid: str) -> Said:
        """SCHEDULED to IN PROGRESS."""
        ...

    def read(self, uid: str) -> Workitem | None:
        """The step as it is now; None if the worklist does not know it."""
        ...

    def change(self, uid: str, transaction_uid: str, changes: Dataset) -> Said:
        """Set attributes of a step that is ours."""
        ...

    def end(self, uid: str, transaction_uid: str, state: str) -> Said:
        """IN PROGRESS to COMPLETED or CANCELED."""
        ...


# Statuses of PS3.4 CC.2 and PS3.7 C, with what they say. One that is not here, and is no success or warning, may pass.
STATUSES: dict[int, tuple[Answer, str]] = {
    0xC300: (Answer.FINAL, "it may no longer be updated"),
    0xC301: (Answer.NOT_OURS, "the correct Transaction UID was not provided"),
    0xC302: (Answer.IN_PROGRESS, "it is in progress already"),
    0xC303: (Answer.REFUSED, "it becomes SCHEDULED by N-CREATE only"),
    0xC304: (Answer.UNMET, "it has not met the requirements of the final state"),
    0xC307: (Answer.UNKNOWN, "there is no such step"),
    0xC308: (Answer.REFUSED, "the receiving AE title is unknown"),
    0xC309: (Answer.REFUSED, "it was not created as SCHEDULED"),
    0xC310: (Answer.NOT_IN_PROGRESS, "it is not in progress yet"),
    0xC311: (Answer.FINAL, "it is completed already"),
    0xC312: (Answer.LATER, "the performer cannot be contacted"),
    0xC313: (Answer.REFUSED, "the performer chooses not to cancel"),
    0xC314: (Answer.REFUSED, "not appropriate for this instance"),
    0xC315: (Answer.REFUSED, "it sends no events"),
    0x0112: (Answer.UNKNOWN, "no such SOP instance"),
    0x0118: (Answer.REFUSED, "no such SOP class"),
    0x0122: (Answer.REFUSED, "SOP class not supported"),
    0x0123: (Answer.REFUSED, "no such action"),
    0x0124: (Answer.REFUSED, "not authorized"),
    0x0211: (Answer.REFUSED, "unrecognized operation"),
}
WARNINGS = (0x0001, 0x0107, 0x0116)


def answer_of(status: int) -> Answer:
    """What a DIMSE status means. B304 and B306 say that a step has the state already that was asked for."""
    if status == 0x0000 or status in WARNINGS or 0xB000 <= status <= 0xBFFF:
        return Answer.DONE
    return STATUSES.get(status, (Answer.LATER, ""))[0]
