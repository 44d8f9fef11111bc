"""DICOM files of a folder, read with the receiver's own limits: whatever lies there, it harms nothing.

Only plain files are opened, never through a link; nothing is inflated, decoded or written. A file's name is a place to
read from and goes into no other path, no log line and no message.
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from config.headers import quiet
from dicom_node.receiver.errors import Refused
from dicom_node.receiver.headers import read_header, read_identity
from dicom_node.receiver.negotiation import IMPLICIT_VR, TRANSFER_SYNTAXES
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.uids import accepted_uid, parse_uid
from inference.volume.part10 import UNREADABLE, read_meta
from storage.arrival import IndexedHeader

IMPORTED = b"imported"
"""In the preamble of a stored file: should the index be lost, nobody takes it for one that was received."""
DICOMDIR = "1.2.840.10008.1.3.10"
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
CHUNK = 1 << 20
IDENTITY_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalFile:
    """One DICOM file that can be read. start: where its data set begins."""

    path: Path
    start: int
    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    header: IndexedHeader

    @property
    def file_start(self) -> bytes:
        """What comes before the data set in a file that was received."""
        return encode_file_start(self.sop_class_uid, self.sop_instance_uid, self.transfer_syntax_uid)


@dataclass(frozen=True)
class Suspect:
    """A file that looks like DICOM and cannot be read. series_uid: as far as it can be made out."""

    path: Path
    series_uid: str


@dataclass(frozen=True)
class Digests:
    """SHA-256 hex of one file: as it lies there, as it is stored when imported, and when received."""

    found: str
    imported: str
    received: str


class NotPlain(OSError):
    """A link, a pipe, a device or a folder."""


def folders_below(root: Path, after: str = "") -> Iterator[tuple[str, list[Path]]]:
    """Each folder from `root` on, relative to it, in a fixed order, with its plain files, sorted.

    after: only folders that come after this one. Links are not followed; hidden files and folders are passed over.
    """
    for name, below, names in os.walk(root):
        below[:] = sorted(one for one in below if one[0] != ".")
        relative = Path(name).relative_to(root).as_posix()
        if not after or _place(relative) > _place(after):
            yield relative, [Path(name) / one for one in sorted(names) if one[0] != "."]


def _place(relative: str) -> tuple[str, ...]:
    """The order in which `os.walk` comes to folders whose names are sorted."""
    return () if relative == "." else tuple(relative.split("/"))


@contextmanager
def _plain(path: Path) -> Iterator[BinaryIO]:
    """A plain file, opened for reading. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotPlain("not a plain file")
        yield file


def read_local(path: Path, max_bytes: int) -> LocalFile | Suspect | None:
    """What a file is; None for what is no DICOM object of a series. max_bytes: a larger file is not read."""
    try:
        with quiet(), _plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0 or size > max_bytes:
                return _suspect(path) if size else None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                return _read(path, file, whole)
    except NotPlain:
        return None
    except (Refused, *UNREADABLE):
        return _suspect(path)


def _read(path: Path, file: BinaryIO, whole: mmap.mmap) -> LocalFile | Suspect | None:
    if whole[128:132] != b"DICM":
        return _suspect(path)
    meta = read_meta(file)
    if meta.sop_class_uid == DICOMDIR:
        return None
    start, syntax = file.tell(), meta.transfer_syntax_uid
    if syntax not in TRANSFER_SYNTAXES:
        return Suspect(path, "")
    with memoryview(whole) as view, view[start:] as data:
        try:
            header = read_header(data, len(data), syntax == IMPLICIT_VR)
        except Refused:
            with data[:IDENTITY_BYTES] as beginning:
                return Suspect(path, accepted_uid(read_identity(beginning, syntax == IMPLICIT_VR).series_instance_uid))
    return LocalFile(
        path=path,
        start=start,
        sop_instance_uid=parse_uid(header.sop_instance_uid, "SOP Instance UID"),
        sop_class_uid=parse_uid(header.sop_class_uid, "SOP Class UID"),
        series_instance_uid=parse_uid(header.series_instance_uid, "Series Instance UID"),
        study_instance_uid=parse_uid(header.study_instance_uid, "Study Instance UID"),
        transfer_syntax_uid=syntax,
        header=header.indexed,
    )


def _suspect(path: Path) -> Suspect | None:
    """It counts if its name or its beginning says that it is DICOM."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return Suspect(path, "")
    try:
        with _plain(path) as file:
            return Suspect(path, "") if file.read(132)[128:] == b"DICM" else None
    except OSError:
        return None


def digests(one: LocalFile) -> Digests:
    """Read a file once, and compute what it is called by. Raises OSError."""
    found, imported, received = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    start = one.file_start
    imported.update(_marked(start))
    received.update(start)
    with _plain(one.path) as file:
        found.update(file.read(one.start))
        while chunk := file.read(CHUNK):
            for digest in (found, imported, received):
                digest.update(chunk)
    return Digests(found.hexdigest(), imported.hexdigest(), received.hexdigest())


def stored_bytes(one: LocalFile) -> Iterator[bytes]:
    """The bytes of an imported file: a start of our own with its mark, then the data set unchanged. Raises OSError."""
    yield _marked(one.file_start)
    with _plain(one.path) as file:
        file.seek(one.start)
        while chunk := file.read(CHUNK):
            yield chunk


def stored_start(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """The start of a file of a fetched data set."""
    return _marked(encode_file_start(sop_class_uid, sop_instance_uid, transfer_syntax_uid))


def _marked(start: bytes) -> bytes:
    return IMPORTED + start[len(IMPORTED) :]


def is_imported(start: bytes) -> bool:
    """Whether a stored file with this beginning was imported."""
    return start.startswith(IMPORTED)
