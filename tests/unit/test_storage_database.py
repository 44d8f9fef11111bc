"""Engine, transactions, schema, and the names of what goes wrong."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, insert, text
from sqlalchemy.exc import IntegrityError

from storage import database as module
from storage import deliveries, job_state, series_state
from storage.database import Database, open_database
from storage.errors import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseReadOnly,
    DatabaseTooNew,
    DatabaseUnavailable,
    StorageError,
    StorageFull,
)
from storage.models import Base, properties

pytestmark = pytest.mark.sqlite


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/index.sqlite"


@pytest.fixture
def database(url):
    return open_database(url)


def put(tx, name):
    tx.execute(insert(properties).values(name=name, value=""))


def names(database):
    with database.read() as tx:
        return set(tx.scalars(text("SELECT name FROM properties"))) - {"views"}


def test_the_migrations_make_exactly_the_tables_of_the_models(database):
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        made = {row.name: row.sql for row in connection.execute(text("SELECT name, sql FROM sqlite_master"))}
    for table in Base.metadata.sorted_tables:
        checks = {str(check.name) for check in table.constraints if type(check).__name__ == "CheckConstraint"}
        assert {name for name in checks if name not in made[table.name]} == set(), table.name


def test_the_checks_allow_exactly_the_states_of_the_machines():
    for table, states in (
        ("series", series_state.SeriesState),
        ("jobs", job_state.JobState),
        ("deliveries", deliveries.DeliveryState),
    ):
        checks = [c for c in Base.metadata.tables[table].constraints if isinstance(c, CheckConstraint)]
        check = next(c for c in checks if str(c.name).endswith("_state"))
        assert set(re.findall(r"'(\w+)'", str(check.sqltext))) == {str(state) for state in states}


def test_opening_again_keeps_everything(database, url):
    with database.transaction() as tx:
        put(tx, "kept")
    assert names(open_database(url)) == {"kept"}


def test_the_index_is_durable_and_strict(database):
    with database.read() as tx:
        assert tx.scalar(text("PRAGMA journal_mode")) == "wal"
        assert tx.scalar(text("PRAGMA synchronous")) == 2
        assert tx.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_schema_of_a_later_version_is_refused(database, url):
    with database.transaction() as tx:
        tx.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew):
        open_database(url)


def test_changed_views_are_made_anew(database, url, tmp_path, monkeypatch):
    views = tmp_path / "views.sql"
    views.write_text("-- a; b\nCREATE VIEW series_without_outcome AS SELECT 'a' AS letter;")
    monkeypatch.setattr(module, "VIEWS", views)
    with open_database(url).read() as tx:
        assert tx.scalar(text("SELECT letter FROM series_without_outcome")) == "a"


def test_a_read_cannot_write_and_spoils_nothing(database):
    with pytest.raises(DatabaseReadOnly), database.read() as tx:
        put(tx, "no")
    with database.transaction() as tx:
        put(tx, "yes")
    assert names(database) == {"yes"}


def test_a_transaction_that_raises_did_not_happen(database):
    with pytest.raises(ZeroDivisionError), database.transaction() as tx:
        put(tx, "no")
        raise ZeroDivisionError
    assert names(database) == set()


def test_readers_see_one_state_and_do_not_wait_for_writers(database):
    with database.read() as tx:
        before = tx.scalar(text("SELECT count(*) FROM properties"))
        with database.transaction() as other:
            put(other, "new")
        assert tx.scalar(text("SELECT count(*) FROM properties")) == before


def test_another_process_that_holds_the_lock_is_named(database, url):
    impatient = Database(url, busy_timeout_s=0.05)
    holder = sqlite3.connect(database.url.database, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseBusy), impatient.transaction() as tx:
        put(tx, "no")
    holder.execute("ROLLBACK")
    with impatient.transaction() as tx:
        put(tx, "yes")


def test_a_full_disk_is_named_and_the_next_transaction_works(database):
    with pytest.raises(StorageFull), database.transaction() as tx:
        tx.exec_driver_sql(f"PRAGMA max_page_count = {tx.exec_driver_sql('PRAGMA page_count').scalar() + 2}")
        for number in range(1000):
            put(tx, f"{number:0500}")
    with database.transaction() as tx:
        tx.exec_driver_sql("PRAGMA max_page_count = 100000")
        put(tx, "after")
    assert names(database) == {"after"}


def test_a_file_that_is_no_database_is_named(tmp_path, url):
    (tmp_path / "index.sqlite").write_bytes(b"not a database, " * 500)
    with pytest.raises(DatabaseCorrupt):
        open_database(url)


def test_an_index_damaged_behind_its_beginning_is_named_with_what_to_do(tmp_path, url):
    database = open_database(url)
    with database.transaction() as tx:
        for number in range(1000):
            put(tx, f"{number:0500}")
    database.close()
    file = tmp_path / "index.sqlite"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"x" * (len(content) - len(content) // 2))
    with pytest.raises(DatabaseCorrupt, match=r"index\.sqlite is damaged.*index adopt"):
        names(Database(url))


def test_a_disk_that_fails_below_the_index_is_a_fault_that_may_pass(database, monkeypatch):
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    with pytest.raises(DatabaseUnavailable), database.transaction():
        raise failure


def test_a_server_that_is_gone_is_a_fault_that_may_pass():
    with pytest.raises(DatabaseUnavailable), Database("postgresql+psycopg://node@127.0.0.1:1/none").read():
        pass


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/usr/bin/setpriv").exists(), reason="needs root and setpriv")
def test_a_read_only_index_is_named(database, tmp_path):
    database.close()
    for path in tmp_path.iterdir():
        path.chmod(0o444)
    program = (
        "import sys; from storage.database import Database; from storage.errors import DatabaseReadOnly\n"
        "try:\n with Database(sys.argv[1]).transaction() as tx: tx.exec_driver_sql('DELETE FROM properties')\n"
        "except DatabaseReadOnly: sys.exit(42)\n"
    )
    tmp_path.chmod(0o555)
    for parent in [tmp_path, *tmp_path.parents][:4]:  # one more with several processes of tests
        parent.chmod(parent.stat().st_mode | 0o055)
    command = ["/usr/bin/setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", program, str(database.url)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "ModuleNotFoundError" in run.stderr or "PermissionError" in run.stderr:
        pytest.xfail("another user cannot read this checkout")
    assert run.returncode == 42, run.stderr


def test_an_error_never_quotes_the_values_of_a_statement(database):
    with pytest.raises(IntegrityError) as error, database.transaction() as tx:
        put(tx, "Doe^Jane")
        put(tx, "Doe^Jane")
    assert "Doe" not in str(error.value)


def test_threads_write_one_after_the_other(database):
    def write(thread):
        for number in range(20):
            with database.transaction() as tx:
                put(tx, f"{thread} {number}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(database)) == 160


def test_a_database_in_memory_is_refused():
    with pytest.raises(StorageError):
        Database("sqlite://")


def test_a_process_that_uses_all_its_connections_is_told_that_the_index_is_busy(database, monkeypatch):
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.01)
    with contextlib.ExitStack() as taken, pytest.raises(DatabaseBusy, match="all connections"):
        for _ in range(100):
            taken.enter_context(database.read())
