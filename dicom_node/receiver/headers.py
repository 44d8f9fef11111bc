"""Read the few header elements that the index needs, with limits, and check that the data set is whole.

A data set here is its encoded bytes without file meta information, in a little endian transfer syntax. Its top
level is walked to the end, so that what is cut short is never acknowledged; values are looked at only where the
index wants them; sequences of undefined length are stepped through without recursion. Pixel data are not read.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from dicom_node.receiver.errors import Unreadable
from storage.arrival import IndexedHeader

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
MAX_DEPTH = 32
"""Sequences in sequences. Real CT stays below 8."""
MAX_ELEMENTS = 400_000
"""Elements, items and fragments. An enhanced CT of 2,000 frames in undefined length sequences has about 100,000."""
MAX_VALUE_BYTES = 4096
"""Of a value that the index wants; a longer one is cut off."""

# VRs of values that are text; readers fail on an element that should be text and says that it is a number.
_TEXT = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UN UR UT".split())
_CODE = frozenset({b"CS"})
# VRs whose explicit encoding has a four byte length after two reserved bytes, PS3.5 Table 7.1-1.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

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
_WANTED = frozenset(INDEXED) | {
    SPECIFIC_CHARACTER_SET,
    SOP_CLASS_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    SERIES_INSTANCE_UID,
}

_SHORT_HEADER = struct.Struct("<HH2sH")
_IMPLICIT_HEADER = struct.Struct("<HHI")
_U32 = struct.Struct("<I")


class NeedsMore(Exception):
    """The walk would go on beyond the bytes at hand: give it the whole data set."""


@dataclass(frozen=True)
class Header:
    """What a data set says about itself. The UIDs are raw bytes: `uids.parse_uid` judges them."""

    sop_class_uid: bytes
    sop_instance_uid: bytes
    study_instance_uid: bytes
    series_instance_uid: bytes
    indexed: IndexedHeader


class _Content(Enum):
    """What the items of a value of undefined length hold."""

    EXPLICIT = "elements in explicit VR"
    IMPLICIT = "elements in implicit VR"
    FRAGMENTS = "pieces of pixel data"


class _Walk:
    """A position in an encoded data set, and how many elements were met."""

    def __init__(self, data: "bytes | bytearray | memoryview", size: int) -> None:
        self.data = data
        self.at_hand = len(data)
        self.size = size
        self.at = 0
        self.count = 0

    def element(self, within: _Content) -> tuple[int, int, _Content]:
        """Step over the next element's header. Returns tag, length, and what its items would hold.

        Raises Unreadable; NeedsMore.
        """
        self.count += 1
        if self.count > MAX_ELEMENTS:
            raise Unreadable("data set has too many elements")
        at = self.at
        if at + 12 > self.at_hand and self.at_hand < self.size:
            raise NeedsMore
        try:
            group, element, length = _IMPLICIT_HEADER.unpack_from(self.data, at)
            tag = group << 16 | element
            self.at = at + 8
            if within is not _Content.EXPLICIT or group == 0xFFFE:
                return tag, length, within
            group, element, vr, length = _SHORT_HEADER.unpack_from(self.data, at)
            if not (65 <= vr[0] <= 90 and 65 <= vr[1] <= 90):
                raise Unreadable("data set is not in its transfer syntax")
            if vr not in _LONG:
                return tag, length, within
            (length,) = _U32.unpack_from(self.data, at + 8)
            self.at = at + 12
            content = _OPEN_ENDED.get(vr)
            if content is None:
                if length == UNDEFINED:
                    raise Unreadable("an element has no length")
                content = within
            return tag, length, content
        except struct.error:
            raise Unreadable("data set is cut short") from None

    def skip(self, length: int) -> None:
        """Step over a value. Raises Unreadable where it reaches beyond the data set."""
        self.at += length
        if self.at > self.size:
            raise Unreadable("data set is cut short")

    def skip_open_ended(self, content: _Content) -> None:
        """Step over the rest of a value of undefined length, with every element in its items."""
        still_open = [_Open(content)]
        while still_open:
            inner = still_open[-1]
            if inner.end is not None and self.at >= inner.end:
                if self.at > inner.end:
                    raise Unreadable("an item is shorter than its elements")
                still_open.pop()
                continue
            tag, length, content = self.element(inner.content)
            if tag == (ITEM_END if inner.is_item else SEQUENCE_END) and inner.end is None:
                if length:
                    raise Unreadable("a delimiter has a length")
                still_open.pop()
            elif inner.is_item:
                self._step_into(still_open, tag, length, content)
            elif tag != ITEM:
                raise Unreadable("a sequence holds something other than items")
            elif inner.content is _Content.FRAGMENTS:
                self.skip(length)
            else:
                end = None if length == UNDEFINED else self.at + length
                still_open.append(_Open(inner.content, is_item=True, end=end))
            if len(still_open) > 2 * MAX_DEPTH:
                raise Unreadable("sequences are nested too deep")

    def _step_into(self, still_open: "list[_Open]", tag: int, length: int, content: _Content) -> None:
        """An element inside an item: of those with a length, only the end matters."""
        if tag >> 16 == 0xFFFE:
            raise Unreadable("an item holds something other than elements")
        if length == UNDEFINED:
            still_open.append(_Open(content))
        else:
            self.skip(length)


# VRs that may have an undefined length; UN then holds a sequence in implicit VR, PS3.5 6.2.2.
_OPEN_ENDED = {
    b"SQ": _Content.EXPLICIT,
    b"UN": _Content.IMPLICIT,
    b"OB": _Content.FRAGMENTS,
    b"OW": _Content.FRAGMENTS,
}


@dataclass(frozen=True)
class _Open:
    """A sequence, or an item of one, whose end was not met yet. end: of an item with a length, its offset."""

    content: _Content
    is_item: bool = False
    end: int | None = None


def read_header(data: "bytes | bytearray | memoryview", size: int, implicit: bool) -> Header:
    """Walk a data set and pick out what the index needs.

    data: the data set's bytes from its first on; all, or as many as are at hand. size: of the whole data set, bytes.
    implicit: implicit VR little endian; else explicit.
    Raises Unreadable; NeedsMore where `data` must be longer.
    """
    found: dict[int, bytes] = {}
    walk = _Walk(data, size)
    top_level = _Content.IMPLICIT if implicit else _Content.EXPLICIT
    while True:
        if not implicit:
            _take_plain(walk, found)
        if walk.at >= size or _only_padding(walk):
            break
        header = walk.at
        tag, length, content = walk.element(top_level)
        if length == UNDEFINED:
            walk.skip_open_ended(content)
            continue
        start = walk.at
        walk.skip(length)
        if tag in _WANTED:
            _keep(found, tag, None if implicit else bytes(data[header + 4 : header + 6]), data, start, length)
    return _header(found)


def _take_plain(walk: _Walk, found: dict[int, bytes]) -> None:
    """Go as far as there are explicit elements without anything special: most of a header, and every slice has one.

    As the general walk does, in a fraction of the time; it stops before whatever that must judge.
    """
    data, at, size = walk.data, walk.at, walk.size
    last = min(walk.at_hand, size) - 12
    count, most = walk.count, MAX_ELEMENTS
    while at <= last and count < most:
        group, element, vr, length = _SHORT_HEADER.unpack_from(data, at)
        start = at + 8
        if vr in _LONG:
            (length,) = _U32.unpack_from(data, start)
            start += 4
        elif vr not in _SHORT:
            break
        if length == UNDEFINED or start + length > size or group == 0xFFFE:
            break
        tag = group << 16 | element
        if tag in _WANTED:
            _keep(found, tag, vr, data, start, length)
        at = start + length
        count += 1
    walk.at, walk.count = at, count


def _keep(
    found: dict[int, bytes], tag: int, vr: bytes | None, data: "bytes | bytearray | memoryview", start: int, length: int
) -> None:
    """Note the value of an element that the index wants. vr: None where none is encoded."""
    if tag in found:
        raise Unreadable("an element occurs twice")
    if vr is not None and vr not in (_CODE if tag == SPECIFIC_CHARACTER_SET else _TEXT):
        raise Unreadable("an element has another VR than it can have")
    end = start + min(length, MAX_VALUE_BYTES)
    if end > len(data):
        raise NeedsMore
    found[tag] = bytes(data[start:end])


def _only_padding(walk: _Walk) -> bool:
    """Some senders round the length up: up to eight zero bytes after the last element are no element."""
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
    """Python codecs of a Specific Character Set; the default repertoire where it names none that exists."""
    value = value.rstrip(b"\0 ")
    if b"\0" in value:
        # Readers that take the character set for the name of a codec fail on it altogether.
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
