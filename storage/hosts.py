"""The hosts that share one index in PostgreSQL: which there are, and when each was seen last.

Nothing is decided by it but what a start may assume. Leases and the leader's lock do not need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, update

from storage.models import hosts

BEAT_S = 10.0
LOST_AFTER_S = 45.0
"""A host that was not seen for this long is taken for gone."""
FORGOTTEN_AFTER_S = 30 * 86_400.0


@dataclass(frozen=True)
class Host:
    """One machine, as a row of `hosts` has it. Times are Unix seconds of the database server.

    place: its data folder, which tells two nodes of one machine apart.
    """

    name: str
    place: str
    parts: tuple[str, ...]
    version: str
    schema_version: str
    configuration: str
    started_at: float
    seen_at: float
    ahead_s: float
    stopped_at: float | None = None

    def lives(self, now: float) -> bool:
        """Whether it was seen lately, and not stopped since."""
        return self.stopped_at is None and self.seen_at > now - LOST_AFTER_S


def register(tx: Connection, host: Host) -> None:
    """The host has started. What was not seen for a month is forgotten."""
    tx.execute(delete(hosts).where(hosts.c.seen_at < host.seen_at - FORGOTTEN_AFTER_S))
    tx.execute(delete(hosts).where(_is(host)))
    tx.execute(insert(hosts).values(**{**vars(host), "parts": _text(host.parts)}))


def beat(tx: Connection, host: Host, now: float, ahead_s: float) -> None:
    """The host lives."""
    values = {"seen_at": now, "ahead_s": ahead_s, "stopped_at": None}
    tx.execute(update(hosts).where(_is(host)).values(**values))


def leave(tx: Connection, host: Host, now: float) -> None:
    """The host was stopped in order: nobody need wait for it."""
    tx.execute(update(hosts).where(_is(host)).values(stopped_at=now, seen_at=now))


def all_of(tx: Connection) -> list[Host]:
    """Every host that is known, by name."""
    rows = tx.execute(select(hosts).order_by(hosts.c.name, hosts.c.parts)).mappings()
    return [Host(**{**row, "parts": tuple(row["parts"].split(","))}) for row in rows]


def others_alive(tx: Connection, name: str, place: str, now: float) -> list[Host]:
    """The others that were seen lately than the node of this host in this data folder."""
    return [host for host in all_of(tx) if (host.name, host.place) != (name, place) and host.lives(now)]


def _is(host: Host) -> ColumnElement[bool]:
    return and_(hosts.c.name == host.name, hosts.c.place == host.place, hosts.c.parts == _text(host.parts))


def _text(parts: Sequence[str]) -> str:
    return ",".join(parts)
