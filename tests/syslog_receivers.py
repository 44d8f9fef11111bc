"""Receivers of audit messages: a socket that a test can make behave badly, and a real rsyslogd over TLS."""

import contextlib
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from config.gateways.audit_messages import SyslogSettings
from dicom_node.receiver.certificates import Authority
from tests.conftest import require_program
from tests.programs import free_port, listening, wait_for

ROWS = re.compile(r'ParticipantObjectID="(\d+):[0-9a-f]{64}"')
EVENT = re.compile(r'<EventID csd-code="(\d+)"')


@dataclass
class Socket:
    """A plain receiver on loopback. resets_after: messages of a connection until it is reset, with some unread.

    hangs: it never ends a connection. leaves_at_once: it ends connections before it reads.
    """

    messages: list[str] = field(default_factory=list)
    resets_after: int | None = None
    hangs: bool = False
    leaves_at_once: bool = False
    connections: int = 0
    port: int = 0

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                line, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._take(line)

    def _take(self, line: socket.socket) -> None:
        if self.leaves_at_once:
            line.close()
            return
        taken = 0
        with contextlib.suppress(OSError), line.makefile("rb") as file:
            while length := _number(file):
                if self.resets_after is not None and taken >= self.resets_after:
                    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                self.messages.append(file.read(length).decode())
                taken += 1
        if self.hangs:
            threading.Timer(3, line.close).start()
        else:
            line.close()

    @property
    def told(self) -> list[tuple[str, int]]:
        """EventID and last row of each message."""
        return [(EVENT.search(one)[1], int(ROWS.search(one)[1])) for one in self.messages]


def _number(file: IO[bytes]) -> int:
    digits = b""
    while (byte := file.read(1)) not in (b"", b" "):
        digits += byte
    return int(digits or b"0")


@contextlib.contextmanager
def receiver() -> Iterator[Socket]:
    """A receiver in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = Socket(port=listener.getsockname()[1])
        threading.Thread(target=made.serve, args=(listener,), daemon=True).start()
        yield made


class Rsyslog:
    """Debian's rsyslogd with TLS and certificates on both sides; it writes each message to a file as it came."""

    def __init__(self, folder: Path) -> None:
        require_program("rsyslogd")
        if not list(Path("/usr/lib").glob("*/rsyslog/lmnsd_gtls.so")):
            pytest.skip("rsyslog-gnutls is not installed (Debian package rsyslog-gnutls)")
        self.folder = folder
        self.port = free_port()
        self.log = folder / "messages.log"
        authority = Authority("hospital", time.time())
        self.authorities = authority.write(folder / "authorities.pem")
        self.server = authority.issue(folder, "repository")
        self.certificate, self.key = authority.issue(folder, "node")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.folder / "rsyslog.conf").write_text(
            f'global(workDirectory="{self.folder}" maxMessageSize="64k"\n'
            f' defaultNetstreamDriverCAFile="{self.authorities}" defaultNetstreamDriverCertFile="{self.server[0]}"\n'
            f' defaultNetstreamDriverKeyFile="{self.server[1]}")\n'
            'module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1"'
            ' StreamDriver.Authmode="x509/certvalid")\n'
            f'input(type="imtcp" port="{self.port}" address="127.0.0.1")\n'
            'template(name="raw" type="string" string="%rawmsg%\\n")\n'
            f'action(type="omfile" file="{self.log}" template="raw")\n'
        )
        command = ["rsyslogd", "-n", "-f", str(self.folder / "rsyslog.conf"), "-i", str(self.folder / "pid")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: listening(self.port), what="rsyslogd listens")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait()
            self._process = None

    @property
    def messages(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def settings(self, **more: object) -> SyslogSettings:
        given = {
            "host": "127.0.0.1",
            "port": self.port,
            "tls_authorities": self.authorities,
            "tls_certificate": self.certificate,
            "tls_key": self.key,
        }
        return SyslogSettings.model_validate(given | more)


@contextlib.contextmanager
def rsyslog(folder: Path) -> Iterator[Rsyslog]:
    """A running one; it ends with the block."""
    made = Rsyslog(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def body(message: str) -> str:
    """The XML of a message without its syslog header."""
    return message[message.index("<?xml") :]


def invalid(messages: list[str], folder: Path, grammar: Path) -> str:
    """What jing finds wrong with messages; empty if nothing is."""
    if shutil.which("jing") is None:
        pytest.skip("jing is not installed (Debian package jing)")
    files = []
    for number, message in enumerate(messages):
        files.append(folder / f"message-{number}.xml")
        files[-1].write_text(body(message))
    done = subprocess.run(["jing", "-c", str(grammar), *files], capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in said if not line.startswith("[warning]"))  # of Debian's Java
