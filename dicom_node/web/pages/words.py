"""Numbers, times and names as the pages write them. Filters of the templates."""

import time
from datetime import datetime
from typing import Any

NARROW = "\N{NARROW NO-BREAK SPACE}"


def count(value: float | None) -> str:
    """A whole number with thin spaces between thousands; a dash for none."""
    return "\N{EN DASH}" if value is None else f"{value:,.0f}".replace(",", NARROW)


def clock(seconds: float | None) -> str:
    """Unix seconds as date and time of this machine's zone, with the zone: "2026-11-23 09:15:00 CET"."""
    if seconds is None:
        return "\N{EN DASH}"
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def minute(seconds: float) -> str:
    """Date and time of this machine's zone to the minute, for a column whose title names the zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def hour(seconds: float) -> str:
    """The clock of this machine's zone at that moment: "09:00"."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M")


def duration(seconds: float | None) -> str:
    """A length of time, rounded for a person: "0.4 s", "40 s", "12 min", "3 h", "5 days"."""
    if seconds is None:
        return "\N{EN DASH}"
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def ago(seconds: float | None) -> str:
    """How long ago a moment is: "12 min ago"."""
    return "never" if seconds is None else f"{duration(max(0.0, time.time() - seconds))} ago"


def size(bytes_: float | None) -> str:
    """Bytes for a person: "1.4 GiB"."""
    if bytes_ is None:
        return "\N{EN DASH}"
    value = float(bytes_)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plural(number: int, what: str, several: str = "") -> str:
    """ "1 image", "2 images", "no images"."""
    return f"{count(number) if number else 'no'} {what if number == 1 else several or what + 's'}"


def capitalize_first(text: str) -> str:
    """A text as a sentence begins, the rest as it is."""
    return text[:1].upper() + text[1:]


def percent(share: float | None, digits: int = 1) -> str:
    """A share from 0 to 1 as per cent."""
    return "\N{EN DASH}" if share is None else f"{share * 100:.{digits}f} %"


def person(name: str | None) -> str:
    """A DICOM person name as people write it: "Doe^Jane" becomes "Doe Jane"."""
    return " ".join((name or "").split("=")[0].replace("^", " ").split())


def day(date: str | None) -> str:
    """A DICOM date as 2020-01-24; anything else as it is."""
    text = date or ""
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if len(text) == 8 and text.isascii() and text.isdecimal() else text


FILTERS: dict[str, Any] = {
    "count": count,
    "clock": clock,
    "minute": minute,
    "hour": hour,
    "duration": duration,
    "ago": ago,
    "size": size,
    "plural": plural,
    "capitalize_first": capitalize_first,
    "percent": percent,
    "person": person,
    "day": day,
}
