"""Sources that are refused for a while, and destinations that nothing is sent to: until a person resumes them.

A paused source keeps its images and comes back by itself: its associations are refused as transient. What waits for a
paused destination stays in the outbox. Both outlive a restart.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import Connection, delete, exists, insert, select, update

from storage import audit
from storage.errors import IllegalMove
from storage.models import deliveries, pauses


class Pausable(StrEnum):
    """What can be paused: a source by its AE title, a destination by its name in the settings."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True)
class Pause:
    """A pause that holds. paused_at: Unix seconds."""

    kind: Pausable
    name: str
    paused_at: float
    paused_by: str


def pause(tx: Connection, kind: Pausable, name: str, by: str, now: float, peer: audit.Peer = audit.NOBODY) -> None:
    """Begin a pause, with its audit row. peer: where the person is. Raises IllegalMove if it holds already."""
    if is_paused(tx, kind, name):
        raise IllegalMove(f"{kind} {name} is paused already")
    tx.execute(insert(pauses).values(kind=str(kind), name=name, paused_at=now, paused_by=by))
    audit.append(tx, now, f"{kind}.paused", peer=peer, outcome="PAUSED", detail={"name": name, "user": by})


def resume(tx: Connection, kind: Pausable, name: str, by: str, now: float, peer: audit.Peer = audit.NOBODY) -> None:
    """End a pause, with its audit row. peer: where the person is. Raises IllegalMove if there is none."""
    ended = tx.execute(delete(pauses).where(pauses.c.kind == str(kind), pauses.c.name == name))
    if not ended.rowcount:
        raise IllegalMove(f"{kind} {name} is not paused")
    if kind is Pausable.DESTINATION:
        # All that waited is due now, also what was to be tried again later. The oldest still goes first.
        waiting = (deliveries.c.destination == name) & (deliveries.c.state == "PENDING")
        tx.execute(update(deliveries).where(waiting).values(due_at=now, set_at=now))
    audit.append(tx, now, f"{kind}.resumed", peer=peer, outcome="RESUMED", detail={"name": name, "user": by})


def is_paused(tx: Connection, kind: Pausable, name: str) -> bool:
    """Whether a pause holds."""
    return bool(tx.scalar(select(exists().where(pauses.c.kind == str(kind), pauses.c.name == name))))


def all_of(tx: Connection) -> list[Pause]:
    """Every pause that holds, the sources first: as many as there are peers at most."""
    rows = tx.execute(select(pauses).order_by(pauses.c.kind.desc(), pauses.c.name)).mappings()
    return [Pause(Pausable(row["kind"]), row["name"], row["paused_at"], row["paused_by"]) for row in rows]


def sources(tx: Connection) -> frozenset[str]:
    """The AE titles of the paused sources."""
    return frozenset(tx.scalars(select(pauses.c.name).where(pauses.c.kind == str(Pausable.SOURCE))))
