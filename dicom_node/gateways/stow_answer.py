"""What a STOW-RS answer says of each instance: the Store Instances Response of PS3.18, Annex I, as JSON or XML."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from dicom_node.statuses import PROCESSING_FAILURE

REFERENCED, FAILED, OTHER_FAILURES = "00081199", "00081198", "0008119A"
INSTANCE_UID, FAILURE_REASON, WARNING_REASON = "00081155", "00081197", "00081196"
BROKEN = (ValueError, LookupError, TypeError, AttributeError, RecursionError, ElementTree.ParseError)

Attributes = Mapping[str, Any]
"""A data set in DICOM's JSON model."""


@dataclass(frozen=True)
class Said:
    """stored: the warning by SOP Instance UID, or None; failed: the failure reason."""

    stored: Mapping[str, int | None]
    failed: Mapping[str, int]


def read_answer(media_type: str, body: bytes) -> Said | None:
    """What an answer lists, or None if it is no such list.

    Servers call the type of an answer what they like, so the body decides: JSON begins with a bracket, XML with "<".
    """
    text = body.strip().removeprefix(b"\xef\xbb\xbf").lstrip()
    try:
        if text[:1] in (b"{", b"["):
            return _said(_json(text))
        if text[:1] == b"<" and "html" not in media_type:
            return _said(_xml(text))
    except BROKEN:
        return None
    return None


def _said(answer: Attributes) -> Said:
    if not any(tag in answer for tag in (REFERENCED, FAILED, OTHER_FAILURES)):
        raise ValueError("no list of instances")
    stored = {uid: _number(item, WARNING_REASON) for uid, item in _instances(answer, REFERENCED)}
    failed = {uid: _number(item, FAILURE_REASON) for uid, item in _instances(answer, FAILED)}
    return Said(stored, {uid: PROCESSING_FAILURE if reason is None else reason for uid, reason in failed.items()})


def _instances(answer: Attributes, sequence: str) -> Iterator[tuple[str, Attributes]]:
    for item in answer.get(sequence, {}).get("Value", []):
        uid = str(_first(item, INSTANCE_UID) or "")
        if uid:
            yield uid, item


def _first(item: Attributes, tag: str) -> Any:
    values: Sequence[Any] = item.get(tag, {}).get("Value", [])
    return values[0] if values else None


def _number(item: Attributes, tag: str) -> int | None:
    value = _first(item, tag)
    return None if value is None else int(value)


def _json(text: bytes) -> Attributes:
    """The data set; some servers answer with a list of one."""
    found = json.loads(text)
    if isinstance(found, list):
        (found,) = found
    if not isinstance(found, dict):
        raise ValueError("no data set")
    return found


def _xml(text: bytes) -> Attributes:
    """The data set in the JSON model, from the native DICOM model of PS3.19. No entities: they could grow."""
    if b"<!" in text.replace(b"<!--", b"") or b"\x00" in text:
        raise ValueError("a document type or another encoding")
    return _native(ElementTree.fromstring(text))


def _native(element: ElementTree.Element) -> Attributes:
    found: dict[str, Any] = {}
    for attribute in element:
        items = [_native(inner) for inner in attribute if inner.tag.endswith("Item")]
        values = [inner.text for inner in attribute if inner.tag.endswith("Value")]
        found[attribute.get("tag", "").upper()] = {"Value": items or values}
    return found
