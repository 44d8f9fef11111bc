"""An HL7 interface engine in a process of its own: keeps each message it receives, and answers as the test says.

    python -m tests.mllp_server FOLDER [CERTIFICATE KEY AUTHORITIES]

It writes each message to FOLDER/NNNN.hl7 and then answers as FOLDER/behaviour says at that moment; FOLDER/port tells
its port once it listens.
"""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START, END = b"\x0b", b"\x1c\r"
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Engine:
    """A running server. Its messages are those that it has kept."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def messages(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.hl7"))]

    def behave(self, behaviour: str) -> None:
        """How it answers from now on: one of `ANSWERS`."""
        write_whole(self.folder / "behaviour", behaviour.encode())

    def await_messages(self, count: int) -> list[bytes]:
        """The messages, once there are so many."""
        wait_for(lambda: len(self.messages) >= count)
        return self.messages


@contextmanager
def mllp_server(folder: Path, behaviour: str = "AA", *tls: Path) -> Iterator[Engine]:
    """The server while the body runs. tls: its certificate, its key and the authorities of clients' certificates."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "behaviour", behaviour.encode())
    (folder / "port").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.mllp_server", str(folder), *map(str, tls)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for(lambda: (folder / "port").exists())
        yield Engine(folder, int((folder / "port").read_text()), process)
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], patience_s: float = 180) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def write_whole(path: Path, content: bytes) -> None:
    """A file that a reader sees whole or not at all."""
    scratch = path.with_suffix(".part")
    scratch.write_bytes(content)
    os.replace(scratch, path)


def acknowledgement(message: bytes, code: str, control_id: str = "") -> bytes:
    """A framed ACK. control_id: MSA-2, if it is not the message's own."""
    head = message.split(b"\r")[0].decode("latin-1").split("|")
    lines = [f"MSH|^~\\&|RIS|SITE|NODE|SITE|20260101||ACK|{head[9]}A|P|2.5.1", f"MSA|{code}|{control_id or head[9]}"]
    lines += ["ERR|||207^Application internal error^HL70357|E||||Doe^Jane is unknown"] if code[1] in "ER" else []
    return START + "".join(line + "\r" for line in lines).encode() + END


def _drip(connection: socket.socket, message: bytes) -> None:
    for one in acknowledgement(message, "AA"):
        connection.sendall(bytes([one]))
        time.sleep(0.2)


def _hang_up(connection: socket.socket, message: bytes) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def _code(code: str) -> Callable[[socket.socket, bytes], None]:
    return lambda connection, message: connection.sendall(acknowledgement(message, code))


ANSWERS: dict[str, Callable[[socket.socket, bytes], None]] = {
    **{code: _code(code) for code in ("AA", "CA", "AE", "AR", "CE", "CR", "ZZ")},
    "another": lambda connection, message: connection.sendall(acknowledgement(message, "AA", "ANOTHER")),
    "late": lambda connection, message: connection.sendall(
        acknowledgement(message, "AE", "ANOTHER") + acknowledgement(message, "AA")
    ),
    "garbage": lambda connection, message: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" + END),
    "no-msa": lambda connection, message: connection.sendall(START + b"MSH|^~\\&|RIS\r" + END),
    "truncated": lambda connection, message: connection.sendall(acknowledgement(message, "AA")[:-2]),
    "huge": lambda connection, message: connection.sendall(START + b"MSH|^~\\&|" + b"x" * (4 << 20)),
    "slow": _drip,
    "silent": lambda connection, message: connection.recv(1) and None,
    "hang-up": _hang_up,
}


def _serve(folder: Path, tls: list[str]) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls[0], tls[1])
        context.load_verify_locations(tls[2])
        context.verify_mode = ssl.CERT_REQUIRED
    write_whole(folder / "port", str(listening.getsockname()[1]).encode())
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            _talk(connection, context, folder)
            os._exit(0)
        connection.close()


def _talk(connection: socket.socket, context: ssl.SSLContext | None, folder: Path) -> None:
    try:
        line = context.wrap_socket(connection, server_side=True) if context else connection
        received = b""
        while not received.endswith(END):
            more = line.recv(1 << 16)
            if not more:
                return
            received += more
        message = received.removeprefix(START).removesuffix(END)
        write_whole(folder / f"{len(list(folder.glob('*.hl7'))):04}.hl7", message)
        ANSWERS[(folder / "behaviour").read_text()](line, message)
    except OSError:
        return  # the client has gone


if __name__ == "__main__":
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _serve(Path(sys.argv[1]), sys.argv[2:])
