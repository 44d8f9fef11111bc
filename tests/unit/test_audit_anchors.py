"""What only a witness outside shows: an end that was cut off, and a trail that was written anew."""

import pytest
from sqlalchemy import text

from storage import audit
from storage.audit_anchors import read_anchors
from storage.audit_archive import archive
from storage.audit_check import check
from tests.storage_factory import Store
from tests.syslog_receivers import receiver
from tests.unit.test_audit_messages import forward, note, tamper
from tests.unit.test_storage_audit_archive import with_two_archives


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def log(store):
    """What a receiver wrote down of a trail of some rows."""
    with_two_archives(store)
    for number in range(4):
        note(store, "node.started", 1500 + number)
    with receiver() as repository:
        forward(store, repository, 2000, last=True)
        yield repository.messages


def found(store: Store, lines: list[str]) -> list[str]:
    anchors, contradictions = read_anchors(lines)
    with store.database.read() as tx:
        return [*contradictions, *check(tx, None, store.folder / "audit", anchors).problems]


def written_anew(store: Store) -> None:
    """The rows of the index as somebody would write them who can compute the hashes: the last event is another one."""
    rows = store.rows("SELECT * FROM audit ORDER BY id")
    rows[-1]["event"] = "node.stopped"
    previous, statements = rows[0]["previous"], []
    for row in rows:
        row["previous"] = previous
        previous = audit._digest(previous, row)
        statements.append(
            f"UPDATE audit SET event = '{row['event']}', previous = '{row['previous']}', hash = '{previous}'"
            f" WHERE id = {row['id']}"
        )
    tamper(store, *statements)


def test_a_whole_trail_holds_everything_that_a_receiver_wrote_down(store, log):
    assert found(store, log) == []


def test_a_trail_that_goes_on_still_holds_it(store, log):
    note(store, "node.started", 3000)
    archive(store.database, store.folder / "audit", 2500, 4000.0, {})
    assert found(store, log) == []


def test_an_end_that_was_cut_off_is_found_although_the_chain_holds(store, log):
    tamper(store, "DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)")
    assert found(store, []) == []
    [problem] = found(store, log)
    assert "was noted and is not there: rows were cut off the end" in problem


def test_a_trail_that_was_written_anew_is_found_although_the_chain_holds(store, log):
    written_anew(store)
    assert found(store, []) == []
    assert [one for one in found(store, log) if "is not the one that was noted: the trail was written anew" in one]


def test_a_trail_that_was_cut_and_went_on_is_found(store, log):
    tamper(store, "DELETE FROM audit WHERE id > (SELECT max(id) FROM audit) - 2")
    if store.url.startswith("sqlite"):
        tamper(store, "UPDATE sqlite_sequence SET seq = (SELECT max(id) FROM audit) WHERE name = 'audit'")
    for number in range(3):
        note(store, "node.started", 3000 + number)
    assert found(store, []) == []
    assert len(found(store, log)) >= 1


def test_a_simple_list_is_enough_and_two_hashes_of_one_row_are_told(store):
    note(store, "node.started", 1)
    with store.database.read() as tx:
        number, digest = audit.head(tx)
    assert found(store, [f"{number}:{digest}\n", "# a comment\n"]) == []
    assert read_anchors([f"7:{'a' * 64}", f"7:{'b' * 64}"])[1] == [
        "row 7 was noted with two hashes: the trail was written anew in between"
    ]


def test_many_rows_that_are_gone_are_told_in_a_few_lines(store):
    note(store, "node.started", 1)
    told = found(store, [f"{number}:{'a' * 64}" for number in range(100, 2000)])
    assert (len(told), told[-1]) == (6, "and 1895 more such rows")
    with store.database.read() as tx:
        assert tx.scalar(text("SELECT count(*) FROM audit")) == 1
