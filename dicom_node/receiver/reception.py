"""One C-STORE: from the command to the status of its response.

The encoded data set goes to the file as it comes; nothing is decoded. `finish` answers success only when the file
is durable (fsync of file and folder) and its row committed.
"""

import contextlib
import mmap
import threading
import time
from collections.abc import Iterator

import structlog
from pydicom.uid import ImplicitVRLittleEndian

from dicom_node.logs import short
from dicom_node.receiver import meters
from dicom_node.receiver.acse import Context
from dicom_node.receiver.errors import ClassMismatch, OutOfResources, OwnImage, ProtocolError, Refused, answer_for
from dicom_node.receiver.headers import NOTHING_READ, Header, read_header, read_identity
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.pdu import Command
from dicom_node.receiver.refusals import Caller, Reason
from dicom_node.receiver.tickets import Ticket
from dicom_node.receiver.uids import parse_uid
from dicom_node.receiver.walk import NeedsMore
from dicom_node.statuses import SUCCESS
from storage.arrival import Arrival, Outcome
from storage.errors import DatabaseUnavailable, StorageError
from storage.files import NewFile
from storage.held import rely_on_held

log = structlog.get_logger()

# A long header takes a second of Python's only running thread: a hundred at once would keep all others waiting.
LONG_HEADERS = threading.Lock()
HEAD_BYTES = 65536
"""Of a data set, kept in memory to read its header from; only a longer header is read back from the file."""


COUNT_BYTES = 1024**2
"""A sender's bytes are counted in pieces of this size."""
INTERRUPTED = "the association ended within the instance"


class Reception:
    """One instance being received.

    A refused one still takes its data set off the connection, so that the refusal can be answered.
    """

    def __init__(self, command: Command, context: Context, caller: Caller, intake: Intake) -> None:
        self.command = command
        self.context_id = context.context_id
        self._context = context
        self._caller = caller
        self._intake = intake
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
        self._intake.resources.admit_instance(self._caller.calling_ae, self._caller.network)
        start = encode_file_start(self._sop_class_uid, self._sop_instance_uid, self._context.transfer_syntax)
        self._file = self._intake.files.create()
        self._file.write(start)
        self._start_bytes = len(start)

    def write(self, fragment: memoryview) -> None:
        """Take the next bytes of the data set. Raises ProtocolError for a data set over the limit."""
        self._size += len(fragment)
        if self._size > self._intake.max_instance_bytes:
            # It may never end, so there might be no moment to answer.
            raise ProtocolError("data set is larger than allowed")
        elapsed = time.monotonic() - self._began
        if elapsed > self._intake.patience_s and self._size < elapsed * self._intake.min_bytes_per_s:
            raise ProtocolError("data set comes too slowly")
        if len(self._head) < HEAD_BYTES:
            self._head += fragment[: HEAD_BYTES - len(self._head)]
        if self._file is None:
            return
        try:
            self._uncounted += len(fragment)
            if self._uncounted >= COUNT_BYTES:
                self._count_bytes()
            self._file.write(fragment)
        except (Refused, StorageError, OSError) as error:
            self._refuse(error)

    def _count_bytes(self) -> None:
        count, self._uncounted = self._uncounted, 0
        self._intake.resources.admit_bytes(self._caller.calling_ae, self._caller.network, count)

    def finish(self) -> tuple[int, str]:
        """Keep the instance, or not. Returns the response's status and Error Comment."""
        try:
            if self._refusal is not None:
                raise self._refusal
            self._count_bytes()
            outcome = self._keep()
        except Exception as error:  # noqa: BLE001  the C-STORE handler: one bad instance must not end the association
            return self._refused(error)
        meters.INSTANCES.labels(str(outcome)).inc()
        meters.BYTES.inc(self._size)
        if outcome is Outcome.CONFLICT:
            # The sender can mend nothing: success, and a person is told. For other bytes of a known instance a person
            # is told only after they were compared: it may be the same image by a second route.
            log.warning("conflicting instance set aside", peer=self._caller.label, address=self._caller.address)
        return SUCCESS, ""

    def _refused(self, error: Exception) -> tuple[int, str]:
        """Write the refusal down, and say how it is answered."""
        status, comment = answer_for(error)
        reason = Reason(f"{status:04X}", comment, wanted=not isinstance(error, OwnImage))
        header = self._identity_of_refused()
        meters.INSTANCES.labels(reason.status).inc()
        log.warning(
            "instance refused",
            status=reason.status,
            comment=comment,
            error=type(error).__name__,
            peer=self._caller.label,
            address=self._caller.address,
            sop_instance=short(self.command.sop_instance_uid.decode("ascii", "replace")),
        )
        self._intake.refusals.remember(self._caller, self.command.sop_instance_uid, header, reason)
        return status, comment

    def interrupt(self, why: str = INTERRUPTED) -> None:
        """The association ended before the instance was whole: nothing is kept of it, and its series lacks it."""
        reason = Reason("ABORT", why if self._refusal is None else answer_for(self._refusal)[1])
        header = self._identity_of_refused()
        self._intake.refusals.remember(self._caller, self.command.sop_instance_uid, header, reason, patience_s=0)

    def _identity_of_refused(self) -> Header:
        """As much of the data set as can be read, whatever is wrong with it; the file is removed."""
        implicit = self._context.transfer_syntax == ImplicitVRLittleEndian
        try:
            header = read_identity(self._head, implicit)
            if header.series_instance_uid or self._file is None or self._size <= len(self._head):
                return header
            with LONG_HEADERS, self._file_as_bytes(self._file) as data:
                return read_identity(data, implicit)
        except (OSError, ValueError):
            return NOTHING_READ
        finally:
            self.discard()

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
        if self._intake.own is not None and self._intake.own.refuses(self._caller.calling_ae, file.path):
            raise OwnImage("image was made by this node")
        together = self._intake.files.row_may_come_first and not self._intake.received_elsewhere
        commit = self._commit_together if together else self._commit_first
        outcome = commit(file, arrival)
        if outcome not in (Outcome.NEW, Outcome.CANARY):
            rely_on_held(self._intake.database, self._intake.files, arrival, self._intake.clock())
        # The last thing before the answer: row and file lie where the next start looks for them.
        self._intake.database.check()
        return outcome

    def _commit_first(self, file: NewFile, arrival: Arrival) -> Outcome:
        """The file is made durable before its row is written.

        With several processes on the port, or several hosts, the same instance may arrive at another one. That one
        acknowledges a duplicate because of our row, so our file must be safe before the row is there. An object store
        may take long, or be away.
        """
        file.commit()
        self._file = None
        ticket = self._intake.committer.submit(arrival)
        self._intake.committer.settle(ticket, is_safe=True)
        return self._outcome(ticket)

    def _commit_together(self, file: NewFile, arrival: Arrival) -> Outcome:
        """The file's fsync while the committer commits the row; done when both are."""
        ticket = self._intake.committer.submit(arrival)
        is_safe = False
        try:
            file.commit()
            is_safe = True
            self._file = None
        finally:
            self._intake.committer.settle(ticket, is_safe)
        return self._outcome(ticket)

    def _outcome(self, ticket: Ticket) -> Outcome:
        try:
            return ticket.wait()
        except DatabaseUnavailable:
            raise  # the row may be there: a file that none names is swept
        except Exception:
            self._intake.files.remove(ticket.arrival.file.path)
            raise

    def _read_header(self, file: NewFile) -> Header:
        implicit = self._context.transfer_syntax == ImplicitVRLittleEndian
        try:
            return read_header(self._head, self._size, implicit)
        except NeedsMore:
            with LONG_HEADERS, self._file_as_bytes(file) as data:
                return read_header(data, self._size, implicit)

    @contextlib.contextmanager
    def _file_as_bytes(self, file: NewFile) -> Iterator[memoryview]:
        """What was written of the data set, without reading it into memory."""
        with (
            file.path.open("rb") as stored,
            mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
            view[self._start_bytes :] as data,
        ):
            yield data

    def _arrival(self, header: Header, file: NewFile) -> Arrival:
        """Raises ClassMismatch or Unreadable if the data set is not what the command says."""
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
            header=self._intake.pseudonyms.header(header.indexed),
        )
