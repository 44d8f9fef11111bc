"""Files that no row names: a few are set aside, many are left and told of, none is deleted before its days are over."""

import os

import pytest
import structlog

from storage import orphans
from storage.orphans import empty_quarantine, last_sweep, survey, sweep
from tests.storage_factory import Store

DAY = 86400.0
FOREVER = float("inf")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def write(store, count):
    return [store.files.write_durably([f"orphan {number}".encode()]).path for number in range(count)]


def stored(store):
    return sorted(path for _, paths in store.files.folders(FOREVER) for path in paths)


def test_a_few_are_set_aside_with_an_alarm(store):
    store.receive(1, now=0)
    kept, lost = stored(store), write(store, 3)
    with structlog.testing.capture_logs() as logs:
        done = sweep(store.database, store.files, 1e10, 60)
    assert (sorted(done.taken), done.held_back) == (sorted(lost), 0)
    assert stored(store) == kept
    assert store.files.quarantined() == [(done.folder, sorted(f"{done.folder}/{path}" for path in lost))]
    assert store.events()[-1] == "files.swept"
    assert [(log["log_level"], log["files"]) for log in logs] == [("warning", 3)]
    with store.database.read() as tx:
        assert last_sweep(tx) == {"at": 1e10, "outcome": "SWEPT", "files": 3, "folder": done.folder}


def test_too_many_are_left_with_an_alarm_until_a_person_asks(store):
    store.receive(1, now=0)
    lost = write(store, orphans.FREELY + 1)
    before = stored(store)
    with structlog.testing.capture_logs() as logs:
        done = sweep(store.database, store.files, 1e10, 60)
    assert (done.taken, done.held_back) == ((), len(lost))
    assert stored(store) == before
    assert (store.events()[-1], logs[0]["log_level"]) == ("files.not-swept", "warning")
    done = sweep(store.database, store.files, 1e10, 60, everything=True)
    assert sorted(done.taken) == sorted(lost)
    assert len(stored(store)) == 1


def test_the_limit_is_a_number_or_a_share_of_the_files():
    assert [orphans.freely_swept(files) for files in (0, 100, 400, 1000, 1_000_000)] == [20, 20, 20, 50, 50_000]


def test_a_young_file_is_spared(store):
    write(store, 1)
    assert sweep(store.database, store.files, 0.0, 60).taken == ()
    assert len(stored(store)) == 1


def test_without_orphans_nothing_is_said(store):
    store.reported("PACS")
    events = store.events()
    sweep(store.database, store.files, 1e10, 60)
    assert store.events() == events


def test_a_file_whose_row_says_that_it_is_missing_is_no_orphan(store):
    store.receive(1, now=0)
    (path,) = stored(store)
    with store.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE instances SET gone_at = 1, gone_reason = 'missing'")
    assert sweep(store.database, store.files, 1e10, 60).taken == ()
    assert survey(store.database, store.files, FOREVER).lost == [path]
    assert stored(store) == [path]


def test_a_crash_after_the_alarm_sweeps_again(store, monkeypatch):
    lost = write(store, 1)

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.files, "set_aside", crash)
    with pytest.raises(KeyboardInterrupt):
        sweep(store.database, store.files, 1e10, 60)
    monkeypatch.undo()
    assert list(sweep(store.database, store.files, 1e10, 60).taken) == lost
    assert store.events() == ["files.swept", "files.swept"]


def test_what_is_set_aside_is_deleted_after_its_days_and_not_before(store):
    write(store, 2)
    now = 20_000 * DAY + 7
    sweep(store.database, store.files, now, -FOREVER)
    assert empty_quarantine(store.database, store.files, now + 14 * DAY, 14) == 0
    assert len(store.files.quarantined()[0][1]) == 2
    assert empty_quarantine(store.database, store.files, now + 15 * DAY, 14) == 2
    assert store.files.quarantined() == []
    assert store.events()[-1] == "quarantine.deleted"


def test_a_folder_in_the_quarantine_that_no_sweep_made_is_left(store):
    folder = store.files.root / "quarantine" / "2026-99-99"
    folder.mkdir(parents=True)
    other = store.files.root / "quarantine" / "keep"
    other.mkdir()
    empty_quarantine(store.database, store.files, 1e11, 14)
    assert folder.exists() and other.exists()


def test_files_are_asked_about_in_pieces(store, monkeypatch):
    monkeypatch.setattr(orphans, "AT_ONCE", 2)
    store.receive(1, 2, 3, now=0)
    lost = write(store, 2)
    found = survey(store.database, store.files, FOREVER)
    assert (found.files, found.named, sorted(found.unknown)) == (5, 3, sorted(lost))


def test_without_an_index_no_file_is_known(store):
    store.receive(1, now=0)
    assert survey(None, store.files, FOREVER).unknown == stored(store)


def test_only_the_age_at_the_moment_of_looking_counts(store):
    (path,) = write(store, 1)
    os.utime(store.files.absolute(path), (100, 100))
    assert survey(store.database, store.files, 100).unknown == []
    assert survey(store.database, store.files, 101).unknown == [path]
