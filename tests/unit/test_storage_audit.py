"""The audit trail: in the same transaction, never changed, and it shows when it was."""

import re

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from storage import audit, deliveries, jobs
from storage.models import audit as table
from tests.storage_factory import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def add(store, *names, now=1.0, outcome=None, detail=None, **about):
    with store.database.transaction() as tx:
        for name in names:
            audit.append(tx, now, name, audit.Subject(**about), outcome=outcome, detail=detail)


def search(store, **how):
    with store.database.read() as tx:
        return [row["event"] for row in audit.search(tx, **how)]


def verify(store):
    with store.database.read() as tx:
        return audit.verify(tx)


def tamper(store, *statements):
    """What somebody with a database editor does."""
    with store.database.transaction() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        else:
            tx.execute(text("DROP TRIGGER audit_no_update"))
            tx.execute(text("DROP TRIGGER audit_no_delete"))
        for statement in statements:
            tx.execute(text(statement))


def test_a_row_is_written_with_what_it_records_or_not_at_all(store):
    with pytest.raises(ZeroDivisionError), store.database.transaction() as tx:
        audit.append(tx, 1, "node.started")
        raise ZeroDivisionError
    add(store, "node.stopped")
    assert search(store) == ["node.stopped"]


def test_rows_of_a_transaction_are_seen_by_its_own_search(store):
    with store.database.transaction() as tx:
        audit.append(tx, 1, "node.started")
        assert [row["event"] for row in audit.search(tx)] == ["node.started"]
    assert search(store) == ["node.started"]


@pytest.mark.parametrize("statement", ["UPDATE audit SET outcome = 'X'", "DELETE FROM audit"])
def test_the_database_refuses_to_change_the_trail(store, statement):
    add(store, "node.started")
    with pytest.raises(DatabaseError, match="only grows"), store.database.transaction() as tx:
        tx.execute(text(statement))
    assert search(store) == ["node.started"]


def test_an_untouched_trail_holds(store):
    assert verify(store) is None
    store.reported("PACS")
    add(store, "a.b", detail={"name": "Ä\n\x1b[31m", "n": 1.5, "list": [None, True]}, patient_id="P1")
    assert verify(store) is None


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE audit SET outcome = 'ACCEPTED' WHERE id = 2", 2),
        ("UPDATE audit SET at = at + 1 WHERE id = 1", 1),
        ("UPDATE audit SET detail = NULL WHERE id = 3", 3),
        ("DELETE FROM audit WHERE id = 2", 3),
        ("DELETE FROM audit WHERE id = 1", 2),
        ("UPDATE audit SET id = 10 - id", 5),
    ],
)
def test_an_altered_trail_shows(store, statement, row):
    for name in "abcde":
        add(store, f"x.{name}", detail={"n": name})
    if "10 - id" in statement:
        tamper(store, "UPDATE audit SET id = 100 - id", "UPDATE audit SET id = id - 90")
    else:
        tamper(store, statement)
    broken = verify(store)
    assert broken is not None
    assert broken.audit_id == row


def test_rows_cut_off_the_end_show_against_a_head_noted_before(store):
    add(store, "a.a", "b.b")
    with store.database.read() as tx:
        noted = audit.head(tx)
    tamper(store, "DELETE FROM audit WHERE id = 2")
    assert verify(store) is None
    with store.database.read() as tx:
        assert audit.head(tx) != noted


def test_a_search_combines_what_it_is_given(store):
    add(store, "job.queued", now=1, patient_id="P1", study_uid="1", series_uid="1.1", outcome="QUEUED")
    add(store, "job.failed", now=2, patient_id="P1", study_uid="1", series_uid="1.2", outcome="FAILED")
    add(store, "jobless.x", now=3, patient_id="P2", study_uid="2", series_uid="2.1", outcome="FAILED")
    assert search(store, patient="P1") == ["job.queued", "job.failed"]
    assert search(store, study="2") == ["jobless.x"]
    assert search(store, series="1.1") == ["job.queued"]
    assert search(store, since=2, until=2) == ["job.failed"]
    assert search(store, outcome="FAILED", patient="P1") == ["job.failed"]
    assert search(store, event="job") == ["job.queued", "job.failed"]
    assert search(store, event="job.queued") == ["job.queued"]
    assert search(store, limit=2) == ["job.failed", "jobless.x"]
    assert search(store, patient="P' OR '1'='1") == []


def test_every_change_of_state_has_its_row(store):
    """Walk a series through everything; each row's audited states must be an unbroken chain of allowed moves."""
    store.reported("PACS")
    with store.database.transaction() as tx:
        [sending] = deliveries.claim(tx, "PACS", 40, 60)
    store.receive(3, now=50)
    with store.database.transaction() as tx:
        deliveries.retry_later(tx, sending.delivery_id, sending.fence, 51, 60, "refused")
    store.close_due(80)
    job = store.claim(81)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, 82, "broken", None)
    with store.database.transaction() as tx:
        jobs.retry(tx, job.job_id, 83)
    job = store.claim(84)
    store.receive(4, now=85)
    store.finish(job, 86, "PACS")
    with store.database.read() as tx:
        rows = audit.search(tx)
    moves = [(row["event"], row["detail"].get("from")) for row in rows if re.match("series|job|delivery", row["event"])]
    assert moves == [
        ("series.open", None),
        ("series.closed", "OPEN"),
        ("job.queued", None),
        ("job.running", "QUEUED"),
        ("job.reported", "RUNNING"),
        ("delivery.pending", None),
        ("delivery.sending", "PENDING"),
        ("series.open", "CLOSED"),
        ("delivery.superseded", "SENDING"),
        ("series.closed", "OPEN"),
        ("job.queued", None),
        ("job.running", "QUEUED"),
        ("job.failed", "RUNNING"),
        ("job.queued", "FAILED"),
        ("job.running", "QUEUED"),
        ("series.open", "CLOSED"),
        ("job.superseded", "RUNNING"),
    ]
    assert all(row["series_uid"] == "1.2.3" and row["study_uid"] == "1.2" and row["patient_id"] == "P1" for row in rows)


def test_the_chain_covers_every_column(store):
    assert {*audit.CONTENT, "id", "previous", "hash"} == set(table.c.keys())
