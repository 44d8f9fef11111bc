"""Which host decides: what only one may do at a time, such as closing series, retention and the sweep.

The leader holds an advisory lock of PostgreSQL with a connection of its own: the server gives the lock back as soon as
that connection has ended. A leader that does not know yet that it has lost the lock must do nothing that counts. So
each term has a number. Every transaction of a leader begins by looking at the number, under a lock that a new leader
takes to raise it: it ends before the new term begins, or it does not happen.

SQLite has one host, which leads.
"""

import contextlib

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from storage import audit
from storage.database import Database
from storage.errors import DatabaseUnavailable, NotLeader
from storage.facts import get_fact, set_fact

LEADER_LOCK = 0x6C656164  # "lead": held by the leader's connection
TERM_LOCK = 0x7465726D  # "term": shared by the leader's transactions, alone while the term changes
OF_INDEX = "hashtext(current_schema())"
"""A database may hold several indexes, each in a schema of its own."""
TERM = "leader"


class Leadership:
    """This host's part in it. host: its name, for the audit trail."""

    def __init__(self, database: Database, host: str) -> None:
        self._database = database
        self._host = host
        self._held: Connection | None = None
        self.term = 0

    def take(self) -> bool:
        """Become the leader, if there is none. From then on every transaction of `database` is a leader's.

        Raises StorageError if the index is away.
        """
        if not self._database.is_server:
            return True
        self.give_up()
        try:
            connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError as error:
            raise DatabaseUnavailable("index: no connection for the leader") from error
        try:
            if not connection.scalar(text(f"SELECT pg_try_advisory_lock(:key, {OF_INDEX})"), {"key": LEADER_LOCK}):
                connection.close()
                return False
            self._held = connection
            self._begin_term()
        except BaseException as error:
            self._held = connection
            self.give_up()
            if isinstance(error, SQLAlchemyError):
                raise DatabaseUnavailable("index: the leader's connection was lost") from error
            raise
        return True

    def _begin_term(self) -> None:
        now, self._database.guard = self._database.now(), None
        with self._database.transaction() as tx:
            tx.execute(text(f"SELECT pg_advisory_xact_lock(:key, {OF_INDEX})"), {"key": TERM_LOCK})
            self.term = int((get_fact(tx, TERM) or "0").split(" ")[0]) + 1
            set_fact(tx, TERM, f"{self.term} {self._host}")
            audit.append(tx, now, "host.leads", outcome="LEADS", detail={"host": self._host, "term": self.term})
        self._database.guard = self._check

    def holds(self) -> bool:
        """Whether the lock is still ours. False ends the term."""
        if not self._database.is_server:
            return True
        try:
            return self._held is not None and self._held.scalar(text("SELECT 1")) == 1
        except SQLAlchemyError:
            return False

    def give_up(self) -> None:
        """Lead no more: another host may at once. From then on this one's transactions fail."""
        held, self._held = self._held, None
        if held is not None:
            with contextlib.suppress(SQLAlchemyError):
                # The server may see a moment later than others that the connection has ended.
                held.execute(text("SELECT pg_advisory_unlock_all()"))
            with contextlib.suppress(SQLAlchemyError):
                held.invalidate()  # closed, not kept in the pool: the lock goes with it
            with contextlib.suppress(SQLAlchemyError):
                held.close()

    def _check(self, tx: Connection) -> None:
        """Raises NotLeader if a later term has begun."""
        tx.execute(text(f"SELECT pg_advisory_xact_lock_shared(:key, {OF_INDEX})"), {"key": TERM_LOCK})
        held = (get_fact(tx, TERM) or "0").split(" ")[0]
        if int(held) != self.term:
            raise NotLeader("another host decides now")


def leader_of(tx: Connection) -> str | None:
    """The host that leads, or led last; None if none ever did."""
    held = get_fact(tx, TERM)
    return held.partition(" ")[2] if held else None
