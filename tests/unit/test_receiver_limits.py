"""Which connection makes room when too many wait for an association."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from unittest.mock import create_autospec

import pytest

from dicom_node.receiver.access import AccessPolicy
from dicom_node.receiver.association import Association
from dicom_node.receiver.connection import Deadlines, Incoming
from dicom_node.receiver.intake import Intake
from dicom_node.receiver.journal import Journal
from dicom_node.receiver.limits import Limits, Registry
from dicom_node.receiver.resources import Resources

LIMITS = Limits(
    max_associations=9, max_per_address=9, max_per_ae=9, max_waiting=4, max_waiting_per_address=3, max_pdu_bytes=4096
)


class Waiting:
    """Connections that came to a registry, in pairs of sockets: what the registry asks is asked of real ones."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.registry = Registry(
            create_autospec(AccessPolicy),
            LIMITS,
            create_autospec(Resources),
            create_autospec(Journal),
            lambda _: None,
        )

    def enter(self, said: bytes = b"", address: str = "192.0.2.1") -> socket.socket:
        """One more connection, of which nothing is read yet. Returns the peer's end."""
        ours, peer = (self._stack.enter_context(one) for one in socket.socketpair())
        peer.setblocking(False)
        peer.sendall(said)
        incoming = Incoming(ours, 4096, Deadlines(1, 1, 1, 1))
        self.registry.enter(Association(incoming, ip_address(address), self.registry, create_autospec(Intake)))
        return peer


def is_cut(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    with ExitStack() as stack:
        yield Waiting(stack)


def test_a_silent_connection_makes_room_before_an_older_one_that_has_asked(waiting: Waiting) -> None:
    sender = waiting.enter(b"A-ASSOCIATE-RQ")
    silent = [waiting.enter() for _ in range(5)]
    assert [is_cut(peer) for peer in silent] == [True, True, True, False, False]
    assert not is_cut(sender)


def test_if_all_have_asked_the_oldest_makes_room(waiting: Waiting) -> None:
    asking = [waiting.enter(b"half a request") for _ in range(4)]
    assert [is_cut(peer) for peer in asking] == [True, False, False, False]


def test_the_address_with_most_connections_makes_room_for_all(waiting: Waiting) -> None:
    other = waiting.enter(address="192.0.2.2")
    many = [waiting.enter() for _ in range(3)]
    last = waiting.enter(address="192.0.2.3")
    assert [is_cut(peer) for peer in many] == [True, False, False]
    assert not is_cut(other)
    assert not is_cut(last)


def test_the_look_at_a_silent_connection_does_not_wait_although_its_socket_may() -> None:
    ours, peer = socket.socketpair()
    with ours, peer:
        ours.settimeout(100)  # as during a handshake for TLS
        incoming = Incoming(ours, 4096, Deadlines(1, 1, 1, 1))
        seen: list[bool] = []
        looking = threading.Thread(target=lambda: seen.append(incoming.has_unread()), daemon=True)
        looking.start()
        looking.join(20)
        assert seen == [False]
        peer.sendall(b"A")
        assert incoming.has_unread()
    assert not incoming.has_unread()
