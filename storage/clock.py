"""Waiting that survives a clock which jumps back.

Every row that waits has `due_at`, the end of its wait, and `set_at`, the moment when that was decided. A `set_at` in
the future can only mean that the clock has gone back since. Such a row waits its whole time again from now, so that
it is neither early nor left hanging until the clock catches up.
"""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, Table, update

from storage.moves import in_state

# Processes read the clock before they wait for the write lock, and hosts differ a little: that is not a jump.
TOLERANCE_S = 5.0


def start_waits_again(
    tx: Connection, table: Table, states: Collection[str], now: float, *, few_in_state: bool = True
) -> int:
    """Shift the waits of the rows in these states that were set in the future. Returns how many there were.

    few_in_state: only what waits is in these states. If not, no database may begin with the rows in them.
    """
    of_state = in_state(table, *sorted(states)) if few_in_state else (table.c.state + "").in_(sorted(states))
    went_back = of_state & set_in_the_future(table, now)
    moved = tx.execute(
        update(table).where(went_back).values(due_at=now + (table.c.due_at - table.c.set_at), set_at=now)
    )
    return moved.rowcount


def set_in_the_future(table: Table, now: float) -> ColumnElement[bool]:
    """The condition for waiting rows whose `set_at` lies in the future."""
    return table.c.due_at.is_not(None) & (table.c.set_at > now + TOLERANCE_S)


def wait_from(set_at: float, now: float) -> float:
    """When a wait that is set `now` begins, if the one before it began at `set_at`.

    That is `now`, or `set_at` if that is slightly later: the wait is never shorter than before.
    """
    return set_at if now < set_at <= now + TOLERANCE_S else now
