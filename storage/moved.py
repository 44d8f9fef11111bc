"""An index that was moved to another database, and one that a move has not filled yet: nobody may work on either.

What makes the move is in moving.py.
"""

import json
from datetime import UTC, datetime

from sqlalchemy import Connection

from storage.database import Database
from storage.errors import StoreMismatch
from storage.facts import get_fact, has_facts

MOVED, MOVING = "moved", "moving"
"""Facts. Of the old index: where it went, and when, as JSON. Of the new one, until it is whole: the store's UUID."""


def moved_to(tx: Connection) -> str | None:
    """Where an index went, as `Database.where` has it; None for one that is in use."""
    moved = get_fact(tx, MOVED) if has_facts(tx) else None
    return str(json.loads(moved)["to"]) if moved else None


def is_elsewhere(tx: Connection, index: str) -> str | None:
    """Why nobody may work on this index; None for one that is in use. index: its name for a person."""
    if not has_facts(tx):
        return None
    moved = get_fact(tx, MOVED)
    if moved is not None:
        to = json.loads(moved)
        day = datetime.fromtimestamp(to["at"], UTC).strftime("%Y-%m-%d %H:%M")
        return (
            f"the index {index} was moved to {to['to']} on {day} UTC and knows nothing of what came since: name the "
            "new one in [storage] database_url"
        )
    if get_fact(tx, MOVING) is not None:
        return (
            f"the move of an index to {index} was not finished: run 'dicom-node index move' again, with the settings "
            "of the old index"
        )
    return None


def refuse_moved(database: Database) -> None:
    """Raises StoreMismatch if nobody may work on this index."""
    with database.read() as tx:
        elsewhere = is_elsewhere(tx, database.where)
    if elsewhere is not None:
        raise StoreMismatch(elsewhere)
