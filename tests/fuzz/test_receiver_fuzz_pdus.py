"""Broken PDUs into associations, in process and over the socket. `FUZZ=100000 pytest tests/fuzz` for a long run,
FUZZ_SEED for another one.

Whatever comes, the association ends by itself, and what was acknowledged can be read back.
"""

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import structlog
from pydicom.uid import generate_uid
from sqlalchemy import select

from dicom_node.receiver.acse import Request
from dicom_node.receiver.association import Admission, Association
from dicom_node.receiver.connection import Deadlines, Incoming
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.negotiation import OFFERED
from storage.models import instances
from tests.attacker import (
    VERIFICATION_ID,
    Attacker,
    association_request,
    command_element,
    data_set,
    pdu,
    pdv,
    store_command,
)
from tests.fuzz.mutations import mutate
from tests.receiving import Node

ROUNDS = int(os.environ.get("FUZZ", "1500"))
SEED = int(os.environ.get("FUZZ_SEED", "20261123"))
LONGEST_S = 20.0
ECHO = command_element(0x0100, b"\x30\0") + command_element(0x0110, b"\1\0") + command_element(0x0800, b"\1\1")
RELEASE = pdu(5, bytes(4))


class OpenGate:
    """Lets everybody in; counts what went wrong inside."""

    def __init__(self) -> None:
        self.internal_errors = 0

    def admit(self, association: Association, request: Request) -> Admission:
        association.admitted = True
        return Admission(OFFERED, "fuzz")

    def record(self, association: Association, event: str, outcome: str, **detail: object) -> None:
        self.internal_errors += detail.get("reason") == "internal error"

    def leave(self, association: Association) -> None:
        pass


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    # One address breaks off thousands of connections here.
    with Node(
        tmp_path, {"acse_timeout_s": 2, "pdu_deadline_s": 1, "idle_timeout_s": 2, "closing_timeout_s": 1}
    ) as running:
        yield running
    structlog.reset_defaults()


def conversations(dice: random.Random) -> list[bytes]:
    """What a sender says from the beginning to the end."""
    uid = generate_uid(entropy_srcs=[str(dice.random())]).encode()
    sent = data_set(uid, series=uid + b".1"[: 64 - len(uid)])
    half = len(sent) // 2
    store = pdu(4, pdv(store_command(uid), 3)) + pdu(4, pdv(sent[:half], 0)) + pdu(4, pdv(sent[half:], 2))
    return [
        association_request() + store + RELEASE,
        association_request() + pdu(4, pdv(ECHO, 3, VERIFICATION_ID)) + RELEASE,
        association_request() + store + store,
    ]


def test_no_broken_pdu_gets_past_the_protocol(node: Node) -> None:
    dice, gate = random.Random(SEED), OpenGate()
    deadlines = Deadlines(pdu_s=1, idle_s=1, request_s=1, closing_s=0.2)
    for _ in range(ROUNDS):
        seeds = conversations(dice)
        ours, theirs = socket.socketpair()
        association = Association(Incoming(_Tcp(ours), 131072, deadlines), ip_address("127.0.0.1"), gate, node.intake)
        with theirs:
            theirs.sendall(mutate(dice.choice(seeds), dice, seeds))
            theirs.shutdown(socket.SHUT_WR)
            begun = time.monotonic()
            association.run()
            assert time.monotonic() - begun < LONGEST_S
    assert gate.internal_errors == 0
    what_was_acknowledged_can_be_read_back(node, at_least=ROUNDS // 50)


class _Tcp(socket.socket):
    """A socket of a pair that takes the options of TCP for granted."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())

    def setsockopt(self, *_: object) -> None:
        """There is no Nagle's algorithm to turn off."""


def test_broken_pdus_over_the_socket_end_their_own_connection_only(node: Node) -> None:
    dice = random.Random(SEED)
    warm_up = Attacker(node.port)
    warm_up.send(conversations(dice)[0])
    while warm_up.answer()[0]:
        pass
    warm_up.close()
    threads = threading.active_count()
    for number in range(ROUNDS // 10):
        seeds = conversations(dice)
        broken = Attacker(node.port)
        broken.send(mutate(dice.choice(seeds), dice, seeds))
        broken.close()
        if number % 100 == 0:
            with_care = Attacker(node.port)
            assert with_care.associate() == 2
            with_care.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads
    what_was_acknowledged_can_be_read_back(node)


def what_was_acknowledged_can_be_read_back(node: Node, at_least: int = 0) -> None:
    with node.database.read() as tx:
        rows = tx.execute(select(instances)).all()
    assert len(rows) >= at_least
    for row in rows:
        node.files.read_verified(row.path, row.sha256)


def test_refusals_by_the_thousand_are_a_few_rows() -> None:
    written = []
    journal = Journal(written.append, clock=lambda: 1000.0)
    for _ in range(5000):
        journal.record("connection.aborted", address="192.0.2.1", outcome="ABORTED", reason="deadline passed")
    assert len(written) == 1
    journal.flush(1061.0)
    assert [note.detail.get("times") for note in written] == [None, 4999]
