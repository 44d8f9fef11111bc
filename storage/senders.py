"""Who sent what of late, counted over a bounded time: flat, however long the history is."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from storage import audit as trail
from storage.listings import OF_CANARIES
from storage.models import listing_kinds, listings, refused_instances, series
from storage.moves import in_state
from storage.series import NOT_IMPORTED
from storage.series_state import SeriesState

MOST_REFUSALS = 1000
REFUSALS = ("association.rejected", "connection.refused")


@dataclass(frozen=True)
class Sender:
    """What one calling AE title sent. last_at: of its latest image, Unix seconds."""

    ae_title: str
    series: int
    instances: int
    last_at: float


@dataclass(frozen=True)
class Refusals:
    """Associations that were refused for one reason. peer_ae, address: as far as they are known."""

    peer_ae: str | None
    address: str | None
    reason: str
    times: int
    last_at: float


def senders(tx: Connection, since: float) -> list[Sender]:
    """Whose series had an image since then, the latest first; what a batch imported was sent by nobody, and
    a canary by the node."""
    found: dict[str, Sender] = {}
    for state in SeriesState:  # one piece of the index for each
        counted = (
            select(
                series.c.calling_ae,
                func.count(),
                func.sum(series.c.instance_count),
                func.max(series.c.last_instance_at),
            )
            .where(in_state(series, state), NOT_IMPORTED, series.c.last_instance_at >= since)
            .where(series.c.canary.is_(False))
            .group_by(series.c.calling_ae)
        )
        for title, count, instances, last_at in tx.execute(counted):
            held = found.get(title, Sender(title, 0, 0, 0.0))
            last_at = max(held.last_at, last_at)
            found[title] = Sender(title, held.series + count, held.instances + int(instances), last_at)
    return sorted(found.values(), key=lambda sender: -sender.last_at)


def last_series(tx: Connection) -> dict[str, float]:
    """When the first image of the latest series of each calling AE title came, ever: one seek for each kind of line."""
    latest = select(func.max(listings.c.received_at)).where(listings.c.kind == listing_kinds.c.id).scalar_subquery()
    found: dict[str, float] = {}
    for title, received_at in tx.execute(select(listing_kinds.c.source, latest)):
        if title and title != OF_CANARIES and received_at is not None:
            found[title] = max(found.get(title, 0.0), received_at)
    return found


def refusals(tx: Connection, since: float) -> list[Refusals]:
    """The latest refused associations and connections since then, those of a kind together, the latest first."""
    times: Counter[tuple[str | None, str | None, str]] = Counter()
    last: dict[tuple[str | None, str | None, str], float] = {}
    for event in REFUSALS:
        for row in trail.search(tx, event=event, since=since, limit=MOST_REFUSALS):
            key = (row["peer_ae"], row["address"], str(row["detail"].get("reason", row["outcome"])))
            times[key] += int(row["detail"].get("times", 1))
            last[key] = max(last.get(key, 0.0), row["at"])
    found = [Refusals(*key, count, last[key]) for key, count in times.items()]
    return sorted(found, key=lambda one: -one.last_at)


def refused_images(tx: Connection, limit: int = 50) -> Sequence[dict[str, Any]]:
    """The instances that were refused last, once for each sender and reason; nothing that tells whose they are."""
    shown = ("calling_ae", "address", "reason", "status", "standing", "times", "last_at")
    query = select(*(refused_instances.c[name] for name in shown)).order_by(refused_instances.c.id.desc()).limit(limit)
    return [dict(row) for row in tx.execute(query).mappings()]
