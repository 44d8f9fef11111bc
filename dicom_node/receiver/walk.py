"""Walking an encoded data set: from element to element, with limits, without recursion and without decoding.

A data set here is its encoded bytes without file meta information, in a little endian transfer syntax.
"""

import struct
from dataclasses import dataclass
from enum import Enum

from dicom_node.receiver.errors import Unreadable

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
MAX_DEPTH = 32
"""Sequences in sequences. Real CT stays below 8."""
MAX_ELEMENTS = 400_000
"""Elements, items and fragments. An enhanced CT of 2,000 frames in undefined length sequences has about 100,000."""

# VRs whose explicit encoding has a four byte length after two reserved bytes, PS3.5 Table 7.1-1.
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())

SHORT_HEADER = struct.Struct("<HH2sH")
_IMPLICIT_HEADER = struct.Struct("<HHI")
U32 = struct.Struct("<I")

Bytes = bytes | bytearray | memoryview


class NeedsMore(Exception):
    """The walk needs to go beyond the bytes at hand: give it the whole data set."""


class Content(Enum):
    """What the items of a value of undefined length hold."""

    EXPLICIT = "elements in explicit VR"
    IMPLICIT = "elements in implicit VR"
    UNKNOWN = "elements in implicit VR, or in explicit VR if they cannot be read so"
    FRAGMENTS = "pieces of pixel data"


class Walk:
    """A position in an encoded data set, and the number of elements met so far."""

    def __init__(self, data: Bytes, size: int) -> None:
        self.data = data
        self.at_hand = len(data)
        self.size = size
        self.at = 0
        self.count = 0

    def element(self, within: Content) -> tuple[int, int, Content]:
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
            if within is not Content.EXPLICIT or group == 0xFFFE:
                return tag, length, within
            group, element, vr, length = SHORT_HEADER.unpack_from(self.data, at)
            if not (65 <= vr[0] <= 90 and 65 <= vr[1] <= 90):
                raise Unreadable("data set is not in its transfer syntax")
            if vr not in LONG:
                return tag, length, within
            (length,) = U32.unpack_from(self.data, at + 8)
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
        """Step over a value. Raises Unreadable if it reaches beyond the data set."""
        self.at += length
        if self.at > self.size:
            raise Unreadable("data set is cut short")

    def skip_open_ended(self, content: Content, depth: int = 0) -> None:
        """Step over the rest of a value of undefined length, with every element in its items.

        depth: in how many sequences and items the value lies.
        """
        if content is Content.UNKNOWN:
            self._skip_unknown(depth)
            return
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
                still_open.pop()  # whatever length it says that it has: nothing follows it
            elif inner.is_item:
                self._step_into(still_open, tag, length, content, depth)
            elif tag != ITEM:
                raise Unreadable("a sequence holds something other than items")
            elif inner.content is Content.FRAGMENTS:
                self.skip(length)
            else:
                end = None if length == UNDEFINED else self.at + length
                still_open.append(_Open(inner.content, is_item=True, end=end))
            if depth + len(still_open) > 2 * MAX_DEPTH:
                raise Unreadable("sequences are nested too deep")

    def _skip_unknown(self, depth: int) -> None:
        """A value of VR UN: its items are in implicit VR, PS3.5 6.2.2, but some programs leave them in explicit VR.

        Tried in this order, so that nothing is guessed: what the standard says is taken if it can be read at all.
        """
        at = self.at
        try:
            self.skip_open_ended(Content.IMPLICIT, depth)
        except Unreadable:
            self.at = at
            self.skip_open_ended(Content.EXPLICIT, depth)

    def _step_into(self, still_open: "list[_Open]", tag: int, length: int, content: Content, depth: int) -> None:
        """An element inside an item: of those with a length, only the end matters."""
        if tag >> 16 == 0xFFFE:
            raise Unreadable("an item holds something other than elements")
        if length != UNDEFINED:
            self.skip(length)
        elif content is Content.UNKNOWN:
            self._skip_unknown(depth + len(still_open))
        else:
            still_open.append(_Open(content))


# VRs that may have an undefined length.
_OPEN_ENDED = {
    b"SQ": Content.EXPLICIT,
    b"UN": Content.UNKNOWN,
    b"OB": Content.FRAGMENTS,
    b"OW": Content.FRAGMENTS,
}


@dataclass(frozen=True)
class _Open:
    """A sequence, or an item of one, whose end was not met yet. end: of an item with a length, its offset."""

    content: Content
    is_item: bool = False
    end: int | None = None
