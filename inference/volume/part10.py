"""The beginning of a DICOM file: its file meta information and its header, read without inflating anything.

pydicom's own `dcmread` takes the transfer syntax from any element of group 0002, wherever it stands, and inflates the
rest of the file if that syntax is deflated. Here the group ends at its stated length, or where its elements stop
ascending, and nothing is inflated.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from config import headers
from config.headers import allow, bounded

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = frozenset(
    {
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.8.1",
        "1.2.840.10008.1.2.4.95",  # the deflated JPIP syntaxes
        "1.2.840.10008.1.2.4.205",
    }
)

UNREADABLE = (InvalidDicomError, OSError, *headers.UNREADABLE)
"""The errors raised for a file that is not a DICOM file."""

_GROUP_LENGTH, _SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x00020000, 0x00020002, 0x00020003, 0x00020010
_PIXEL_DATA = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
# Real ones have 200 to 500 bytes.
_MAX_META_BYTES = 1 << 20
# At the top level, where real headers have hundreds: a long run of zeros reads as one empty element after another.
_MAX_ELEMENTS = 100_000
_NUMBER_OF_FRAMES = 0x00280008
# A legacy converted image carries all that differs from slice to slice; a compressed frame has 50 KB and more.
_READS_OF_A_FRAME, _BYTES_OF_A_READ = 1000, 32


@dataclass(frozen=True)
class FileMeta:
    """What the file meta information says; empty if it does not say."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str


def read_meta(file: BinaryIO) -> FileMeta:
    """The file meta information. Afterwards the file is positioned at the first byte of the data set.

    Raises InvalidDicomError if the file has no preamble, and the other errors of `UNREADABLE`.
    """
    file.seek(0)
    if file.read(132)[128:] != b"DICM":
        raise InvalidDicomError
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=_end_of_meta(file))
    return FileMeta(*(_uid(meta, tag) for tag in (_SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID)))


def _end_of_meta(file: BinaryIO) -> Callable[[BaseTag, str | None, int], bool]:
    """Finds the first element after the group: of another group, or out of order past the group's stated length."""
    last, stated_end = 0, 0

    def ends(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal last, stated_end
        at = file.tell()
        # The first element may be asked about twice: pydicom looks at it to tell implicit from explicit VR.
        if tag >> 16 != 2 or (tag <= last != _GROUP_LENGTH and at > stated_end):
            return True
        if length > _MAX_META_BYTES:
            raise InvalidDicomError
        if tag == _GROUP_LENGTH and not last:
            stated_end = at + 4 + int.from_bytes(file.read(4), "little")
            file.seek(at)
        last = max(last, int(tag))
        return False

    return ends


def _uid(meta: Dataset, tag: int) -> str:
    value = meta.get_item(tag).value if tag in meta else None
    return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else ""


def read_header(file: BinaryIO, transfer_syntax_uid: str, tags: Sequence[int]) -> Dataset:
    """The wanted elements of a data set that is not deflated. Afterwards the file is positioned at its pixel data.

    transfer_syntax_uid: if empty (unknown), the first element tells implicit from explicit VR.
    Raises the errors of `UNREADABLE`.
    """
    implicit = transfer_syntax_uid == IMPLICIT_LE or (not transfer_syntax_uid and _looks_implicit(file))
    limited = bounded(file)
    return read_dataset(
        limited,
        is_implicit_VR=implicit,
        is_little_endian=transfer_syntax_uid != BIG_ENDIAN,
        stop_when=_end_of_header(limited),
        specific_tags=list(tags),
    )


def _looks_implicit(file: BinaryIO) -> bool:
    start = file.tell()
    vr = file.read(6)[4:]
    file.seek(start)
    return not (vr.isascii() and vr.isalpha() and vr.isupper())


def _end_of_header(file: BinaryIO) -> Callable[[BaseTag, str | None, int], bool]:
    """Finds the pixel data. file: see `bounded`; the more frames, the more their functional groups may hold."""
    count = 0

    def ends(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal count
        count += 1
        if count > _MAX_ELEMENTS:
            raise InvalidDicomError
        if tag == _NUMBER_OF_FRAMES and 0 < length <= 16:
            allow(file, _reads_of_frames(file, length))
        return int(tag) in _PIXEL_DATA

    return ends


def _reads_of_frames(file: BinaryIO, length: int) -> int:
    """How many reads the functional groups of the stated number of frames may take, if the file can hold so many."""
    at = file.tell()
    text = file.read(length).strip(b" \0")
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    frames = int(text) if text.isdigit() else 1
    return min(frames * _READS_OF_A_FRAME, size // _BYTES_OF_A_READ)


def safe_uid(value: str) -> str:
    """A UID that may stand in a log line, whatever the file said."""
    kept = "".join(char for char in value[:64] if char in "0123456789.")
    return kept or "(no SOP Instance UID)"
