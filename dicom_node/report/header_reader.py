"""The attributes of one stranger's header in their valid form, whatever it holds."""

import re
from collections.abc import Sequence

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag, Tag

from config.headers import UNREADABLE
from dicom_node.report import copied, values

# Representations whose bytes are text, whatever the dictionary says of the attribute; None: implicit VR.
_TEXTUAL = frozenset({None, *"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UN UR UT".split()})  # noqa: SIM905 - a row
_IN_CHARACTER_SET = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
_ONE_TEXT = frozenset({"LT", "ST", "UT"})
_PROSE = frozenset({"LO", "SH", *_ONE_TEXT})
_MOST_CHARACTER_SETS = 8
# ISO 2022 escape sequences, which decoders of the double-byte sets leave in the text.
_ESCAPE = re.compile("\x1b[\x20-\x2f]*[\x30-\x7e]")


def tag_of(keyword: str) -> BaseTag:
    """The tag of an attribute of the dictionary."""
    number = tag_for_keyword(keyword)
    if number is None:
        raise KeyError(keyword)
    return Tag(number)


def put(header: Dataset, keyword: str, found: Sequence[str]) -> None:
    """Set an attribute to texts that are valid for it."""
    tag = tag_of(keyword)
    header.add(DataElement(tag, dictionary_VR(tag), list(found) if len(found) > 1 else "".join(found)))


class HeaderReader:
    """Reads the attributes of one header in their valid form, and notes which had another or none."""

    def __init__(self, source: Dataset, inherited: Sequence[str] = ()) -> None:
        self._source = source
        self._encodings = _encodings(source) or list(inherited)
        self.emptied: list[str] = []
        self.altered: list[str] = []

    def values(self, keyword: str) -> list[str]:
        """The valid values of an attribute; none if it is absent, empty or not to be trusted."""
        try:
            texts = _texts(self._source, tag_of(keyword), self._encodings)
        except UNREADABLE:
            self.emptied.append(keyword)
            return []
        kept = _valid(keyword, texts)
        self._note(keyword, kept, texts)
        return kept

    def items(self, keyword: str) -> list[Dataset]:
        """The valid items of a sequence, each with the attributes that are listed for it."""
        try:
            found = _items(self._source, tag_of(keyword))
        except (OSError, *UNREADABLE):  # OSError: pydicom's for items that end too soon
            self.emptied.append(keyword)
            return []
        listed, needed = copied.ITEMS[keyword]
        kept = []
        for item in found[: copied.MOST_ITEMS]:
            reader, copy = HeaderReader(item, self._encodings), Dataset()
            for name in listed:
                value = reader.values(name)
                if value:
                    put(copy, name, value)
            if len(copy) and all(name in copy for name in needed):
                kept.append(copy)
        if len(kept) < len(found):
            self._note(keyword, kept, found)
        return kept

    def _note(self, keyword: str, kept: Sequence[object], found: Sequence[object]) -> None:
        if found and not kept:
            self.emptied.append(keyword)
        elif kept != found:
            self.altered.append(keyword)


def _valid(keyword: str, texts: Sequence[str]) -> list[str]:
    """The texts in the form that the attribute's representation and multiplicity allow."""
    tag = tag_of(keyword)
    vr = dictionary_VR(tag)
    identifier = keyword in copied.IDENTIFIERS
    if dictionary_VM(tag) == "1" and len(set(texts)) > 1:
        # Which of several persons, numbers or days is meant? Of several words all are.
        texts = [" ".join(texts)] if vr in _PROSE and not identifier else []
    elif dictionary_VM(tag) == "1":
        texts = texts[:1]
    allowed = copied.ENUMERATED.get(keyword)
    valid = []
    for text in texts[: copied.MOST_VALUES]:
        value = values.RULES[vr](text)
        unchanged = value == text.strip() or not identifier
        if value and unchanged and (allowed is None or value in allowed):
            valid.append(value)
    return valid


def _texts(source: Dataset, tag: BaseTag, encodings: Sequence[str]) -> list[str]:
    """The texts of an attribute that are not empty. Raises one of `UNREADABLE` when it is not a text."""
    element = source.get_item(tag) if tag in source else None
    if element is None or not element.value:
        return []
    if element.VR not in _TEXTUAL:
        raise ValueError("not a text")
    vr = dictionary_VR(tag)
    value = element.value
    if isinstance(value, bytes):
        parts = _decoded(value, vr, encodings)
    else:
        parts = [str(part) for part in value] if isinstance(value, MultiValue | list | tuple) else [str(value)]
    return [text for part in parts if (text := _ESCAPE.sub("", part).strip(" \0"))]


def _decoded(value: bytes, vr: str, encodings: Sequence[str]) -> list[str]:
    """The texts of an element as stored.

    Decoded before they are split at backslashes: the second byte of a GBK or GB18030 character may be one.
    """
    if len(value) > copied.MOST_BYTES and vr not in _PROSE:
        raise ValueError("too long")
    value = value[: copied.MOST_BYTES]
    if vr not in _IN_CHARACTER_SET:
        return value.decode("ascii").split("\\")
    if not encodings:
        encodings = ["utf-8"] if _is_utf_8(value) else ["iso8859-1"]
    # Each of these ends the reach of an ISO 2022 escape sequence (PS3.5, 6.1.2.5.3).
    delimiters = "^=\\" if vr == "PN" else "\\\n\r\f\t"
    text = decode_bytes(value, list(encodings), {ord(character) for character in delimiters})
    return [text] if vr in _ONE_TEXT else text.split("\\")


def _items(source: Dataset, tag: BaseTag) -> list[Dataset]:
    """The items of a sequence. Raises one of `UNREADABLE` when it is not a sequence, or longer than is looked at."""
    element = source.get_item(tag) if tag in source else None
    if element is None or not element.value:
        return []
    if isinstance(element, RawDataElement) and len(element.value or b"") > copied.MOST_BYTES:
        raise ValueError("too long")
    value = source[tag].value
    if not isinstance(value, Items):
        raise ValueError("not a sequence")
    return list(value)


def _encodings(source: Dataset) -> list[str]:
    """Python codecs of the declared Specific Character Set; none if there is none that can be read."""
    try:
        terms = source.get("SpecificCharacterSet")
        if not terms:
            return []
        listed = list(terms) if isinstance(terms, MultiValue | list | tuple) else [str(terms)]
        return convert_encodings(listed[:_MOST_CHARACTER_SETS])
    except UNREADABLE:
        return []


def _is_utf_8(value: bytes) -> bool:
    """True when undeclared text is UTF-8: bytes of another set hardly ever are, by chance."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
