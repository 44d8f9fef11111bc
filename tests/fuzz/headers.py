"""CT files with a header element replaced by anything, in any value representation, encoded without pydicom's help."""

import random
import struct
from collections.abc import Sequence
from pathlib import Path

from pydicom.datadict import dictionary_VR
from pydicom.tag import BaseTag

from dicom_node.report import copied
from dicom_node.report.header_reader import tag_of

BINARY = ("AT", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "OB", "OD", "OF", "OL", "OV", "OW")
TEXTUAL = ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
REPRESENTATIONS = (*BINARY, *TEXTUAL, "UN", "SQ")
_LONG = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_MOST_SHORT = 0xFFFE

# Every attribute that reaches an object.
KEYWORDS = (*copied.SIMPLE, *copied.ITEMS, "SpecificCharacterSet")

_TEXTS = (
    b"",
    b" ",
    b"\0",
    b"\\",
    b"\\\\\\\\",
    b"=",
    b"^^^^^^^^",
    b"A\\B",
    b"Doe^Jane\\Roe^Richard",
    b"A=B=C=D=E",
    b"A^B^C^D^E^F^G",
    b"4711\r\n",
    b"47\x0011",
    b"\x1b$)A\xd5\xc5^\x1b",
    "张^三".encode("gb18030"),
    "ключ".encode("koi8-r"),
    b"\xff\xfe\xfd",
    b"\xed\xa0\x80",
    b"20200230",
    b"20200301\\20200302",
    b"00000000",
    b"99999999",
    b"2020.03.01",
    b"240000",
    b"235960.999999",
    b"-1",
    b"1e308",
    b"1E99999",
    b"NaN",
    b"inf",
    b"0x10",
    b"0045Y",
    b"45y",
    b"1.2.03.4",
    b"1..2",
    b"f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    b"ISO_IR 192",
    b"ISO 2022 IR 87\\ISO 2022 IR 58",
    b"\xe2\x80\xae\xe2\x80\xa8line",
)


def hostile_value(dice: random.Random, vr: str) -> bytes:
    """Bytes for an element of this representation, not always such as it allows."""
    kind = dice.randrange(8)
    if vr == "SQ" and kind:
        return nested(dice.choice((1, 2, 40, 300)), dice)
    if vr in BINARY and kind < 5:
        return dice.randbytes(8 * dice.randrange(4))
    if kind < 5:
        return dice.choice(_TEXTS)
    if kind == 5:
        return dice.choice((b"A", b"W^", b"1", "张".encode(), b"\\", b"x ", b"\r\n")) * dice.choice((17, 65, 500, 8000))
    return dice.randbytes(dice.randrange(200))


def nested(depth: int, dice: random.Random) -> bytes:
    """The value of a sequence that holds itself so many times."""
    inner = element(0x00080100, "SH", dice.choice(_TEXTS))
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
        inner = element(0x00081032, "SQ", item)
    return inner[12:]


def element(tag: int, vr: str, value: bytes) -> bytes:
    """One element in explicit VR little endian. An odd length is left odd: such files exist."""
    group_and_number = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if vr in _LONG:
        return group_and_number + vr.encode() + struct.pack("<HL", 0, len(value)) + value
    value = value[:_MOST_SHORT]
    return group_and_number + vr.encode() + struct.pack("<H", len(value)) + value


def split(data: bytes) -> dict[int, bytes]:
    """The elements of a data set without undefined lengths, encoded, by tag."""
    found, at = {}, 0
    while at < len(data):
        group, number, vr, short = struct.unpack_from("<HH2sH", data, at)
        long = vr.decode() in _LONG
        end = at + (12 + struct.unpack_from("<L", data, at + 8)[0] if long else 8 + short)
        found[group << 16 | number] = data[at:end]
        at = end
    return found


def rewrite(path: Path, changes: dict[BaseTag, bytes]) -> None:
    """Put encoded elements into a file's data set, each in its place."""
    data = path.read_bytes()
    start = 144 + struct.unpack_from("<L", data, 140)[0]
    elements = split(data[start:]) | {int(tag): encoded for tag, encoded in changes.items()}
    path.write_bytes(data[:start] + b"".join(elements[tag] for tag in sorted(elements)))


def spoil(folder: Path, keywords: Sequence[str], dice: random.Random) -> None:
    """Replace these elements in each file of a series, its own values in each, half of them in the right VR."""
    for path in sorted(folder.iterdir()):
        changes = {}
        for keyword in keywords:
            vr = dice.choice((dice.choice(REPRESENTATIONS), dictionary_VR(tag_of(keyword))))
            changes[tag_of(keyword)] = element(tag_of(keyword), vr, hostile_value(dice, vr))
        rewrite(path, changes)
