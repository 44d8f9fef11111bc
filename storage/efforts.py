"""What was tried at a PACS to complete the open series, kept so that a restart does not start over."""

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, insert, select, update

from storage.models import completion_efforts


@dataclass(frozen=True)
class Effort:
    """How often a series with this many instances was asked about and fetched for. A new instance starts over.

    fetched: 1 also if the PACS listed instances that are not here and they may not be fetched.
    contradicted: the PACS counted more instances than it listed. next_at: when to ask again, Unix seconds.
    """

    instance_count: int
    asked: int = 0
    fetched: int = 0
    contradicted: bool = False
    next_at: float = 0.0


def all_efforts(tx: Connection) -> dict[int, Effort]:
    """By `series_pk`."""
    names = list(Effort.__dataclass_fields__)
    rows = tx.execute(select(completion_efforts)).mappings()
    return {row["series_pk"]: Effort(**{name: row[name] for name in names}) for row in rows}


def save(tx: Connection, series_pk: int, effort: Effort) -> None:
    """Write down what was tried for a series."""
    values = asdict(effort)
    mine = completion_efforts.c.series_pk == series_pk
    if tx.execute(update(completion_efforts).where(mine).values(**values)).rowcount == 0:
        tx.execute(insert(completion_efforts).values(series_pk=series_pk, **values))


def forget(tx: Connection, series_pk: int) -> None:
    """The series is closed."""
    tx.execute(delete(completion_efforts).where(completion_efforts.c.series_pk == series_pk))
