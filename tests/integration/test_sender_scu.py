"""The SCU against peers that misbehave on the wire: it never hangs, and never holds the process."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pynetdicom import AE, build_context, evt

from config.settings import SenderSettings
from dicom_node.demo.pacs import Pacs
from dicom_node.scu import association
from dicom_node.scu import store as scu
from dicom_node.scu.store import StoreOutcome, classify, read_instance, store
from tests.outbox import COMPREHENSIVE_3D_SR, SEGMENTATION, destination, instance, write_all
from tests.programs import free_port

IMPATIENT = SenderSettings(connect_timeout_s=1.0, response_timeout_s=1.0)
ABORT = bytes([7, 0, 0, 0, 0, 4, 0, 0, 2, 0])


@contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that does this with every connection. Yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            held.append(connection)
            threading.Thread(target=_quietly, args=(behave, connection), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
        for connection in held:
            connection.close()


def _quietly(behave: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        behave(connection)
    except OSError:
        pass


def read_pdu(connection: socket.socket) -> bytes:
    """One whole PDU."""
    head = connection.recv(6, socket.MSG_WAITALL)
    return head + connection.recv(struct.unpack(">L", head[2:])[0], socket.MSG_WAITALL)


def accept_all(connection: socket.socket) -> None:
    """Answer the association request as a Storage SCP does that takes everything."""
    request = read_pdu(connection)
    contexts = []
    at = 74
    while at < len(request):
        kind, length = request[at], struct.unpack(">H", request[at + 2 : at + 4])[0]
        item = request[at + 4 : at + 4 + length]
        if kind == 0x20:
            inner = 4
            while item[inner] != 0x40:
                inner += 4 + struct.unpack(">H", item[inner + 2 : inner + 4])[0]
            syntax = item[inner:]
            body = bytes([item[0], 0, 0, 0]) + syntax
            contexts.append(bytes([0x21, 0]) + struct.pack(">H", len(body)) + body)
        at += 4 + length
    application = b"1.2.840.10008.3.1.1.1"
    user = bytes([0x51, 0, 0, 4]) + struct.pack(">L", 16384)
    user += bytes([0x52, 0, 0, 7]) + b"1.2.3.4"
    body = request[6:74] + bytes([0x10, 0]) + struct.pack(">H", len(application)) + application
    body += b"".join(contexts) + bytes([0x50, 0]) + struct.pack(">H", len(user)) + user
    connection.sendall(bytes([2, 0]) + struct.pack(">L", len(body)) + body)


def says_nothing(connection: socket.socket) -> None:
    """Accepts the connection and no more."""
    time.sleep(30)


def aborts(connection: socket.socket) -> None:
    """A-ABORT instead of an answer."""
    read_pdu(connection)
    connection.sendall(ABORT)
    time.sleep(0.2)


def closes(connection: socket.socket) -> None:
    """Closes in the middle of the negotiation."""
    read_pdu(connection)
    connection.close()


def half_an_answer(connection: socket.socket) -> None:
    """Begins an A-ASSOCIATE-AC and stops."""
    read_pdu(connection)
    connection.sendall(bytes([2, 0, 0, 0, 1, 0, 0, 1]))
    time.sleep(30)


def drips(connection: socket.socket) -> None:
    """Announces a long A-ASSOCIATE-AC and sends it a byte at a time: no timeout between bytes ever fires."""
    read_pdu(connection)
    connection.sendall(bytes([2, 0, 0, 0, 16, 0]))
    for _ in range(300):
        connection.sendall(b"\0")
        time.sleep(0.1)


def stops_reading(connection: socket.socket) -> None:
    """Accepts the association and reads nothing of the data."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    accept_all(connection)
    time.sleep(30)


def drips_the_answer(connection: socket.socket) -> None:
    """Takes the instance, announces a response and sends it a byte at a time."""
    accept_all(connection)
    connection.sendall(bytes([4, 0, 0, 0, 16, 0]))
    for _ in range(300):
        connection.sendall(b"\0")
        time.sleep(0.1)


def garbage(connection: socket.socket) -> None:
    """Not DICOM at all."""
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
    time.sleep(0.2)


@pytest.mark.parametrize(
    "behave",
    [says_nothing, aborts, closes, half_an_answer, drips, stops_reading, drips_the_answer, garbage],
    ids=lambda behave: behave.__name__,
)
def test_a_peer_that_misbehaves_is_left_in_time_with_no_thread_behind(
    tmp_path: Path, behave: Callable[[socket.socket], None]
) -> None:
    large = instance(SEGMENTATION, TextValue="x" * 8_000_000)
    small = instance()
    instances = [read_instance(path) for path in write_all([large, small], tmp_path)]
    before = {t for t in threading.enumerate() if not t.daemon}
    with peer(behave) as port:
        started = time.monotonic()
        # 8 MB at the slowest speed that counts as alive would be a minute: not what this test is about.
        scu_rate, scu.SLOWEST_BYTES_PER_S = scu.SLOWEST_BYTES_PER_S, 10**9
        try:
            results = store(destination(port), IMPATIENT, instances)
        finally:
            scu.SLOWEST_BYTES_PER_S = scu_rate
        took = time.monotonic() - started
        assert [r.outcome for r in results] == [StoreOutcome.TRANSIENT] * 2
        assert took < 20, "the peer goes on for 30 s"
        deadline = time.monotonic() + 20
        while {t for t in threading.enumerate() if not t.daemon} - before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not {t for t in threading.enumerate() if not t.daemon} - before


@pytest.mark.parametrize("behave", [says_nothing, aborts, drips, garbage], ids=lambda behave: behave.__name__)
def test_echo_says_what_is_wrong_and_does_not_hang(behave: Callable[[socket.socket], None]) -> None:
    with peer(behave) as port:
        started = time.monotonic()
        answer = scu.echo(destination(port), IMPATIENT)
    assert not answer.ok and answer.detail
    assert time.monotonic() - started < 20


def test_a_peer_that_never_finishes_the_tls_handshake_is_left_in_time() -> None:
    with peer(says_nothing) as port:
        started = time.monotonic()
        assert "TLS" in scu.echo(destination(port, tls=True), IMPATIENT).detail
    assert time.monotonic() - started < 20


def test_echo_to_nobody_says_so() -> None:
    assert "no connection" in scu.echo(destination(free_port()), IMPATIENT).detail
    nowhere = association.Address("X", "no-such-host.invalid", 104)
    assert "resolved" in scu.echo(nowhere, IMPATIENT).detail


@contextmanager
def acceptor(*classes: str, reject: bool = False) -> Iterator[int]:
    """pynetdicom's SCP for these classes. Yields its port."""
    entity = AE(ae_title="STORESCP")
    for uid in classes:
        entity.add_supported_context(uid)
    entity.require_called_aet = reject
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def test_a_rejected_association_is_transient_and_says_why(tmp_path: Path) -> None:
    instances = [read_instance(path) for path in write_all([instance()], tmp_path)]
    with acceptor(COMPREHENSIVE_3D_SR, reject=True) as port:
        (result,) = store(destination(port, ae_title="WRONG"), IMPATIENT, instances)
    assert result.outcome == StoreOutcome.TRANSIENT
    assert "Called AE title not recognised" in result.detail


def test_no_class_accepted_is_permanent(tmp_path: Path) -> None:
    instances = [read_instance(path) for path in write_all([instance()], tmp_path)]
    with acceptor(SEGMENTATION) as port:
        (result,) = store(destination(port), IMPATIENT, instances)
    assert (result.outcome, result.status) == (StoreOutcome.PERMANENT, None)


def test_a_refused_class_does_not_keep_back_the_others(tmp_path: Path) -> None:
    datasets = [instance(), instance(SEGMENTATION), instance()]
    instances = [read_instance(path) for path in write_all(datasets, tmp_path)]
    with acceptor(COMPREHENSIVE_3D_SR) as port:
        results = store(destination(port), IMPATIENT, instances)
    assert [r.outcome for r in results] == [StoreOutcome.STORED, StoreOutcome.PERMANENT, StoreOutcome.STORED]


def test_more_classes_than_an_association_has_contexts_are_sent_in_several(tmp_path: Path) -> None:
    classes = [f"1.2.840.10008.5.1.4.1.1.{number}" for number in (1, 2, 4, 7, 20, 128, "1.1", "1.2", "1.3", "2.1")]
    datasets = [instance(sop_class) for sop_class in classes for _ in range(2)]
    instances = [read_instance(path) for path in write_all(datasets, tmp_path)]
    limit, scu.MAX_CONTEXTS = scu.MAX_CONTEXTS, 6
    try:
        with acceptor(*classes) as port:
            results = store(destination(port), IMPATIENT, instances)
    finally:
        scu.MAX_CONTEXTS = limit
    assert [r.outcome for r in results] == [StoreOutcome.STORED] * 20
    assert [r.sop_instance_uid for r in results] == [d.SOPInstanceUID for d in datasets]


@pytest.mark.parametrize(
    ("first", "last", "outcome"),
    [
        (0x0000, 0x0000, StoreOutcome.STORED),
        (0xB000, 0xBFFF, StoreOutcome.WARNING),
        (0xA700, 0xA7FF, StoreOutcome.TRANSIENT),
        (0xA900, 0xA9FF, StoreOutcome.PERMANENT),
        (0xC000, 0xCFFF, StoreOutcome.PERMANENT),
    ],
)
def test_every_status_of_a_range_has_the_same_meaning(first: int, last: int, outcome: StoreOutcome) -> None:
    assert {classify(status) for status in range(first, last + 1)} == {outcome}


def test_a_status_that_nobody_defined_is_never_taken_for_stored() -> None:
    known = {0x0000, 0x0001, 0x0107, 0x0111, 0x0116}
    stored = {s for s in range(0x10000) if classify(s) in (StoreOutcome.STORED, StoreOutcome.WARNING)}
    assert stored == known | set(range(0xB000, 0xC000))


def test_an_association_whose_own_thread_never_pauses_is_left_in_time(tmp_path: Path) -> None:
    """pynetdicom's release waits for that without limit; one such wait would end all sending to this destination."""
    with Pacs(tmp_path / "pacs") as pacs:
        caller = SenderSettings(response_timeout_s=4.0)  # long enough for the request on a busy machine
        done = threading.Event()

        def talk() -> None:
            with association.associate(destination(pacs.port), caller, [build_context("1.2.840.10008.1.1")]) as opened:
                stuck = opened.association
                stuck._reactor_checkpoint.clear()
                while not stuck._is_paused:
                    time.sleep(0.001)
                stuck._is_paused = False
            done.set()

        threading.Thread(target=talk, daemon=True).start()
        assert done.wait(60)
