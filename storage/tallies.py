"""How many rows are in which state, kept up to date, so that nobody has to count a long history.

`add` collects; `Database.transaction` writes the sums just before its COMMIT, after the audit rows and thus under the
lock of their chain. So the few rows of this table are locked last and only for an instant, and always in one order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    case,
    func,
    literal,
    literal_column,
    select,
    text,
    union_all,
)

from storage.models import (
    batches,
    canary_runs,
    conflicts,
    deliveries,
    instances,
    jobs,
    results,
    series,
    tallies,
    workitems,
)
from storage.prepared import Prepared

PENDING = "tallies"
HELD, UNDECIDED, SHADOW, BATCH, CANARY = "held", "undecided", "shadow", "batch", "canary"
# The columns that a table's counts are split by, besides the state.
SPLIT: Mapping[str, tuple[str, ...]] = {
    "series": ("imported",),
    "jobs": ("batch_id", "shadow"),
    "results": ("batch_id", "shadow"),
    "deliveries": ("destination",),
}
ADD = Prepared(
    text(
        "INSERT INTO tallies (subject, state, part, rows, bytes) VALUES (:subject, :state, :part, :rows, :bytes) "
        "ON CONFLICT (subject, state, part) DO UPDATE "
        "SET rows = tallies.rows + excluded.rows, bytes = tallies.bytes + excluded.bytes"
    )
)
Key = tuple[str, str, str]


@dataclass
class Tally:
    """A number of rows. size: of their files, bytes; 0 for rows without files."""

    rows: int = 0
    size: int = 0


def add(tx: Connection, subject: str, state: object, rows: int, *, part: object = "", size: int = 0) -> None:
    """Count rows of a table (its name is `subject`) that came into a state; with negative numbers, that left it."""
    changes: dict[Key, Tally] = tx.info.setdefault(PENDING, {})
    found = changes.setdefault((subject, str(state), _named(part)), Tally())
    found.rows += rows
    found.size += size


def part_of(table: str, row: Mapping[str, Any]) -> str:
    """The part that a row of a table is counted in: its destination; "shadow", or "batch" for what belongs to one."""
    if row.get("batch_id") is not None or row.get("imported"):
        return BATCH
    return SHADOW if row.get("shadow") else str(row.get("destination", "")) if table in SPLIT else ""


def _named(part: object) -> str:
    return (SHADOW if part else "") if isinstance(part, bool) else str(part)


def flush(tx: Connection) -> None:
    """Write what was collected. `Database.transaction` calls this before COMMIT."""
    changes: dict[Key, Tally] = tx.info.pop(PENDING, {})
    rows = [
        {"subject": key[0], "state": key[1], "part": key[2], "rows": tally.rows, "bytes": tally.size}
        for key, tally in sorted(changes.items())
        if tally.rows or tally.size
    ]
    if rows:
        ADD.execute(tx, *rows)


def forget(tx: Connection) -> None:
    """Drop what was collected: its transaction did not happen."""
    tx.info.pop(PENDING, None)


class Counts:
    """All counts as one transaction sees them."""

    def __init__(self, counted: Mapping[Key, Tally]) -> None:
        self._counted = counted

    def rows(self, subject: str, state: object = None, part: object = None) -> int:
        """How many rows of a table are in a state; in all of them if none is given."""
        return sum(tally.rows for tally in self._matching(subject, state, part))

    def live(self, subject: str, state: object = None) -> int:
        """As `rows`, without what belongs to batches."""
        return self.rows(subject, state) - self.rows(subject, state, BATCH)

    def size(self, subject: str, state: object = None) -> int:
        """Bytes of their files."""
        return sum(tally.size for tally in self._matching(subject, state, None))

    def parts(self, subject: str, state: object = None) -> list[str]:
        """The parts that have rows, such as the destinations of deliveries, in alphabetical order."""
        return sorted(
            {
                key[2]
                for key, tally in self._counted.items()
                if key[0] == subject and tally.rows and state in (None, key[1])
            }
        )

    def _matching(self, subject: str, state: object, part: object) -> list[Tally]:
        wanted = (subject, state if state is None else str(state), part if part is None else _named(part))
        return [
            tally
            for key, tally in self._counted.items()
            if all(asked is None or asked == held for asked, held in zip(wanted, key, strict=True))
        ]


def read(tx: Connection) -> Counts:
    """What is counted now, without what this transaction has changed itself."""
    rows = tx.execute(select(tallies)).all()
    return Counts({(row.subject, row.state, row.part): Tally(row.rows, row.bytes) for row in rows})


def differences(tx: Connection) -> dict[Key, Tally]:
    """Count everything anew, which takes seconds for a large index. Returns what each count lacks; nothing if all hold.

    `add` what this returns in a later transaction: what is counted meanwhile stays right.
    """
    names = [tallies.c[name] for name in ("subject", "state", "part")]
    held = select(*names, -tallies.c.rows, -tallies.c.bytes)
    lacking: dict[Key, Tally] = {}
    # One statement, because each statement of a transaction in PostgreSQL sees a state of its own.
    rows: Sequence[Any] = tx.execute(union_all(*_counting().values(), held)).all()
    for row in rows:
        found = lacking.setdefault((row[0], row[1], row[2]), Tally())
        found.rows += row[3]
        found.size += int(row[4])
    return {key: tally for key, tally in lacking.items() if tally != Tally()}


def uncount(tx: Connection, table: Table, which: ColumnElement[bool]) -> None:
    """Take rows of a table out of its counts, before they are deleted. which: a condition on the table."""
    for subject, state, part, number, size in tx.execute(_counting()[table.name].where(which)).all():
        add(tx, subject, state, -number, part=part, size=-int(size))


def _counting() -> dict[str, Select[Any]]:
    # Literals, so that PostgreSQL sees the same expression where it selects and where it groups.
    none: Any = literal_column("''")
    of_batch: Any = literal_column(f"'{BATCH}'")
    of_shadow: Any = literal_column(f"'{SHADOW}'")
    lane = {
        t: case((t.c.batch_id.is_not(None), of_batch), (t.c.shadow, of_shadow), else_=none) for t in (jobs, results)
    }
    of_canary: Any = literal_column(f"'{CANARY}'")
    lane[results] = case((series.c.canary, of_canary), else_=lane[results])
    held = func.sum(case((instances.c.gone_at.is_(None), instances.c.size), else_=0))
    counted = [
        _grouped(series, series.c.state, case((series.c.imported, of_batch), else_=none)),
        _grouped(batches, batches.c.state),
        _grouped(workitems, workitems.c.state),
        _grouped(jobs, jobs.c.state, lane[jobs]),
        _grouped(deliveries, deliveries.c.state, deliveries.c.destination),
        _grouped(results, results.c.outcome, lane[results], joined=results.join(series)),
        _grouped(canary_runs, canary_runs.c.state),
        _grouped(conflicts, func.coalesce(conflicts.c.verdict, literal_column(f"'{UNDECIDED}'"))),
        _grouped(instances, func.coalesce(instances.c.gone_reason, literal_column(f"'{HELD}'")), size=held),
    ]
    return dict(counted)


def _grouped(
    table: Table, state: Any, part: Any = None, size: Any = None, joined: FromClause | None = None
) -> tuple[str, Select[Any]]:
    counted = select(
        literal(table.name),
        state,
        literal("") if part is None else part,
        func.count(),
        literal(0) if size is None else size,
    )
    counted = counted.select_from(table if joined is None else joined)
    return table.name, counted.group_by(state, *([] if part is None else [part]))
