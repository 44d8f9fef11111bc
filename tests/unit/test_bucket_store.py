"""The file store in a bucket, against a real S3 server: durable before success, digests checked, all of it bounded."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from config.settings import Settings
from storage import audit, bucket, orphans
from storage.backup import back_up as backup
from storage.bucket_store import BucketStore
from storage.cache import Cache
from storage.errors import (
    CorruptFile,
    StorageError,
    StorageFull,
    StoreMismatch,
    StoreReplaced,
    StoreUnavailable,
)
from storage.files import StoredFile
from storage.identity import Epoch, claim, look, open_store, raise_epoch
from storage.reconcile import reconcile
from storage.stores import files_of
from storage.workspace import Workspace
from tests.s3 import S3
from tests.storage_factory import Store, fresh_url

NOVEMBER = 1_795_424_400.0  # 2026-11-23 09:00 UTC
DAY_S = 86_400.0


@pytest.fixture
def files(s3: S3, tmp_path: Path) -> BucketStore:
    return s3.store(tmp_path / "local", clock=lambda: NOVEMBER)


def passing(folder: Path) -> list[Path]:
    """The files that lie on this machine for a moment."""
    return [path for path in (folder / "local" / "passing").rglob("*") if path.is_file()]


def fresh(s3: S3, folder: Path, **other: object) -> BucketStore:
    """The same store on a machine that has no copies."""
    return s3.store(folder / "another machine", **other)


def test_a_file_is_read_back_as_written(files, s3, tmp_path):
    stored = files.write_durably([b"first ", bytearray(b"second "), memoryview(b"third")])
    assert stored.sha256 == hashlib.sha256(b"first second third").hexdigest() and stored.size == 18
    assert re.fullmatch(r"2026/11/23/[0-9a-f]{32}\.dcm", stored.path)
    assert s3.read(stored.path) == b"first second third"
    for store in (files, fresh(s3, tmp_path)):
        assert store.read_verified(stored.path, stored.sha256) == b"first second third"
        with store.at_hand([stored]) as (path,):
            assert path.read_bytes() == b"first second third" and path.suffix == ".dcm"
        assert not path.exists()


def test_a_file_larger_than_a_part_goes_and_comes_in_parts(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "PART_BYTES", 5 << 20)  # the least that S3 takes
    data = os.urandom(12 << 20)
    stored = s3.store(tmp_path).write_durably([data])
    assert fresh(s3, tmp_path).read_verified(stored.path, hashlib.sha256(data).hexdigest()) == data


def test_it_is_in_the_bucket_when_commit_returns_and_not_before(files, s3, tmp_path):
    with files.create() as new:
        new.write(b"abc")
        described = new.describe()
        assert s3.stored() == [] and new.path.read_bytes() == b"abc"
        assert new.commit() == described
        assert s3.stored() == [described.path]
    assert passing(tmp_path) == []


def test_a_file_that_is_not_committed_leaves_nothing(files, s3, tmp_path):
    with files.create() as new:
        new.write(b"half")
    assert s3.stored() == [] and passing(tmp_path) == []


def test_an_object_is_never_overwritten(files, s3, tmp_path):
    with files.create() as new:
        new.write(b"ours")
        s3.write(new.describe().path, b"another's")
        with pytest.raises(StorageError, match="must not be overwritten"):
            new.commit()
    assert [s3.read(path) for path in s3.stored()] == [b"another's"] and passing(tmp_path) == []


def test_an_answer_that_was_lost_is_no_success_and_the_object_is_swept_later(s3, tmp_path):
    files = s3.store(tmp_path / "local")
    with Store(tmp_path) as store:
        with files.create() as new:
            new.write(b"abc")
            s3.gate.swallow(100)
            with pytest.raises(StoreUnavailable):
                new.commit()
        s3.gate.swallow(0)
        (left,) = s3.stored()
        assert orphans.sweep(store.database, files, time.time(), age_s=60.0).taken == (), "it may be in hand elsewhere"
        assert orphans.sweep(store.database, files, time.time() + 100, age_s=60.0).taken == (left,)
        (aside,) = s3.stored()
        assert aside.endswith(left) and aside.startswith("quarantine/")
        assert orphans.empty_quarantine(store.database, files, time.time() + 20 * DAY_S) == 1
        assert s3.stored() == []


def test_an_answer_that_was_lost_is_found_when_the_request_is_made_again(files, s3):
    with files.create() as new:
        new.write(b"abc")
        s3.write(new.describe().path, b"abc")  # the first request did this
        assert s3.read(new.commit().path) == b"abc"


@pytest.mark.parametrize("what", ["altered", "missing"])
def test_an_object_that_is_not_what_was_stored_is_found(what, files, s3, tmp_path):
    stored = files.write_durably([b"abc"])
    if what == "altered":
        s3.write(stored.path, b"abd")
    else:
        s3.delete(stored.path)
    message = "SHA-256 differs" if what == "altered" else "is missing"
    with pytest.raises(CorruptFile, match=message), fresh(s3, tmp_path).at_hand([stored]):
        pass
    with pytest.raises(CorruptFile, match=message):
        files.make_durable(stored.path, stored.sha256)  # the good copy here proves nothing


def test_a_damaged_copy_on_this_machine_is_fetched_anew(files, tmp_path):
    stored = files.write_durably([b"abc"])
    (copy,) = (tmp_path / "local" / "cache").iterdir()
    copy.write_bytes(b"abd")
    assert files.read_verified(stored.path, stored.sha256) == b"abc"
    assert copy.read_bytes() == b"abc"


def test_copies_on_this_machine_stay_within_their_room_and_those_in_use_stay(s3, tmp_path):
    files = s3.store(tmp_path / "local", cache=100_000)
    stored = [files.write_durably([bytes([number]) * 10_000]) for number in range(30)]
    cached = [path.stat().st_size for path in (tmp_path / "local" / "cache").iterdir()]
    assert sum(cached) <= 100_000 * 17 / 16
    with files.at_hand(stored) as paths:
        assert [path.read_bytes()[0] for path in paths] == list(range(30))
    assert files.size_of(stored[0].path) == 10_000


def test_what_was_used_last_stays_in_the_cache(tmp_path):
    cache = Cache(tmp_path / "cache", 160)
    for number in range(16):
        (tmp_path / str(number)).write_bytes(bytes(10))
        cache.add(str(number), tmp_path / str(number))
        os.utime(tmp_path / str(number), (number, number))
    assert cache.link("0", tmp_path / "used")
    for number in (16, 17, 18):
        (tmp_path / str(number)).write_bytes(bytes(10))
        cache.add(str(number), tmp_path / str(number))
    left = {path.name for path in (tmp_path / "cache").iterdir()}
    assert "0" in left and "1" not in left


def test_copies_leave_the_disk_to_others(tmp_path):
    full = Cache(tmp_path / "cache", 1 << 30, reserve_bytes=1 << 60)
    full._step = 0
    for number in range(3):
        (tmp_path / str(number)).write_bytes(bytes(10))
        full.add(str(number), tmp_path / str(number))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_spool_is_bounded_and_free_again_afterwards(s3, tmp_path):
    files = s3.store(tmp_path / "local", spool=1000)
    with files.create() as first, files.create() as second:
        first.write(bytes(600))
        with pytest.raises(StorageFull, match="spool"):
            second.write(bytes(600))
    assert files.write_durably([bytes(1000)]).size == 1000
    assert len(s3.stored()) == 1 and passing(tmp_path) == []


def test_a_server_that_is_away_is_told_in_words_at_once_and_found_again_when_it_is_back(files, s3, monkeypatch):
    monkeypatch.setattr(bucket, "ASK_EVERY_S", 0.0)
    s3.gate.shut()
    with pytest.raises(StoreUnavailable, match=f"{s3.url} at .*: cannot be reached"):
        files.write_durably([b"x"])
    with pytest.raises(StoreUnavailable):
        files.create()  # before anything is taken off the network
    with pytest.raises(StoreUnavailable):
        files.ask()
    s3.gate.open()
    files.check()
    files.ask()
    stored = files.write_durably([b"x"])
    assert s3.stored() == [stored.path]


def test_while_it_is_away_nobody_waits_for_it(files, s3, monkeypatch):
    monkeypatch.setattr(bucket, "ASK_EVERY_S", 1e9)
    s3.gate.shut()
    with pytest.raises(StoreUnavailable):
        files.write_durably([b"x"])
    s3.gate.open()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        files.check()  # it is not asked again yet


def test_a_server_that_does_not_answer_is_given_up(s3, tmp_path):
    files = s3.store(tmp_path, timeout_s=0.3)
    s3.gate.silence()
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        files.write_durably([b"x"])


def test_a_bucket_that_is_gone_is_no_lost_file(s3, tmp_path):
    files = s3.store(tmp_path, bucket="no-such-bucket")
    with pytest.raises(StoreUnavailable, match="there is no such bucket"):
        files.read_verified("2026/11/23/x.dcm", "0" * 64)


def test_a_404_of_something_else_is_no_lost_file(s3, tmp_path):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        files = s3.store(tmp_path, endpoint=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(StoreUnavailable, match="not of S3"):
            files.read_verified("2026/11/23/x.dcm", "0" * 64)
        server.shutdown()


def test_files_are_listed_a_page_at_a_time_and_only_the_days_asked_for(s3, tmp_path, monkeypatch):
    monkeypatch.setattr(bucket, "PAGE", 4)
    now = time.time()
    for days in (40, 1, 0):
        files = s3.store(tmp_path, clock=lambda days=days: now - days * DAY_S)
        for number in range(3):
            files.write_durably([b"%d %d" % (days, number)])
    pages = list(files.folders(float("inf")))
    assert [count for count, _ in pages] == [4, 4, 1]
    assert sorted(path for _, paths in pages for path in paths) == s3.stored()
    assert sum(count for count, _ in files.folders(float("inf"), since=now - 2 * DAY_S)) == 6
    assert [paths for _, paths in files.folders(now - 100)] == [[], [], []]


def test_files_go_to_the_quarantine_and_back(files, s3):
    stored = [files.write_durably([b"%d" % number]) for number in range(3)]
    folder = files.quarantine_of(NOVEMBER)
    for one in stored:
        files.set_aside(one.path, folder)
    files.set_aside(stored[0].path, folder)  # harmless
    assert files.quarantined() == [(folder, sorted(f"{folder}/{one.path}" for one in stored))]
    assert files.take_back(f"{folder}/{stored[0].path}") == stored[0].path
    kept = files.keep_unreadable(f"{folder}/{stored[1].path}")
    assert files.unreadable() == [kept]
    assert files.delete_quarantine(folder) == 1
    assert files.read_verified(stored[0].path, stored[0].sha256) == b"0"
    assert s3.stored() == sorted([stored[0].path, kept])
    assert not files.is_empty()
    files.remove_all(s3.stored())
    assert files.is_empty()


def test_index_and_bucket_know_each_other(s3, tmp_path):
    url, files = fresh_url(tmp_path), s3.store(tmp_path / "local")
    database = open_store(url, files)
    first = claim(database, files)
    assert raise_epoch(database, files).epoch == first.epoch + 1
    held, found, reason = look(url, fresh(s3, tmp_path))
    assert held == found and reason is None
    open_store(url, files, create=False).close()


@pytest.mark.sqlite
@pytest.mark.parametrize("is_on_its_machine", [True, False])
def test_an_index_older_than_the_bucket_is_refused(is_on_its_machine, s3, tmp_path):
    """By a single commit on the machine that made it, by the last epoch elsewhere."""
    url, files = fresh_url(tmp_path), s3.store(tmp_path / "local")
    database = open_store(url, files)
    claim(database, files)
    database.engine.dispose()
    backup(tmp_path / "index.sqlite", tmp_path / "copy")
    with database.transaction() as tx:
        audit.append(tx, 0.0, "something")
    if not is_on_its_machine:
        raise_epoch(database, files)
    database.close()
    reached = files if is_on_its_machine else fresh(s3, tmp_path)
    with pytest.raises(StoreMismatch, match="older than the files"):
        open_store(f"sqlite:///{tmp_path}/copy", reached)
    open_store(url, reached).close()


def test_a_bucket_that_was_emptied_under_a_running_node_gets_no_new_identity(s3, tmp_path):
    files = s3.store(tmp_path / "local")
    database = open_store(fresh_url(tmp_path), files)
    claim(database, files)
    epoch = Epoch(database, files)
    with database.transaction() as tx:
        audit.append(tx, 0.0, "something")
    epoch.raise_after_work()
    s3.delete("store.json")
    with database.transaction() as tx:
        audit.append(tx, 0.0, "something")
    with pytest.raises(StoreReplaced, match="no longer those"):
        epoch.raise_after_work()
    assert files.mark().read() is None


def test_another_bucket_and_an_emptied_one_are_refused(s3, s3_port, tmp_path):
    url, files = fresh_url(tmp_path), s3.store(tmp_path / "local")
    database = open_store(url, files)
    claim(database, files)
    with Store(tmp_path, url=url) as store:
        store.files = files
        store.receive(1, now=0.0)
    other = S3(s3_port)
    assert "are missing" in str(look(url, other.store(tmp_path / "other"))[2])
    second = tmp_path / "second"
    second.mkdir()
    claim(open_store(fresh_url(second), other.store(second)), other.store(second))
    assert "different nodes" in str(look(url, other.store(tmp_path / "other"))[2])
    other.gate.shut()


def test_a_process_opens_the_index_while_the_bucket_is_away_and_a_node_does_not_start(s3, tmp_path):
    url, files = fresh_url(tmp_path), s3.store(tmp_path / "local")
    claim(open_store(url, files), files)
    s3.gate.shut()
    open_store(url, files, create=False).close()
    open_store(url, files, upgrade=False).close()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        open_store(url, files)


def test_a_start_sets_aside_what_a_crash_left_and_only_that(s3, tmp_path):
    files = s3.store(tmp_path / "local")
    with Store(tmp_path) as store:
        store.files = files
        store.receive(1, 2, now=time.time())
        named = s3.stored()
        orphan = files.write_durably([b"no row names it"]).path
        found = reconcile(store.database, files, time.time() + 100)
        assert (found["orphans_swept"], found["files_missing"], found["reports_lost"]) == (1, 0, 0)
        assert sorted(named) == [path for path in s3.stored() if not path.startswith("quarantine")]
        assert any(path.endswith(orphan) for path in s3.stored())


def test_the_whole_store_is_listed_once_a_week(s3, tmp_path):
    now = time.time()
    with Store(tmp_path) as store:

        def left_from(days: float) -> str:
            return s3.store(tmp_path / "local", clock=lambda: now - days * DAY_S).write_durably([b"x"]).path

        def swept(at: float) -> tuple[str, ...]:
            return orphans.sweep_regularly(store.database, s3.store(tmp_path / "local"), at, 60.0).taken

        old = left_from(40)
        assert swept(now + 100) == (old,), "the first time, all of it"
        old, young = left_from(40), left_from(0)
        assert swept(now + DAY_S) == (young,)
        assert swept(now + 8 * DAY_S) == (old,)


def test_keys_come_from_the_environment_or_a_file_and_are_shown_nowhere(tmp_path):
    keys = tmp_path / "credentials"
    keys.write_text("[default]\naws_access_key_id = an-id-to-find\naws_secret_access_key = a-secret-to-find\n")
    storage = {"bucket": "s3://bucket/prefix/", "s3": {"credentials": keys, "endpoint": "https://s3.example:9000"}}
    settings = Settings(data_dir=tmp_path / "var", storage=storage)
    files = files_of(settings)
    assert files.where == "s3://bucket/prefix at https://s3.example:9000"
    shown = settings.model_dump_json() + repr(settings) + repr(vars(files)) + repr(S3.access)
    assert "to-find" not in shown
    assert not (tmp_path / "var").exists(), "nothing is made before it is needed"
    keys.write_text("[default]\naws_access_key_id = an-id-to-find\nwrong line")
    with pytest.raises(StorageError, match="is wanted") as told:
        files_of(settings)
    assert "to-find" not in str(told.value)
    keys.unlink()
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        files_of(settings)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ({"bucket": "https://bucket"}, "address of a bucket"),
        ({"bucket": "s3://bucket/../other"}, "address of a bucket"),
        ({"bucket": "s3://b", "s3": {}}, "address of a bucket"),
        ({"bucket": "s3://bucket", "s3": {"endpoint": "s3.example"}}, "address of a server"),
        ({"bucket": "s3://bucket", "s3": {"endpoint": "https://user:word@s3.example"}}, "address of a server"),
        ({"bucket": "s3://bucket", "s3": {"endpoint": "http://s3.example"}}, "readable"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(storage, message):
    with pytest.raises(ValueError, match=message):
        Settings(storage=storage)


def test_an_endpoint_without_tls_is_used_on_this_machine_or_if_the_site_says_so():
    for s3 in ({"endpoint": "http://127.0.0.1:9000"}, {"endpoint": "http://s3.example", "plain": True}):
        assert Settings(storage={"bucket": "s3://bucket", "s3": s3}).storage.s3.endpoint == s3["endpoint"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path):
    code = """if True:
        import sys, time
        from pathlib import Path
        from storage.workspace import Workspace
        Workspace(Path(sys.argv[1])).file("left").write_text("x")
        print("ready", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    (left,) = tmp_path.rglob("left")
    Workspace(tmp_path).file("mine").write_text("x")
    assert left.exists(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    Workspace(tmp_path).file("third").write_text("x")
    assert not left.exists() and len(list(tmp_path.rglob("mine"))) == 1


def test_reading_from_a_folder_is_refused_in_words(files):
    with pytest.raises(StorageError, match="copy them to one"):
        files.absolute("2026/11/23/x.dcm")


def test_without_a_digest_the_bucket_tells_and_no_copy_on_this_machine(files, s3):
    stored = files.write_durably([b"abc"])
    s3.write(stored.path, b"abd")
    with files.at_hand([StoredFile(stored.path, "", 0)]) as (path,):
        assert path.read_bytes() == b"abd"
    assert s3.read(stored.path) == b"abd" and files.size_of(stored.path) == 3
    s3.write(stored.path, b"abc")
    assert files.read_verified(stored.path, stored.sha256) == b"abc"
