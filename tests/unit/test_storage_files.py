"""The file store: durable, generated names, nothing left behind."""

import errno
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from storage.errors import CorruptFile, StorageError, StorageFull
from storage.files import FileStore

NOVEMBER = 1_795_424_400.0  # 2026-11-23 09:00 UTC


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files", clock=lambda: NOVEMBER)


def everything(files: FileStore) -> list[Path]:
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
    FileStore(files.root, clock=lambda: NOVEMBER).write_durably([b"y"])
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


def test_the_sweep_takes_only_old_files_without_a_row(files):
    known, orphan, young = (files.write_durably([name]) for name in (b"known", b"orphan", b"young"))
    for stored in (known, orphan):
        os.utime(files.absolute(stored.path), (1000, 1000))
    assert files.sweep_orphans({known.path}, older_than=2000) == [orphan.path]
    assert sorted(everything(files)) == sorted(files.absolute(stored.path) for stored in (known, young))


def test_the_sweep_asks_folder_by_folder(files):
    stored = files.write_durably([b"x"])
    os.utime(files.absolute(stored.path), (1000, 1000))
    asked = []

    def known(paths):
        asked.append(list(paths))
        return paths

    assert files.sweep_orphans(known, older_than=2000) == []
    assert [stored.path] in asked


def test_the_sweep_leaves_what_it_did_not_make(files):
    foreign = files.root / "lost+found.txt"
    foreign.write_text("not ours")
    os.utime(foreign, (1000, 1000))
    assert files.sweep_orphans(set(), older_than=2000) == []
    assert foreign.exists()


def test_free_space_is_a_number_of_bytes(files):
    assert files.free_bytes() > 0
