"""Identifiers as they are encoded; config/uids.py has the rule for which of them are accepted."""

from config.uids import is_uid, uid_problem
from dicom_node.receiver.errors import Unreadable


def parse_uid(raw: bytes, what: str) -> str:
    """The UID in an encoded element, its padding removed.

    raw: the element's bytes. what: its name, for the message.
    Raises Unreadable.
    """
    try:
        uid = raw.rstrip(b"\0 ").decode("ascii")
    except UnicodeDecodeError:
        raise Unreadable(f"{what} is not a valid UID") from None
    problem = uid_problem(uid)
    if problem is not None:
        raise Unreadable(f"{what} {problem}")
    return uid


def accepted_uid(raw: bytes) -> str:
    """The UID in an encoded element; empty if it is not one that the node accepts."""
    text = raw.rstrip(b"\0 ").decode("ascii", "replace")
    return text if is_uid(text) else ""
