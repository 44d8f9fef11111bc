"""Machines on one machine: network namespaces with names of their own, on a bridge, each with a cable that can be cut.

Needs root, `ip` (Debian package iproute2) and a kernel that allows namespaces; else the tests skip by name.
"""

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
NAMESPACE, NAME, AHEAD = "NODE_NAMESPACE", "NODE_HOST", "NODE_CLOCK_AHEAD_S"
"""Variables of a process that is to live on a host: its network, its name, and how far its clock is ahead."""


class Network:
    """A bridge to which hosts are connected. address: of this machine on it. addresses: of the hosts, by name."""

    def __init__(self, names: list[str]) -> None:
        self._tag = f"{os.getpid() % 60000:x}"
        subnet = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.address = f"{subnet}.1"
        self.addresses = {name: f"{subnet}.{number}" for number, name in enumerate(names, start=11)}
        self._bridge = f"nb{self._tag}"

    def build(self) -> None:
        """Make the bridge and the hosts. Skips if that is not allowed here."""
        if shutil.which("ip") is None:
            pytest.skip("ip is not installed (Debian package iproute2)")
        if os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
            pytest.skip("network namespaces need root and a kernel that allows them")
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
        except AssertionError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        _ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name in self.addresses:
            self._connect(name)

    def _connect(self, name: str) -> None:
        inside, namespace = f"nc{self._tag}{name}", self.namespace(name)
        _ip("netns", "add", namespace)
        _ip("link", "add", self._cable(name), "type", "veth", "peer", "name", inside)
        _ip("link", "set", self._cable(name), "master", self._bridge, "up")
        _ip("link", "set", inside, "netns", namespace)
        for words in (f"addr add {self.addresses[name]}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
            _ip("-n", namespace, *words.split())

    def namespace(self, name: str) -> str:
        """The name of a host's network namespace."""
        return f"node-{self._tag}-{name}"

    def _cable(self, name: str) -> str:
        return f"nv{self._tag}{name}"

    def cut(self, name: str) -> None:
        """Pull a host's cable: nothing is refused or closed, it is only gone."""
        _ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable(name), "up")

    def slow(self, name: str, delay_ms: int, loss_percent: int) -> None:
        """Make a host's line slow and bad; 0 and 0 make it good. Does nothing if the kernel has no netem."""
        what = [
            "replace",
            "dev",
            self._cable(name),
            "root",
            "netem",
            "delay",
            f"{delay_ms}ms",
            "loss",
            f"{loss_percent}%",
        ]
        subprocess.run(["tc", "qdisc", *what], capture_output=True, check=False)

    def remove(self) -> None:
        """Take everything away."""
        commands = [["netns", "del", self.namespace(name)] for name in self.addresses] + [["link", "del", self._bridge]]
        quiet = subprocess.DEVNULL
        for going in [subprocess.Popen(["ip", *words], stdout=quiet, stderr=quiet) for words in commands]:
            going.wait()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr.strip()}"


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """A network of these hosts, which goes with the block."""
    made = Network(list(names))
    try:
        made.build()
        yield made
    finally:
        made.remove()


def live_on_host() -> None:
    """Move this process to the host that its environment names: a name of its own and another network."""
    namespace = os.environ.pop(NAMESPACE, None)
    if namespace is None:
        return
    library = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if library.setns(fd, CLONE_NEWNET) or library.unshare(CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "cannot live on another host")
    os.close(fd)
    socket.sethostname(os.environ[NAME])
