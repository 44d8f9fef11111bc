"""A receiver that can no longer keep anything says so to every sender, and makes room for another process."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dicom_node.receiver import committer, tickets
from dicom_node.receiver.committer import Committer
from dicom_node.receiver.server import Server
from dicom_node.scu import push
from tests import running
from tests.attacker import REJECT, attacker
from tests.programs import free_port, listening, wait_for
from tests.receiving import Node, associate, ct_slice, store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
# `dicom-node receive`, but for one bug that kills the thread that writes to the index.
DYING = """
from dicom_node.cli.app import main
from dicom_node.receiver.committer import Committer

def die(*_):
    raise SystemExit

Committer._commit = die
main()
"""


# Python imports this first in every process: in the node's first receiver the index thread dies at its first commit.
DYING_ONCE = """
import os, sys
if "receive" in sys.orig_argv:
    try:
        os.close(os.open({flag!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        from dicom_node.receiver.committer import Committer

        def die(*_):
            raise SystemExit

        Committer._commit = die
"""


class Broken(BaseException):
    """What no handler catches."""


def broken(*_: object) -> None:
    raise Broken


def test_where_the_thread_that_writes_to_the_index_dies_every_sender_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Committer, "_commit", broken)
    with Node(tmp_path) as node:
        answers = store(node, *(ct_slice(number) for number in range(3)))
        assert answers == [(0xA700, "storage not available")] * 3
        files = [path for path in node.files.root.rglob("*") if path.is_file()]
        assert len(files) == 3, "their rows may be there: only the sweep may remove the files"
        assert node.receiver.failure() == "index-thread-ended"
        # Not pynetdicom's SCU: it takes a fast rejection for an abort.
        with attacker(node.port) as sender:
            assert sender.associate() == REJECT


def test_what_is_queued_when_it_dies_is_answered_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, go_on = Committer._commit, threading.Event()

    def late(self: Committer, batch: list[tickets.Item]) -> None:
        if any(isinstance(item, tickets.Ticket) for item in batch):
            go_on.wait()
            raise Broken
        commit(self, batch)

    monkeypatch.setattr(Committer, "_commit", late)
    with Node(tmp_path) as node, ThreadPoolExecutor(4) as senders:
        answers = [senders.submit(store, node, ct_slice()) for _ in range(4)]
        wait_for(lambda: sum(a.is_storing for a in node.receiver._registry.associations()) == 4, 10, "all wait")
        go_on.set()
        assert [answer.result(timeout=60) for answer in answers] == [[(0xA700, "storage not available")]] * 4


def test_a_commit_that_never_ends_keeps_nobody_waiting_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(Committer, "_commit", lambda *_: hang.wait())
    monkeypatch.setattr(committer, "STUCK_S", 0.5)
    with Node(tmp_path) as node, ThreadPoolExecutor(1) as senders:
        with associate(node) as association:
            answer = senders.submit(association.send_c_store, ct_slice())
            wait_for(lambda: node.receiver.failure() == "index-thread-stuck", 10, "the hang is noticed")
            node.receiver.stop(drain_s=0)
            assert not hang.is_set(), "the stop did not wait for the commit"
            assert answer.result(timeout=60).get("Status") != 0x0000
        hang.set()


def test_a_commit_that_hangs_for_a_moment_already_does_not_hold_up_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(Committer, "_commit", lambda *_: hang.wait())
    with Node(tmp_path) as node, ThreadPoolExecutor(8) as senders:
        answers = [senders.submit(store, node, ct_slice()) for _ in range(8)]
        wait_for(lambda: sum(a.is_storing for a in node.receiver._registry.associations()) == 8, 10, "all wait")
        assert node.receiver.failure() is None, "nobody calls that stuck yet"
        node.receiver.stop(drain_s=0)
        assert not hang.is_set(), "the stop did not wait for the commit"
        assert not any(answer.exception(timeout=60) is None and answer.result()[0][0] == 0 for answer in answers)
        hang.set()


def test_an_index_that_somebody_holds_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "node.toml").write_text(
        f'data_dir = "{tmp_path}/var"\n[receiver]\nport = {port}\ndrain_s = 1\n[storage]\nlow_disk_mb = 1\n'
    )
    slices = tmp_path / "slices"
    slices.mkdir()
    ct_slice().save_as(slices / "one.dcm", enforce_file_format=True)
    command = [sys.executable, "-m", "dicom_node", "receive", "--config", str(tmp_path / "node.toml")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: listening(port), 60, "it listens")
            held = sqlite3.connect(tmp_path / "var" / "node.db", isolation_level=None, timeout=30)
            held.execute("BEGIN IMMEDIATE")
            with ThreadPoolExecutor(1) as senders:
                sending = senders.submit(push.send, slices, "127.0.0.1", port, "DICOM_NODE", "SENDER")
                wait_for(lambda: [*(tmp_path / "var" / "files").rglob("*.dcm")], 30, "the slice is there")
                began = time.monotonic()
                process.terminate()
                assert process.wait(40) == 1
                # The index alone would be waited for longer than that, see storage.database.BUSY_TIMEOUT_S.
                assert time.monotonic() - began < 20
                assert sending.result(30).stored == 0
            held.close()
            assert process.stderr is not None
            assert "index-thread-stuck" in process.stderr.read()
        finally:
            process.kill()


def test_a_port_that_is_served_no_more_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "service_actions", broken)
    with Node(tmp_path) as node:
        wait_for(lambda: node.receiver.failure() == "port-thread-ended", 5, "the death is noticed")


def test_a_receiver_that_failed_ends_with_an_error(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "node.toml").write_text(f'data_dir = "{tmp_path}/var"\n[receiver]\nport = {port}\n')
    command = [sys.executable, "-c", DYING, "receive", "--config", str(tmp_path / "node.toml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: listening(port), 30, "it listens")  # and looking writes an event
            assert process.wait(10) == 1, "the supervisor starts it again after this status"
            assert process.stderr is not None
            assert "index-thread-ended" in process.stderr.read()
        finally:
            process.kill()


def test_the_supervisor_starts_another_receiver_and_that_one_keeps_what_comes(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(DYING_ONCE.format(flag=str(tmp_path / "died")))
    running_node = running.Node(tmp_path / "node", free_port(), PYTHONPATH=f"{tmp_path}:{ROOT}")
    running_node.log = tmp_path / "log"
    folder = tmp_path / "slice"
    folder.mkdir()
    ct_slice().save_as(folder / "one.dcm", enforce_file_format=True)

    def sent() -> bool:
        return push.send(folder, "127.0.0.1", running_node.port, running_node.ae_title, "SENDER").stored == 1

    with running.running(running_node):
        wait_for(sent, 60, "a sender that tries again is served")
        assert (tmp_path / "died").exists()
        assert "index-thread-ended" in running_node.log.read_text()
        assert [row["outcome"] for row in running_node.command("audit") if row["event"] == "instance.received"] == [
            "NEW"
        ]
        assert running_node.stop() == 0
