"""A real S3 server in a process of its own (moto_server), and a gate before it that fails in the ways a network does.

What moto does not do: it keeps objects in memory (a killed server has lost them), takes any credentials, and does not
check the SHA-256 that comes with an object. It does refuse a second object under a key (If-None-Match).
"""

import contextlib
import itertools
import socket
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from storage.bucket import Access, Bucket
from storage.bucket_store import BucketStore
from tests.programs import free_port, running

_numbers = itertools.count(1)
KEYS = {"AWS_ACCESS_KEY_ID": "a-key-id-to-look-for", "AWS_SECRET_ACCESS_KEY": "a-secret-to-look-for"}
PREFIX = "node/files"


class Gate:
    """A TCP proxy. `shut`: nothing listens. `silence`: what comes is taken and never answered. `swallow`: the next
    answers are cut off, so that the server has done what nobody is told of."""

    def __init__(self, target_port: int, address: str = "127.0.0.1") -> None:
        self._target, self._address = target_port, address
        self._swallow = 0
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((address, 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def swallow(self, times: int) -> None:
        """Cut off the next answers."""
        self._swallow = times

    def silence(self) -> None:
        """Answer nothing until `open`."""
        self._flows.clear()

    def shut(self) -> None:
        """Stop listening, and cut what is connected."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        _cut(*self._open)

    def open(self) -> None:
        """Work again."""
        self._flows.set()
        if self._listener.fileno() < 0:
            self._listener = socket.create_server((self._address, self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open |= {client, server}
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, are_answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if are_answers and self._swallow:
                    self._swallow -= 1
                    break
                if are_answers:
                    self._flows.wait()
                sink.sendall(data)
        self._open -= {source, sink}
        _cut(source, sink)


def _cut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


class S3:
    """A bucket of its own on a running server, behind a gate of its own. `direct`: the bucket without the gate.

    address: where the gate listens.
    """

    def __init__(self, server_port: int, address: str = "127.0.0.1") -> None:
        self.bucket = f"bucket-{next(_numbers)}"
        self.gate = Gate(server_port, address)
        self.url, self.endpoint = f"s3://{self.bucket}/{PREFIX}", f"http://{address}:{self.gate.port}"
        self.direct = _direct(self.bucket, server_port)

    def access(self, **other: Any) -> Access:
        """How a node reaches it."""
        known: dict[str, Any] = {
            "bucket": self.bucket, "prefix": PREFIX, "endpoint": self.endpoint, "region": "us-east-1", "key": "key",
            "secret": "secret", "authorities": b"", "plain": True, "timeout_s": 5.0, "create_only": True,
        }  # fmt: skip
        return Access(**{**known, **other})

    def store(self, local: Path, *, cache: int = 1 << 30, spool: int = 1 << 30, **other: Any) -> BucketStore:
        """A file store in it. other: of `Access`, and `clock`."""
        how = {"clock": other.pop("clock")} if "clock" in other else {}
        return BucketStore(Bucket(self.access(**other)), local, cache, spool, **how)

    def variables(self) -> dict[str, str]:
        """The environment of a node that keeps its files here."""
        return {
            "DICOM_NODE_STORAGE__BUCKET": self.url,
            "DICOM_NODE_STORAGE__S3__ENDPOINT": self.endpoint,
            "DICOM_NODE_STORAGE__S3__TIMEOUT_S": "5",
            **KEYS,
        }

    def stored(self) -> list[str]:
        """Every stored file, set aside or not."""
        pages = obstore.list(self.direct, PREFIX, chunk_size=1000)
        return sorted(one["path"][len(PREFIX) + 1 :] for page in pages for one in page if one["path"].endswith(".dcm"))

    def read(self, path: str) -> bytes:
        """The bytes of an object."""
        return bytes(obstore.get(self.direct, f"{PREFIX}/{path}").bytes())

    def write(self, path: str, data: bytes) -> None:
        """Put other bytes in an object's place, behind the node's back."""
        obstore.put(self.direct, f"{PREFIX}/{path}", data)

    def delete(self, *paths: str) -> None:
        """Take objects away, behind the node's back."""
        obstore.delete(self.direct, [f"{PREFIX}/{path}" for path in paths])


def _direct(bucket: str, port: int) -> S3Store:
    endpoint = f"http://127.0.0.1:{port}"
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("PUT", f"/{bucket}")
    assert connection.getresponse().status == 200
    return S3Store(
        bucket, endpoint=endpoint, region="us-east-1", access_key_id="key", secret_access_key="secret",
        client_options={"allow_http": True},
    )  # fmt: skip


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """Run a server. Yields its port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, folder):
        yield port
