"""The bare cost of receiving a slice safely, without any program around it: a bound for `benchmarks/receive.py`.

    python -m benchmarks.receive_floor [--slices 300]

Prints CPU milliseconds per slice of 512 x 512 pixels for each step: read it from a TCP connection, compute its SHA-256,
write it to a new file, fsync that file and its folder, and commit an index row and an audit row with SQLite's own
driver. Also prints the wall time, which is what a sender that waits for each answer has to wait.
"""

import argparse
import hashlib
import os
import resource
import socket
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from benchmarks.receive import SIZE

SLICE_BYTES = 2 * SIZE * SIZE + 1500
PIECE_BYTES = 128 * 1024
SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE instances (id INTEGER PRIMARY KEY, uid TEXT UNIQUE, path TEXT UNIQUE, sha256 TEXT, at REAL);
CREATE TABLE audit (id INTEGER PRIMARY KEY, uid TEXT, detail TEXT, previous TEXT, hash TEXT);
"""


def measure(what: str, step: Callable[[], object], times: int) -> None:
    """Run a step many times; print this thread's CPU time and the wall time."""
    cpu, wall = _cpu_s(), time.perf_counter()
    for _ in range(times):
        step()
    cpu, wall = _cpu_s() - cpu, time.perf_counter() - wall
    print(f"{what:32} {cpu / times * 1000:6.3f} ms CPU {wall / times * 1000:7.3f} ms wall")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_THREAD)
    return used.ru_utime + used.ru_stime


def take_from_socket(times: int) -> None:
    """Send slices over loopback to a thread that only reads them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = threading.Thread(target=_send, args=(listener.getsockname()[1], times))
        sender.start()
        connection, _ = listener.accept()
        buffer = bytearray(PIECE_BYTES)

        def take() -> None:
            left = SLICE_BYTES
            while left:
                left -= connection.recv_into(buffer, min(left, PIECE_BYTES))

        measure("taken from the connection", take, times)
        connection.close()
        sender.join()


def _send(port: int, times: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(times):
            connection.sendall(bytes(SLICE_BYTES))


def main() -> None:
    """Measure every step and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    slices = parser.parse_args().slices
    pixels = memoryview(os.urandom(SLICE_BYTES))
    pieces = [pixels[at : at + PIECE_BYTES] for at in range(0, SLICE_BYTES, PIECE_BYTES)]
    with tempfile.TemporaryDirectory(prefix="floor-") as work:
        folder = os.open(work, os.O_RDONLY)
        index = sqlite3.connect(Path(work) / "index.db", isolation_level=None)
        index.executescript(SCHEMA)
        opened: list[int] = []

        def digest() -> None:
            sha = hashlib.sha256()
            for piece in pieces:
                sha.update(piece)

        def write() -> None:
            opened.append(os.open(f"{work}/{uuid.uuid4().hex}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
            for piece in pieces:
                os.write(opened[-1], piece)

        def write_and_sync() -> None:
            write()
            os.fsync(opened[-1])
            os.close(opened.pop())
            os.fsync(folder)

        def commit() -> None:
            index.execute("BEGIN IMMEDIATE")
            uid, digest_text = uuid.uuid4().hex, "0" * 64
            row = (uid, uid, digest_text, 0.0)
            index.execute("INSERT INTO instances (uid, path, sha256, at) VALUES (?, ?, ?, ?)", row)
            audit = (uid, "x" * 120, digest_text, digest_text)
            index.execute("INSERT INTO audit (uid, detail, previous, hash) VALUES (?, ?, ?, ?)", audit)
            index.execute("COMMIT")

        take_from_socket(slices)
        measure("SHA-256", digest, slices)
        measure("written, file and folder fsynced", write_and_sync, slices)
        measure("two rows committed", commit, slices)
        index.close()
        os.close(folder)


if __name__ == "__main__":
    main()
