"""Record the stored files that the index does not know, from their own headers: what is left when an index was lost.

Each becomes a row as if it had just been received, with an audit row of its own. Objects of the node's own results are
set aside: they would come back as images, and adopted series are analysed again anyway. So are the images of canaries:
they would come back as a patient's.
"""

import hashlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import Connection

from config.headers import UNREADABLE, quiet
from config.own_equipment import OwnEquipment
from dicom_node.batch.local_files import is_imported
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID
from dicom_node.receiver.errors import Refused
from dicom_node.receiver.headers import read_header, read_identity
from dicom_node.receiver.negotiation import RESULT_CLASSES
from dicom_node.receiver.own_images import device_of, read_equipment
from dicom_node.receiver.uids import accepted_uid, parse_uid
from storage import audit, canaries, refused
from storage.arrival import Arrival, IndexedHeader, Outcome
from storage.database import Database
from storage.errors import CorruptFile
from storage.files import FileStore, StoredFile, is_quarantined
from storage.held import held_file
from storage.orphans import survey
from storage.pseudonyms import Pseudonyms
from storage.recording import record_instances
from storage.refused import RefusedInstance

AT_ONCE = 100
"""Instances in one transaction."""
SENDER = "ADOPTED"
"""In place of the calling AE title, which no file holds. It is no source's, so the node's own rules hold."""
HEADER_BYTES = 1024**2
"""How much of a damaged file is searched for its identity."""
LONGEST_META = 1024**2
"""Bytes of file meta information; those of real files have some hundred."""
META_START = 132 + 12  # preamble, "DICM", and the group length's own element: PS3.10 7.1


class _OwnObject(Exception):
    """An object of a result that this node made itself, or a copy that was imported for a batch: nobody sent it."""


class _Canary(Exception):
    """An image that the node made, and sent to itself (see storage/canaries.py)."""


@dataclass
class Adoption:
    """adopted: how many became instances. conflicts: how many were set aside beside one. The others are paths.

    spare: bytes that the index has in another file. own: objects of own results, and what was imported for a batch.
    canaries: images that the node made itself. These three are set aside. unreadable: kept apart, and their series is
    incomplete if their header names it.
    """

    adopted: int = 0
    conflicts: int = 0
    spare: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    canaries: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Adopter:
    """database: None for a dry run beside an index that is not there. report: gets the number of files looked at."""

    database: Database | None
    files: FileStore
    own: OwnEquipment
    pseudonyms: Pseudonyms
    quiet_s: float
    report: Callable[[int, int], None] = lambda done, of: None

    def candidates(self) -> list[str]:
        """The files without a row, and those whose row says that they are missing; in the order in which they came."""
        found = survey(self.database, self.files, float("inf"))
        kept = [path for _, paths in self.files.quarantined() for path in paths]
        kept += self.files.unreadable()
        return sorted([*found.unknown, *found.lost, *kept], key=lambda path: (self._written(path), path))

    def _written(self, path: str) -> float:
        return self.files.written_at(path)

    def run(self, now: float, *, dry: bool = False) -> Adoption:
        """Adopt all candidates. dry: only say what would become of them; conflicts are not known then."""
        done = Adoption()
        paths = self.candidates()
        for start in range(0, len(paths), AT_ONCE):
            some = list(self._readable(paths[start : start + AT_ONCE], done))
            if dry or self.database is None:
                done.adopted += len(some)
            else:
                self._record(self.database, some, now, done)
            self.report(min(start + AT_ONCE, len(paths)), len(paths))
        if not dry:
            for path in [*done.own, *done.canaries, *done.spare]:
                if not is_quarantined(path):
                    self.files.set_aside(path, self.files.quarantine_of(now))
            done.unreadable = [self._keep_unreadable(path, now) for path in done.unreadable]
        return done

    def _keep_unreadable(self, path: str, now: float) -> str:
        """It may have been acknowledged: no sweep takes it, and its series is not whole without it."""
        if self.database is not None:
            lacking = self._identity_of(path)
            with self.database.transaction() as tx:
                refused.record(tx, lacking, now)
        return self.files.keep_unreadable(path)

    def _identity_of(self, path: str) -> RefusedInstance:
        """What the header says of a file that cannot be adopted; empty texts if nothing can be read."""
        uids = ("", "", "")
        try:
            with self._at_hand(path) as file:
                with quiet():
                    meta, start = _read_meta(file)
                data = file.read_bytes()[start : start + HEADER_BYTES]
            header = read_identity(data, str(meta.TransferSyntaxUID) == ImplicitVRLittleEndian)
            uids = (
                accepted_uid(header.sop_instance_uid) or accepted_uid(str(meta.MediaStorageSOPInstanceUID).encode()),
                accepted_uid(header.series_instance_uid),
                accepted_uid(header.study_instance_uid),
            )
        except (InvalidDicomError, CorruptFile, OSError, *UNREADABLE):
            pass
        return RefusedInstance(*uids, "", "FILE", "its stored file cannot be read", SENDER, "")

    def _readable(self, paths: Sequence[str], done: Adoption) -> Iterator[Arrival]:
        for path in paths:
            try:
                with self._at_hand(path) as file:
                    arrival = self._arrival(path, file)
                yield arrival
            except _OwnObject:
                done.own.append(path)
            except _Canary:
                done.canaries.append(path)
            except (Refused, CorruptFile, InvalidDicomError, OSError, *UNREADABLE):
                done.unreadable.append(path)

    @contextmanager
    def _at_hand(self, path: str) -> Iterator[Path]:
        with self.files.at_hand([StoredFile(path, "", 0)]) as (file,):
            yield file

    def _arrival(self, path: str, file: Path) -> Arrival:
        """Raises _OwnObject or _Canary; Refused and others for a file that is not whole."""
        with file.open("rb") as stored:
            if is_imported(stored.read(META_START)):
                raise _OwnObject
        with quiet():
            meta, start = _read_meta(file)
            if self._is_own_result(file, meta):
                raise _OwnObject
        if str(meta.ImplementationClassUID) != IMPLEMENTATION_CLASS_UID:
            raise CorruptFile("no receiver of this node wrote it")
        syntax = str(meta.TransferSyntaxUID)
        with (
            file.open("rb") as stored,
            mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as whole,
            memoryview(whole) as view,
            view[start:] as data,
        ):
            header = read_header(data, len(data), syntax == ImplicitVRLittleEndian)
            kept = StoredFile(path, hashlib.sha256(view).hexdigest(), len(view))
        uid = parse_uid(header.sop_instance_uid, "SOP Instance UID")
        sop_class = parse_uid(header.sop_class_uid, "SOP Class UID")
        if (sop_class, uid) != (str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)):
            raise CorruptFile("file meta information and data set name different instances")
        arrival = Arrival(
            sop_instance_uid=uid,
            sop_class_uid=sop_class,
            series_instance_uid=parse_uid(header.series_instance_uid, "Series Instance UID"),
            study_instance_uid=parse_uid(header.study_instance_uid, "Study Instance UID"),
            transfer_syntax_uid=syntax,
            calling_ae=SENDER,
            called_ae="",
            address="",
            file=kept,
            header=self.pseudonyms.header(header.indexed),
        )
        if self._is_of_canary(arrival, header.indexed):
            raise _Canary
        return arrival

    def _is_of_canary(self, arrival: Arrival, header: IndexedHeader) -> bool:
        """By the index; if that does not know it, by what the node writes into canaries, and their UIDs' root."""
        uids = arrival.sop_instance_uid, arrival.series_instance_uid, arrival.study_instance_uid
        if not all(uid.startswith(canaries.UID_ROOT) for uid in uids):
            return False
        if (header.patient_id, header.patient_name) == (canaries.PATIENT_ID, canaries.PATIENT_NAME):
            return True
        if self.database is None:
            return False
        with self.database.read() as tx:
            return canaries.is_canary(tx, arrival.series_instance_uid)

    def _is_own_result(self, file: Path, meta: Dataset) -> bool:
        """An object of a result, if this node's receiver did not write it (0.1.0) or it names this node's device."""
        if str(meta.MediaStorageSOPClassUID) not in RESULT_CLASSES:
            return False
        if str(meta.ImplementationClassUID) != IMPLEMENTATION_CLASS_UID:
            return True
        return self.own.had_a_part(device_of(read_equipment(file)), ())

    def _record(self, database: Database, arrivals: list[Arrival], now: float, done: Adoption) -> None:
        arrivals = [self._in_its_place(arrival) for arrival in arrivals]
        with database.transaction() as tx:
            outcomes = record_instances(tx, arrivals, now, self.quiet_s)
            for arrival, outcome in zip(arrivals, outcomes, strict=True):
                about = audit.Subject(
                    series_uid=arrival.series_instance_uid,
                    study_uid=arrival.study_instance_uid,
                    sop_uid=arrival.sop_instance_uid,
                    patient_id=arrival.header.patient_id,
                )
                path = arrival.file.path
                audit.append(tx, now, "instance.adopted", about, outcome=str(outcome), detail={"path": path})
            spare = [arrival.file.path for arrival in arrivals if not _is_named(tx, arrival)]
        done.adopted += outcomes.count(Outcome.NEW)
        done.conflicts += outcomes.count(Outcome.CONFLICT) + outcomes.count(Outcome.SECOND_COPY)
        done.spare += spare

    def _in_its_place(self, arrival: Arrival) -> Arrival:
        """The arrival with its file where files with a row are, and durable."""
        path, file = arrival.file.path, arrival.file
        if is_quarantined(path):
            file = replace(file, path=self.files.take_back(path))
        self.files.make_durable(file.path, file.sha256)
        return replace(arrival, file=file)


def _read_meta(file: Path) -> tuple[Dataset, int]:
    """A file's meta information, and where its data set begins.

    The group's stated length ends it: 0.1.0 accepted data sets that begin with elements of group 0002 of their own.
    """
    with file.open("rb") as stored:
        beginning = stored.read(META_START)
        length = int.from_bytes(beginning[140:], "little")
        if beginning[128:132] != b"DICM" or length > LONGEST_META:
            raise InvalidDicomError
        group = BytesIO(stored.read(length))
    return read_dataset(group, is_implicit_VR=False, is_little_endian=True), META_START + length


def _is_named(tx: Connection, arrival: Arrival) -> bool:
    """True if a row names the arrival's own file."""
    held = held_file(tx, arrival)
    return held is not None and held[0] == arrival.file.path
