"""Real peers on loopback: DCMTK's storescp and dcmqrscp, Debian's Orthanc, and a proxy that cuts connections."""

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.conftest import require_program

# Below those that the system gives to connections, and apart for each process that runs tests: nobody takes a port
# between the moment when it is found free and the start of the program that listens on it.
PORTS_PER_PROCESS = 4000
_first = 10_000 + PORTS_PER_PROCESS * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 5)
PATIENCE = 4  # a machine that others share can be that much slower than the one on which a test was written
_ports = itertools.cycle(random.sample(range(_first, _first + PORTS_PER_PROCESS), PORTS_PER_PROCESS))


def free_port() -> int:
    """A TCP port on which nothing is listening; not the same twice in a row."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("unreachable")


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition`; fails the test if there is none in `PATIENCE` times `timeout_s`."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE * timeout_s:g} s: {what or condition}")


def listening(port: int) -> bool:
    """True if a TCP connection to this loopback port is accepted."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


@contextlib.contextmanager
def running(command: list[str], port: int, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server program; the block begins when it listens, and the program ends with the block."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: process.poll() is not None or listening(port), what=f"{command[0]} listens")
        assert process.poll() is None, f"{command[0]} ended with status {process.returncode}"
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


@contextlib.contextmanager
def storescp(folder: Path, *options: str, port: int | None = None) -> Iterator[int]:
    """DCMTK's storescp, which writes what it receives, bit-preserving, to `folder`. Yields its port."""
    port = port or free_port()
    folder.mkdir(exist_ok=True)
    command = [require_program("storescp"), "+B", "-od", str(folder), "-aet", "STORESCP", *options, str(port)]
    with running(command, port, folder):
        yield port


@contextlib.contextmanager
def dcmqrscp(folder: Path, callers: dict[str, int], *options: str, port: int | None = None) -> Iterator[int]:
    """DCMTK's image archive with C-FIND, C-MOVE, C-GET and C-STORE as AE title ARCHIVE. Yields its port.

    callers: ports of the move destinations, by AE title.
    """
    port = port or free_port()
    (folder / "db").mkdir(parents=True)
    hosts = "\n".join(f"{title.lower()} = ({title}, localhost, {number})" for title, number in callers.items())
    (folder / "dcmqrscp.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\nHostTable BEGIN\n{hosts}\nHostTable END\n"
        f"VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    command = [require_program("dcmqrscp"), "-c", str(folder / "dcmqrscp.cfg"), *options, str(port)]
    with running(command, port, folder):
        yield port


class Orthanc:
    """A running Orthanc: its DICOM port and its REST interface."""

    def __init__(self, port: int, http_port: int) -> None:
        self.port = port
        self.http_port = http_port

    def call(self, path: str, body: bytes | None = None, method: str | None = None) -> Any:
        """One REST call; returns the parsed JSON answer, or None if there is none."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def upload(self, path: Path) -> str:
        """Store a file over REST instead of DICOM. Returns Orthanc's identifier of the instance."""
        return str(self.call("/instances", path.read_bytes())["ID"])

    def file(self, identifier: str) -> bytes:
        """The Part 10 bytes that Orthanc holds."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/instances/{identifier}/file", timeout=20) as a:
            return bytes(a.read())


@contextlib.contextmanager
def orthanc(folder: Path, modalities: dict[str, int] | None = None, **options: object) -> Iterator[Orthanc]:
    """Debian's Orthanc as AE title ORTHANC, with its storage in `folder`.

    modalities: ports on loopback, by AE title. options: further entries of its configuration file.
    """
    port, http_port = free_port(), options.get("HttpPort") or free_port()
    assert isinstance(http_port, int)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {title: [title, "127.0.0.1", number] for title, number in (modalities or {}).items()},
        "ConcurrentJobs": 1,
        **options,
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with running([require_program("Orthanc"), str(folder / "orthanc.json")], port, folder):
        server = Orthanc(port, http_port)
        wait_for(lambda: listening(http_port), what="Orthanc's REST interface")
        yield server


class CuttingProxy:
    """A TCP proxy that, when armed, swallows the server's next answers and cuts the connection instead.

    The PACS has then stored an instance without the sender learning of it.
    """

    def __init__(self, target_port: int, answer: bytes = b"\x04") -> None:
        """answer: how those to be cut begin. 0x04: P-DATA-TF; from a Storage SCP it carries the C-STORE response."""
        self.target_port = target_port
        self._answer_begins = answer
        self.cuts = 0
        self._armed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, times: int = 1) -> None:
        """Cut the next `times` answers."""
        self._armed = times

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target_port))
            threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        _close(source, sink)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(65536):
                if data.startswith(self._answer_begins) and self._armed:
                    self._armed -= 1
                    self.cuts += 1
                    break
                client.sendall(data)
        except OSError:
            pass
        _close(server, client)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        each.close()
