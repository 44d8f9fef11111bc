"""Index and files know each other: an identity in both, an epoch, and the end of the audit trail."""

import os
import shutil
import sqlite3
import stat

import pytest

from storage import audit, identity
from storage.database import Database, open_database
from storage.errors import DatabaseOutdated, StorageError, StoreMismatch, StoreReplaced
from storage.folder import FolderStore
from storage.identity import Epoch, claim, look, open_store, raise_epoch
from storage.mark import Identity, Mark
from storage.reconcile import reconcile
from tests.fixtures import files_of, index_of
from tests.storage_factory import Store

sqlite = pytest.mark.sqlite


class Bound(Store):
    """A store as a started node has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        claim(self.database, self.files)

    def opened(self) -> Database:
        """As another process opens it."""
        return open_store(self.url, self.files)

    def append(self, event: str = "test.event") -> None:
        with self.database.transaction() as tx:
            audit.append(tx, 0.0, event)


@pytest.fixture
def store(tmp_path):
    with Bound(tmp_path) as store:
        yield store


def mismatch(store):
    with pytest.raises(StoreMismatch) as refused:
        store.opened()
    text = str(refused.value)
    assert "\n" not in text and "dicom-node index adopt" in text
    return text


def properties(store):
    return {row["name"]: row["value"] for row in store.rows("SELECT * FROM properties WHERE name <> 'views'")}


@pytest.mark.parametrize("raised", [False, True])
def test_what_another_process_records_while_the_index_is_opened_is_no_mismatch(store, monkeypatch, raised):
    read = identity.identity_of

    def read_and_then_another_writes(tx):
        held = read(tx)
        monkeypatch.setattr(identity, "identity_of", read)
        if raised:
            identity.raise_epoch(store.database, store.files)
        store.append()
        return held

    monkeypatch.setattr(identity, "identity_of", read_and_then_another_writes)
    store.opened().close()
    monkeypatch.setattr(identity, "identity_of", read_and_then_another_writes)
    assert look(store.url, store.files)[2] is None


def test_a_new_store_gets_one_identity_in_index_and_files(store):
    held, found, problem = look(store.url, store.files)
    assert held == found and held.epoch == 1 and len(held.store) == 32 and problem is None
    assert properties(store).items() >= {"store": held.store, "epoch": "1"}.items()


def test_each_start_is_an_epoch_further_and_keeps_the_identity(store):
    first = look(store.url, store.files)[0]
    assert claim(store.database, store.files) == Identity(first.store, 2)
    store.opened().close()


def test_every_commit_notes_the_end_of_the_audit_trail_beside_the_files(store):
    store.append()
    with store.database.read() as tx:
        assert Mark(store.files.root).noted()[1] == audit.head(tx)[1]
    store.receive(1, 2, now=0)
    with store.database.read() as tx:
        assert Mark(store.files.root).noted()[1] == audit.head(tx)[1]
    store.opened().close()


@sqlite
def test_an_index_of_one_commit_ago_is_older(store, tmp_path):
    store.append()
    store.database.close()
    shutil.copy(tmp_path / "index.sqlite", tmp_path / "backup")
    database = store.opened()
    with database.transaction() as tx:
        audit.append(tx, 0.0, "one.more")
    database.close()
    shutil.copy(tmp_path / "backup", tmp_path / "index.sqlite")
    assert "is older than the files" in mismatch(store)


@sqlite
def test_an_index_that_went_another_way_is_refused(store, tmp_path):
    store.database.close()
    shutil.copytree(store.files.root, tmp_path / "copied")
    shutil.copy(tmp_path / "index.sqlite", tmp_path / "backup")
    for files, event in ((store.files, "one.way"), (FolderStore(tmp_path / "copied"), "other.way")):
        shutil.copy(tmp_path / "backup", tmp_path / "index.sqlite")
        database = open_store(store.url, files)
        for _ in range(3):
            with database.transaction() as tx:
                audit.append(tx, 0.0, event)
        database.close()
    assert "went another way" in mismatch(store)


def test_a_note_that_a_power_failure_left_behind_is_no_reason_to_refuse(store):
    mark = Mark(store.files.root)
    before = mark.noted()
    store.append()
    database = store.opened()
    mark.open()
    mark.note(before)
    database.close()
    store.opened().close()


@pytest.mark.parametrize("damage", [b"", b"\0" * 95, b"half of a li"])
def test_a_note_that_was_half_written_is_no_reason_to_refuse(store, damage):
    store.append()
    (store.files.root / "store.head").write_bytes(damage)
    store.opened().close()


def test_an_epoch_that_the_files_have_and_the_index_not_yet_is_a_crash_and_two_are_an_older_index(store):
    mark, held = Mark(store.files.root), look(store.url, store.files)[0]
    mark.write(Identity(held.store, held.epoch + 1))
    store.opened().close()
    mark.write(Identity(held.store, held.epoch + 2))
    assert "is older than the files" in mismatch(store)


def test_files_an_epoch_behind_are_older(store):
    mark = Mark(store.files.root)
    first = mark.read()
    raise_epoch(store.database, store.files)
    mark.write(first)
    assert "are older than the index" in mismatch(store)


def test_the_epoch_of_a_running_node_is_raised_after_work_only(store):
    epoch = Epoch(store.database, store.files)
    epoch.raise_after_work()
    assert Mark(store.files.root).read().epoch == 1
    store.append()
    epoch.raise_after_work()
    epoch.raise_after_work()
    assert Mark(store.files.root).read().epoch == 2


def test_an_empty_index_beside_used_files_is_refused(store, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Store(other) as empty, pytest.raises(StoreMismatch, match="is missing or empty"):
        open_store(empty.url, store.files)


@sqlite
def test_a_missing_index_is_not_made_beside_files_that_belong_to_one(store, tmp_path):
    url = f"sqlite:///{tmp_path}/new/node.db"
    with pytest.raises(StoreMismatch, match="is missing or empty"):
        open_store(url, store.files)
    assert not (tmp_path / "new").exists()


def test_missing_files_are_refused_if_the_index_names_some(store):
    shutil.rmtree(store.files.root)
    store.opened().close()  # nothing was stored yet: nothing is lost
    store.files.root.mkdir()
    claim(open_store(store.url, store.files), store.files)
    store.database.close()
    store.database = store.opened()
    store.receive(1, now=0)
    shutil.rmtree(store.files.root)
    assert "are missing" in mismatch(store)


def test_files_of_another_node_are_refused(store, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Bound(other) as another, pytest.raises(StoreMismatch, match="belong to different nodes"):
        open_store(store.url, another.files)


def test_no_password_stands_in_a_refusal():
    assert "secret" not in Database("postgresql+psycopg://node:secret@nowhere/index").where


# Index and files of a version without identities.


def test_a_data_folder_of_0_1_0_gets_its_identity_at_the_first_start(tmp_path):
    index_of("0.1.0", tmp_path / "node.db")
    files = files_of("0.1.0", tmp_path)
    database = open_store(f"sqlite:///{tmp_path}/node.db", files)
    assert claim(database, files).epoch == 1
    found = reconcile(database, files, 1_795_920_000.0)
    assert {name: found[name] for name in ("files_missing", "files_corrupt", "reports_lost", "orphans_swept")} == {
        "files_missing": 0, "files_corrupt": 0, "reports_lost": 0, "orphans_swept": 0
    }  # fmt: skip
    database.close()


def test_an_old_folder_with_a_file_that_a_crash_left_is_no_reason_to_refuse(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        store.files.write_durably([b"left by a crash"])
        assert claim(store.database, store.files).epoch == 1


def test_an_old_folder_with_an_empty_index_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.files.write_durably([b"acknowledged"])
        with pytest.raises(StoreMismatch, match="does not know 1 of the 1 files"):
            claim(store.database, store.files)
        assert Mark(store.files.root).read() is None


def test_an_old_folder_with_many_files_that_the_index_does_not_know_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        for number in range(21):
            store.files.write_durably([str(number).encode()])
        with pytest.raises(StoreMismatch, match="does not know 21 of the 22 files"):
            claim(store.database, store.files)


def test_an_old_folder_without_its_files_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, 2, now=0)
        shutil.rmtree(store.files.root)
        store.files.root.mkdir()
        with pytest.raises(StoreMismatch, match="are missing"):
            claim(store.database, store.files)


# Under a running node.


def replaced_by(path, content):
    new = path.with_name("new")
    shutil.copy(content, new)
    new.rename(path)


LIVE = {
    "removed": lambda path: path.unlink(),
    "renamed": lambda path: path.rename(path.with_name("away")),
    "replaced": lambda path: replaced_by(path, path),
    "cut short": lambda path: os.truncate(path, 0),
    "log removed": lambda path: path.with_name(f"{path.name}-wal").unlink(),
}


@sqlite
@pytest.mark.parametrize("how", LIVE)
def test_an_index_that_is_no_longer_the_one_opened_is_written_no_more(store, tmp_path, how):
    store.append()
    with store.database.read():
        LIVE[how](tmp_path / "index.sqlite")
    with pytest.raises(StoreReplaced):
        store.database.check()
    with pytest.raises(StoreReplaced):
        store.append()


@sqlite
def test_a_commit_to_an_index_that_lost_its_name_meanwhile_is_not_reported_as_done(store, tmp_path):
    with pytest.raises(StoreReplaced), store.database.transaction() as tx:
        audit.append(tx, 0.0, "committed.but")
        (tmp_path / "index.sqlite").rename(tmp_path / "away")
    (tmp_path / "away").rename(tmp_path / "index.sqlite")
    store.append()
    assert store.events() == ["committed.but", "test.event"]


@sqlite
def test_a_new_connection_is_not_made_to_another_index(store, tmp_path):
    other = sqlite3.connect(tmp_path / "other")
    other.execute("CREATE TABLE audit (id INTEGER)")
    other.close()
    (tmp_path / "other").rename(tmp_path / "index.sqlite")
    store.database.engine.dispose()
    with pytest.raises(StoreReplaced), store.database.read():
        pass


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_without_its_files_folder_the_index_is_written_no_more(store, tmp_path, how):
    root = store.files.root
    root.rename(tmp_path / "away")
    if how == "replaced":
        shutil.copytree(tmp_path / "away", root)
    if how == "removed":
        shutil.rmtree(tmp_path / "away")
    with pytest.raises(StoreReplaced):
        store.append()
    with pytest.raises(StoreReplaced):
        raise_epoch(store.database, store.files)
    if how == "renamed":
        (tmp_path / "away").rename(root)
        store.append()


def test_the_marks_are_for_their_owner_only(store):
    for name in ("store.json", "store.head"):
        assert stat.S_IMODE((store.files.root / name).stat().st_mode) & 0o077 == 0


def test_an_identity_that_cannot_be_read_is_named(store):
    (store.files.root / "store.json").write_text("{")
    with pytest.raises(StorageError, match=r"store\.json cannot be read"):
        store.opened()


def test_without_identities_nothing_is_checked(tmp_path):
    """As a command on a folder where no node has run yet."""
    database = open_store(f"sqlite:///{tmp_path}/node.db", FolderStore(tmp_path / "files", make=False))
    assert not (tmp_path / "files").exists()
    with database.transaction() as tx:
        audit.append(tx, 0.0, "test.event")
    FolderStore(tmp_path / "files")
    database.close()
    open_database(f"sqlite:///{tmp_path}/node.db").close()


def test_a_mark_that_cannot_be_written_is_named(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"store\.json cannot be written: No space left"):
        Mark(store.files.root).write(Identity("x", 1))
    monkeypatch.undo()
    store.opened().close()


def test_a_crash_between_the_first_mark_and_the_index_is_gone_on_from(tmp_path, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    with Store(tmp_path) as store:
        store.receive(1, now=0)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("storage.identity.set_fact", crash)
            claim(store.database, store.files)
        assert Mark(store.files.root).read().epoch == 1
        assert claim(open_store(store.url, store.files), store.files).epoch == 2


def dump(path):
    with sqlite3.connect(path) as index:
        return "\n".join(index.iterdump())


@sqlite
@pytest.mark.parametrize("how", [{"create": False}, {"upgrade": False}])
def test_only_the_start_of_a_node_changes_the_schema(tmp_path, how):
    """A node of the former version may be at work when a command, or a process that died, starts in the new one."""
    path = index_of("0.1.0", tmp_path / "node.db")
    if "create" in how:  # an index with an identity, which the node's own processes ask for
        with sqlite3.connect(path) as index:
            index.execute("INSERT INTO properties VALUES ('store', 'abc'), ('epoch', '1')")
        Mark(files_of("0.1.0", tmp_path).root).write(Identity("abc", 1))
    before = dump(path)
    with pytest.raises(DatabaseOutdated, match="stop it first"):
        open_store(f"sqlite:///{path}", files_of("0.1.0", tmp_path), **how)
    assert dump(path) == before and not list(tmp_path.glob("*.backup"))


@sqlite
def test_what_may_not_upgrade_still_makes_the_first_index(tmp_path):
    open_store(f"sqlite:///{tmp_path}/node.db", FolderStore(tmp_path / "files", make=False), upgrade=False).close()
    assert (tmp_path / "node.db").exists()


def test_an_index_that_goes_while_it_is_opened_is_not_made_anew(tmp_path):
    """Between the look whether it is there and the first connection, which SQLite would make a new file for."""
    database = Database(f"sqlite:///{tmp_path / 'node.db'}", create=False)
    with pytest.raises(StoreReplaced), database.read():
        pass
    assert list(tmp_path.iterdir()) == []
