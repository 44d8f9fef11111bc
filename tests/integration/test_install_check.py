"""`install check` beside a node that runs, and what that node tells systemd."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from pydicom import dcmread
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from tests.programs import free_port, listening, wait_for


def asked(environment: dict[str, str], *words: str) -> Result:
    return CliRunner().invoke(app, words, env=environment)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    pacs = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()}
    return {
        **os.environ,
        "DICOM_NODE_DATA_DIR": str(tmp_path / "data"),
        "DICOM_NODE_RECEIVER__PORT": str(free_port()),
        "DICOM_NODE_DESTINATIONS": json.dumps([pacs]),
        "DICOM_NODE_STORAGE__LOW_DISK_MB": "1",
        "DICOM_NODE_LOGGING__LEVEL": "warning",
    }


def test_a_running_node_is_found_listening_and_told_systemd_so(environment: dict[str, str], tmp_path: Path) -> None:
    port = int(environment["DICOM_NODE_RECEIVER__PORT"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        told = {**environment, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        node = subprocess.Popen(
            [sys.executable, "-m", "dicom_node", "run", "--only", "receive"], env=told, start_new_session=True
        )
        try:
            while manager.recv(1000) != b"READY=1":
                pass
            assert listening(port)
            assert asked(environment, "install", "alive").exit_code == 0
            done = asked(environment, "install", "check", "--json")
            node.send_signal(signal.SIGTERM)
            wait_for(lambda: manager.recv(1000) == b"STOPPING=1", what="it says that it stops")
            assert node.wait(60) == 0
        finally:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
                node.wait()
    assert asked(environment, "install", "alive").exit_code == 1
    assert done.exit_code == 2
    answer = json.loads(done.stdout)
    levels = {one["part"]: one["level"] for one in answer["checks"]}
    assert answer["status"] == 2
    assert levels["destination pacs"] == "WRONG"
    for part in ("Python", "worker 0", "disk space", "index", "node", f"port {port}", "own receiver"):
        assert levels[part] == "good", (part, answer)
    assert all(one["do"] for one in answer["checks"] if one["level"] != "good")


def test_a_phantom_to_try_an_installation_with_is_written_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "phantom")
    assert asked({}, "install", "phantom", folder).exit_code == 0
    first = dcmread(min((tmp_path / "phantom").iterdir()))
    assert (first.Modality, len(list((tmp_path / "phantom").iterdir()))) == ("CT", 40)
    assert isinstance(asked({}, "install", "phantom", folder).exception, NodeError)
