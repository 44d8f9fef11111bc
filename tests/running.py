"""A whole node as a hospital runs it, in its own processes, for tests."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.programs import free_port, listening, wait_for


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
        self.process: subprocess.Popen[bytes] | None = None
        self.log: Path | None = None
        """Where what its processes print goes, instead of to the test's own output."""

    def start(self) -> None:
        """Start it in a process group of its own, and wait until it listens."""
        with self.log.open("ab") if self.log else nullcontext() as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "run"],
                env=self.environment,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        wait_for(self._listens, 60, "the receiver listens")

    def _listens(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the node ended with status {self.process.returncode}")
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
        done = subprocess.run(
            [sys.executable, "-m", "dicom_node", *arguments, "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(done.stdout)


@contextmanager
def running(node: Node) -> Iterator[Node]:
    """A started node, which is always stopped afterwards."""
    try:
        node.start()
        yield node
    finally:
        node.stop()
