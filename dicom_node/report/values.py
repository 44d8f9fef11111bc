"""One value as its value representation allows it (PS3.5, 6.2): normalised, shortened, or nothing at all.

A scanner writes what it likes. What is copied into a report is rewritten by these rules, and what they cannot make
valid without guessing is left empty: an unknown value is better than a false one.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from datetime import date
from functools import partial

from config.uids import is_uid

MOST_CHARACTERS = {"SH": 16, "LO": 64, "ST": 1024, "LT": 10240, "UT": 1024}
"""Longest text, characters. UT has no limit in the standard; here it names an issuer."""
_MOST_IN_NAME_GROUP = 64
_MOST_NAME_GROUPS, _MOST_NAME_COMPONENTS = 3, 5
_MANY_LINES = frozenset({"ST", "LT", "UT"})
_LINE_CONTROLS = frozenset("\r\n\f\t")
_TM = re.compile(r"([01]\d|2[0-3])([0-5]\d(([0-5]\d|60)(\.\d{1,6})?)?)?")
_DT = re.compile(r"(\d{4}(?:\d{2}(?:\d{2})?)?)(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)?([+-]\d{4})?")
_DS = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([Ee][+-]?\d+)?")
_AS = re.compile(r"(\d{1,3})([DWMY])")
_CS = re.compile(r"[A-Z0-9_ ]{1,16}")


def age(text: str) -> str:
    """AS: three digits and a unit."""
    match = _AS.fullmatch(text.upper())
    return f"{int(match[1]):03d}{match[2]}" if match else ""


def code_string(text: str) -> str:
    """CS: capitals, digits, space and underscore. A lower-case word is not the term that it resembles."""
    return text if _CS.fullmatch(text) else ""


def day(text: str) -> str:
    """DA: a day of the calendar."""
    if not (len(text) == 8 and text.isascii() and text.isdigit()):
        return ""
    try:
        date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return ""
    return text


def time_of_day(text: str) -> str:
    """TM: hours, and down to microseconds. A leap second, which many readers refuse, is the second before it."""
    match = _TM.fullmatch(text) if text.isascii() else None
    if match is None:
        return ""
    return text if match[4] != "60" else f"{text[:4]}59{text[6:]}"


def moment(text: str) -> str:
    """DT: a day, a time and an offset, each as far as it is given."""
    match = _DT.fullmatch(text) if text.isascii() else None
    if match is None:
        return ""
    date_given, time_given, offset = (part or "" for part in match.groups())
    whole_day = date_given + {4: "0101", 6: "01", 8: ""}[len(date_given)]
    time_kept = time_of_day(time_given)
    return date_given + time_kept + offset if day(whole_day) and (time_kept or not time_given) else ""


def decimal(text: str) -> str:
    """DS: a finite number in at most 16 characters."""
    if not (text.isascii() and _DS.fullmatch(text) and math.isfinite(float(text))):
        return ""
    return text if len(text) <= 16 else f"{float(text):.9g}"


def integer(text: str) -> str:
    """IS: a whole number of 32 bits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text):
        return ""
    return text if -(2**31) <= int(text) < 2**31 else ""


def uid(text: str) -> str:
    """UI, by the rule of the receiver's door: a reference to an instance needs its UID as it is."""
    return text if is_uid(text) else ""


def person_name(text: str) -> str:
    """PN: up to three groups of up to five components, each group of at most 64 characters."""
    groups = []
    for group in text.split("=")[:_MOST_NAME_GROUPS]:
        components = [_one_line(part) for part in group.split("^")[:_MOST_NAME_COMPONENTS]]
        groups.append("^".join(components)[:_MOST_IN_NAME_GROUP].rstrip("^ "))
    return "=".join(groups).rstrip("=")


def text_of(vr: str, text: str) -> str:
    """SH and LO on one line, ST, LT and UT on several: without control characters, and no longer than allowed."""
    if vr in _MANY_LINES:
        kept = printable(text)
        # Legal in these, yet taken for a separator by those who read them as LO.
        return kept.replace("\\", "/")[: MOST_CHARACTERS[vr]].strip()
    return _one_line(text.replace("\\", " "))[: MOST_CHARACTERS[vr]].rstrip()


def printable(text: str) -> str:
    """A text of several lines without the control characters that no text may hold."""
    return "".join(c for c in text if c in _LINE_CONTROLS or not _is_control(c))


def _one_line(text: str) -> str:
    return "".join(" " if _is_control(c) else c for c in text).strip()


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


RULES: dict[str, Callable[[str], str]] = {
    "AS": age,
    "CS": code_string,
    "DA": day,
    "DS": decimal,
    "DT": moment,
    "IS": integer,
    "PN": person_name,
    "TM": time_of_day,
    "UI": uid,
    **{vr: partial(text_of, vr) for vr in MOST_CHARACTERS},
}
"""By value representation: the valid form of a text, empty if it has none."""
