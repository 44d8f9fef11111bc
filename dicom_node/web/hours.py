"""The last 24 hours, hour by hour. Hours that are over are counted once and kept."""

import threading
from dataclasses import dataclass

from sqlalchemy import Connection

from storage import activity
from storage.activity import Activity

HOUR_S, HOURS = 3600.0, 24
STILL_MOVING = 2
"""The present hour, and the one before: what is committed late belongs to it."""


@dataclass(frozen=True)
class Hour:
    """begins: Unix seconds, on the hour of UTC."""

    begins: float
    what: Activity


class LastHours:
    """For one index."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[float, Activity] = {}

    def read(self, tx: Connection, now: float) -> list[Hour]:
        """The hours, the present one last."""
        present = now // HOUR_S * HOUR_S
        begins = [present - HOUR_S * back for back in reversed(range(HOURS))]
        with self._lock:
            kept = {begin: self._kept[begin] for begin in begins[:-STILL_MOVING] if begin in self._kept}
        for begin in begins:
            if begin not in kept:
                kept[begin] = activity.between(tx, begin, begin + HOUR_S)
        with self._lock:
            self._kept = kept
        return [Hour(begin, kept[begin]) for begin in begins]
