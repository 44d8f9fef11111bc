"""Statements compiled once and executed on the driver's own cursor.

This is for the few statements that run for every received instance: SQLAlchemy needs ten times as long to hand a
statement to the database as SQLite needs to run it. Parameters and results are plain text, numbers and None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Select, TextClause, Update
from sqlalchemy.exc import DBAPIError


class Prepared:
    """One statement. columns: of an INSERT, those that its rows have."""

    def __init__(
        self, statement: Insert | Select[Any] | TextClause | Update, columns: Sequence[str] | None = None
    ) -> None:
        # Inline: otherwise SQLAlchemy adds a RETURNING that nobody needs.
        self._statement = statement.inline() if isinstance(statement, Insert) else statement
        self._columns = columns
        self._compiled: dict[str, tuple[str, tuple[str, ...] | None]] = {}

    def execute(self, tx: Connection, *rows: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Run it, once for each row of parameters. Returns what it selects.

        Raises SQLAlchemy's errors, without the values.
        """
        sql, order = self._for(tx.dialect)
        bound: list[Any] = [row if order is None else [row[name] for name in order] for row in rows]
        cursor = tx.connection.cursor()
        try:
            if len(bound) == 1:
                cursor.execute(sql, bound[0])
            else:
                cursor.executemany(sql, bound)
            return list(cursor.fetchall()) if cursor.description else []
        except Exception as error:
            base = tx.dialect.loaded_dbapi.Error
            if not isinstance(error, base):
                raise
            raise DBAPIError.instance(sql, None, error, base, hide_parameters=True, dialect=tx.dialect) from error
        finally:
            cursor.close()

    def _for(self, dialect: Dialect) -> tuple[str, tuple[str, ...] | None]:
        """The statement's text, and the order of its parameters if they have no names."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._statement.compile(dialect=dialect, column_keys=self._columns)
            names = compiled.positiontup if compiled.positional else None
            found = self._compiled[dialect.name] = str(compiled), tuple(names) if names is not None else None
        return found
