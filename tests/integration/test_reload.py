"""SIGHUP: a running node takes a new configuration if it is good, and never ends for a wrong one."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import SenderSettings
from dicom_node.receiver.certificates import Authority
from dicom_node.scu.association import Address
from dicom_node.scu.store import echo
from storage.database import Database
from tests.programs import free_port, listening, wait_for


class Reloaded:
    """`dicom-node run` with a configuration file and no worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.port, self.tls_port = free_port(), free_port()
        self.file = folder / "node.toml"
        self.write("CT1")
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "dicom_node", "run", "--config", str(self.file)]
            self.process = subprocess.Popen(command, stderr=log)
        wait_for(lambda: listening(self.port), 60, "the receiver listens")

    def write(self, ae_title: str, port: int | None = None, more: str = "", tls: str = "") -> None:
        self.file.write_text(f"""
data_dir = "{self.folder / "var"}"
[receiver]
port = {port or self.port}
tls_port = {self.tls_port}
{tls}
[worker]
devices = []
[storage]
low_disk_mb = 1
{more}
[[sources]]
ae_title = "{ae_title}"
addresses = ["127.0.0.0/8"]
""")

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def takes(self, ae_title: str) -> bool:
        caller = SenderSettings(calling_ae_title=ae_title, connect_timeout_s=2, response_timeout_s=2)
        return echo(Address("DICOM_NODE", "127.0.0.1", self.port), caller).ok

    def says(self, words: str) -> bool:
        return words in self.log.read_text()

    def events(self) -> set[str]:
        database = Database(f"sqlite:///{self.folder / 'var' / 'node.db'}")
        with database.read() as tx:
            found = {row.event for row in tx.exec_driver_sql("SELECT event FROM audit WHERE event LIKE 'node.%%'")}
        database.close()
        return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Reloaded]:
    node = Reloaded(tmp_path)
    yield node
    node.process.terminate()
    assert node.process.wait(280) == 0, node.log.read_text()


def test_sources_change_while_a_wrong_configuration_and_a_new_port_leave_the_node_as_it_is(node: Reloaded) -> None:
    assert node.takes("CT1") and not node.takes("CT2")

    node.write("CT2", more="[completion]\nquiet = 3")
    node.hang_up()
    wait_for(lambda: node.says("the node goes on with the old one"), 20, "the mistake is named")
    assert node.says("completion.quiet") and node.takes("CT1")

    node.write("CT2", port=free_port())
    node.hang_up()
    wait_for(lambda: node.takes("CT2"), 60, "the new source may send")
    assert not node.takes("CT1")
    assert node.says("need a restart") and node.says("receiver.port")
    assert node.process.poll() is None
    wait_for(lambda: {"node.configuration-refused", "node.configuration-changed"} <= node.events(), 20)


def test_a_configuration_that_a_process_cannot_work_with_is_taken_back(node: Reloaded) -> None:
    authority = Authority("test", time.time(), 5)
    authority.write(node.folder / "ca.crt")
    for name in ("one", "other"):
        authority.issue(node.folder, name, 5, ["127.0.0.1"])
    files = {"certificate": "one.crt", "key": "other.key", "authorities": "ca.crt"}
    node.write("CT2", tls="".join(f'tls_{key} = "{node.folder / file}"\n' for key, file in files.items()))
    node.hang_up()
    wait_for(lambda: node.says("goes back to the former one"), 60, "the key is not that of the certificate")
    wait_for(lambda: node.takes("CT1"), 60, "the former configuration")
    assert not node.takes("CT2") and node.process.poll() is None


def test_an_orderly_stop_is_in_the_audit_trail_and_leaves_no_copy_of_the_configuration(node: Reloaded) -> None:
    node.process.terminate()
    assert node.process.wait(280) == 0
    assert {"node.started", "node.stopped"} <= node.events()
    assert list((node.folder / "var").glob("*.toml")) == []
