"""Is the audit trail whole, to its end?"""

import pytest

from storage import audit
from storage.audit_check import Check, check, parse_head
from tests.storage_factory import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def cut(store, rows):
    """What somebody with a database editor can do."""
    with store.database.transaction() as tx:
        for trigger in tx.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars().all():
            tx.exec_driver_sql(f"DROP TRIGGER {trigger}")
        tx.exec_driver_sql(f"DELETE FROM audit WHERE id > (SELECT max(id) FROM audit) - {rows}")


def found(store, expected=None):
    with store.database.read() as tx:
        return check(tx, expected)


def test_a_whole_trail_gives_its_rows_and_its_head(store):
    store.reported("PACS")
    with store.database.read() as tx:
        head = audit.head(tx)
    result = found(store, head)
    assert (result.rows, result.head, result.problems) == (len(store.events()), head, ())


def test_an_empty_trail_is_whole(store):
    assert found(store) == Check(0, (0, audit.FIRST), ())


def test_a_trail_whose_end_was_cut_off_does_not_hold_the_noted_head(store):
    store.reported("PACS")
    head = found(store).head
    cut(store, 1)
    assert found(store).problems == (), "the chain alone does not show it"
    assert "is not there: rows were cut off the end" in found(store, head).problems[0]


def test_a_trail_that_grew_holds_the_noted_head(store):
    store.receive(1, now=0)
    head = found(store).head
    store.receive(2, now=1)
    assert found(store, head).problems == ()


def test_a_trail_that_was_written_anew_is_not_the_noted_one(store):
    store.receive(1, now=0)
    number, _ = found(store).head
    assert "was written anew" in found(store, (number, "0" * 64)).problems[0]


def test_a_trail_that_ends_before_the_last_result_was_cut_off(store):
    store.receive(1, now=0, series_uid="7.7")
    store.reported("PACS", now=100)
    cut(store, len(store.events()) - 2)
    assert found(store).problems == ("the last row is older than the last result: rows were cut off the end",)


@pytest.mark.parametrize("text", ["", "12", f"x:{'a' * 64}", f"12:{'a' * 63}", f"12:{'A' * 64}"])
def test_a_head_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="a head is"):
        parse_head(text)


def test_a_head_is_read_as_it_is_printed():
    assert parse_head(f" 12:{'a' * 64}\n") == (12, "a" * 64)


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE findings SET certainty = 0.01", "result 1 or its objects were altered after they were recorded"),
        ("UPDATE result_objects SET sha256 = 'other'", "result 1 or its objects were altered after they were recorded"),
        ("DELETE FROM result_objects", "result 1 or its objects were altered after they were recorded"),
    ],
)
def test_a_result_that_was_altered_in_the_index_is_found(store, statement, says):
    store.reported("PACS")
    assert found(store).problems == ()
    with store.database.transaction() as tx:
        tx.exec_driver_sql(statement)
    assert found(store).problems == (says,)
