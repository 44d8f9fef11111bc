"""The oldest audit rows move into files, and the trail stays whole: nothing is lost, and what is altered shows."""

import gzip
import json
import os

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from storage import audit, audit_archive
from storage.audit_check import check
from storage.errors import NotFound, StorageError
from tests.storage_factory import Store


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def archive(store, before, now=1000.0):
    return audit_archive.archive(store.database, store.folder / "audit", before, now, {"user": "root"})


def found(store, expected=None, folder=None):
    with store.database.read() as tx:
        return check(tx, expected, folder or store.folder / "audit")


def all_rows(store):
    return store.rows("SELECT * FROM audit ORDER BY id")


def with_two_archives(store):
    """Three series, a day apart; the first two are archived, each in a file of its own."""
    for day in range(3):
        store.receive(1, 2, now=day * 100, series_uid=f"7.{day}")
        store.close_due(day * 100 + 50)
        store.finish(store.claim(day * 100 + 51), day * 100 + 52, "PACS")
    return [archive(store, 100), archive(store, 200, now=1001)]


def test_the_rows_before_a_date_are_in_the_file_and_no_longer_in_the_index(store):
    store.receive(1, 2, now=0)
    store.receive(3, now=100)
    before = all_rows(store)
    made = archive(store, 100)
    old = [row for row in before if row["at"] < 100]
    assert list(audit_archive.archived_rows(store.folder / "audit", made)) == old
    assert [row["event"] for row in all_rows(store)] == ["instance.received", "audit.archived"]
    assert (made.rows, made.last_id) == (len(old), old[-1]["id"])
    file = store.folder / "audit" / made.file
    assert file.stat().st_mode & 0o777 == 0o600
    lines = gzip.decompress(file.read_bytes()).splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in old]


def test_the_check_goes_over_the_archives_and_the_index(store):
    with_two_archives(store)
    before = found(store)
    assert before.problems == ()
    store.receive(9, now=2000, series_uid="9.9")
    after = found(store, before.head)
    assert after.problems == ()
    assert after.rows == before.rows + 2
    assert after.rows == after.head[0], "every row that there ever was is counted"


def test_a_head_that_was_noted_before_the_archive_is_found_in_it(store):
    store.receive(1, now=0)
    noted = found(store).head
    store.receive(2, now=100)
    archive(store, 100)
    assert found(store, noted).problems == ()
    assert "was written anew" in found(store, (noted[0], "0" * 64)).problems[0]


def test_an_archive_that_was_altered_is_named(store):
    first, _ = with_two_archives(store)
    path = store.folder / "audit" / first.file
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"7.0", b"7.9")))
    assert found(store).problems == (f"archive {path}: it was altered",)


def test_an_archive_that_is_not_there_is_named_until_it_is_found(store):
    first, _ = with_two_archives(store)
    elsewhere = store.folder / "tape"
    os.rename(store.folder / "audit", elsewhere)
    assert f"{first.file}: No such file" in found(store).problems[0]
    assert found(store, folder=elsewhere).problems == ()


def test_a_result_that_was_altered_after_its_row_was_archived_is_named(store):
    with_two_archives(store)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE results SET threshold = 0.1 WHERE id = 1"))
    assert found(store).problems == ("result 1 or its objects were altered after they were recorded",)


def test_only_archived_rows_can_be_deleted_and_no_archive_is_forgotten(store):
    with_two_archives(store)
    for statement in (
        "DELETE FROM audit",
        "UPDATE audit SET outcome = 'X'",
        "DELETE FROM audit_archives",
        "UPDATE audit_archives SET sha256 = ''",
    ):
        with pytest.raises(DatabaseError, match="only grows"), store.database.transaction() as tx:
            tx.execute(text(statement))
    assert found(store).problems == ()


def test_an_archive_that_somebody_invents_to_delete_rows_is_named(store):
    store.receive(1, now=0)
    store.receive(2, now=1)
    with store.database.transaction() as tx:
        tx.execute(
            text(
                "INSERT INTO audit_archives (last_id, rows, previous, hash, file, sha256, archived_at) "
                "SELECT id, id, :first, hash, 'x', 'x', 0 FROM audit WHERE id = 2"
            ),
            {"first": audit.FIRST},
        )
        tx.execute(text("DELETE FROM audit WHERE id <= 2"))
    assert "archive x: no audit row tells of it" in found(store).problems


def test_a_trail_that_does_not_hold_is_not_archived(store):
    store.receive(1, now=0)
    store.receive(2, now=1)
    with store.database.transaction() as tx:
        if tx.dialect.name == "postgresql":
            tx.execute(text("ALTER TABLE audit DISABLE TRIGGER ALL"))
        else:
            tx.execute(text("DROP TRIGGER audit_no_update"))
        tx.execute(text("UPDATE audit SET outcome = 'X' WHERE id = 1"))
    before = all_rows(store)
    with pytest.raises(StorageError, match="row 1 of the audit trail: its content was altered; nothing was archived"):
        archive(store, 100)
    assert all_rows(store) == before


def test_the_last_row_stays_and_nothing_old_is_said(store):
    store.receive(1, now=0)
    assert archive(store, 100).rows == 1
    assert all_rows(store)[0]["event"] == "instance.received"
    with pytest.raises(NotFound, match="that old"):
        archive(store, 0)


@pytest.mark.parametrize("after", ["before the record", "before the deletion"])
def test_what_a_crash_left_is_done_by_the_next_run(store, monkeypatch, after):
    store.receive(1, 2, now=0)
    store.receive(3, now=100)
    store.receive(4, now=200)
    before = found(store).rows

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        if after == "before the record":
            broken.setattr(audit_archive, "sha256_of", crash)
        else:
            done = audit_archive._delete_archived
            calls = iter([done, crash])
            broken.setattr(audit_archive, "_delete_archived", lambda *how: next(calls)(*how))
        with pytest.raises(KeyboardInterrupt):
            archive(store, 100)
    assert found(store).problems == ()
    archive(store, 150, now=1001)
    whole = found(store)
    assert whole.problems == ()
    assert whole.rows == before + (1 if after == "before the record" else 2)
    assert min(row["id"] for row in all_rows(store)) > 4
