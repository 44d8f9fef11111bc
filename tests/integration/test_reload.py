"""SIGHUP: a running node takes a new configuration if it is good, and never ends for a wrong one."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import SenderSettings
from dicom_node.scu.association import Address
from dicom_node.scu.store import echo
from storage.database import Database
from tests.programs import free_port, listening, wait_for


class Reloaded:
    """`dicom-node run` with a configuration file and no worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.log = folder, free_port(), folder / "log"
        self.file = folder / "node.toml"
        self.write("CT1")
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "dicom_node", "run", "--config", str(self.file)]
            self.process = subprocess.Popen(command, stderr=log)
        wait_for(lambda: listening(self.port), 60, "the receiver listens")

    def write(self, ae_title: str, port: int | None = None, more: str = "") -> None:
        self.file.write_text(
            f'data_dir = "{self.folder / "var"}"\n[receiver]\nport = {port or self.port}\n[worker]\ndevices = []\n'
            f'[storage]\nlow_disk_mb = 1\n{more}\n[[sources]]\nae_title = "{ae_title}"\naddresses = ["127.0.0.0/8"]\n'
        )

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
    assert node.process.wait(70) == 0, node.log.read_text()


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


def test_an_orderly_stop_is_in_the_audit_trail_and_leaves_no_copy_of_the_configuration(node: Reloaded) -> None:
    node.process.terminate()
    assert node.process.wait(70) == 0
    assert {"node.started", "node.stopped"} <= node.events()
    assert list((node.folder / "var").glob("*.toml")) == []
