"""What runs by itself, and what a person asks, takes the same work however long the history is.

Work is what the database does and not how long it takes: SQLite's own steps, and the plans of both databases. The
indexes and the questions are those of `benchmarks/index_size.py`, which measures them with a million series.
"""

import contextlib
import re

import pytest
from sqlalchemy import event

from benchmarks.index_fill import add_batch, add_canaries, add_workitems, fill, fill_later
from benchmarks.index_size import alone, asked, tidy
from storage import audit, listings, prepared
from storage.database import open_database
from storage.models import Base
from tests.storage_factory import fresh_url

SMALL, LARGE = 500, 4000
FAILING = 20
STEPS_AT_ONCE = 20
# These hold a row for each state, destination, day or batch, or for what is open; and properties for each name.
NEVER_LARGE = {
    *(
        "properties",
        "tallies",
        "batches",
        "turnaround_days",
        "completion_efforts",
        "listing_kinds",
        "listing_weeks",
        "pauses",
        "suspensions",
        "notifications",
        "watch_references",
    ),
}
# Indexes of what still needs something: reading all of one is reading what waits.
WAITING = {
    "ix_series_open_due_at",
    "ix_jobs_queue",
    "ix_jobs_queued_at",
    "ix_batch_cases_queued",
    "ix_jobs_running_due_at",
    "ix_jobs_waiting_set_at",
    "ix_deliveries_waiting_set_at",
    "ix_deliveries_pending",
    "ix_deliveries_unconfirmed_at",
    "ix_watch_alarms_standing",
    "ix_canary_runs_held",
    "ix_series_selection",  # PostgreSQL takes it while no series takes part in a choice
}
# They grow with what was not confirmed, with what failed (of analyses, up to 1000), with up to 1000 files, and with a
# day's series.
GROW = {
    *("status", "view delivery_overview failed", "watch: analyses given up", "start: next 1000 objects"),
    "page Peers: senders of a day",
}
TABLES = {table.name for table in Base.metadata.sorted_tables} - NEVER_LARGE


class Undo(Exception):
    """What a question wrote is rolled back."""


def filled(folder, count):
    url = fresh_url(folder)
    fill(url, count, FAILING)
    database = open_database(url)
    fill_later(database)
    add_batch(database, count)
    add_workitems(database, count)
    add_canaries(database, count)
    tidy(url)
    return database


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """Two indexes, one with many times the history of the other; what waits in them is the same."""
    made = {}
    for count in (SMALL, LARGE):
        folder = tmp_path_factory.mktemp(f"index-{count}")
        made[count] = filled(folder, count)
    yield made
    for database in made.values():
        database.close()


def statements_of(database, question, monkeypatch):
    """The statements and values of one question, those included that go past SQLAlchemy."""
    found = []

    def note(_connection, _cursor, statement, parameters, _context, many):
        found.append((statement, parameters[0] if many else parameters))

    execute = prepared.Prepared.execute

    def noted(self, tx, *rows):
        sql, order = self._for(tx.dialect)
        found.append((sql, rows[0] if order is None else [rows[0][name] for name in order]))
        return execute(self, tx, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(prepared.Prepared, "execute", noted)
        event.listen(database.engine, "before_cursor_execute", note)
        with contextlib.suppress(Undo), database.transaction() as tx:
            question.ask(tx)
            audit.flush(tx)
            listings.flush(tx)
            raise Undo
        event.remove(database.engine, "before_cursor_execute", note)
    return [(sql, values) for sql, values in found if re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)", sql)]


def reads_one_end(sql):
    """A statement without conditions that takes a few rows from one end of a table's own order."""
    return " WHERE " not in sql and " LIMIT " in sql.replace("\n", " ")


def sqlite_scans(tx, sql, values):
    """The parts of SQLite's plan that walk through a large table."""
    plan = [row[3] for row in tx.connection.cursor().execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    for step in plan:
        scan = re.match(r"SCAN (\w+)(?: AS \w+)?(?: USING (?:COVERING )?INDEX (\w+))?", step)
        if scan and scan[1] in TABLES and scan[2] not in WAITING and not reads_one_end(sql):
            yield f"{step}: {sql}"


def postgresql_scans(tx, sql, values):
    """The same of PostgreSQL's plan, which must do without sequential scans as far as there are indexes."""
    cursor = tx.connection.cursor()
    for way in ("seqscan", "hashjoin", "mergejoin"):  # what pays for small tables only
        cursor.execute(f"SET LOCAL enable_{way} = off")
    cursor.execute("SET LOCAL work_mem = '64kB'")  # no hash of a whole table, as with a large one
    cursor.execute(f"EXPLAIN (FORMAT TEXT) {sql}", values)
    plan = [row[0] for row in cursor.fetchall()]
    for number, step in enumerate(plan):
        whole = re.search(r"Seq Scan on (\w+)", step)
        by_index = re.search(r"Index (?:Only )?Scan (?:Backward )?using (\w+) on (\w+)", step)
        narrowed = any("Index Cond" in line for line in plan[number + 1 : number + 2])
        walked = whole and whole[1] in TABLES
        read = by_index and by_index[2] in TABLES and not narrowed and by_index[1] not in WAITING
        if (walked or read) and not reads_one_end(sql):
            yield f"{step}: {sql}"


def scans_of(database, questions, monkeypatch):
    """Where these questions walk through a large table."""
    scans = postgresql_scans if database.engine.dialect.name == "postgresql" else sqlite_scans
    found = []
    for question in questions:
        asked_for = statements_of(database, question, monkeypatch)
        assert asked_for, question.name
        with database.read() as tx:
            found += [f"{question.name}: {scan}" for sql, values in asked_for for scan in scans(tx, sql, values)]
    return found


def test_nothing_that_runs_by_itself_walks_through_a_table(sizes, monkeypatch):
    assert scans_of(sizes[LARGE], alone(LARGE), monkeypatch) == []


def test_what_a_web_viewer_asks_walks_through_no_table(sizes, monkeypatch):
    asked_for = [question for question in asked(LARGE, limit=5) if question.name.startswith("dicomweb")]
    assert len(asked_for) == 5
    assert scans_of(sizes[LARGE], asked_for, monkeypatch) == []


def steps(database, question):
    """How many steps of its own machine SQLite takes for a question."""
    taken = [0]
    with contextlib.suppress(Undo), database.transaction() as tx:
        driver = tx.connection.driver_connection
        driver.set_progress_handler(lambda: taken.__setitem__(0, taken[0] + 1), STEPS_AT_ONCE)
        try:
            question.ask(tx)
            listings.flush(tx)
        finally:
            driver.set_progress_handler(None, 0)
        raise Undo
    return STEPS_AT_ONCE * taken[0]


def questions(count):
    return [question for question in (*alone(count), *asked(count, limit=5)) if question.name not in GROW]


@pytest.mark.sqlite
def test_no_question_takes_more_steps_the_longer_the_history_is(sizes):
    grown = {}
    for small, large in zip(questions(SMALL), questions(LARGE), strict=True):
        counted = steps(sizes[SMALL], small), steps(sizes[LARGE], large)
        if counted[1] > 1.8 * counted[0] + 100:
            grown[small.name] = counted
    assert grown == {}
