"""What systemd hears of the node, by a socket like its own."""

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from config.settings import Settings
from dicom_node.runtime import supervisor
from dicom_node.runtime.service_manager import ServiceManager
from dicom_node.runtime.supervisor import Supervisor
from tests.programs import wait_for


class Heard:
    """A service manager's end: keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)
        self._lines: list[str] = []

    def lines(self) -> list[str]:
        """All that was told so far."""
        while True:
            try:
                self._lines.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self._lines

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    manager = Heard(tmp_path)
    yield manager
    manager.close()


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the receiver's program, which says that it is ready once the file that is returned is there."""
    program, file = tmp_path / "program", tmp_path / "begin"
    program.write_text(
        f"#!/bin/sh\nwhile [ ! -e {file} ]; do sleep 0.05; done\necho 1 >/dev/fd/$DICOM_NODE_READY_FD\nexec sleep 60\n"
    )
    program.chmod(0o700)
    monkeypatch.setattr(supervisor, "sys", SimpleNamespace(executable=str(program)))
    return file


def test_systemd_hears_that_the_node_is_ready_lives_loses_a_process_and_stops(
    heard: Heard, begin: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    manager = ServiceManager(heard.address, watchdog_s=0.3)
    with tempfile.TemporaryFile() as lock:
        node = Supervisor(Settings(data_dir=tmp_path), None, lock.fileno(), parts=("receive",), manager=manager)
        running = threading.Thread(target=node.run, args=(stop, threading.Event()))
        running.start()
        try:
            wait_for(lambda: heard.lines().count("WATCHDOG=1") >= 2, what="it lives")
            assert "READY=1" not in heard.lines()
            assert heard.lines()[0] == "STATUS=starting or down: receive"
            begin.touch()
            wait_for(lambda: "READY=1" in heard.lines(), what="it is ready")
            wait_for(lambda: heard.lines()[-1] == "WATCHDOG=1", what="it still lives")
            assert "STATUS=all processes run" in heard.lines()
            first = node.children[0].process
            assert first is not None
            first.kill()
            wait_for(lambda: heard.lines().count("STATUS=all processes run") == 2, what="the process is back")
            assert heard.lines().count("STATUS=starting or down: receive") == 2
        finally:
            stop.set()
            running.join(30)
    assert heard.lines().count("READY=1") == 1
    assert "STOPPING=1" in heard.lines()


def test_a_receiver_that_ends_before_it_listens_does_not_make_the_node_ready(
    heard: Heard, begin: Path, tmp_path: Path
) -> None:
    with tempfile.TemporaryFile() as lock:
        manager = ServiceManager(heard.address)
        node = Supervisor(Settings(data_dir=tmp_path), None, lock.fileno(), parts=("receive",), manager=manager)
        [child] = node.children
        child.start()
        assert child.process is not None
        child.process.kill()
        child.process.wait()
        wait_for(child.is_ready, what="its end is noticed")
        node._tell()
    assert heard.lines() == ["STATUS=starting or down: receive"]


def test_the_node_speaks_for_itself_alone(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    ServiceManager.of_environment().alive()
    assert heard.lines() == ["WATCHDOG=1"]
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    ServiceManager.of_environment().alive()
    ServiceManager.of_environment().ready()
    assert heard.lines() == ["WATCHDOG=1"]


def test_the_watchdog_is_told_three_times_within_its_patience_and_only_if_it_is_meant(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    manager = ServiceManager(heard.address, watchdog_s=60.0, monotonic=lambda: now[0])
    for now[0] in (0.0, 19.0, 20.0, 39.0, 40.0):
        manager.alive()
    assert heard.lines() == ["WATCHDOG=1"] * 3
    monkeypatch.setenv("NOTIFY_SOCKET", heard.address)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    ServiceManager.of_environment().alive()
    assert len(heard.lines()) == 3


def test_a_service_manager_that_is_gone_or_named_by_an_abstract_address_stops_nothing() -> None:
    ServiceManager("/nowhere/at/all").ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(f"\0dicom-node-test-{os.getpid()}")
        ServiceManager(f"@dicom-node-test-{os.getpid()}").ready()
        assert there.recv(100) == b"READY=1"
