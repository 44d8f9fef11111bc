"""What is written down about instances that are not kept: who sent them, why not, and which series lacks them.

A sender that is refused a thousand times a second must not fill the index. Above a number of rows a minute, the journal
counts refusals, and each series gets one row that stands for the rest of its instances.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dicom_node.receiver.committer import Committer
from dicom_node.receiver.headers import Header
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.uids import accepted_uid
from storage.arrival import clean
from storage.pseudonyms import Pseudonyms
from storage.refused import RefusedInstance

WINDOW_S = 60.0
MAX_INSTANCES = 5000
"""Refused instances with a row each, in a minute. A long series has 2,000."""
MAX_SERIES = 200
"""Series, after that, with a row for the rest of their instances."""
PATIENCE_S = 5.0
"""How long an answer waits until the refusal is durable. If the index is not available, it is remembered later."""


@dataclass(frozen=True)
class Caller:
    """Who sends on an association. network: what limits count its address by. label: what logs call it."""

    calling_ae: str
    called_ae: str
    address: str
    network: str
    label: str


@dataclass(frozen=True)
class Reason:
    """Why an instance is not kept.

    status: four hexadecimal digits, or "ABORT". comment: a sentence of ours. wanted: see `RefusedInstance`.
    """

    status: str
    comment: str
    wanted: bool = True


class Refusals:
    """Remembers refused instances, within a number for each minute. monotonic: seconds."""

    def __init__(
        self,
        committer: Committer,
        journal: Journal,
        pseudonyms: Pseudonyms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._committer = committer
        self._journal = journal
        self._pseudonyms = pseudonyms
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._window_ends = float("-inf")
        self._instances = 0
        self._series: set[str] = set()

    def remember(
        self, caller: Caller, command_uid: bytes, header: Header, reason: Reason, patience_s: float = PATIENCE_S
    ) -> None:
        """Write a refusal down.

        command_uid: the SOP Instance UID in the command. header: what could be read of the data set.
        patience_s: how long to wait until that is durable.
        """
        refused = self._refused(caller, command_uid, header, reason)
        if self._may_have_a_row():
            self._committer.remember(refused, patience_s)
            return
        self._journal.record(
            "instance.refused",
            peer_ae=caller.calling_ae,
            label=caller.label,
            address=caller.address,
            outcome="REFUSED",
            reason=reason.comment,
        )
        if refused.series_instance_uid and reason.wanted and self._is_first_of(refused.series_instance_uid):
            rest = {"sop_instance_uid": "", "reason": "too many refused instances to name each"}
            self._committer.remember(RefusedInstance(**(vars(refused) | rest)), patience_s)

    def _refused(self, caller: Caller, command_uid: bytes, header: Header, reason: Reason) -> RefusedInstance:
        return RefusedInstance(
            # In this order: an instance whose command names another comes again under its own UID.
            sop_instance_uid=accepted_uid(header.sop_instance_uid) or accepted_uid(command_uid) or _text(command_uid),
            series_instance_uid=accepted_uid(header.series_instance_uid),
            study_instance_uid=accepted_uid(header.study_instance_uid),
            patient_id=self._pseudonyms.of(header.indexed.patient_id),
            status=reason.status,
            reason=reason.comment,
            calling_ae=caller.calling_ae,
            address=caller.address,
            wanted=reason.wanted,
        )

    def _may_have_a_row(self) -> bool:
        with self._lock:
            self._begin_window()
            self._instances += 1
            return self._instances <= MAX_INSTANCES

    def _is_first_of(self, series_uid: str) -> bool:
        with self._lock:
            self._begin_window()
            if series_uid in self._series or len(self._series) >= MAX_SERIES:
                return False
            self._series.add(series_uid)
            return True

    def _begin_window(self) -> None:
        now = self._monotonic()
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_S
            self._instances = 0
            self._series.clear()


def _text(raw: bytes) -> str:
    """Whatever stands in place of a UID, as text that the index can hold."""
    kept = raw.decode("ascii", "replace")
    return clean("".join(c for c in kept if c.isascii() and c.isprintable()))
