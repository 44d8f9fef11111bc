"""Attacks on the port for storage commitment answers, against the delivering process of a node.

Only hosts of destinations can connect, so the attacker is a destination that has gone wrong. Meanwhile each answer of
another destination is taken within two seconds, and what a machine that is busy with other things adds to that.
Afterwards threads, sockets and memory are back where they were.
"""

import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)
from sqlalchemy import select

from storage.database import Database
from storage.models import audit
from tests.attacker import ACCEPT, DATA, Attacker, association_request, attacker, command_element, element, pdu, pdv
from tests.programs import free_port, listening, wait_for

MODEL, INSTANCE = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
GOOD, BAD, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
MIB = 1024**2
RESPONSE_S = 2.0
PDU_S, ASSOCIATION_S, MAX_KIB = 2, 8, 1024
SETTINGS = """
data_dir = "{folder}/var"
[sender.commitment]
port = {port}
ae_title = "NODE_SC"
pdu_deadline_s = {pdu_s}
association_s = {association_s}
max_kib = {max_kib}
[[destinations]]
name = "good"
ae_title = "GOOD"
host = "127.0.0.1"
port = 1
commitment = "request"
[[destinations]]
name = "bad"
ae_title = "BAD"
host = "127.0.0.2"
port = 1
commitment = "request"
"""


class Victim:
    """The delivering process, and its measures before the attack."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.patience_s = 60.0
        (folder / "node.toml").write_text(
            SETTINGS.format(folder=folder, port=self.port, pdu_s=PDU_S, association_s=ASSOCIATION_S, max_kib=MAX_KIB)
        )
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "dicom_node", "deliver", "--config", str(folder / "node.toml")],
                stdout=log,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")},
            )
        wait_for(lambda: self.popen.poll() is not None or listening(self.port), 30, "it listens")
        self.process = psutil.Process(self.popen.pid)
        self.database = Database(f"sqlite:///{folder / 'var' / 'node.db'}")

    def answers(self) -> float:
        """Send an answer to a request that was never made. A processing failure shows that it was looked up.

        Returns how long that took, seconds.
        """
        report = Dataset()
        report.TransactionUID = generate_uid()
        begun = time.monotonic()
        own = AE(ae_title="GOOD").associate(
            "127.0.0.1", self.port, [build_context(MODEL)], "NODE_SC", bind_address=(GOOD, 0)
        )
        assert own.is_established, "the well-behaved destination is kept out"
        status, _ = own.send_n_event_report(report, 1, MODEL, INSTANCE)
        own.release()
        assert status.Status == 0x0110
        took_s = time.monotonic() - begun
        assert took_s < self.patience_s
        return took_s

    def measures(self) -> tuple[int, int, float]:
        """Threads, sockets, resident MiB. The index's descriptors are left out, because its connections are kept."""
        sockets = 0
        for link in Path(f"/proc/{self.popen.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # it has been closed
                sockets += os.readlink(link).startswith("socket")
        return self.process.num_threads(), sockets, self.process.memory_info().rss / MIB

    def audited(self) -> list[tuple[str | None, str]]:
        """Address and detail of the refusals."""
        with self.database.read() as tx:
            rows = tx.execute(select(audit.c.address, audit.c.detail).where(audit.c.event == "commitment.refused"))
            return [(row.address, str(row.detail)) for row in rows]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    victim = Victim(tmp_path_factory.mktemp("victim"))
    for _ in range(3):  # everything that is loaded once is loaded
        calm_s = victim.answers()
    victim.patience_s = RESPONSE_S + 20 * calm_s
    yield victim
    victim.popen.terminate()
    assert victim.popen.wait(30) == 0


@pytest.fixture
def victim(started: Victim) -> Iterator[Victim]:
    wait_for(lambda: started.process.num_threads() <= 8, 20, "associations ended")
    threads, sockets, memory = started.measures()
    yield started
    started.answers()

    def is_back() -> bool:
        now = started.measures()
        return now[0] <= threads and now[1] <= sockets and now[2] <= memory + 20

    wait_for(is_back, 60, f"{threads, sockets, memory} again, not {started.measures()}")
    assert "Traceback" not in started.log.read_text()


def associate(connection: Attacker, syntax: str = ImplicitVRLittleEndian) -> None:
    connection.send(association_request(b"BAD", b"NODE_SC", syntax, MODEL))
    assert connection.answer()[0] == ACCEPT


def event_report() -> bytes:
    """The command set of an N-EVENT-REPORT request about the well-known instance."""

    def padded(uid: str) -> bytes:
        return uid.encode() + b"\0" * (len(uid) % 2)

    body = (
        command_element(0x0002, padded(MODEL))
        + command_element(0x0100, b"\x00\x01")
        + command_element(0x0110, b"\x01\x00")
        + command_element(0x0800, b"\x01\x00")
        + command_element(0x1000, padded(INSTANCE))
        + command_element(0x1002, b"\x01\x00")
    )
    return command_element(0x0000, struct.pack("<I", len(body))) + body


def ended_within(connection: Attacker, seconds: float) -> bool:
    """True if the node ends the connection, with or without an A-ABORT."""
    connection.socket.settimeout(seconds)
    try:
        while connection.socket.recv(65536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_half_pdus_keep_nobody_out(victim: Victim) -> None:
    with ExitStack() as stack:
        for _ in range(11):
            stack.enter_context(attacker(victim.port, BAD)).send(b"\x01\x00\x00\x00\x00\xff\x00\x00\x00")
        victim.answers()
    victim.answers()


def test_a_length_of_four_gigabytes_is_refused_before_anything_is_read(victim: Victim) -> None:
    with attacker(victim.port, BAD) as connection:
        connection.send(pdu(1, bytes(64), 0xFFFFFFFF))
        assert ended_within(connection, victim.patience_s)
    assert victim.measures()[2] < 400


def test_hundreds_of_silent_connections_keep_nobody_out(victim: Victim) -> None:
    before = victim.process.num_threads()
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(attacker(victim.port, BAD))
        victim.answers()
        assert victim.process.num_threads() <= before + 2 * 4 + 2
    wait_for(lambda: any("too-many-connections" in detail for _, detail in victim.audited()), 10, "it is audited")


@pytest.mark.parametrize("within", [b"\x01\x00", pdu(1, bytes(3), 200)])
def test_a_slow_drip_is_cut_off(victim: Victim, within: bytes) -> None:
    with attacker(victim.port, BAD) as connection:
        connection.send(within)
        begun = time.monotonic()
        while time.monotonic() - begun < 2 * (PDU_S + victim.patience_s):
            try:
                connection.socket.sendall(b"\0")
            except OSError:
                break
            time.sleep(0.2)
        assert time.monotonic() - begun < PDU_S + victim.patience_s
        victim.answers()


def test_an_association_that_goes_on_for_ever_is_ended(victim: Victim) -> None:
    with attacker(victim.port, BAD) as connection:
        associate(connection)
        begun = time.monotonic()
        connection.send(pdu(DATA, pdv(event_report(), 3)))
        while time.monotonic() - begun < 2 * (ASSOCIATION_S + victim.patience_s):
            try:
                connection.socket.sendall(pdu(DATA, pdv(b"\0\0", 0)))
            except OSError:
                break
            time.sleep(0.2)
        assert time.monotonic() - begun < ASSOCIATION_S + victim.patience_s


def test_a_data_set_that_never_ends_is_cut_off(victim: Victim) -> None:
    with attacker(victim.port, BAD) as connection:
        associate(connection)
        connection.send(pdu(DATA, pdv(event_report(), 3)))
        for _ in range(4 * MAX_KIB // 16):
            connection.send(pdu(DATA, pdv(bytes(16000), 0)))
        assert ended_within(connection, victim.patience_s)


def test_a_deflated_bomb_is_not_accepted(victim: Victim) -> None:
    with attacker(victim.port, BAD) as connection:
        connection.send(association_request(b"BAD", b"NODE_SC", DeflatedExplicitVRLittleEndian, MODEL))
        kind, answer = connection.answer()
        assert kind == ACCEPT
        result = answer[answer.index(b"\x21\x00\x00", 68) + 6]  # of the presentation context item, PS3.8 Table 9-18
        assert result != 0, "the transfer syntax was accepted"
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = deflate.compress(bytes(200 * MIB)) + deflate.flush()
        connection.send(pdu(DATA, pdv(event_report(), 3)) + pdu(DATA, pdv(bomb, 2)))
    victim.answers()
    assert victim.measures()[2] < 400


def test_deep_nesting_and_nonsense_are_answered_with_a_failure(victim: Victim) -> None:
    nested = b""
    for _ in range(400):
        nested = (
            struct.pack("<HHI", 0x0008, 0x1199, len(nested) + 8)
            + struct.pack("<HHI", 0xFFFE, 0xE000, len(nested))
            + nested
        )
    for content in (nested, b"\xff" * 1000, element(0x00081195, b"UI", b"1.2"), b""):
        with attacker(victim.port, BAD) as connection:
            associate(connection)
            connection.send(pdu(DATA, pdv(event_report(), 3)) + pdu(DATA, pdv(content, 2)))
            kind, answer = connection.answer()
            if kind == DATA:
                at = answer.index(struct.pack("<HHI", 0, 0x0900, 2))
                assert struct.unpack_from("<H", answer, at + 8)[0] != 0
    victim.answers()


def test_a_stranger_is_refused_and_audited_without_a_byte_read(victim: Victim) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", victim.port), 5, (STRANGER, 0)) as knock:
            assert knock.recv(1) == b""
    rows = [detail for address, detail in victim.audited() if address == STRANGER]
    assert len(rows) == 1, "repetitions are counted, not written one by one"
    assert "address" in rows[0]
