"""Which DICOM identifiers the node accepts: one rule for everything received, fetched, loaded and reported.

A UID is digits and dots, at most 64 characters (PS3.5 9.1). Two deviations occur in real data and are decided here:

- Components with leading zeros ("1.2.003") are accepted. Anonymisers make them, every PACS takes them, and a report
  can refer to them.
- A UUID string ("f81d4fae-7dec-...") in place of a Study, Series or SOP Instance UID is refused: no valid report could
  refer to it, and no PACS could match the report to its study. In any other element it is kept as it is.
"""

import re

MAX_LENGTH = 64
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def is_uid(text: str) -> bool:
    """True for an identifier that the node works with."""
    return len(text) <= MAX_LENGTH and _UID.fullmatch(text) is not None


def uid_problem(text: str) -> str | None:
    """What is wrong with an identifier, as the end of a sentence; None if it is accepted."""
    if is_uid(text):
        return None
    if not text:
        return "is missing"
    return "is a UUID string" if _UUID.fullmatch(text) else "is not a valid UID"
