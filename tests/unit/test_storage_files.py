"""The file store: durable, generated names, nothing left behind."""

import errno
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import CorruptFile, StorageError, StorageFull
from storage.folder import FolderStore

NOVEMBER = 1_795_424_400.0  # 2026-11-23 09:00 UTC


@pytest.fixture
def files(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "files", clock=lambda: NOVEMBER)


def everything(files: FolderStore) -> list[Path]:
    return [path for path in files.root.rglob("*") if path.is_file()]


def test_a_file_is_read_back_as_written(files):
    stored = files.write_durably([b"first ", bytearray(b"second "), memoryview(b"third")])
    assert stored.size == 18
    assert stored.sha256 == hashlib.sha256(b"first second third").hexdigest()
    assert files.read_verified(stored.path, stored.sha256) == b"first second third"


def test_the_name_is_generated_below_the_day(files):
    assert re.fullmatch(r"2026/11/23/[0-9a-f]{32}\.dcm", files.write_durably([b""]).path)


def test_an_empty_file_and_an_array_of_words_are_hashed_by_their_bytes(files):
    assert files.write_durably([]).sha256 == hashlib.sha256().hexdigest()
    words = memoryview(b"\x01\x00\x02\x00").cast("H")
    assert files.write_durably([words]).size == 4


def test_description_before_commit_is_what_commit_returns(files):
    with files.create() as new:
        new.write(b"abc")
        described = new.describe()
        assert new.commit() == described


def test_a_file_not_committed_is_gone(files):
    with files.create() as new:
        new.write(b"half")
    assert everything(files) == []


def test_a_chunk_that_fails_leaves_nothing(files):
    def chunks():
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        files.write_durably(chunks())
    assert everything(files) == []


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_named_and_leaves_nothing(files, monkeypatch, call, number):
    files.write_durably([b"makes the folder"])
    before = everything(files)

    def full(*_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageFull):
        files.write_durably([b"x"])
    assert everything(files) == before


def test_no_space_for_a_name_is_named(files, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageFull):
        files.create()


def test_commit_syncs_the_file_then_every_folder_that_got_a_name(files, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(fd):
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    stored = files.write_durably([b"x"])
    root = files.root
    assert synced[:3] == [root / "2026/11", root / "2026", root]
    assert set(synced[3:]) == {root / stored.path, root / "2026/11/23"}
    synced.clear()
    again = files.write_durably([b"y"])
    assert set(synced) == {root / again.path, root / "2026/11/23"}


def test_a_name_that_cannot_be_made_durable_leaves_nothing(files, monkeypatch):
    files.write_durably([b"makes the folder"])
    before = everything(files)
    real = os.fsync

    def fsync(fd):
        if Path(os.readlink(f"/proc/self/fd/{fd}")).is_dir():
            raise OSError(errno.EIO, "the disk is broken")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="broken"):
        files.write_durably([b"x"])
    assert everything(files) == before


def test_every_file_has_a_sync_of_its_folder_that_began_after_it_was_made(files, monkeypatch):
    """Many at once may share one, but none may rely on one that was under way already."""
    files.write_durably([b"makes the folder"])
    folder, real, listed = files.root / "2026/11/23", os.fsync, []

    def fsync(fd):
        if Path(os.readlink(f"/proc/self/fd/{fd}")) == folder:
            listed.append(set(os.listdir(folder)))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with ThreadPoolExecutor(8) as threads:

        def write(number):
            name = Path(files.write_durably([str(number).encode()]).path).name
            return any(name in names for names in list(listed))

        assert all(threads.map(write, range(200)))


def test_a_second_store_makes_sure_of_the_folders_itself(files, monkeypatch):
    files.write_durably([b"x"])
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    FolderStore(files.root, clock=lambda: NOVEMBER).write_durably([b"y"])
    assert str(files.root / "2026/11") in synced


def test_altered_bytes_are_not_returned(files):
    stored = files.write_durably([b"pixels"])
    files.absolute(stored.path).write_bytes(b"pixelS")
    with pytest.raises(CorruptFile, match="SHA-256"):
        files.read_verified(stored.path, stored.sha256)


def test_a_missing_file_is_named(files):
    stored = files.write_durably([b"pixels"])
    assert files.remove(stored.path)
    assert not files.remove(stored.path)
    with pytest.raises(CorruptFile, match="missing"):
        files.read_verified(stored.path, stored.sha256)


@pytest.mark.parametrize("path", ["../index.sqlite", "/etc/passwd", "2026/../../x", ".", ""])
def test_a_path_out_of_the_store_is_refused(files, path):
    with pytest.raises(StorageError):
        files.absolute(path)


def test_old_files_are_listed_folder_by_folder_with_the_number_of_all(files):
    old, young = (files.write_durably([name]) for name in (b"old", b"young"))
    foreign = files.root / "lost+found.txt"
    foreign.write_text("not ours")
    for path in (foreign, files.absolute(old.path)):
        os.utime(path, (1000, 1000))
    assert [found for found in files.folders(older_than=2000) if found[0]] == [(2, [old.path])]
    assert [found for found in files.folders(float("inf")) if found[0]] == [(2, sorted([old.path, young.path]))]


def test_a_file_that_is_set_aside_is_kept_under_its_path_and_can_come_back(files, monkeypatch):
    stored = files.write_durably([b"x"])
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    folder = files.quarantine_of(NOVEMBER)
    files.set_aside(stored.path, folder)
    assert folder == "quarantine/2026-11-23"
    assert files.quarantined() == [(folder, [f"{folder}/{stored.path}"])]
    assert all(count == 0 for count, _ in files.folders(float("inf")))
    assert {str(files.root / "2026/11/23"), str(files.root / folder / "2026/11/23")} <= set(synced)
    files.set_aside(stored.path, folder)  # again: harmless
    assert files.take_back(f"{folder}/{stored.path}") == stored.path
    assert files.read_verified(stored.path, stored.sha256) == b"x"


def test_a_folder_of_the_quarantine_is_deleted_as_a_whole(files):
    for day in (NOVEMBER, NOVEMBER + 86400):
        files.set_aside(files.write_durably([b"x"]).path, files.quarantine_of(day))
    assert files.delete_quarantine("quarantine/2026-11-23") == 1
    assert [folder for folder, _ in files.quarantined()] == ["quarantine/2026-11-24"]


def test_free_space_is_a_number_of_bytes(files):
    assert files.free_bytes() > 0
