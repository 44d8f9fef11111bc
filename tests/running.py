"""A whole node as a hospital runs it, in its own processes, for tests.

They are forked from one that has imported everything: else, of a test's CPU time the most would be Python's start.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from tests.programs import free_port, listening, wait_for
from tests.zygote import ForkedNode, Zygote

# What is on a path of its own must be imported instead of ours; and the library of the metrics finds out where it
# counts when it is imported.
EXECUTED = {"PYTHONPATH", "DICOM_NODE_METRICS__PORT", "DICOM_NODE_WEB__MONITORING"}
"""A node with one of these variables is not forked."""


class Node:
    """`dicom-node run` on loopback, sending to one destination."""

    def __init__(self, data_dir: Path, destination_port: int, destination_ae: str = "PACS", **variables: str) -> None:
        self.port = free_port()
        self.ae_title = "DICOM_NODE"
        destination = {"name": "pacs", "ae_title": destination_ae, "host": "127.0.0.1", "port": destination_port}
        self.environment = {
            **os.environ,
            "DICOM_NODE_DATA_DIR": str(data_dir),
            "DICOM_NODE_RECEIVER__PORT": str(self.port),
            "DICOM_NODE_COMPLETION__QUIET_S": "1",
            "DICOM_NODE_SENDER__FIRST_RETRY_S": "1",
            "DICOM_NODE_WORKER__LEASE_S": "10",
            "DICOM_NODE_WORKER__NICE": "0",  # beside other tests a worker that yields to everybody loses its lease
            "DICOM_NODE_DESTINATIONS": json.dumps([destination]),
            "DICOM_NODE_STORAGE__LOW_DISK_MB": "1",
            "DICOM_NODE_LOGGING__LEVEL": "warning",
            **variables,
        }
        self._variables = variables
        self.process: subprocess.Popen[bytes] | ForkedNode | None = None
        self.log: Path | None = None
        """Where what its processes print goes, instead of to the test's own output."""

    def start(self) -> None:
        """Start it in a process group of its own, and wait until it listens."""
        self.process = self._executed() if EXECUTED & self._variables.keys() else self._forked()
        wait_for(self._listens, 60, "the receiver listens")

    def _forked(self) -> ForkedNode:
        return ForkedNode(zygote(), zygote().start(self.environment, self.log))

    def _executed(self) -> "subprocess.Popen[bytes]":
        """As a site starts it."""
        command = [sys.executable, "-m", "dicom_node", "run"]
        with self.log.open("ab") if self.log else nullcontext() as log:
            return subprocess.Popen(command, env=self.environment, start_new_session=True, stdout=log, stderr=log)

    def _listens(self) -> bool:
        status = self.process.poll() if self.process is not None else None
        assert status is None, f"the node ended with status {status}"
        return listening(self.port)

    def kill(self) -> None:
        """Send SIGKILL to every process of the node at once, as in a power failure."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """Send SIGTERM and wait until the node has drained. Returns the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(280)
        finally:
            if self.process.poll() is None:
                self.kill()
        self.process = None
        return status

    def command(self, *arguments: str) -> Any:
        """Run a `dicom-node` command on this node's data with --json, and decode its output."""
        status, said, complained = zygote().run(self.environment, *arguments, "--json")
        assert status == 0, complained
        return json.loads(said)


def command(data_dir: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a `dicom-node` command on a data directory. Returns its exit status, standard output and standard error."""
    return zygote().run({**os.environ, "DICOM_NODE_DATA_DIR": str(data_dir)}, *arguments)


@cache
def zygote() -> Zygote:
    """From which the nodes and commands of this process's tests are forked. It ends with the process."""
    started = Zygote()
    atexit.register(started.stop)
    return started


@contextmanager
def running(node: Node) -> Iterator[Node]:
    """A started node, which is always stopped afterwards."""
    try:
        node.start()
        yield node
    finally:
        node.stop()
