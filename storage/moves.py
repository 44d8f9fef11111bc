"""The one way in which a row changes its state: a conditional UPDATE and its audit row, together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, Table, bindparam, insert, literal, update

from storage import audit, listings, tallies
from storage.errors import IllegalMove, NotFound, StaleLease
from storage.models import jobs, series

# Tables whose states show in the worklist, with the column that says which series it is about.
LISTED = {"series": (series.c.id,), "jobs": (jobs.c.series_pk,)}
AUDITED = ("patient_id", "study_uid", "series_uid", "job_id", "result_id")


@dataclass(frozen=True)
class Machine:
    """A table whose rows have states.

    transitions: for each state, the states from which it may be entered.
    subject: a query by bind parameter "id" that yields `state`, `fence` if the table has one, and what the
        audit row names: some of patient_id, study_uid, series_uid, job_id, result_id; other columns, such as
        destination, go into its detail.
    """

    entity: str
    table: Table
    transitions: Mapping[str, frozenset[str]]
    subject: Select[Any]

    def row(self, tx: Connection, row_id: int) -> RowMapping:
        """The row's subject, locked until the transaction ends. Raises NotFound."""
        found = tx.execute(self.subject.with_for_update(of=self.table), {"id": row_id}).mappings().first()
        if found is None:
            raise NotFound(f"no {self.entity} {row_id}")
        return found


def insert_row(tx: Connection, table: Table, values: Mapping[str, object]) -> int:
    """Insert one row, counted if it has a state. Returns its id."""
    if "state" in values:
        tallies.add(tx, table.name, values["state"], 1, part=tallies.part_of(table.name, values))
    return int(tx.execute(insert(table).values(values).returning(table.c.id)).scalar_one())


def in_state(table: Table, *states: str) -> ColumnElement[bool]:
    """The condition that rows are in one of these states, with the states in its text.

    A database uses an index of the rows in a state only if it sees that state when it plans the query.
    """
    names = [str(state) for state in states]
    if len(names) == 1:
        return table.c.state == literal(names[0], literal_execute=True)
    return table.c.state.in_(bindparam(None, names, expanding=True, literal_execute=True))


def by_id(table: Table) -> Any:
    """The condition that a Machine's subject ends with."""
    return table.c.id == bindparam("id")


def move(
    tx: Connection,
    machine: Machine,
    row_id: int,
    leaving: str,
    to: str,
    now: float,
    *,
    fence: int | None = None,
    values: Mapping[str, object] | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Bring a row from one state into another, with its audit row.

    fence: the lease's fencing number, if the move is its holder's. values: other columns set with it.
    detail: more for the audit row; JSON types only.
    Raises NotFound, StaleLease (the fence is not the current one, or its holder's row moved on) or IllegalMove
    (the row is in another state, or there is no such arrow).
    """
    row = machine.row(tx, row_id)
    if fence is not None and row["fence"] != fence:
        raise StaleLease(f"{machine.entity} {row_id}: fence {fence} is not current")
    if leaving not in machine.transitions[to]:
        raise IllegalMove(f"{machine.entity}: there is no arrow from {leaving} to {to}")
    if row["state"] != leaving:
        kind = StaleLease if fence is not None else IllegalMove
        raise kind(f"{machine.entity} {row_id}: is {row['state']} and not {leaving}, so it cannot become {to}")
    table = machine.table
    changed = (
        tx.execute(
            update(table)
            .where(table.c.id == row_id, table.c.state == leaving)
            .values(state=str(to), **(values or {}))
            .returning(
                *(table.c[name] for name in tallies.SPLIT.get(table.name, ("state",))), *LISTED.get(table.name, ())
            )
        )
        .mappings()
        .all()
    )
    if len(changed) != 1:
        raise StaleLease(f"{machine.entity} {row_id}: moved by another transaction")
    part = tallies.part_of(table.name, dict(changed[0]))
    if part != tallies.BATCH and table.name in LISTED and not {str(leaving), str(to)} <= listings.WAITING:
        listings.touch(tx, changed[0][LISTED[table.name][0]])
    tallies.add(tx, table.name, leaving, -1, part=part)
    tallies.add(tx, table.name, to, 1, part=part)
    more = {name: value for name, value in row.items() if name not in (*AUDITED, "state", "fence")}
    audit.append(
        tx,
        now,
        f"{machine.entity}.{to.lower()}",
        audit.Subject(**{name: row[name] for name in AUDITED if name in row}),
        outcome=str(to),
        detail={"from": str(leaving), **more, **(detail or {})},
    )
