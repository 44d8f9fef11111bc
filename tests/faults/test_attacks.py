"""Each attack that a default pynetdicom server does not survive, against the receiver in a process of its own.

Meanwhile a well-behaved sender stores a series and gets every response within two seconds, and what a machine that is
busy with other things adds to that. Afterwards threads, descriptors, memory and files are back where they were.
"""

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from pydicom.uid import CTImageStorage, generate_uid
from sqlalchemy import select

from dicom_node.receiver.certificates import Authority
from dicom_node.receiver.pdu import NO_DATA_SET
from storage.database import Database
from storage.folder import FolderStore
from storage.models import audit, instances
from tests.attacker import (
    ABORT,
    ACCEPT,
    CONTEXT_ID,
    DATA,
    REJECT,
    VERIFICATION_ID,
    Attacker,
    association_request,
    attacker,
    command_element,
    data_set,
    element,
    pdu,
    pdv,
    store_command,
)
from tests.conftest import require_program
from tests.programs import free_port, listening, wait_for
from tests.receiving import BIRTH_DATE, NAME, PATIENT_ID, Node, associate, ct_slice

MIB = 1024**2
RESPONSE_S = 2.0
MAX_INSTANCE_BYTES = 4 * MIB
SETTINGS = f"""
data_dir = "{{folder}}/var"
[receiver]
port = {{port}}
pdu_deadline_s = 2
acse_timeout_s = 2
idle_timeout_s = 12
closing_timeout_s = 2
max_instance_bytes = {MAX_INSTANCE_BYTES}
min_kib_per_s = 64
slow_patience_s = 2
[storage]
low_disk_mb = 1
"""


class Victim:
    """The receiver in its own process, and its measures before the attacks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.patience_s = 60.0
        (folder / "node.toml").write_text(SETTINGS.format(folder=folder, port=self.port))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "always", "-m", "dicom_node", "receive", "--config", str(folder / "node.toml")],
                stdout=log,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("DICOM_NODE_")},
            )
        wait_for(lambda: listening(self.port), 30, "the receiver listens")
        self.process = psutil.Process(self.popen.pid)
        self.database = Database(f"sqlite:///{folder / 'var' / 'node.db'}")

    def note_pace(self) -> None:
        """Find out how long a sender may wait: on a machine that is busy, all takes longer without any attack."""
        sender = Sender(self.port)
        sender.enough.set()
        sender.run()
        self.patience_s = RESPONSE_S + 20 * sender.slowest_s

    def stop(self) -> None:
        self.popen.terminate()
        assert self.popen.wait(30) == 0

    def files(self) -> set[Path]:
        return {path for path in (self.folder / "var" / "files").rglob("*") if path.is_file()}

    def outside(self) -> set[Path]:
        """Files below or next to the folder that are not where the node puts its files."""
        return {path for path in self.folder.parent.rglob("*") if self.folder / "var" not in path.parents}

    def measures(self) -> tuple[int, int, float]:
        """Threads, descriptors, resident MiB."""
        return self.process.num_threads(), self.process.num_fds(), self.process.memory_info().rss / MIB

    def descriptors(self) -> list[str]:
        """Its open descriptors, for a failure message."""
        folder = Path(f"/proc/{self.popen.pid}/fd")
        return sorted(os.readlink(link) for link in folder.iterdir() if link.is_symlink())

    def reasons(self) -> list[str]:
        with self.database.read() as tx:
            return [str(detail) for detail in tx.scalars(select(audit.c.detail)) if detail]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    folder = tmp_path_factory.mktemp("victim") / "node"
    folder.mkdir()
    running = Victim(folder)
    for _ in range(3):  # everything that is loaded once is loaded
        with attacker(running.port) as one:
            assert one.associate() == ACCEPT
            uid = generate_uid().encode()
            assert one.store(uid, data_set(uid, series=generate_uid().encode())) == 0
    running.note_pace()
    yield running
    running.stop()


class Sender(threading.Thread):
    """The well-behaved sender: stores at least three slices of one series, until it is told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.slowest_s = 0.0
        self.stored = 0
        self.problem = ""
        self.enough = threading.Event()

    def run(self) -> None:
        series = generate_uid()
        while not self.enough.is_set() or self.stored < 3:
            begun = time.monotonic()
            with associate(self) as association:  # type: ignore[arg-type]
                if not association.is_established:
                    self.problem = "association refused"
                    return
                status = association.send_c_store(ct_slice(self.stored, series_uid=series)).Status
            if status != 0:
                self.problem = f"status {status:04X}"
                return
            self.stored += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)


@contextmanager
def while_a_series_is_sent(victim: Victim, also_stored: int = 0) -> Iterator[None]:
    before, files = victim.measures(), len(victim.files())
    sender = Sender(victim.port)
    sender.start()
    try:
        yield
    finally:
        sender.enough.set()
        sender.join(60)
    assert sender.problem == ""
    assert sender.slowest_s < victim.patience_s
    wait_for(lambda: len(victim.files()) == files + sender.stored + also_stored, 30, "only the series' files are left")
    back_at(victim, before)


def back_at(victim: Victim, before: tuple[int, int, float]) -> None:
    threads, descriptors, resident = before

    def is_back() -> bool:
        now = victim.measures()
        return now[0] <= threads and now[1] <= descriptors + 2 and now[2] <= resident + 20

    wait_for(is_back, 60, f"back at {before}, at {victim.measures()}")


def test_a_pdu_that_claims_four_gigabytes_is_aborted_at_once(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        one.send(pdu(1, b"", length=0xFFFFFFFF) + bytes(1000))
        assert one.answer()[0] == ABORT


def test_half_pdus_are_cut_off_and_keep_nobody_out(victim: Victim) -> None:
    with while_a_series_is_sent(victim), ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(attacker(victim.port)).send(pdu(1, b"\0\1\0", length=200))
        time.sleep(1)
        last = stack.enter_context(attacker(victim.port))
        last.send(pdu(1, b"\0\1\0", length=200))
        begun = time.monotonic()
        assert last.answer()[0] in (0, ABORT)
        assert time.monotonic() - begun < 10


def test_a_pdu_that_comes_one_byte_at_a_time_is_cut_off_at_its_deadline(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        begun = time.monotonic()
        one.socket.settimeout(0.2)
        for byte in pdu(DATA, pdv(store_command(b"1.2.3"), 3)):
            one.send(bytes((byte,)))
            try:
                assert one.socket.recv(10)[:1] in (b"", bytes((ABORT,)))
                break
            except TimeoutError:
                pass
        assert 1.5 < time.monotonic() - begun < 15


def test_a_thousand_silent_connections_keep_nobody_out(victim: Victim) -> None:
    with while_a_series_is_sent(victim):
        # From another address: a thousand connections make room at the cost of their own.
        silent = [Attacker(victim.port, "127.0.0.2") for _ in range(1000)]
        time.sleep(1)
        for one in silent:
            one.close()


def associated(victim: Victim, stack: ExitStack, count: int) -> tuple[list[Attacker], list[int]]:
    """Open several associations from another address, one after the other. Returns how they were answered."""
    many = []
    answers = []
    for _ in range(count):
        many.append(stack.enter_context(attacker(victim.port, "127.0.0.2")))
        answers.append(many[-1].associate())
    return many, answers


def at_rest(victim: Victim) -> None:
    """The connections of former tests count for this address, too."""
    wait_for(lambda: not [one for one in victim.process.net_connections() if one.status == "ESTABLISHED"], 60, "rest")


def test_two_hundred_idle_associations_cost_little_and_are_ended(victim: Victim) -> None:
    at_rest(victim)
    with while_a_series_is_sent(victim), ExitStack() as stack:
        idle, answers = associated(victim, stack, 200)
        assert answers == [ACCEPT] * 200
        assert idle[0].answer()[0] == ABORT


def test_idle_associations_cost_under_five_percent_of_a_core(victim: Victim) -> None:
    at_rest(victim)
    with ExitStack() as stack:
        _, answers = associated(victim, stack, 200)
        assert answers == [ACCEPT] * 200
        before, begun = sum(victim.process.cpu_times()[:2]), time.monotonic()
        time.sleep(3)
        assert (sum(victim.process.cpu_times()[:2]) - before) / (time.monotonic() - begun) < 0.05


def test_more_associations_than_one_address_may_have_are_refused_as_transient(victim: Victim) -> None:
    at_rest(victim)
    with while_a_series_is_sent(victim), ExitStack() as stack:
        _, answers = associated(victim, stack, 242)
        assert answers.count(ACCEPT) == 240
        assert answers.count(REJECT) == 2


@pytest.mark.parametrize("uid", [b"../../x", b"/etc/passwd", b"1.2.3\n4", b"1." + b"2" * 70, b""])
def test_a_uid_that_is_none_becomes_no_path(victim: Victim, uid: bytes) -> None:
    outside = victim.outside()
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        assert one.store(uid, data_set(uid)) == 0xC000
        assert one.store(b"1.2.3.4.5", data_set(uid)) == 0xC000
        assert one.store(b"1.2.3.4.5", data_set(b"1.2.3.4.5", series=uid)) == 0xC000
    assert victim.outside() == outside


def test_a_deflated_bomb_finds_no_context(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        one.send(association_request(syntax="1.2.840.10008.1.2.1.99"))
        kind, answer = one.answer()
        assert kind == ACCEPT
        item = answer.index(b"\x21\x00")  # the first presentation context, PS3.8 Table 9-18
        assert answer[item + 4 : item + 7] == bytes((CONTEXT_ID, 0, 4))
        assert one.store(b"1.2.3.4.5", zlib.compress(bytes(50 * MIB))) is None


@pytest.mark.parametrize("depth", [200, 5000, 100_000])
def test_deeply_nested_sequences_are_refused(victim: Victim, depth: int) -> None:
    nested = element(0x00081140, b"SQ", b"", length=0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        assert one.store(b"1.2.3.4.5", data_set(b"1.2.3.4.5", extra=nested * depth)) == 0xC000


def test_a_header_of_millions_of_elements_is_refused(victim: Victim) -> None:
    many = element(0x00091001, b"LO", b"") * 450_000
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        assert one.store(b"1.2.3.4.5", data_set(b"1.2.3.4.5", extra=many)) == 0xC000


def test_a_data_set_that_never_ends_is_cut_off_and_leaves_no_file(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        one.send(pdu(DATA, pdv(store_command(b"1.2.3.4.5"), 3)))
        for _ in range(MAX_INSTANCE_BYTES // 16000 + 2):
            one.send(pdu(DATA, pdv(bytes(16000), 0)))
        assert one.answer()[0] in (0, ABORT)
    assert any("larger than allowed" in reason for reason in victim.reasons())


def test_a_data_set_that_is_cut_short_is_not_acknowledged(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        assert one.store(b"1.2.3.4.5", data_set(b"1.2.3.4.5")[:-10]) == 0xC000


def test_a_data_set_that_comes_too_slowly_is_cut_off_and_leaves_no_file(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        one.send(pdu(DATA, pdv(store_command(b"1.2.3.4.5"), 3)))
        begun = time.monotonic()
        one.socket.settimeout(0.2)
        while time.monotonic() - begun < 30:
            one.send(pdu(DATA, pdv(bytes(100), 0)))
            try:
                assert one.socket.recv(10)[:1] in (b"", bytes((ABORT,)))
                break
            except TimeoutError:
                pass
        assert time.monotonic() - begun < 25
    assert any("too slowly" in reason for reason in victim.reasons())


def test_long_headers_from_many_associations_keep_nobody_waiting(victim: Victim) -> None:
    uid = b"1.2.3.4.5"
    long = data_set(uid, extra=element(0x00091001, b"LO", b"") * 250_000)[:-10]

    def send() -> None:
        with attacker(victim.port, "127.0.0.2") as one:
            assert one.associate() == ACCEPT
            assert one.store(uid, long) == 0xC000

    with while_a_series_is_sent(victim), ThreadPoolExecutor(8) as many:
        list(many.map(lambda _: send(), range(8)))


def test_requests_made_to_be_slow_keep_nobody_waiting(victim: Victim) -> None:
    transfers = b"\x40\0\0\1x" * 200
    contexts = b"".join(
        b"\x20\0" + (4 + len(transfers)).to_bytes(2, "big") + bytes((number, 0, 0, 0)) + transfers
        for number in range(1, 255, 2)
    )
    slow = association_request()[6:74] + contexts[:130_000]
    with while_a_series_is_sent(victim):
        for _ in range(100):
            with attacker(victim.port, "127.0.0.2") as one:
                one.send(pdu(1, slow))
                assert one.answer()[0] in (0, ABORT)


def test_twenty_aborted_transfers_leave_no_file(victim: Victim) -> None:
    with while_a_series_is_sent(victim):
        for _ in range(20):
            with attacker(victim.port) as one:
                assert one.associate() == ACCEPT
                one.send(pdu(DATA, pdv(store_command(b"1.2.3.4.5"), 3)) + pdu(DATA, pdv(bytes(16000), 0)) * 20)


def test_an_ae_title_cannot_forge_a_log_line(victim: Victim) -> None:
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate(calling_ae=b"A\nB\x1b[31mFORGED") == REJECT
    assert any("calling-ae-malformed" in reason for reason in victim.reasons())
    assert not any(planted in victim.log.read_text() for planted in ("FORGED", "\x1b"))


def message(field: int, data_set: int = NO_DATA_SET) -> bytes:
    """A command set of any service."""
    parts = ((0x0002, CTImageStorage.encode()), (0x0100, field.to_bytes(2, "little")), (0x0110, b"\1\0"))
    return b"".join(command_element(*part) for part in (*parts, (0x0800, data_set.to_bytes(2, "little"))))


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS at a plain port"),
        pytest.param(os.urandom(5000), id="noise"),
        pytest.param(pdu(1, bytes(68)), id="a request without items"),
        pytest.param(pdu(1, bytes(68) + b"\x10\x00\xff\xff"), id="an item that is longer than the request"),
        pytest.param(pdu(4, pdv(b"", 3)), id="data before the association"),
        pytest.param(pdu(5, bytes(4)), id="release before the association"),
        pytest.param(association_request() * 2, id="two requests"),
        pytest.param(association_request() + pdu(4, pdv(b"x", 0)), id="a data set without a command"),
        pytest.param(association_request() + pdu(4, pdv(store_command(b"1.2"), 3, 99)), id="a context not accepted"),
        pytest.param(association_request() + pdu(4, b"\0\0\0\1\1"), id="a value shorter than its header"),
        pytest.param(association_request() + pdu(4, b"\xff\xff\xff\xff\1\3"), id="a value longer than its PDU"),
        pytest.param(association_request() + pdu(4, pdv(bytes(5000), 1)), id="a command that is too long"),
        pytest.param(association_request() + pdu(4, pdv(b"\0\0\0\1\4\0\0\0", 3)), id="a command that is cut short"),
        pytest.param(
            association_request() + pdu(4, pdv(store_command(b"1.2"), 3) + pdv(store_command(b"1.2"), 3)),
            id="a command inside a message",
        ),
        pytest.param(association_request() + pdu(4, pdv(b"", 1)) * 100, id="empty pieces of a command without end"),
        pytest.param(
            association_request() + pdu(4, pdv(store_command(b"1.2"), 3)) + pdu(4, pdv(b"", 0)) * 100,
            id="empty pieces of a data set without end",
        ),
        pytest.param(association_request() + pdu(4, b"") * 100, id="empty PDUs without end"),
        pytest.param(association_request() + pdu(4, pdv(message(0x0001), 3)), id="C-STORE without a data set"),
        pytest.param(association_request() + pdu(4, pdv(message(0x0020, 1), 3)), id="C-FIND"),
        pytest.param(association_request() + pdu(4, pdv(message(0x0021, 1), 3)), id="C-MOVE"),
        pytest.param(association_request() + pdu(4, pdv(message(0x0130, 1), 3)), id="N-ACTION"),
        pytest.param(association_request() + pdu(4, pdv(message(0x8001), 3)), id="a response to no request"),
        pytest.param(association_request() + pdu(4, pdv(message(0xFFFF), 3)), id="a command of no service"),
        pytest.param(
            association_request() + pdu(4, pdv(store_command(b"1.2"), 3, VERIFICATION_ID)),
            id="C-STORE where only C-ECHO was agreed",
        ),
        pytest.param(
            association_request() + pdu(4, pdv(store_command(b"1.2"), 3)) + pdu(5, bytes(4)),
            id="release inside a message",
        ),
        pytest.param(association_request() + pdu(4, pdv(b"\0\0", 1)) + pdu(5, bytes(4)), id="release inside a command"),
        pytest.param(association_request() + pdu(6, bytes(4)), id="a release response to no request"),
        pytest.param(association_request() + pdu(2, bytes(100)), id="an acceptance to no request"),
        pytest.param(pdu(1, bytes(68) + b"\x40\0\0\0" * 16_000), id="a request of very many items"),
    ],
)
def test_what_is_not_dicom_ends_its_own_connection_only(victim: Victim, hostile: bytes) -> None:
    with attacker(victim.port) as one:
        one.send(hostile)
        kinds = []
        while (kind := one.answer()[0]) and len(kinds) < 3:
            kinds.append(kind)
        assert kinds in ([], [ABORT], [ACCEPT, ABORT])
    with attacker(victim.port) as other:
        assert other.associate() == ACCEPT


def test_a_peer_that_never_reads_its_answers_is_cut_off(victim: Victim) -> None:
    echo = command_element(0x0100, b"\x30\x00") + command_element(0x0110, b"\1\0") + command_element(0x0800, b"\1\1")
    flood = pdu(DATA, pdv(echo, 3, VERIFICATION_ID)) * 1000
    with while_a_series_is_sent(victim), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        one.socket.settimeout(3)
        try:
            for _ in range(2000):
                one.socket.sendall(flood)
            pytest.fail("the receiver buffers without limit")
        except OSError:
            pass


def test_nothing_of_a_patient_is_in_the_log(victim: Victim) -> None:
    uid = generate_uid().encode()
    bad = element(0x00200013, b"IS", PATIENT_ID.encode()) + element(0x00080020, b"DA", NAME.encode())
    with while_a_series_is_sent(victim, also_stored=1), attacker(victim.port) as one:
        assert one.associate() == ACCEPT
        assert one.store(uid, data_set(uid, extra=bad, series=generate_uid().encode())) == 0
        assert one.store(NAME.encode(), data_set(uid)) == 0xC000
        assert one.store(uid, data_set(PATIENT_ID.encode())) == 0xC000
    text = victim.log.read_text()
    assert not any(planted in text for planted in (NAME, NAME.split("^")[0], PATIENT_ID, BIRTH_DATE))
    assert PATIENT_ID not in " ".join(victim.process.cmdline())


def test_afterwards_everything_acknowledged_can_be_read_back(victim: Victim) -> None:
    with victim.database.read() as tx:
        rows = tx.execute(select(instances)).all()
    assert len(rows) >= 3
    files = FolderStore(victim.folder / "var" / "files")
    for row in rows:
        files.read_verified(row.path, row.sha256)


def test_silent_and_slow_connections_to_the_tls_port_hold_up_nobody(tmp_path: Path) -> None:
    authority = Authority("CA", time.time())
    certificate, key = authority.issue(tmp_path, "node")
    ours = authority.issue(tmp_path, "pacs")
    settings = {
        "tls_port": 0,
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_authorities": authority.write(tmp_path / "ca.crt"),
        "acse_timeout_s": 2,
        "pdu_deadline_s": 2,
    }
    (tmp_path / "node").mkdir()
    context = ssl.create_default_context(cafile=tmp_path / "ca.crt")
    context.load_cert_chain(*ours)

    def encrypted(stack: ExitStack, port: int) -> ssl.SSLSocket:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        return stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))

    with Node(tmp_path / "node", settings) as node:
        port, threads = node.receiver.tls_port, threading.active_count()
        with ExitStack() as stack:
            silent = [stack.enter_context(attacker(port)) for _ in range(20)]
            silent[0].send(b"\x16\x03\x01\x40\x00\x01")  # the start of a greeting
            slow = [encrypted(stack, port) for _ in range(10)]
            for each in slow:  # one request arrives a byte at a time, one never comes
                each.sendall(association_request()[:20])
            begun = time.monotonic()
            sender = encrypted(stack, port)
            sender.sendall(association_request())
            assert sender.recv(10_000)[0] == ACCEPT
            assert time.monotonic() - begun < 15, "not one after the other"
            assert silent[0].answer()[0] == 0
            assert slow[0].recv(1) in (b"", bytes((ABORT,)))
            with suppress(OSError):
                sender.unwrap().close()  # ends TLS but not the association
        wait_for(lambda: threading.active_count() <= threads, 60, "every connection's thread has ended")
        node.stop()
        with node.database.read() as tx:
            reasons = " ".join(detail or "" for detail in tx.scalars(select(audit.c.detail)))
    assert "tls-timeout" in reasons
    assert "deadline passed" in reasons


def test_tls_renegotiation_is_refused(tmp_path: Path) -> None:
    authority = Authority("CA", time.time())
    certificate, key = authority.issue(tmp_path, "node")
    peer = authority.issue(tmp_path, "pacs")
    settings = {
        "tls_port": 0,
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_authorities": authority.write(tmp_path / "ca.crt"),
    }
    (tmp_path / "node").mkdir()
    with Node(tmp_path / "node", settings) as node:
        command = [require_program("openssl"), "s_client", "-tls1_2", "-connect", f"127.0.0.1:{node.receiver.tls_port}"]
        identity = ["-cert", str(peer[0]), "-key", str(peer[1]), "-CAfile", str(tmp_path / "ca.crt")]
        client = subprocess.Popen(
            [*command, *identity], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert client.stdin is not None
        time.sleep(1)
        client.stdin.write(b"R\n")  # "renegotiate"
        client.stdin.flush()
        out, _ = client.communicate(timeout=30)
    assert b"Verify return code: 0" in out
    assert b"no renegotiation" in out or (b"RENEGOTIATING" in out and client.returncode != 0)
