"""Which worklists do not answer the node, since when and why: written by who asks them, read by whoever shows it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, select

from storage.facts import get_fact, set_fact
from storage.models import properties

PREFIX = "worklist.away:"


@dataclass(frozen=True)
class Away:
    """A worklist that does not answer. seconds: for how long. error: why, without patient data."""

    name: str
    seconds: float
    error: str


def note_away(tx: Connection, name: str, now: float, error: str) -> None:
    """A worklist does not answer. It has been away since this was said first."""
    held = get_fact(tx, PREFIX + name)
    since = json.loads(held)["since"] if held else now
    set_fact(tx, PREFIX + name, json.dumps({"since": since, "error": error}))


def note_back(tx: Connection, name: str) -> None:
    """A worklist answers."""
    tx.execute(delete(properties).where(properties.c.name == PREFIX + name))


def away(tx: Connection, names: Iterable[str], now: float) -> list[Away]:
    """Those of the worklists that do not answer, in the order in which they are named."""
    keys = [PREFIX + name for name in names]
    if not keys:
        return []
    rows = dict(tx.execute(select(properties.c.name, properties.c.value).where(properties.c.name.in_(keys))).all())
    held = [(key.removeprefix(PREFIX), json.loads(rows[key])) for key in keys if key in rows]
    return [Away(name, max(0.0, now - one["since"]), one["error"]) for name, one in held]
