"""A Ray cluster of several raylets on loopback, in a process of its own: Ray changes the process that it is used in.

It listens on loopback only, asks for a token, reports nothing to anybody and has no dashboard.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.programs import free_port

ROOT = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 80 << 20
HEAD = "127.0.0.2"  # for 127.0.0.1, Ray takes this machine's address on the network
RECONNECT_S = 3
"""How long a raylet looks for its head until it ends; 60 s by default."""


class RayCluster:
    """A cluster whose head takes no worker. hosts: those that do, by number; each is a raylet."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.port = free_port()
        self.address = f"{HEAD}:{self.port}"
        self.token_file = folder / "token"
        self.token_file.touch(0o600)
        self.token_file.write_text(secrets.token_hex(32))
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.variables = variables
        self._log = (folder / "ray.log").open("ab")
        self._process: subprocess.Popen[str] | None = None

    def start(self, hosts: int, workers_each: int = 2) -> None:
        """Start a head and some hosts."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DICOM_NODE_", "RAY_"))
        }
        environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S),
            "PYTHONPATH": f"{ROOT}/tests/stand_ins:{ROOT}",
            **self.variables,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_cluster", str(self.port), str(self.folder)],
            cwd=ROOT, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the head does not run"
        for number in range(hosts):
            self.add(number, workers_each)

    def add(self, number: int, workers: int = 2) -> None:
        """Start a host that takes so many workers, and offers "site_N" by its number."""
        self._ask({"add": number, "workers": workers})

    def remove(self, number: int) -> None:
        """Kill a host."""
        self._ask({"remove": number})

    def kill(self) -> None:
        """Kill all of it at once, head and hosts."""
        if self._process is None:
            return
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()
        self._process = None

    def kill_head(self) -> None:
        """Kill the head alone. Its hosts end when they have missed it for a while, and with them this."""
        self._ask({"kill_head": True})

    def actors(self) -> list[int]:
        """The pids of the actors' processes."""
        return [one.pid for one in self._members() if "ray::WorkerActor" in " ".join(_arguments(one))]

    def workers(self) -> list[int]:
        """The pids of the worker processes that they hold."""
        return [child.pid for pid in self.actors() for child in _children(pid) if "dicom_node" in _arguments(child)]

    def end(self) -> None:
        """Stop all of it, and remove its files."""
        self.kill()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _members(self) -> list[psutil.Process]:
        """Its processes, but no workers: what those do when Ray is gone is tested."""
        assert self._process is not None
        found = [psutil.Process(self._process.pid)]
        for one in found:
            found += [child for child in _children(one.pid) if "dicom_node" not in _arguments(child)]
        return found

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "done\n", answer


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [one for one in psutil.Process(pid).children() if one.status() != psutil.STATUS_ZOMBIE]
    return []


def _arguments(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _serve(port: int, folder: str) -> None:
    """Do what standard input asks for."""
    from ray.cluster_utils import Cluster

    common = {"object_store_memory": OBJECT_STORE_BYTES, "include_log_monitor": False}
    head = {
        **common,
        "node_ip_address": HEAD,
        "gcs_server_port": port,
        "num_cpus": 0,
        "include_dashboard": False,
        "temp_dir": folder,
    }
    # Ray notes its address there, and makes the folder only if it is also its own.
    Path(tempfile.gettempdir(), "ray").mkdir(exist_ok=True)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    hosts: dict[int, Any] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "add" in request:
            number, workers = request["add"], request["workers"]
            resources = {f"site_{number}": workers}
            hosts[number] = cluster.add_node(
                node_ip_address=f"127.0.0.{10 + number}", num_cpus=workers, resources=resources, **common
            )
        elif "remove" in request:
            cluster.remove_node(hosts.pop(request["remove"]), allow_graceful=False)
        else:
            head_node: Any = cluster.head_node
            for processes in head_node.all_processes.values():
                for one in processes:
                    one.process.send_signal(signal.SIGKILL)
        print("done", flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
