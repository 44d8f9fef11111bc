"""backup create, verify and restore, on a node's real index and files."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from config.load import load_settings
from config.settings import Settings
from dicom_node.backup import postgresql
from dicom_node.backup.configuration import LEFT_OUT, without_secrets
from dicom_node.backup.creating import Creator
from dicom_node.backup.manifest import read_manifest
from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from storage import audit, stores
from storage.audit_check import check
from storage.errors import DatabaseBusy
from storage.folder import FolderStore
from storage.identity import claim, look, open_store
from storage.reconcile import reconcile
from storage.retention import DAY_S, delete_old_images
from tests.s3 import S3
from tests.storage_factory import Store

SECRET = "a-secret-of-the-site-9471"
CONFIGURATION = f"""data_dir = "{{data}}"
[storage]
pseudonym_key = "{SECRET}"   # the site's
low_disk_mb = 1
[receiver]
port = 1
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 1
"""


class Site:
    """A node's data folder with results, its configuration, and a folder of backups."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.data, self.backups, self.config = folder / "data", folder / "backups", folder / "node.toml"
        shutil.copytree(data, self.data)
        self.store = at(self.data)
        self.config.write_text(CONFIGURATION.format(data=self.data))

    def create(self, *options: str, status: int = 0, to: Path | None = None) -> dict[str, Any]:
        arguments = ("create", str(to or self.backups), "--config", str(self.config), "--json", *options)
        made: dict[str, Any] = json.loads(command(*arguments, status=status).stdout)
        return made

    def backup(self) -> Path:
        return Path(self.create()["folder"])

    def create_later(self, *options: str) -> dict[str, Any]:
        """A backup's name has its second."""
        time.sleep(1.0 - time.time() % 1.0)
        return self.create(*options)

    def creator(self, report: Any) -> Creator:
        return Creator(
            load_settings(self.config), self.store.database, self.store.files, self.config, "test", report
        )  # fmt: skip


def at(data: Path) -> Store:
    return Store(data, f"sqlite:///{data}/node.db")


def command(*arguments: str, status: int = 0, **variables: str) -> Result:
    done = CliRunner().invoke(app, ["backup", *arguments], env=variables)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done


def restore(backup: Path, to: Path, *options: str, status: int = 0) -> dict[str, Any]:
    arguments = ("restore", str(backup), "--to", str(to), "--json", *options)
    restored: dict[str, Any] = json.loads(command(*arguments, status=status).stdout)
    return restored


def wrong(backup: Path) -> list[str]:
    found: list[str] = json.loads(command("verify", str(backup), "--json", status=1).stdout)["problems"]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one series, whose result waits for a PACS: made once, because making an index takes time."""
    folder = tmp_path_factory.mktemp("made") / "data"
    folder.mkdir()
    with at(folder) as store:
        claim(store.database, store.files)
        store.reported("pacs")
    return folder


@pytest.fixture
def site(tmp_path: Path, data: Path) -> Iterator[Site]:
    made = Site(tmp_path, data)
    with made.store:
        yield made


def test_a_restored_node_has_every_row_file_and_audit_row_of_the_point(site: Site, tmp_path: Path) -> None:
    site.store.receive(7, now=100.0, series_uid="1.2.9")
    (site.data / "models" / "theirs").mkdir(parents=True)
    (site.data / "models" / "theirs" / "card.toml").write_text("name = 'theirs'")
    with site.store.database.read() as tx:
        head = audit.head(tx)
    made = site.create()
    assert command("verify", made["folder"]).stdout.startswith("The backup is whole")
    links = {path.name[-9:]: path.stat().st_nlink for path in Path(made["folder"]).rglob("*") if path.is_file()}
    assert links.pop("card.toml") == 1, "what may be altered in the node's folder is no link to it"
    assert max(links.values()) == 2, "stored files are"
    assert tuple(made["head"]) == head and made["files"] == 4
    told = site.store.rows("SELECT * FROM audit WHERE event = 'backup.created'")
    assert json.loads(str(told[0]["detail"]))["point"] == f"{head[0]}:{head[1]}"

    new = tmp_path / "new"
    restore(Path(made["folder"]), new)
    assert (new / "models" / "theirs" / "card.toml").is_file()
    files = FolderStore(new / "files")
    assert look(f"sqlite:///{new}/node.db", files)[2] is None
    with at(new) as restored:
        for table in ("instances", "results", "result_objects"):
            assert restored.rows(f"SELECT * FROM {table}") == site.store.rows(f"SELECT * FROM {table}")
        for row in restored.rows("SELECT path, sha256 FROM instances UNION SELECT path, sha256 FROM result_objects"):
            assert files.read_verified(str(row["path"]), str(row["sha256"]))
        with restored.database.read() as tx:
            assert check(tx, head).problems == (), "the trail goes on from the point"
        (row,) = restored.rows("SELECT detail FROM audit WHERE event = 'index.restored'")
        assert json.loads(str(row["detail"]))["point"] == f"{head[0]}:{head[1]}"
        # What a start does:
        database = open_store(restored.url, files)
        claim(database, files)
        done = reconcile(database, files, 1000.0)
        assert done["files_missing"] == done["files_corrupt"] == done["reports_lost"] == done["orphans_swept"] == 0


def test_what_came_after_the_point_is_taken_when_it_is_sent_again(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    site.store.receive(3, now=50.0)
    restore(backup, tmp_path / "new")
    with at(tmp_path / "new") as restored:
        assert len(restored.rows("SELECT * FROM instances")) == 2
        assert [str(outcome) for outcome in restored.receive(1, 2, 3, now=60.0)] == ["DUPLICATE", "DUPLICATE", "NEW"]


def test_nothing_is_sent_before_a_person_resumes_and_then_the_bytes_of_the_backup(site: Site, tmp_path: Path) -> None:
    with site.store.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE deliveries SET state = 'SENDING', due_at = 9e9")
        tx.exec_driver_sql("INSERT INTO web_users VALUES (1, 'eve', 'viewer', 'h', 0, 0)")
        tx.exec_driver_sql("INSERT INTO web_sessions VALUES ('t', 1, '', 0, 9e9)")
    assert restore(site.backup(), tmp_path / "new")["held"] == ["pacs"]
    objects = site.store.rows("SELECT sop_instance_uid, sha256 FROM result_objects")
    with at(tmp_path / "new") as restored:
        assert restored.rows("SELECT kind, name FROM pauses") == [{"kind": "destination", "name": "pacs"}]
        assert restored.states("deliveries") == ["PENDING"], "whoever sent it sends no more"
        assert restored.rows("SELECT sop_instance_uid, sha256 FROM result_objects") == objects
        assert restored.rows("SELECT * FROM web_sessions") == [], "who has logged out since is not logged in again"
    assert restore(Path(site.create_later()["folder"]), tmp_path / "at once", "--send-at-once")["held"] == []


def test_files_that_retention_deletes_meanwhile_are_gone_in_the_restored_node_too(site: Site, tmp_path: Path) -> None:
    with site.store.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE deliveries SET state = 'COMMITTED', sent_at = 31, committed_at = 31, due_at = NULL")

    def retention(what: str, done: int, of: int) -> None:
        if what == "files" and done == 0:
            assert delete_old_images(site.store.database, site.store.files, 40.0 + DAY_S, 1.0) in (0, 2)

    made = site.creator(retention).create(site.backups)
    assert len(made.manifest.deleted) == 2 and made.manifest.lost == ()
    command("verify", str(made.folder))
    restore(made.folder, tmp_path / "new")
    with at(tmp_path / "new") as restored:
        reasons = restored.rows("SELECT DISTINCT gone_reason FROM instances")
        assert reasons == [{"gone_reason": "retention"}]


def test_a_file_that_was_lost_before_is_named_and_the_rest_is_backed_up(site: Site, tmp_path: Path) -> None:
    (path,) = (row["path"] for row in site.store.rows("SELECT path FROM instances WHERE id = 1"))
    (site.data / "files" / str(path)).unlink()
    made = site.create(status=1)
    assert made["lost"] == [path] and made["files"] == 2
    restore(Path(made["folder"]), tmp_path / "new")
    with at(tmp_path / "new") as restored:
        assert restored.rows("SELECT gone_reason FROM instances WHERE id = 1") == [{"gone_reason": "missing"}]


def test_no_secret_is_in_a_backup_and_its_configuration_starts_no_node_before_they_are_filled_in(site: Site) -> None:
    made = site.create()
    assert made["secrets"] == ["storage.pseudonym_key"]
    folder = Path(made["folder"])
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path
        assert path.stat().st_mode & 0o077 == 0, path
    text = (folder / "configuration" / "node.toml").read_text()
    assert "# the site's" in text
    (site.config.parent / "copied.toml").write_text(text)
    with pytest.raises(Exception, match="line 3"):
        load_settings(site.config.parent / "copied.toml")
    assert json.loads((folder / "configuration" / "settings.json").read_text())["receiver"]["port"] == 1


def test_secrets_that_are_overridden_or_commented_out_are_in_no_backup(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = "a-password-of-the-database"
    text = site.config.read_text().replace("[storage]", f"""# users = {{ PACS = "commented-1" }} of old
# [receiver.users]
# PACS = "commented-2"
[storage]   # was {SECRET}
database_url = "postgresql://node:{password}@db/node"   # since spring
bucket = ""   # "#
""")  # fmt: skip
    site.config.write_text(text)
    monkeypatch.setenv("DICOM_NODE_STORAGE__PSEUDONYM_KEY", "the-key-that-is-in-force")
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE_URL", f"sqlite:///{site.data}/node.db")
    made = site.create()
    assert made["secrets"] == ["storage.database_url", "storage.pseudonym_key"]
    copied = (Path(made["folder"]) / "configuration" / "node.toml").read_text()
    for secret in (SECRET, password, "commented-1", "commented-2", "the-key-that-is-in-force"):
        assert secret not in copied
    assert "# since spring" in copied and "# the site's" in copied and '# "#' in copied


def test_a_file_whose_secrets_cannot_be_told_from_the_rest_is_left_out() -> None:
    secrets = {
        "receiver.users.PACS": ("1", LEFT_OUT),
        "storage.database_url": ("postgresql://n:p@h/x", "postgresql://n:***@h/x"),
    }
    text = "host = '1.2.3.1'\nusers = { PACS = '1' }\ndatabase_url = 'postgresql://n:p@h/x'\n"
    cleaned = f"host = '1.2.3.1'\nusers = {{ PACS = {LEFT_OUT} }}\ndatabase_url = \"postgresql://n:***@h/x\"\n"
    assert without_secrets(text, secrets) == cleaned
    assert without_secrets("host = '1'\nusers = { PACS = '1' }", secrets) is not None, "too much is no harm"
    assert without_secrets("users = { PACS = '\\u0031' }".replace("'", '"'), secrets) is None


def test_a_backup_that_was_interrupted_is_not_one_and_the_next_removes_it(site: Site) -> None:
    def killed(what: str, done: int, of: int) -> None:
        if what == "files":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.creator(killed).create(site.backups)
    (left,) = site.backups.glob("backup-*")
    assert left.name.endswith(".unfinished")
    with pytest.raises(NodeError, match="is no backup"):
        command("verify", str(left))
    made = site.create()
    assert [str(path) for path in site.backups.glob("backup-*")] == [made["folder"]]


def test_a_backup_for_which_there_is_no_room_leaves_nothing(site: Site) -> None:
    def full(what: str, done: int, of: int) -> None:
        if what == "files":
            raise OSError(28, "No space left on device")

    with pytest.raises(NodeError, match=r"the backup was not made: .*No space left"):
        site.creator(full).create(site.backups)
    assert list(site.backups.glob("backup-*")) == []


def test_a_backup_that_the_audit_trail_could_not_tell_of_is_said_to_be_whole(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*arguments: Any, **more: Any) -> None:
        raise DatabaseBusy("the index is busy")

    monkeypatch.setattr(audit, "append", busy)
    with pytest.raises(NodeError, match=r"backup-\w+Z is whole\. But the audit trail has no row"):
        site.create()
    (made,) = site.backups.glob("backup-*")
    command("verify", str(made))


def test_no_clock_makes_a_new_backup_the_one_that_is_removed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now, made = time.time(), []
    for days in (30, 0, -30):
        monkeypatch.setattr(time, "time", lambda at=now + days * DAY_S: at)
        made.append(site.create("--keep", "2"))
    assert made[2]["removed"] == [made[0]["folder"]], "the oldest is the one with the least of the audit trail"
    assert made[2]["previous"] == Path(made[1]["folder"]).name
    assert sorted(str(path) for path in site.backups.glob("backup-*")) == [made[2]["folder"], made[1]["folder"]]


def altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # not through the hard link
    path.write_bytes(data)


def first_file(backup: Path) -> Path:
    return next((backup / "files").rglob("*.dcm"))


def with_new_sums(backup: Path) -> None:
    """As somebody does who knows how a backup is made: lists and seals fit the altered bytes."""
    lines = []
    for line in (backup / "SHA256SUMS").read_text().splitlines():
        name = line.partition("  ")[2]
        if (backup / name).exists():
            lines.append(f"{hashlib.sha256((backup / name).read_bytes()).hexdigest()}  {name}\n")
    (backup / "SHA256SUMS").write_text("".join(lines))
    values = json.loads((backup / "manifest.json").read_text())
    values.pop("seal")
    values["sums_sha256"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    seal = hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    (backup / "manifest.json").write_text(json.dumps({**values, "seal": seal}))


def rewritten_row(backup: Path) -> None:
    index = sqlite3.connect(backup / "index" / "node.db")
    index.execute("DROP TRIGGER audit_no_update")
    index.execute("UPDATE audit SET outcome = 'X' WHERE id = 2")
    index.commit()
    index.close()
    with_new_sums(backup)


def forgotten_file(backup: Path) -> None:
    first_file(backup).unlink()
    with_new_sums(backup)


WRONG = {
    "altered file": (lambda backup: altered(first_file(backup)), "it was altered"),
    "missing file": (lambda backup: first_file(backup).unlink(), "it is missing"),
    "strange file": (lambda backup: (backup / "index" / "more").write_text("x"), "does not belong to the backup"),
    "altered list": (lambda backup: altered(backup / "SHA256SUMS"), "SHA256SUMS is missing or was altered"),
    "altered index": (lambda backup: altered(backup / "index" / "node.db"), "index/node.db: it was altered"),
    "altered row, new sums": (rewritten_row, "row 2: its content was altered"),
    "forgotten file, new sums": (forgotten_file, "the index names it"),
}


def linked_file(backup: Path) -> None:
    path = first_file(backup)
    shutil.copy(path, backup.parent / "theirs")
    path.unlink()
    path.symlink_to(backup.parent / "theirs")


def linked_folder(backup: Path) -> None:
    shutil.copytree(backup / "files", backup.parent / "theirs")
    shutil.rmtree(backup / "files")
    (backup / "files").symlink_to(backup.parent / "theirs")


def test_a_forged_backup_brings_no_links_and_nothing_from_outside(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    for spoil in (linked_file, linked_folder):
        forged = tmp_path / spoil.__name__ / "backup"
        shutil.copytree(backup, forged)
        spoil(forged)
        assert any("it is no regular file" in problem for problem in wrong(forged))
        with pytest.raises(NodeError, match="it is no regular file"):
            restore(forged, forged.parent / "new")
    (site.backups / "outside").write_text("x")
    for name in ("../outside", str(site.backups / "outside")):
        with (backup / "SHA256SUMS").open("a") as sums:
            sums.write(f"{'0' * 64}  {name}\n")
        with_new_sums(backup)
        for arguments in (("verify", str(backup)), ("restore", str(backup), "--to", str(tmp_path / str(len(name))))):
            with pytest.raises(NodeError, match="names a path outside"):
                command(*arguments)
        lines = (backup / "SHA256SUMS").read_text().splitlines(keepends=True)
        (backup / "SHA256SUMS").write_text("".join(lines[:-1]))


def test_verify_names_what_is_wrong(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    for name, (spoil, sentence) in WRONG.items():
        copy = tmp_path / name
        shutil.copytree(backup, copy)
        spoil(copy)
        assert any(sentence in problem for problem in wrong(copy)), name
    altered(backup / "manifest.json")
    with pytest.raises(NodeError, match=r"manifest\.json"):
        command("verify", str(backup))


def test_a_pg_dump_that_is_older_than_the_server_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "DEBIAN", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NodeError, match=r"it is not installed: apt install postgresql-client-16"):
        postgresql.program("pg_dump", 16)
    for major in (9, 14, 17, 18):
        path = tmp_path / str(major) / "bin" / "pg_dump"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {major}.2'\n")
        path.chmod(0o755)
    assert postgresql.program("pg_dump", 16) == str(tmp_path / "17" / "bin" / "pg_dump")
    with pytest.raises(NodeError, match=r"19 or later is needed, and there is only version 18"):
        postgresql.program("pg_dump", 19)


def test_of_files_in_a_bucket_a_backup_holds_the_digests_and_a_restore_names_what_the_bucket_lacks(
    tmp_path: Path, s3: S3
) -> None:
    backup = tmp_path / "backups"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.variables().items():
            patch.setenv(name, value)
        files = stores.files_of(Settings(data_dir=tmp_path / "data"))
        with at(tmp_path / "data") as store:
            store.files = files  # type: ignore[assignment]
            claim(store.database, files)
            store.reported("pacs")
            made = Creator(Settings(data_dir=tmp_path / "data"), store.database, files, None, "test").create(backup)
            (path,) = (row["path"] for row in store.rows("SELECT path FROM instances WHERE id = 2"))
        files.remove(str(path))
        command("verify", str(made.folder))
        assert made.manifest.files == 3 and not list(made.folder.rglob("*.dcm"))
        assert len((made.folder / "objects.list").read_text().splitlines()) == 3
        assert restore(made.folder, tmp_path / "new")["missing"] == 1
        with at(tmp_path / "new") as restored:
            reasons = restored.rows("SELECT gone_reason FROM instances ORDER BY id")
            assert [row["gone_reason"] for row in reasons] == [None, "missing"]
        new = Settings(data_dir=tmp_path / "new")
        assert look(new.database_url, stores.files_of(new))[2] is None
    with pytest.raises(NodeError, match="name that bucket"):
        restore(made.folder, tmp_path / "no bucket")


def test_the_list_is_one_that_sha256sum_checks(site: Site) -> None:
    backup = site.backup()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=backup, check=True)


def test_no_node_starts_on_a_restore_of_a_damaged_backup(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    altered(backup / "index" / "node.db")
    new = tmp_path / "new"
    with pytest.raises(NodeError, match="the backup is damaged"):
        restore(backup, new)
    assert "missing or empty" in str(look(f"sqlite:///{new}/node.db", FolderStore(new / "files"))[2])
    with pytest.raises(NodeError, match="is not empty"):
        restore(backup, new)


def test_a_file_that_rotted_in_every_backup_is_left_out_and_its_instance_is_lost(site: Site, tmp_path: Path) -> None:
    backup = site.backup()
    rotten, gone = (str(row["path"]) for row in site.store.rows("SELECT path FROM instances ORDER BY id"))
    with (site.data / "files" / rotten).open("r+b") as file:
        file.write(b"rot")  # through the link
    (backup / "files" / gone).unlink()
    assert sorted(restore(backup, tmp_path / "new", status=1)["damaged"]) == sorted([rotten, gone])
    assert not (tmp_path / "new" / "files" / rotten).exists()
    said = command("restore", str(backup), "--to", str(tmp_path / "again"), status=1).output
    assert f"damaged in the backup, left out: {rotten}" in said
    with at(tmp_path / "new") as restored:
        assert restored.rows("SELECT DISTINCT gone_reason FROM instances") == [{"gone_reason": "missing"}]
        assert len(restored.rows("SELECT * FROM audit WHERE event = 'instance.lost'")) == 2
        assert restored.states("deliveries") == ["PENDING"]
        assert [str(outcome) for outcome in restored.receive(1, 2, now=60.0)] == ["NEW", "NEW"]


def test_no_restored_index_gets_the_changes_of_one_that_was_there(site: Site, tmp_path: Path) -> None:
    backup, index = site.backup(), tmp_path / "other" / "node.db"
    index.parent.mkdir()
    site.config.write_text(
        site.config.read_text().replace("[storage]", f'[storage]\ndatabase_url = "sqlite:///{index}"')
    )
    index.with_name("node.db-wal").write_bytes(b"left by a crash")
    with pytest.raises(NodeError, match=r"node\.db-wal already: move .*node\.db\* away"):
        restore(backup, tmp_path / "new", "--config", str(site.config))
    assert not index.exists()


def test_a_second_backup_on_another_disk_links_what_the_first_one_holds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def same_disk_only(source: Path, target: Path) -> None:
        if Path(source).is_relative_to(site.data):
            raise OSError(18, "Invalid cross-device link")
        link(source, target)

    monkeypatch.setattr(os, "link", same_disk_only)
    first = site.create()
    assert first["counts"] == {"copied": 3}
    site.store.receive(5, now=70.0, series_uid="1.2.5")
    second = site.create_later("--keep", "2")
    assert second["counts"] == {"kept": 3, "copied": 1} and second["previous"] == Path(first["folder"]).name
    third = site.create_later("--keep", "2")
    assert third["removed"] == [first["folder"]]
    command("verify", third["folder"])
    assert read_manifest(Path(second["folder"]))[0].files == 4
