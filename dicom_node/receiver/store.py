"""One C-STORE: from the command to the status of its response.

The encoded data set goes to the file as it comes; nothing is decoded. `finish` answers success only when the file
is durable (fsync of file and folder) and its row committed.
"""

import mmap
import threading
import time
from dataclasses import dataclass

import structlog
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.logs import short
from dicom_node.receiver import meters
from dicom_node.receiver.acse import Context
from dicom_node.receiver.committer import Committer, Ticket
from dicom_node.receiver.errors import ClassMismatch, OutOfResources, ProtocolError, Refused, answer_for
from dicom_node.receiver.headers import Header, read_header
from dicom_node.receiver.own_images import OwnImages
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.pdu import Command
from dicom_node.receiver.resources import Resources
from dicom_node.receiver.uids import parse_uid
from dicom_node.receiver.walk import NeedsMore
from storage.arrival import Arrival, Outcome
from storage.errors import DatabaseUnavailable, StorageError
from storage.files import FileStore, NewFile
from storage.pseudonyms import Pseudonyms

log = structlog.get_logger()

SUCCESS = 0x0000
# A long header takes a second of Python's only running thread: a hundred at once would keep all others waiting.
LONG_HEADERS = threading.Lock()
HEAD_BYTES = 65536
"""Of a data set, kept in memory to read its header from; only a longer header is read back from the file."""


COUNT_BYTES = 1024**2
"""A sender's bytes are counted in pieces of this size."""


@dataclass(frozen=True)
class Caller:
    """Who sends on an association. network: what limits count its address by. label: what logs call it."""

    calling_ae: str
    called_ae: str
    address: str
    network: str
    label: str


@dataclass(frozen=True)
class Storage:
    """Where instances go, and what limits them.

    min_bytes_per_s, patience_s: after so many seconds, a data set that comes slower than this is cut off.
    shared_port: other processes receive as well; see `Reception._commit_first`.
    """

    files: FileStore
    committer: Committer
    resources: Resources
    max_instance_bytes: int
    min_bytes_per_s: float
    patience_s: float
    pseudonyms: Pseudonyms
    shared_port: bool = False
    own: OwnImages | None = None


class Reception:
    """One instance being received.

    A refused one still takes its data set off the connection, so that the refusal can be answered.
    """

    def __init__(self, command: Command, context: Context, caller: Caller, storage: Storage) -> None:
        self.command = command
        self._context = context
        self._caller = caller
        self._storage = storage
        self._head = bytearray()
        self._size = 0
        self._uncounted = 0
        self._began = time.monotonic()
        self._file: NewFile | None = None
        self._refusal: Exception | None = None
        try:
            self._sop_class_uid = parse_uid(command.sop_class_uid, "Affected SOP Class UID")
            self._sop_instance_uid = parse_uid(command.sop_instance_uid, "Affected SOP Instance UID")
            self._open()
        except (Refused, StorageError, OSError) as error:
            self._refuse(error)

    def _open(self) -> None:
        if self._sop_class_uid != self._context.abstract_syntax:
            raise ClassMismatch("SOP class is not that of its presentation context")
        self._storage.resources.admit_instance(self._caller.calling_ae, self._caller.network)
        start = encode_file_start(self._sop_class_uid, self._sop_instance_uid, self._context.transfer_syntax)
        self._file = self._storage.files.create()
        self._file.write(start)
        self._start_bytes = len(start)

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes of the data set. Raises ProtocolError for a data set over the limit."""
        self._size += len(fragment)
        if self._size > self._storage.max_instance_bytes:
            # It may never end, so that there would be no moment to answer at.
            raise ProtocolError("data set is larger than allowed")
        elapsed = time.monotonic() - self._began
        if elapsed > self._storage.patience_s and self._size < elapsed * self._storage.min_bytes_per_s:
            raise ProtocolError("data set comes too slowly")
        if self._file is None:
            return
        if len(self._head) < HEAD_BYTES:
            self._head += fragment[: HEAD_BYTES - len(self._head)]
        try:
            self._uncounted += len(fragment)
            if self._uncounted >= COUNT_BYTES:
                self._count_bytes()
            self._file.write(fragment)
        except (Refused, StorageError, OSError) as error:
            self._refuse(error)

    def _count_bytes(self) -> None:
        count, self._uncounted = self._uncounted, 0
        self._storage.resources.admit_bytes(self._caller.calling_ae, self._caller.network, count)

    def finish(self) -> tuple[int, str]:
        """Keep the instance, or not. Returns the response's status and Error Comment."""
        try:
            if self._refusal is not None:
                raise self._refusal
            self._count_bytes()
            outcome = self._keep()
        except Exception as error:  # noqa: BLE001  the C-STORE handler: one bad instance must not end the association
            self.discard()
            status, comment = answer_for(error)
            meters.INSTANCES.labels(f"{status:04X}").inc()
            log.warning(
                "instance refused",
                status=f"{status:04X}",
                comment=comment,
                error=type(error).__name__,
                peer=self._caller.label,
                address=self._caller.address,
                sop_instance=short(self.command.sop_instance_uid.decode("ascii", "replace")),
            )
            return status, comment
        meters.INSTANCES.labels(str(outcome)).inc()
        meters.BYTES.inc(self._size)
        if outcome is Outcome.CONFLICT:
            # The sender did nothing wrong that it could mend: success, and a person is told.
            log.warning("conflicting instance set aside", peer=self._caller.label, address=self._caller.address)
        return SUCCESS, ""

    def discard(self) -> None:
        """Remove what was written; harmless when repeated."""
        file, self._file = self._file, None
        if file is not None:
            file.discard()

    def _refuse(self, error: Exception) -> None:
        self._refusal = error
        self.discard()

    def _keep(self) -> Outcome:
        file = self._file
        if file is None:
            raise OutOfResources("instance was not stored")
        header = self._read_header(file)
        arrival = self._arrival(header, file)
        if self._storage.own is not None and self._storage.own.refuses(self._caller.calling_ae, file.path):
            raise Refused("image was made by this node")
        commit = self._commit_first if self._storage.shared_port else self._commit_together
        outcome = commit(file, arrival)
        if outcome is not Outcome.NEW:
            self._storage.committer.rely_on_held(arrival, self._storage.files)
        return outcome

    def _commit_first(self, file: NewFile, arrival: Arrival) -> Outcome:
        """The file's fsync before its row is written.

        With several processes on the port the same instance may arrive at another one, which acknowledges a duplicate
        on the strength of our row: by then our file must be safe.
        """
        file.commit()
        self._file = None
        ticket = self._storage.committer.submit(arrival)
        self._storage.committer.settle(ticket, is_safe=True)
        return self._outcome(ticket)

    def _commit_together(self, file: NewFile, arrival: Arrival) -> Outcome:
        """The file's fsync while the committer commits the row; done when both are."""
        ticket = self._storage.committer.submit(arrival)
        is_safe = False
        try:
            file.commit()
            is_safe = True
            self._file = None
        finally:
            self._storage.committer.settle(ticket, is_safe)
        return self._outcome(ticket)

    def _outcome(self, ticket: Ticket) -> Outcome:
        try:
            return ticket.wait()
        except DatabaseUnavailable:
            raise  # the row may be there: a file that none names is swept
        except Exception:
            self._storage.files.remove(ticket.arrival.file.path)
            raise

    def _read_header(self, file: NewFile) -> Header:
        implicit = self._context.transfer_syntax == ImplicitVRLittleEndian
        try:
            return read_header(self._head, self._size, implicit)
        except NeedsMore:
            with (
                LONG_HEADERS,
                file.path.open("rb") as stored,
                mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as whole,
                memoryview(whole) as view,
                view[self._start_bytes :] as data,
            ):
                return read_header(data, self._size, implicit)

    def _arrival(self, header: Header, file: NewFile) -> Arrival:
        """Raises ClassMismatch or Unreadable where the data set is not what the command says."""
        if parse_uid(header.sop_class_uid, "SOP Class UID") != self._sop_class_uid:
            raise ClassMismatch("SOP class of command and data set differ")
        if parse_uid(header.sop_instance_uid, "SOP Instance UID") != self._sop_instance_uid:
            raise Refused("SOP instance of command and data set differ")
        return Arrival(
            sop_instance_uid=self._sop_instance_uid,
            sop_class_uid=self._sop_class_uid,
            series_instance_uid=parse_uid(header.series_instance_uid, "Series Instance UID"),
            study_instance_uid=parse_uid(header.study_instance_uid, "Study Instance UID"),
            transfer_syntax_uid=self._context.transfer_syntax,
            calling_ae=self._caller.calling_ae,
            called_ae=self._caller.called_ae,
            address=self._caller.address,
            file=file.describe(),
            header=self._storage.pseudonyms.header(header.indexed),
        )
