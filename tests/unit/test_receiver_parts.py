"""The receiver's parts: negotiation, access, commands, limits, group commit, journal."""

import struct
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)
from sqlalchemy import select

from dicom_node.receiver import pdu
from dicom_node.receiver.access import AccessPolicy, address_key, parse_address
from dicom_node.receiver.acse import ACCEPTED, Proposal, encode_accept, parse_request
from dicom_node.receiver.committer import Committer
from dicom_node.receiver.errors import OutOfResources, ProtocolError, answer_for
from dicom_node.receiver.negotiation import TRANSFER_SYNTAXES, negotiate
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.receiver.resources import Resources
from dicom_node.receiver.tickets import Note
from inference.volume.decode import SUPPORTED
from storage.arrival import Arrival, Outcome
from storage.database import Database, open_database
from storage.errors import DatabaseBusy, StorageFull
from storage.files import StoredFile
from storage.folder import FolderStore
from storage.models import audit, instances
from tests.attacker import association_request, store_command

LOSSY = "1.2.840.10008.1.2.4.50"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"


def agreed(*transfer_syntaxes: str, abstract_syntax: str = CTImageStorage) -> str | None:
    (answer,) = negotiate([Proposal(1, abstract_syntax, transfer_syntaxes)])
    return answer.transfer_syntax if answer.result == ACCEPTED else None


def test_of_what_both_know_the_senders_first_is_agreed() -> None:
    assert agreed(JPEG2000Lossless, ExplicitVRLittleEndian) == JPEG2000Lossless
    assert agreed(ExplicitVRLittleEndian, JPEG2000Lossless) == ExplicitVRLittleEndian
    assert agreed(LOSSY, ExplicitVRLittleEndian, abstract_syntax=EnhancedCTImageStorage) == ExplicitVRLittleEndian


@pytest.mark.parametrize("syntax", [LOSSY, DEFLATED, BIG_ENDIAN, "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.95"])
def test_lossy_deflated_and_big_endian_are_not_agreed(syntax: str) -> None:
    assert agreed(syntax) is None


def test_what_is_received_is_what_can_be_decoded() -> None:
    assert TRANSFER_SYNTAXES == SUPPORTED


def test_a_class_that_is_not_ct_is_not_agreed() -> None:
    assert agreed(ExplicitVRLittleEndian, abstract_syntax="1.2.840.10008.5.1.4.1.1.4") is None


def test_an_accepted_request_gets_its_ae_titles_back_as_they_came() -> None:
    pdu_bytes = association_request(calling_ae=b"  PACS", called_ae=b"DICOM_NODE")
    request = parse_request(pdu_bytes[6:])
    assert (request.calling_ae, request.called_ae) == ("PACS", "DICOM_NODE")
    assert encode_accept(request, negotiate(request.proposals), 131072)[10:42] == pdu_bytes[10:42]


@pytest.mark.parametrize("cut", [43, 60, 80, 100, 200])
def test_a_request_that_is_cut_short_is_malformed(cut: int) -> None:
    with pytest.raises(ProtocolError):
        parse_request(association_request()[6:cut])


def policy(sources: dict[str, tuple[str, ...]], certificates: dict[str, tuple[str, ...]] | None = None) -> AccessPolicy:
    return AccessPolicy("DICOM_NODE", True, list(sources.items()), certificates or {})


def reason(policy: AccessPolicy, ae: str, address: str, names: frozenset[str] = frozenset()) -> str | None:
    rejection = policy.check("DICOM_NODE", ae, parse_address(address), names)
    return rejection.reason if rejection else None


def test_without_sources_only_this_machine_may_store() -> None:
    alone = policy({})
    assert reason(alone, "ANYBODY", "127.0.0.1") is None
    assert reason(alone, "ANYBODY", "::1") is None
    assert reason(alone, "ANYBODY", "10.0.0.1") == "no-sources-configured"
    assert not alone.may_connect(ip_address("10.0.0.1"))


def test_with_sources_title_and_address_must_fit_together() -> None:
    two = policy({"PACS": ("10.1.0.0/16", "fd00::/8"), "CT": ()})
    assert reason(two, "PACS", "10.1.2.3") is None
    assert reason(two, "PACS", "::ffff:10.1.2.3") is None
    assert reason(two, "PACS", "fd00::7") is None
    assert reason(two, "PACS", "10.2.0.1") == "address-not-of-this-ae"
    assert reason(two, "CT", "192.0.2.9") is None
    assert reason(two, "pacs", "10.1.2.3") == "calling-ae-unknown"


def test_a_bound_ae_title_needs_its_certificate_even_without_tls() -> None:
    bound = policy({}, {"PACS": ("pacs.hospital", "sha256:aa")})
    assert reason(bound, "PACS", "127.0.0.1", frozenset({"pacs.hospital"})) is None
    assert reason(bound, "PACS", "127.0.0.1", frozenset({"sha256:aa"})) is None
    assert reason(bound, "PACS", "127.0.0.1", frozenset({"other"})) == "certificate-not-of-this-ae"
    assert reason(bound, "PACS", "127.0.0.1") == "certificate-not-of-this-ae"
    assert reason(bound, "OTHER", "127.0.0.1", frozenset({"pacs.hospital"})) == "certificate-not-of-this-ae"
    assert reason(bound, "OTHER", "127.0.0.1") is None


def test_an_ipv6_network_counts_as_one_machine() -> None:
    assert address_key(parse_address("fd00::1")) == address_key(parse_address("fd00::ffff"))
    assert address_key(parse_address("10.0.0.1")) != address_key(parse_address("10.0.0.2"))


def test_a_command_is_read_and_its_response_repeats_its_identifiers() -> None:
    command = pdu.parse_command(store_command(b"1.2.3"))
    assert (command.field, command.message_id, command.has_data_set) == (pdu.C_STORE_RQ, 1, True)
    response = pdu.encode_response(command, 0xC000, "Series Instance UID is missing")
    read = pdu.parse_command(response.replace(struct.pack("<HHI", 0, 0x0120, 2), struct.pack("<HHI", 0, 0x0110, 2)))
    assert read.field == 0x8001
    assert (read.sop_class_uid, read.sop_instance_uid) == (command.sop_class_uid, command.sop_instance_uid)
    assert b"Series Instance UID is missing" in response


@pytest.mark.parametrize("longest", [0, 64, 128, 16384])
def test_a_response_fits_into_the_peers_pdus(longest: int) -> None:
    response = pdu.encode_response(pdu.parse_command(store_command(b"1.2.3")), 0)
    sent, at, joined = pdu.encode_command_pdus(5, response, longest), 0, b""
    while at < len(sent):
        kind, length = pdu.parse_pdu_header(bytearray(sent), at)
        assert kind == pdu.P_DATA
        assert not longest or length <= longest
        inner, context_id, control = pdu.parse_pdv_header(bytearray(sent), at + 6)
        joined += sent[at + 12 : at + 6 + length]
        at += 6 + length
        assert (inner, context_id) == (length - 4, 5)
        assert control == (3 if at == len(sent) else 1)
    assert joined == response


def test_a_file_starts_the_same_whoever_sends_it() -> None:
    start = encode_file_start(CTImageStorage, "1.2.3", ExplicitVRLittleEndian)
    assert start[128:132] == b"DICM"
    assert start == encode_file_start(CTImageStorage, "1.2.3", ExplicitVRLittleEndian)
    assert len(start) == 144 + int.from_bytes(start[140:144], "little")


@pytest.mark.parametrize(
    ("error", "status"),
    [(StorageFull("x"), 0xA700), (OSError(28, "x"), 0xA700), (ValueError("Planted^Patient"), 0xC000)],
)
def test_an_error_is_answered_without_its_own_words(error: Exception, status: int) -> None:
    code, comment = answer_for(error)
    assert code == status
    assert str(error) not in comment
    assert len(comment) <= 64


def test_free_space_is_looked_at_again_after_half_a_second() -> None:
    now, free = [0.0], [100]
    resources = Resources(lambda: free[0], 50, 10, 10, 1000, lambda: now[0])
    assert not resources.is_low()
    free[0] = 10
    assert not resources.is_low()
    now[0] = 0.5
    assert resources.is_low()
    with pytest.raises(OutOfResources):
        resources.admit_instance("PACS", "10.0.0.1")


def test_a_sender_gets_its_share_of_a_minute_and_others_theirs() -> None:
    now = [0.0]
    resources = Resources(lambda: 100, 0, 2, 2, 1000, lambda: now[0])
    for _ in range(2):
        resources.admit_instance("PACS", "10.0.0.1")
    with pytest.raises(OutOfResources, match="too many instances"):
        resources.admit_instance("PACS", "10.0.0.1")
    resources.admit_instance("CT", "10.0.0.2")
    with pytest.raises(OutOfResources, match="too many bytes"):
        resources.admit_bytes("CT", "10.0.0.2", 1001)
    now[0] = 60.0
    resources.admit_instance("PACS", "10.0.0.1")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(f"sqlite:///{tmp_path / 'node.db'}")
    yield opened
    opened.close()


@pytest.fixture
def committer(database: Database) -> Iterator[Committer]:
    running = Committer(database, lambda _ae: 30.0, clock=lambda: 1000.0)
    running.start()
    yield running
    running.stop(5)


def arrival(uid: str, sha256: str = "a" * 64, path: str = "x.dcm") -> Arrival:
    file = StoredFile(path, sha256, 10)
    return Arrival(uid, CTImageStorage, "1.2.3", "1.2", ExplicitVRLittleEndian, "PACS", "NODE", "10.0.0.1", file)


def test_a_row_is_there_when_its_ticket_says_so(database: Database, committer: Committer) -> None:
    ticket = committer.submit(arrival("1.2.3.4"))
    committer.settle(ticket, is_safe=True)
    assert ticket.wait() is Outcome.NEW
    with database.read() as tx:
        assert tx.scalar(select(instances.c.sop_instance_uid)) == "1.2.3.4"


def test_an_instance_whose_file_failed_is_lost_and_the_next_one_takes_its_place(
    database: Database, committer: Committer
) -> None:
    failed = committer.submit(arrival("1.2.3.4", path="first.dcm"))
    committer.settle(failed, is_safe=False)
    again = committer.submit(arrival("1.2.3.4", path="second.dcm"))
    committer.settle(again, is_safe=True)
    assert again.wait() is Outcome.NEW
    with database.read() as tx:
        row = tx.execute(select(instances)).one()
    assert (row.path, row.gone_reason) == ("second.dcm", None)


def test_a_duplicate_waits_until_the_first_ones_file_is_safe(committer: Committer) -> None:
    first = committer.submit(arrival("1.2.3.4"))
    outcomes: list[Outcome] = []

    def send_again() -> None:
        second = committer.submit(arrival("1.2.3.4", path="second.dcm"))
        committer.settle(second, is_safe=True)
        outcomes.append(second.wait())

    other = threading.Thread(target=send_again)
    other.start()
    assert first.wait() is Outcome.NEW
    other.join(0.3)
    assert outcomes == []
    committer.settle(first, is_safe=True)
    other.join(5)
    assert outcomes == [Outcome.DUPLICATE]


def test_of_three_at_once_the_third_waits_for_the_second_where_the_first_is_lost(committer: Committer) -> None:
    first = committer.submit(arrival("1.2.3.4"))
    second_in, settle_second = threading.Event(), threading.Event()
    outcomes: dict[str, Outcome] = {}

    def send(path: str, inside: threading.Event, go_on: threading.Event) -> None:
        ticket = committer.submit(arrival("1.2.3.4", path=path))
        inside.set()
        go_on.wait(5)
        committer.settle(ticket, is_safe=True)
        outcomes[path] = ticket.wait()

    threads = [
        threading.Thread(target=send, args=(path, second_in, settle_second)) for path in ("second.dcm", "third.dcm")
    ]
    for thread in threads:
        thread.start()
    committer.settle(first, is_safe=False)
    assert second_in.wait(5)
    threads[0].join(0.3)
    assert outcomes == {}, "neither is acknowledged before the file of one of them is durable"
    settle_second.set()
    for thread in threads:
        thread.join(5)
    assert sorted(outcomes.values()) == [Outcome.DUPLICATE, Outcome.NEW]


def test_an_index_that_fails_as_a_whole_fails_the_batch_at_once(database: Database) -> None:
    busy = Committer(Database(str(database.url), busy_timeout_s=0.2), lambda _ae: 30.0)
    tickets = [busy.submit(arrival(f"1.{number}", path=str(number))) for number in range(100)]
    with database.transaction():
        began = time.monotonic()
        busy.start()
        for ticket in tickets:
            with pytest.raises(DatabaseBusy):
                ticket.wait()
        assert time.monotonic() - began < 10, "not one after the other"
    again = busy.submit(arrival("2.1", path="again"))
    busy.settle(again, is_safe=True)
    assert again.wait() is Outcome.NEW
    busy.stop(5)


def test_a_row_that_the_index_refuses_fails_alone(database: Database) -> None:
    late = Committer(database, lambda _ae: 30.0, clock=lambda: 1000.0)
    # The same path twice is refused by the index; nothing that a sender can do, but a bug would.
    tickets = [late.submit(arrival(uid, path=path)) for uid, path in (("1.1", "a"), ("1.2", "a"), ("1.3", "c"))]
    late.note(Note("association.accepted", 1.0, peer_ae="PACS"))
    for ticket in tickets:
        late.settle(ticket, is_safe=True)
    late.start()
    assert tickets[0].wait() is Outcome.NEW
    with pytest.raises(Exception, match="UNIQUE"):
        tickets[1].wait()
    assert tickets[2].wait() is Outcome.NEW
    late.stop(5)
    with database.read() as tx:
        assert "association.accepted" in tx.scalars(select(audit.c.event)).all()


def test_stopping_commits_what_is_queued(database: Database) -> None:
    committer = Committer(database, lambda _ae: 30.0)
    tickets = [committer.submit(arrival(generate_uid(), path=str(number))) for number in range(500)]
    committer.start()
    committer.stop(5)
    assert {ticket.wait() for ticket in tickets} == {Outcome.NEW}


def test_file_names_come_from_nobody_but_the_store(tmp_path: Path) -> None:
    with FolderStore(tmp_path).create() as file:
        assert file.path.is_relative_to(tmp_path)


# --- association requests ---


def item(kind: int, value: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, len(value) if length is None else length) + value


def request_with(user_items: bytes = b"", contexts: bytes = b"") -> bytes:
    context = item(0x20, b"\1\0\0\0" + item(0x30, CTImageStorage.encode()) + item(0x40, b"1.2.840.10008.1.2.1"))
    fixed = struct.pack(">H2x16s16s32x", 1, b"DICOM_NODE", b"PACS")
    return fixed + item(0x10, b"1.2.840.10008.3.1.1.1") + (contexts or context) + item(0x50, user_items)


def identity(kind: int, name: bytes, passcode: bytes, wants_answer: int = 1) -> bytes:
    lengths = struct.pack(">H", len(name)) + name + struct.pack(">H", len(passcode)) + passcode
    return item(0x58, bytes((kind, wants_answer)) + lengths)


def test_items_that_the_node_does_not_know_are_ignored() -> None:
    asynchronous = item(0x53, struct.pack(">HH", 5, 5))
    role = item(0x54, struct.pack(">H", 25) + CTImageStorage.encode() + b"\1\1")
    unknown = item(0x7A, b"vendor") + item(0x51, struct.pack(">I", 16384))
    request = parse_request(request_with(asynchronous + role + unknown))
    assert request.max_pdu_bytes == 16384
    answer = encode_accept(request, negotiate(request.proposals), 131072)
    assert b"\x53\x00\x00\x04" not in answer


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(request_with(item(0x51, b"\0\0\1\0", length=60000)), id="an item longer than what holds it"),
        pytest.param(request_with(item(0x51, b"\0\1")), id="a number of two bytes"),
        pytest.param(request_with(item(0x58, b"\2\0\xff\xffpacs")), id="a user name longer than its item"),
        pytest.param(request_with(item(0x58, b"\2")), id="an identity without its fields"),
        pytest.param(request_with(contexts=item(0x20, b"\2\0\0\0")), id="an even context ID"),
        pytest.param(request_with(contexts=item(0x20, b"\1\0\0\0") * 2), id="the same context twice"),
        pytest.param(request_with(contexts=item(0x20, b"\1\0")), id="a context without its fields"),
        pytest.param(request_with(contexts=item(0x20, b"\1\0\0\0" + item(0x40, b"1") * 11_000)), id="too many items"),
    ],
)
def test_requests_that_lie_are_malformed(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(content)


def test_128_contexts_of_40_syntaxes_are_answered() -> None:
    syntaxes = b"".join(item(0x40, f"1.2.840.10008.1.2.4.{number}".encode()) for number in range(40))
    contexts = b"".join(
        item(0x20, bytes((number, 0, 0, 0)) + item(0x30, CTImageStorage.encode()) + syntaxes)
        for number in range(1, 256, 2)
    )
    request = parse_request(request_with(contexts=contexts))
    answers = negotiate(request.proposals)
    assert len(answers) == 128
    assert encode_accept(request, answers, 131072).count(b"\x21\x00") >= 128


def test_explicit_vr_is_preferred_to_implicit_in_one_context() -> None:
    assert agreed(ImplicitVRLittleEndian, ExplicitVRLittleEndian) == ExplicitVRLittleEndian
    assert agreed(ImplicitVRLittleEndian, JPEG2000Lossless) == ImplicitVRLittleEndian
    assert agreed(ImplicitVRLittleEndian) == ImplicitVRLittleEndian


def test_a_known_user_needs_its_passcode_over_tls() -> None:
    users = AccessPolicy("DICOM_NODE", True, [], {}, users={"pacs": SecretStr("right")})

    def why(user: bytes, over_tls: bool = True) -> str | None:
        refused = users.check_user(parse_request(request_with(user)).user, over_tls)
        return refused.reason if refused else None

    assert why(identity(2, b"pacs", b"right")) is None
    assert why(identity(2, b"pacs", b"right"), over_tls=False) == "user-identity-without-tls"
    assert why(identity(2, b"pacs", b"wrong")) == "user-or-passcode-wrong"
    assert why(identity(2, b"nobody", b"")) == "user-or-passcode-wrong"
    assert why(identity(1, b"pacs", b"")) == "no-user-identity"
    assert why(b"") == "no-user-identity"
    request = parse_request(request_with(identity(2, b"pacs", b"right")))
    assert b"\x59\x00\x00\x02\x00\x00" in encode_accept(request, (), 131072, user_is_verified=True)
    assert "right" not in repr(request)


def test_without_users_an_identity_is_ignored_and_not_confirmed() -> None:
    request = parse_request(request_with(identity(2, b"pacs", b"right")))
    assert policy({}).check_user(request.user, over_tls=False) is None
    assert b"\x59\x00" not in encode_accept(request, (), 131072)[74:]


def test_logs_call_only_configured_senders_by_their_name() -> None:
    two = policy({"PACS": ()})
    assert two.label("PACS") == "PACS"
    assert "Planted" not in two.label("Planted^Patient")
    assert two.label("Planted^Patient") == two.label("Planted^Patient")


def test_an_address_has_its_share_whatever_it_calls_itself() -> None:
    resources = Resources(lambda: 100, 0, 3, 3, 1000, lambda: 0.0)
    for number in range(3):
        assert resources.admit_association(f"AE{number}", "10.0.0.1")
        resources.admit_instance(f"AE{number}", "10.0.0.1")
    assert not resources.admit_association("AE9", "10.0.0.1")
    with pytest.raises(OutOfResources):
        resources.admit_instance("AE9", "10.0.0.1")
    assert resources.admit_association("AE9", "10.0.0.2")
