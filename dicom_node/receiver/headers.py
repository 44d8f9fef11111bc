"""Read the few header elements that the index needs, with limits, and check that the data set is whole.

A data set here is its encoded bytes without file meta information, in a little endian transfer syntax. Its top
level is walked to the end, so that a truncated one is never acknowledged. Values are looked at only if the
index wants them. Sequences of undefined length are stepped through without recursion. Pixel data are not read.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from dicom_node.receiver.errors import Unreadable
from dicom_node.receiver.walk import (
    LONG,
    MAX_ELEMENTS,
    SHORT,
    SHORT_HEADER,
    U32,
    UNDEFINED,
    Bytes,
    Content,
    NeedsMore,
    Walk,
)
from storage.arrival import IndexedHeader

MAX_VALUE_BYTES = 4096
"""Of a value that the index wants; a longer one is cut off."""

MAX_ELEMENTS_OF_REFUSED = 20_000
"""Of a data set that is refused: its identity is not worth more of the others' time."""

# VRs of values that are text; readers fail on an element that should be text and says that it is a number.
_TEXT = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UN UR UT".split())
_CODE = frozenset({b"CS"})

FIRST_OF_DATA_SET = 0x00080000
# Groups that do not belong on the top level of a data set.
_ELSEWHERE = frozenset({*range(8), 0xFFFE})
SPECIFIC_CHARACTER_SET = 0x00080005
SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
STUDY_INSTANCE_UID = 0x0020000D
SERIES_INSTANCE_UID = 0x0020000E
PERSON_NAME = 0x00100010

# Element -> field of the index.
INDEXED: Mapping[int, str] = {
    0x00080008: "image_type",
    0x00080020: "study_date",
    0x00080030: "study_time",
    0x00080050: "accession_number",
    0x00080060: "modality",
    0x00080070: "manufacturer",
    0x00081010: "station_name",
    0x00081030: "study_description",
    0x0008103E: "series_description",
    PERSON_NAME: "patient_name",
    0x00100020: "patient_id",
    0x00100030: "birth_date",
    0x00100040: "sex",
    0x00180015: "body_part",
    0x00200011: "series_number",
    0x00200013: "instance_number",
}
IDENTITY = (SOP_CLASS_UID, SOP_INSTANCE_UID, STUDY_INSTANCE_UID, SERIES_INSTANCE_UID)
"""Without these an instance is refused."""
_WANTED = frozenset((*INDEXED, *IDENTITY, SPECIFIC_CHARACTER_SET))


@dataclass(frozen=True)
class Header:
    """What a data set says about itself. The UIDs are raw bytes: `uids.parse_uid` judges them."""

    sop_class_uid: bytes
    sop_instance_uid: bytes
    study_instance_uid: bytes
    series_instance_uid: bytes
    indexed: IndexedHeader


NOTHING_READ = Header(b"", b"", b"", b"", IndexedHeader())


def read_header(data: Bytes, size: int, implicit: bool) -> Header:
    """Walk a data set and pick out what the index needs.

    data: the data set's bytes from its first on; all, or as many as are at hand. size: of the whole data set, bytes.
    implicit: implicit VR little endian; else explicit.
    Raises Unreadable; NeedsMore if `data` must be longer.
    """
    if _is_file(data):
        raise Unreadable("data set is a whole file: preamble and file meta come first")
    found: dict[int, bytes] = {}
    _collect(Walk(data, size), implicit, found)
    return _header(found)


def read_identity(data: Bytes, implicit: bool) -> Header:
    """What can be read of a data set that is refused: fields that could not be read are empty.

    data: as much of it as there is. implicit: as for `read_header`.
    """
    start = _after_file_meta(data)
    best: dict[int, bytes] = {}
    # A data set in another encoding than the agreed one is a common reason for a refusal.
    for encoding in (implicit, not implicit):
        found: dict[int, bytes] = {}
        walk = Walk(data, len(data))
        walk.at, walk.count = start, MAX_ELEMENTS - MAX_ELEMENTS_OF_REFUSED
        with contextlib.suppress(Unreadable):
            _collect(walk, encoding, found, strict=False)
        best = best if len(best) > len(found) else found
        if SERIES_INSTANCE_UID in found:
            break
    best.pop(SPECIFIC_CHARACTER_SET, None)  # it may be why the data set is refused
    return _header(best)


def _is_file(data: Bytes) -> bool:
    """A DICOM file begins with a preamble of 128 bytes, "DICM" and group 0002, PS3.10 7.1."""
    return data[128:134] == b"DICM\2\0"


def _after_file_meta(data: Bytes) -> int:
    """Where the data set begins: after the preamble and the elements of group 0002, which are in explicit VR."""
    walk = Walk(data, len(data))
    walk.at = start = 132 if _is_file(data) else 0
    with contextlib.suppress(Unreadable):
        while data[start : start + 2] == b"\2\0":
            _, length, _ = walk.element(Content.EXPLICIT)
            walk.skip(length)
            start = walk.at
    return start


def _collect(walk: Walk, implicit: bool, found: dict[int, bytes], strict: bool = True) -> None:
    """Walk the top level to its end, and note the values that the index wants.

    strict: raise for elements that do not belong into a data set.
    """
    data = walk.data
    top_level = Content.IMPLICIT if implicit else Content.EXPLICIT
    while True:
        if not implicit:
            _take_plain(walk, found)
        if walk.at >= walk.size or _only_padding(walk):
            break
        header = walk.at
        tag, length, content = walk.element(top_level)
        if strict:
            _check_place(walk, tag)
        if length == UNDEFINED:
            walk.skip_open_ended(content)
            continue
        start = walk.at
        walk.skip(length)
        if tag in _WANTED:
            _keep(found, tag, None if implicit else bytes(data[header + 4 : header + 6]), data, start, length)


def _check_place(walk: Walk, tag: int) -> None:
    """Raise Unreadable for an element that cannot stand on the top level of a data set.

    Elements of group 0002 would follow the node's own file meta information in the file and count as part of it: a
    reader would take the transfer syntax from them, and inflate. Those below are commands and directories.
    """
    if tag < FIRST_OF_DATA_SET:
        raise Unreadable("data set has elements below group 0008")
    if tag >> 16 == 0xFFFE and walk.at < walk.size:
        raise Unreadable("an item or delimiter outside a sequence")


def _take_plain(walk: Walk, found: dict[int, bytes]) -> None:
    """Walk over plain explicit elements as far as they go: they are most of a header, and every slice has one.

    It does what the general walk does, in a fraction of the time, and stops before anything that needs the general one.
    """
    data, at, size = walk.data, walk.at, walk.size
    last = min(walk.at_hand, size) - 12
    count, most = walk.count, MAX_ELEMENTS
    # Names of this function are found faster than the module's: a header has hundreds of elements.
    read, long, short, wanted, elsewhere = SHORT_HEADER.unpack_from, LONG, SHORT, _WANTED, _ELSEWHERE
    while at <= last and count < most:
        group, element, vr, length = read(data, at)
        start = at + 8
        if vr in long:
            (length,) = U32.unpack_from(data, start)
            start += 4
        elif vr not in short:
            break
        if length == UNDEFINED or start + length > size or group in elsewhere:
            break
        tag = group << 16 | element
        if tag in wanted:
            _keep(found, tag, vr, data, start, length)
        at = start + length
        count += 1
    walk.at, walk.count = at, count


def _keep(found: dict[int, bytes], tag: int, vr: bytes | None, data: Bytes, start: int, length: int) -> None:
    """Note the value of an element that the index wants. vr: None if none is encoded."""
    if tag in found:
        raise Unreadable("an element occurs twice")
    if vr is not None and vr not in (_CODE if tag == SPECIFIC_CHARACTER_SET else _TEXT):
        raise Unreadable("an element has another VR than it can have")
    end = start + min(length, MAX_VALUE_BYTES)
    if end > len(data):
        raise NeedsMore
    found[tag] = bytes(data[start:end])


def _only_padding(walk: Walk) -> bool:
    """Some senders round the length up: up to eight zero bytes after the last element do not count as an element."""
    left = walk.size - walk.at
    return left <= 8 and walk.size <= len(walk.data) and not any(walk.data[walk.at : walk.size])


def _header(found: Mapping[int, bytes]) -> Header:
    encodings = _encodings(found.get(SPECIFIC_CHARACTER_SET, b""))
    texts = {field: _text(found[tag], tag, encodings) for tag, field in INDEXED.items() if tag in found}
    return Header(
        found.get(SOP_CLASS_UID, b""),
        found.get(SOP_INSTANCE_UID, b""),
        found.get(STUDY_INSTANCE_UID, b""),
        found.get(SERIES_INSTANCE_UID, b""),
        IndexedHeader(**texts),
    )


def _encodings(value: bytes) -> list[str]:
    """Python codecs of a Specific Character Set; the default repertoire if it names none that exists."""
    value = value.rstrip(b"\0 ")
    if b"\0" in value:
        # Readers that take the character set for the name of a codec fail on it completely.
        raise Unreadable("Specific Character Set is malformed")
    terms = [term.strip() for term in value.decode("ascii", "replace").split("\\")]
    if terms == [""]:
        return []
    try:
        return convert_encodings(terms)
    except (LookupError, ValueError):
        return []


def _text(value: bytes, tag: int, encodings: list[str]) -> str:
    """Decode a value for the index. Never fails: what cannot be decoded is replaced."""
    value = value.rstrip(b"\0 ")
    if b"\x1b" not in value and value.isascii():
        return value.decode("ascii")
    # Without a declared character set most senders mean Latin 1.
    encodings = encodings or ["latin_1"]
    try:
        if tag == PERSON_NAME:
            # Each component group starts in the first character set again, PS3.5 6.1.2.5.3.
            return "=".join(decode_bytes(group, encodings, PN_DELIMS) for group in value.split(b"="))
        return decode_bytes(value, encodings, TEXT_VR_DELIMS)
    except (LookupError, ValueError):
        return value.decode("latin_1")
