"""DICOM dates and times as HL7 writes them (TS: YYYYMMDDHHMMSS.SSSS+ZZZZ, HL7 v2.5.1, 2.A.77)."""

import re
from datetime import datetime

_DATE = re.compile(r"\d{8}")
_TIME = re.compile(r"(\d{2}(?:\d{2}(?:\d{2})?)?)(\.\d{1,6})?")


def of_moment(moment: datetime) -> str:
    """A moment in its own zone, to the millisecond."""
    return f"{moment:%Y%m%d%H%M%S}.{moment.microsecond // 1000:03}{_offset(moment)}"


def day(date: str) -> str:
    """DICOM's DA; empty if it is no date of the calendar."""
    return date if _DATE.fullmatch(date) and _is_real(date, "%Y%m%d") else ""


def of_dicom(date: str, time: str, zone_of: datetime) -> str:
    """DICOM's DA and TM, as precise as they are; empty if there is no date of the calendar.

    zone_of: a moment in the zone that the object states for its times.
    """
    if not day(date):
        return ""
    match = _TIME.fullmatch(time)
    if match is None or not _is_real(match[1], "%H%M%S"[: len(match[1])]):
        return date
    digits, fraction = match[1], match[2] or ""
    # HL7 has no hour without minutes, and at most four decimals.
    digits = digits if len(digits) > 2 else f"{digits}00"
    return f"{date}{digits}{fraction[:5] if len(digits) == 6 else ''}{_offset(zone_of)}"


def _is_real(digits: str, form: str) -> bool:
    try:
        datetime.strptime(digits, form)
    except ValueError:
        return False
    return True


def _offset(moment: datetime) -> str:
    return moment.strftime("%z")[:5]
