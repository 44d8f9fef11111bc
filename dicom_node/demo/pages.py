"""The demonstration's pages: an account made for it, and a node that goes on until Ctrl-C."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from dicom_node.errors import NodeError

USER = "demo"


class Pages:
    """Of a node with this data folder. The password is told once, at the end, and kept nowhere but as a hash."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._password = secrets.token_urlsafe(12)
        self.port = free_port()

    def prepare(self) -> dict[str, str]:
        """Make the account. Returns the settings with which the node has pages. Raises NodeError."""
        command = [sys.executable, "-m", "dicom_node", "web", "user", "add", USER, "--role", "administrator"]
        environment = os.environ | {"DICOM_NODE_DATA_DIR": str(self._data_dir), "DICOM_NODE_LOGGING__LEVEL": "warning"}
        done = subprocess.run(command, env=environment, input=self._password, text=True, capture_output=True)
        if done.returncode:
            raise NodeError(done.stderr.strip().removeprefix("dicom-node: "))
        return {"DICOM_NODE_WEB__PORT": str(self.port)}

    def stay(self, console: Console, node: "subprocess.Popen[bytes]") -> None:
        """Say how to open the pages, and wait until the node ends, or Ctrl-C."""
        console.print(f"\nThe node goes on. Open http://localhost:{self.port}", soft_wrap=True)
        console.print(f"  name {USER}, password {self._password}; Ctrl-C ends it", markup=False, soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            node.wait()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
