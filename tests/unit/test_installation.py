"""What a look at the installation finds on machines that are not as they should be."""

import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from dicom_node.cli.configure import read_and_check
from dicom_node.receiver.certificates import Authority
from dicom_node.runtime.installation.certificates import certificates
from dicom_node.runtime.installation.check import check
from dicom_node.runtime.installation.clock import KernelClock, clock, kernel_clock
from dicom_node.runtime.installation.disk import disk, file_system_of
from dicom_node.runtime.installation.found import Found, Level, exit_status, good, look, wrong
from dicom_node.runtime.installation.index import index
from dicom_node.runtime.installation.models import models
from dicom_node.runtime.installation.peers import peers
from dicom_node.runtime.installation.permissions import permissions
from dicom_node.runtime.installation.ports import ports
from dicom_node.runtime.liveness import Liveness
from inference.models.cards import shipped_folder
from storage.private import make_folder
from tests.programs import free_port

RUNS, STOPPED = Liveness(True, True, ""), Liveness(False, False, "it does not run")
MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/sdb1 /srv ext4 rw 0 0
filer:/images /srv/images nfs4 rw 0 0
"""


def settings(folder: Path, **sections: Any) -> Settings:
    return Settings.model_validate({"data_dir": folder / "data", **sections})


def of(part: str, found: Iterable[Found]) -> list[Found]:
    return [one for one in found if one.part == part]


def one_of(part: str, found: Iterable[Found]) -> Found:
    [one] = of(part, found)
    return one


def test_the_status_is_that_of_the_worst_line() -> None:
    assert exit_status([]) == 0
    assert exit_status([good("a", "")]) == 0
    assert exit_status([good("a", ""), look("b", "", "")]) == 1
    assert exit_status([wrong("c", "", ""), look("b", "", ""), good("a", "")]) == 2


@pytest.mark.parametrize(
    ("path", "kind"), [("/srv/images/node", "nfs4"), ("/srv/images2", "ext4"), ("/var", "ext4"), ("/run/x", "tmpfs")]
)
def test_the_file_system_is_that_of_the_innermost_mount(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind


def test_a_full_disk_is_wrong_and_nothing_stays_on_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    found = list(disk(settings(tmp_path, storage={"low_disk_mb": 10**9})))
    assert one_of("disk space", found).level is Level.WRONG
    assert "is durable in" in one_of("disk speed", found).says
    assert list((tmp_path / "data").iterdir()) == []


def test_an_index_in_sqlite_on_a_network_file_system_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.runtime.installation.disk.file_system_of", lambda path: "nfs4")
    assert one_of("file system", disk(settings(tmp_path))).level is Level.WRONG
    server = settings(tmp_path, storage={"database_url": "postgresql+psycopg://node@db/node"})
    assert one_of("file system", disk(server)).level is Level.GOOD


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (KernelClock(True, 0.02), Level.GOOD),
        (KernelClock(True, 4.0), Level.LOOK),
        (KernelClock(False, 16.0), Level.LOOK),
        (None, Level.LOOK),
    ],
)
def test_a_clock_that_nobody_keeps_right_is_named(found: KernelClock | None, level: Level) -> None:
    assert [one.level for one in clock(found)] == [level]


def test_the_kernel_says_how_its_clock_is() -> None:
    found = kernel_clock()
    assert found is None or 0 <= found.error_s < 1000


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this program listens, which is no node."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_another_program_holds_is_wrong_and_the_program_is_named(tmp_path: Path, taken: int) -> None:
    for alive in (STOPPED, RUNS):
        found = one_of(f"port {taken}", ports(settings(tmp_path, receiver={"port": taken}), alive))
        assert (found.level, f"process {os.getpid()}" in found.says) == (Level.WRONG, True)


def test_a_free_port_is_good_until_the_node_should_listen_there(tmp_path: Path) -> None:
    port = free_port()
    wanted = settings(tmp_path, receiver={"port": port})
    assert one_of(f"port {port}", ports(wanted, STOPPED)).level is Level.GOOD
    assert one_of(f"port {port}", ports(wanted, RUNS)).level is Level.LOOK


def test_every_port_of_the_settings_is_looked_at(tmp_path: Path) -> None:
    port, pages, told, measured = (free_port() for _ in range(4))
    wanted = settings(
        tmp_path,
        receiver={"port": port},
        web={"port": pages},
        metrics={"port": measured},
        sender={"commitment": {"port": told}},
    )
    assert {one.part for one in ports(wanted, STOPPED)} == {f"port {n}" for n in (port, pages, told, measured)}


def test_a_peer_that_does_not_answer_is_wrong(tmp_path: Path) -> None:
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    mllp = {"name": "ris", "kind": "hl7", "host": "127.0.0.1", "port": free_port()}
    found = list(peers(settings(tmp_path, destinations=[pacs, mllp]), STOPPED))
    assert one_of("destination pacs", found).level is Level.WRONG
    assert one_of("destination ris", found).level is Level.WRONG
    assert one_of("sources", found).level is Level.LOOK


def test_a_secret_that_everybody_may_read_or_the_node_may_not_is_named(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    authority = Authority("test", time.time())
    certificate, key = authority.issue(tmp_path, "node")
    ca = authority.write(tmp_path / "ca.crt")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_authorities": ca}
    node = settings(tmp_path, receiver=files)
    config = tmp_path / "node.toml"
    config.touch(0o640)
    assert [one.level for one in of("secrets", permissions(node, config))] == [Level.GOOD]
    key.chmod(0o644)
    [found] = of("secrets", permissions(node, config))
    assert (found.level, "receiver.tls_key" in found.says) == (Level.LOOK, True)
    key.unlink()
    assert one_of("secrets", permissions(node, config)).level is Level.WRONG


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_a_key_that_only_root_may_read_is_wrong_if_the_data_are_anothers(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path / "data", nobody.pw_uid, nobody.pw_gid)
    config = tmp_path / "node.toml"
    config.touch(0o600)
    [found] = of("secrets", permissions(settings(tmp_path), config))[:1]
    assert (found.level, "nobody may not read" in found.says) == (Level.WRONG, True)
    os.chown(config, 0, nobody.pw_gid)
    config.chmod(0o640)
    assert [one.level for one in of("secrets", permissions(settings(tmp_path), config))] == [Level.GOOD]


def test_data_that_others_may_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(0o755)
    assert "open to others" in one_of("data folder", permissions(settings(tmp_path), None)).says


def test_a_certificate_that_expired_or_belongs_to_another_key_is_wrong(tmp_path: Path) -> None:
    authority = Authority("test", time.time())
    ca = authority.write(tmp_path / "ca.crt")
    certificate, key = authority.issue(tmp_path, "node")
    expired, its_key = authority.issue(tmp_path, "old", days=-2)

    def found(certificate: Path, key: Path) -> list[Found]:
        files = {"tls_certificate": certificate, "tls_key": key, "tls_authorities": ca}
        return [one for one in certificates(settings(tmp_path, receiver=files)) if one.level is not Level.GOOD]

    assert found(certificate, key) == []
    [old] = found(expired, its_key)
    assert (old.level, "expired" in old.says) == (Level.WRONG, True)
    [stranger] = found(certificate, its_key)
    assert (stranger.level, "does not belong to the key" in stranger.says) == (Level.WRONG, True)


def test_weights_that_were_altered_are_wrong(tmp_path: Path) -> None:
    node = settings(tmp_path)
    assert [one.level for one in models(node)] == [Level.LOOK]  # the demonstration, as it was shipped
    copy = node.models_dir / "copy"
    shutil.copytree(shipped_folder() / "demonstration", copy)
    (node.models_dir / "active").write_text("copy\n")
    assert [one.level for one in models(node)] == [Level.LOOK]
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    [found] = models(node)
    assert (found.level, "altered" in found.says) == (Level.WRONG, True)


def test_an_index_that_is_not_there_yet_is_good_and_one_without_its_files_is_wrong(tmp_path: Path) -> None:
    node = settings(tmp_path)
    assert [one.level for one in index(node)] == [Level.GOOD]
    assert not node.data_dir.exists()
    make_folder(node.data_dir)
    away = settings(tmp_path, storage={"database_url": "postgresql+psycopg://node@127.0.0.1:1/node"})
    [found] = index(away)
    assert (found.level, "PostgreSQL server" in found.says) == (Level.WRONG, True)


def test_mistakes_in_the_settings_are_lines_of_the_table_and_the_machine_is_looked_at_all_the_same(
    tmp_path: Path,
) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[receiver]\nport = 'high'\n")
    found = list(check(*read_and_check(config), config))
    mistake = one_of("configuration", found)
    assert (mistake.level, "line 2: receiver.port" in mistake.says) == (Level.WRONG, True)
    assert {"Python", "U-Net in C", "clock"} < {one.part for one in found}
