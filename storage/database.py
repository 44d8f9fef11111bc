"""The engine: SQLite by default, PostgreSQL by URL; transactions, pragmas, migrations, views.

SQLite runs in WAL mode with synchronous=FULL: once a transaction's block has ended, it is on disk. Writers
take the write lock at BEGIN, so that no transaction finds out half-way that another was faster.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, event, insert, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from storage import audit, listings, models, schema_versions, tallies
from storage.backup import back_up
from storage.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseOutdated,
    DatabaseReadOnly,
    DatabaseTooNew,
    DatabaseUnavailable,
    StorageError,
    StorageFull,
    StoreReplaced,
    WrongClock,
)
from storage.mark import Mark
from storage.models import properties
from storage.private import make_file, make_folder
from storage.server_time import BOUND_S, ServerTime

MIGRATIONS = Path(__file__).parent / "migrations"
VIEWS = Path(__file__).parent / "views.sql"
MIGRATION_LOCK = 0x6D696772  # "migr": the key of PostgreSQL's advisory lock while the schema changes
BUSY_TIMEOUT_S = 30.0
# If a host vanishes, the server ends its connections within half a minute, and what they hold, such as the leader's
# lock. A host whose server vanishes finds that out as fast.
_SILENCE = {"tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
_OF_SERVER = {**_SILENCE, "tcp_user_timeout": 30_000, "idle_in_transaction_session_timeout": 60_000}
POSTGRESQL = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    **{name.removeprefix("tcp_"): value for name, value in _SILENCE.items()},
}
OPTIONS = " ".join(f"-c {name}={value}" for name, value in _OF_SERVER.items())
LOG = "log"  # in a connection's info: device and inode of the write-ahead log that it opened
# The first that matches names the error; SQLite's names from sqlite3.h, PostgreSQL's SQLSTATE classes.
TRANSLATION: tuple[tuple[str, type[StorageError]], ...] = (
    (r"SQLITE_FULL|SQLITE_IOERR_WRITE|SQLITE_IOERR_SHMSIZE|53100", StorageFull),
    (r"SQLITE_BUSY|SQLITE_LOCKED|40001|40P01|55P03", DatabaseBusy),
    (r"SQLITE_READONLY|SQLITE_CANTOPEN|25006", DatabaseReadOnly),
    (r"SQLITE_CORRUPT|SQLITE_NOTADB|XX001|XX002", DatabaseCorrupt),
    # The disk below the index, and PostgreSQL's connection exceptions, operator interventions and system errors.
    (r"SQLITE_IOERR|SQLITE_PROTOCOL|SQLITE_NOMEM|08|57P|58|53", DatabaseUnavailable),
)
DAMAGED = (
    "the index {} is damaged. Restore a backup of it; if there is none, move it away, and 'dicom-node index adopt' "
    "makes a new one from the files"
)


TOO_NEW = "the index was made by a later version of this program"


class Database:
    """One index. Threads may share it; a forked child may not.

    create: make a SQLite index whose file is not there; without it, the first connection raises StoreReplaced then.
    """

    def __init__(self, url: str, busy_timeout_s: float = BUSY_TIMEOUT_S, *, create: bool = True) -> None:
        self.url = make_url(url)
        self._sqlite = self.url.get_backend_name() == "sqlite"
        self._busy_timeout_s = busy_timeout_s
        self._create = create
        # Threads of one process queue here instead of polling SQLite's lock against each other.
        self._writer = threading.Lock()
        # SQLite only: the connection for writing. It is kept because taking one from the pool and putting it back
        # costs more than the transaction of a received instance.
        self._kept: Connection | None = None
        # SQLite only: device and inode of the file that the first connection opened, and its greatest length so far.
        self._opened: tuple[int, int] | None = None
        self._size = 0
        self.mark: Mark | None = None  # of the files that belong to it, see `bind`
        # Called at the beginning of each write transaction, which does not happen if it raises (see leader.py).
        self.guard: Callable[[Connection], None] | None = None
        if self._sqlite:
            if self.url.database in (None, "", ":memory:"):
                raise StorageError("the index needs a file: several processes share it")
            if create:
                _make_private(Path(str(self.url.database)))
        # A message that shows a statement must not show its values: they hold patient data.
        self.engine = create_engine(
            self.url, hide_parameters=True, pool_size=8, max_overflow=24, **self._driver_options()
        )
        if self._sqlite:
            event.listen(self.engine, "do_connect", self._refuse_another_file)
            event.listen(self.engine, "connect", self._set_pragmas)
            event.listen(self.engine, "begin", _begin)
        self._time = None if self._sqlite else ServerTime(self.engine)

    def _driver_options(self) -> dict[str, Any]:
        if self._sqlite:
            return {"connect_args": {"timeout": self._busy_timeout_s}}
        query = self.url.query
        given = {name: value for name, value in POSTGRESQL.items() if name not in query}
        options = " ".join([OPTIONS, *_all(query.get("options"))])
        return {"pool_pre_ping": True, "connect_args": {**given, "options": options}}

    @property
    def is_server(self) -> bool:
        """True for PostgreSQL, which several hosts may share."""
        return not self._sqlite

    def now(self) -> float:
        """Unix seconds by the clock that everybody goes by who writes to this index: the server's, if it has one."""
        return time.time() if self._time is None else self._time.now()

    def host_is_ahead_s(self) -> float:
        """How far this machine's clock is ahead of `now`, in seconds; negative if it is behind."""
        return 0.0 if self._time is None else self._time.host_is_ahead_s()

    def refuse_wrong_clock(self) -> None:
        """Raises WrongClock if this machine's clock is further off than BOUND_S."""
        ahead_s = self.host_is_ahead_s()
        if abs(ahead_s) > BOUND_S:
            raise WrongClock(
                f"the clock of this machine is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of "
                f"the database server; {BOUND_S:.0f} s are allowed. Set it (NTP), then start again"
            )

    @property
    def where(self) -> str:
        """The index as a person knows it: its file, or its URL without the password."""
        return str(self.url.database) if self._sqlite else self.url.render_as_string(hide_password=True)

    def bind(self, mark: Mark) -> None:
        """From now on every transaction also checks the files folder and notes how far the audit trail has come."""
        mark.open()
        self.mark = mark

    def check(self) -> None:
        """Raises StoreReplaced if the index or the files folder is no longer what was opened: stat calls, no query.

        Everything committed before this returns is in the files that still have their names.
        """
        self._check(self._kept)

    def _check(self, connection: Connection | None) -> None:
        self._check_index(connection)
        if self.mark is not None:
            self.mark.check()

    def _check_index(self, connection: Connection | None) -> None:
        """The index still has its name, and so has the log that this connection writes to."""
        if self._opened is None:
            return
        index = str(self.url.database)
        found = _stat(index)
        # SQLite never makes an index smaller by itself: something else was copied over it.
        if found is None or (found.st_dev, found.st_ino) != self._opened or found.st_size < self._size:
            raise StoreReplaced("the index was removed, renamed or replaced")
        self._size = found.st_size
        if connection is None:
            return
        log = _inode(f"{index}-wal")
        if connection.info.get(LOG) is None:
            connection.info[LOG] = log  # SQLite makes it with the first commit
        elif log != connection.info[LOG]:
            raise StoreReplaced("the log of the index was removed or replaced")

    def _refuse_another_file(self, *_: object) -> None:
        """Called before each connection: it must be to the file that the first one opened, and make none unasked."""
        if self._opened is None and not self._create and _stat(str(self.url.database)) is None:
            raise StoreReplaced("the index was removed, renamed or replaced")
        self._check_index(None)

    def _set_pragmas(self, connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # BEGIN is ours (see _begin), not the driver's
        for pragma in (
            f"busy_timeout = {int(self._busy_timeout_s * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        index = str(self.url.database)
        self._opened = self._opened or _inode(index)
        record.info[LOG] = _inode(f"{index}-wal")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction: committed and durable when the block ends, rolled back when it raises.

        Raises StorageFull, DatabaseBusy, DatabaseReadOnly or DatabaseCorrupt if nothing was written. Raises
        DatabaseUnavailable (StoreReplaced is one) if it is not known whether anything was.
        """
        with _named_errors(self.where), self._writing() as tx:
            try:
                self._check(tx)
                with tx.begin():
                    if self.guard is not None:
                        self.guard(tx)
                    yield tx
                    audit.flush(tx)
                    listings.flush(tx)
                    tallies.flush(tx)
                self._check(tx)  # what was committed to a file without a name is lost
                self._note_head(tx)
            finally:
                audit.forget(tx)
                listings.forget(tx)
                tallies.forget(tx)

    def _note_head(self, tx: Connection) -> None:
        head = audit.written_head(tx)
        if head is not None and self.mark is not None:
            self.mark.note(head)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A connection to write with."""
        if not self._sqlite:
            with self.engine.connect() as tx:
                yield tx
            return
        with self._writer:
            tx, self._kept = self._kept or self.engine.connect(), None
            try:
                yield tx
            except BaseException:
                tx.close()  # the pool rolls back whatever failed
                raise
            self._kept = tx

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view of the index; writing in it fails."""
        with _named_errors(self.where), self.engine.connect() as connection:
            tx = connection.execution_options(reading=True, postgresql_readonly=True)
            if self._sqlite:
                _run(tx, "PRAGMA query_only = ON")
            try:
                with tx.begin():
                    yield tx
            finally:
                if self._sqlite:
                    _run(tx, "PRAGMA query_only = OFF")

    def schema(self) -> tuple[str | None, str | None]:
        """The version of the database's schema, None without one; and the version that this program needs."""
        with self.read() as tx:
            held = _revision(tx)
        return held, schema_versions.script_of(migrations()).get_current_head()

    def refuse_other_schema(self) -> None:
        """Raises DatabaseOutdated or DatabaseTooNew unless this version of the program can work with the schema; makes
        one if there is none.

        A node of the former version may be at work: its index must not change under it.
        """
        held, needed = self.schema()
        if held is None:
            self.migrate()
        elif not self._works_here(held):
            if held not in _known(migrations()):
                raise DatabaseTooNew(TOO_NEW)
            raise DatabaseOutdated(
                f"the index has schema {held}, this program {needed}: the start of the node (`dicom-node run`) brings "
                "it up to date. A node that runs is of the other version: stop it first"
            )

    def migrate(self) -> None:
        """Bring the schema up to this version of the program and recreate the views, all or nothing.

        A SQLite index that holds data is copied first, see `backup_path`. A later schema that this program can work
        with stays as it is, with its views.
        Raises DatabaseTooNew for any other schema made by a later version; DatabaseOutdated if hosts are at work that
        could not go on with the new one.
        """
        config = migrations()
        held, needed = self.schema()
        if held is not None and held != needed and self._works_here(held):
            return
        alters = held not in (None, needed)
        with self._unchecked_references() if alters else contextlib.nullcontext(), self.transaction() as tx:
            if not self._sqlite:
                tx.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
                tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                schema_versions.refuse_under_hosts(tx, _revision(tx), self.now(), config)
            config.attributes["connection"] = tx
            self._back_up_before_a_change(tx, config)
            if _revision(tx) != needed:  # Alembic reads all migrations anew, whether there is one to make or not
                try:
                    command.upgrade(config, "head")
                except CommandError as error:
                    raise DatabaseTooNew(TOO_NEW) from error
            create_views(tx, VIEWS.read_text(encoding="utf-8"))
            if not self._sqlite:
                schema_versions.note_oldest(tx, config)

    def _works_here(self, held: str | None) -> bool:
        with self.read() as tx:
            return schema_versions.works_here(tx, held, migrations())

    @contextlib.contextmanager
    def _unchecked_references(self) -> Iterator[None]:
        """SQLite only: a migration may write a table anew that others refer to. Takes effect outside transactions."""
        if not self._sqlite:
            yield
            return
        with _named_errors(self.where), self._writer:
            self._kept = self._kept or self.engine.connect()
            _run(self._kept, "PRAGMA foreign_keys = OFF")
        try:
            yield
        finally:
            self.close()  # the next connection checks them

    def backup_path(self, version: str) -> Path:
        """The path of the copy of a SQLite index, made before its schema is migrated away from this version."""
        index = Path(str(self.url.database))
        return index.with_name(f"{index.name}.schema-{version}.backup")

    def _back_up_before_a_change(self, tx: Connection, config: Config) -> None:
        """`tx` holds the write lock, so the copy holds exactly what the migration starts from."""
        if not self._sqlite:
            return
        held = _revision(tx)
        if held not in _known(config)[1:] or tx.scalar(select(models.audit.c.id).limit(1)) is None:
            return
        target = self.backup_path(str(held))
        try:
            back_up(Path(str(self.url.database)), target)
        except OSError as error:
            raise StorageError(f"{target}: no copy of the index before its schema changes: {error.strerror}") from error

    def close(self) -> None:
        """Close all connections."""
        with self._writer:
            if self._kept is not None:
                self._kept.close()
                self._kept = None
        self.engine.dispose()


def _make_private(index: Path) -> None:
    """SQLite gives the index's mode to the files beside it: its log and the log's index."""
    make_folder(index.parent)
    for suffix in ("", "-wal", "-shm"):
        path = index.with_name(index.name + suffix)
        if path.exists() or not suffix:
            with contextlib.suppress(OSError):  # SQLite names what is wrong, when it opens the file
                make_file(path)


def open_database(url: str) -> Database:
    """The index at this URL, its schema up to date; created if there is none."""
    database = Database(url)
    database.migrate()
    return database


def create_views(tx: Connection, script: str) -> None:
    """Drop and create the views of a script, unless the database holds exactly these already."""
    digest = hashlib.sha256(script.encode()).hexdigest()
    held = tx.scalar(select(properties.c.value).where(properties.c.name == "views"))
    if held == digest:
        return
    statements = [part.strip() for part in re.sub(r"--[^\n]*", "", script).split(";")]
    statements = [part for part in statements if part]
    names = [re.match(r"CREATE VIEW (\w+)", statement) for statement in statements]
    for name in reversed(names):
        if name:
            tx.exec_driver_sql(f"DROP VIEW IF EXISTS {name[1]}")
    for statement in statements:
        tx.exec_driver_sql(statement.replace("%", "%%") if tx.dialect.name == "postgresql" else statement)
    if held is None:
        tx.execute(insert(properties).values(name="views", value=digest))
    else:
        tx.execute(update(properties).where(properties.c.name == "views").values(value=digest))


def migrations() -> Config:
    """Alembic's configuration for this index."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _revision(tx: Connection) -> str | None:
    """The version of the schema; None without one."""
    return MigrationContext.configure(tx).get_current_revision()


def _known(config: Config) -> list[str]:
    """The versions of the schema that these migrations make, the newest first."""
    return [script.revision for script in schema_versions.script_of(config).walk_revisions()]


def _all(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """What a URL's query has under one name."""
    return (value,) if isinstance(value, str) else value or ()


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _inode(path: str) -> tuple[int, int] | None:
    found = _stat(path)
    return (found.st_dev, found.st_ino) if found is not None else None


def _begin(connection: Connection) -> None:
    reading = connection.get_execution_options().get("reading", False)
    _run(connection, "BEGIN" if reading else "BEGIN IMMEDIATE")


def _run(connection: Connection, statement: str) -> None:
    """Execute on the driver's connection, outside SQLAlchemy's transaction."""
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        driver.execute(statement)


@contextlib.contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """Translate the driver's errors once, here, and keep statements and their values out of the message.

    where: see `Database.where`.
    """
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseBusy("index: all connections of this process are in use") from error
    except (DatabaseError, InterfaceError, sqlite3.DatabaseError) as error:
        cause: BaseException | None = getattr(error, "orig", error)
        code = str(getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or "")
        for pattern, kind in TRANSLATION:
            if re.match(pattern, code):
                raise kind(DAMAGED.format(where) if kind is DatabaseCorrupt else f"index: {code}") from cause
        if not code and isinstance(error, OperationalError | InterfaceError):
            raise DatabaseUnavailable("index: no connection") from cause  # a driver gives a lost connection no code
        raise
