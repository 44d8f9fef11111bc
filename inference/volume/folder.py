"""The DICOM files of a folder by series, and what looks like one of them but cannot be read.

An unreadable file is never left out silently: it may be a slice of a series that lies beside it.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from config.headers import quiet
from inference.errors import CorruptInstance
from inference.volume.part10 import DEFLATED, UNREADABLE, read_header, read_meta, safe_uid

_SERIES_INSTANCE_UID = 0x0020000E
_DICOMDIR = "1.2.840.10008.1.3.10"
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
_HEAD_BYTES = 512


@dataclass(frozen=True)
class UnreadableFile:
    """A file that looks like a DICOM object of its folder. reason: what is wrong with it, in a few words.

    series_uid: the Series Instance UID, if it can be made out.
    """

    path: Path
    reason: str
    series_uid: str = ""


@dataclass(frozen=True)
class Folder:
    """What lies at or below a path.

    series: readable files by Series Instance UID, sorted by name.  unreadable: sorted by name.
    """

    series: dict[str, list[Path]]
    unreadable: tuple[UnreadableFile, ...]

    def suspects(self, series_uid: str) -> tuple[UnreadableFile, ...]:
        """The unreadable files that do or may belong to a series: they lie beside its files and name no other."""
        folders = {path.parent for path in self.series.get(series_uid, ())}
        return tuple(
            file
            for file in self.unreadable
            if file.series_uid == series_uid or (not file.series_uid and file.path.parent in folders)
        )

    def whole(self, series_uid: str) -> list[Path]:
        """The files of a series. Raises CorruptInstance if any file that may belong to it cannot be read."""
        refuse_suspects(self.suspects(series_uid))
        return self.series[series_uid]


def refuse_suspects(suspects: tuple[UnreadableFile, ...]) -> None:
    """Raises CorruptInstance if there are any. The error leaves out the files' names, which may name a patient."""
    if suspects:
        reasons = ", ".join(sorted({file.reason for file in suspects}))
        files = "1 file" if len(suspects) == 1 else f"{len(suspects)} files"
        raise CorruptInstance(f"{files} of the series, or beside it, cannot be read ({reasons})")


def read_folder(path: Path) -> Folder:
    """The DICOM files at or below a path, a folder or one file.

    DICOMDIR, hidden files and files that do not look like DICOM are skipped. A deflated file is never inflated, so it
    is listed under its SOP Instance UID, and `load` refuses it.
    """
    closed: list[UnreadableFile] = []
    files = [path] if path.is_file() else _files_below(path, closed)
    series: dict[str, list[Path]] = {}
    others: list[UnreadableFile] = []
    with quiet():
        for file in files:
            found = _series_of(file)
            if isinstance(found, UnreadableFile):
                others.append(found)
            elif found:
                series.setdefault(found, []).append(file)
    kinds = {(file.parent, _kind(file)) for paths in series.values() for file in paths}
    named = [file for file in others if file.path == path or _looks_like_dicom(file.path, kinds)]
    return Folder(series, tuple(sorted([*closed, *named], key=lambda file: file.path)))


def _files_below(folder: Path, closed: list[UnreadableFile]) -> list[Path]:
    """Everything that is neither a folder nor hidden, sorted; folders that cannot be listed are added to `closed`."""

    def note(error: OSError) -> None:
        closed.append(UnreadableFile(Path(str(error.filename)), "a folder that cannot be listed"))

    found = [
        Path(parent) / name for parent, _, names in os.walk(folder, onerror=note) for name in names if name[0] != "."
    ]
    return sorted(found)


def find_series(path: Path) -> dict[str, list[Path]]:
    """Only the readable series of `read_folder`, for callers that know what the folder holds."""
    return read_folder(path).series


def _series_of(path: Path) -> str | UnreadableFile:
    """The Series Instance UID, or why there is none; empty for a kind of object that never has one."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return UnreadableFile(path, "a link to nothing" if path.is_symlink() else "not a plain file")
    try:
        with path.open("rb") as file:
            head = file.read(132)
            if not head:
                return UnreadableFile(path, "empty")
            if head[128:] != b"DICM":
                return _without_preamble(path, file, head)
            meta = read_meta(file)
            if meta.sop_class_uid == _DICOMDIR:
                return ""
            if meta.transfer_syntax_uid in DEFLATED:
                return safe_uid(meta.sop_instance_uid)
            uid = _uid_of(file, meta.transfer_syntax_uid)
    except UNREADABLE:
        return UnreadableFile(path, "unreadable header")
    return uid or UnreadableFile(path, "no series in its header")


def _uid_of(file: BinaryIO, transfer_syntax_uid: str) -> str:
    element = read_header(file, transfer_syntax_uid, [_SERIES_INSTANCE_UID]).get_item(_SERIES_INSTANCE_UID)
    return element.value.decode("ascii").strip(" \0") if element is not None and element.value else ""


def _without_preamble(path: Path, file: BinaryIO, head: bytes) -> UnreadableFile:
    uid = ""
    if _starts_like_a_data_set(head):
        file.seek(0)
        with suppress(*UNREADABLE):
            uid = _uid_of(file, "")
    return UnreadableFile(path, "no DICOM preamble", uid)


def _looks_like_dicom(path: Path, kinds: set[tuple[Path, str]]) -> bool:
    """Judged by its name, by its first bytes, or by readable files beside it with similar names if it is not text."""
    if path.suffix.lower() in _DICOM_SUFFIXES:
        return True
    if not path.is_file():
        return (path.parent, _kind(path)) in kinds
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        head = b""
    if head[128:132] == b"DICM" or _starts_like_a_data_set(head):
        return True
    return (path.parent, _kind(path)) in kinds and not _is_text(head)


def _kind(path: Path) -> str:
    """The suffix; empty if it is the last component of a UID, or a number."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def _starts_like_a_data_set(head: bytes) -> bool:
    """An element of group 0002 or 0008 in little endian, with a VR or a length of less than 64 KiB."""
    return len(head) >= 8 and head[:2] in (b"\x02\0", b"\x08\0") and (head[4:6].isalpha() or head[6:8] == b"\0\0")


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "replace").rstrip("\ufffd")  # the last character may be cut
    return bool(text) and all((char.isprintable() or char.isspace()) and char != "\ufffd" for char in text)
