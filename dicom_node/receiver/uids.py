"""Which identifiers the receiver accepts.

A UID is digits and dots, at most 64 characters (PS3.5 9.1). Two deviations occur in real data and are decided here:

- Components with leading zeros ("1.2.003") are accepted. Anonymisers make them, every PACS takes them, and they
  do no harm in a report that refers to them.
- A UUID string ("f81d4fae-7dec-...") in place of a Study, Series or SOP Instance UID is refused with C000: no valid
  report could refer to it, and no PACS could match the report to its study. In any other element it is kept as it is.
"""

import re

from dicom_node.receiver.errors import Unreadable

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
MAX_LENGTH = 64


def parse_uid(raw: bytes, what: str) -> str:
    """The UID in an encoded element, its padding removed.

    raw: the element's bytes. what: its name, for the message.
    Raises Unreadable.
    """
    try:
        uid = raw.rstrip(b"\0 ").decode("ascii")
    except UnicodeDecodeError:
        raise Unreadable(f"{what} is not a valid UID") from None
    if not uid:
        raise Unreadable(f"{what} is missing")
    if len(uid) <= MAX_LENGTH and _UID.fullmatch(uid):
        return uid
    raise Unreadable(f"{what} is a UUID string" if _UUID.fullmatch(uid) else f"{what} is not a valid UID")
