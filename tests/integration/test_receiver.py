"""The receiver over real sockets: pynetdicom as sender, real SQLite, real files."""

import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import select

from dicom_node.receiver import pressure
from dicom_node.receiver.committer import Committer
from dicom_node.receiver.tickets import Ticket
from storage import jobs, series
from storage.arrival import Arrival
from storage.models import audit, conflicts, instances
from tests.attacker import (
    ACCEPT,
    DATA,
    REJECT,
    VERIFICATION_ID,
    association_request,
    attacker,
    command_element,
    data_set,
    pdu,
    pdv,
    store_command,
)
from tests.outbox import MODEL
from tests.programs import wait_for
from tests.receiving import Node, associate, ct_slice, store


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as running:
        yield running


def events(node: Node) -> list[str]:
    with node.database.read() as tx:
        return list(tx.scalars(select(audit.c.event).order_by(audit.c.id)))


def reasons(node: Node) -> str:
    with node.database.read() as tx:
        return " ".join(detail or "" for detail in tx.scalars(select(audit.c.detail)))


def stored(node: Node) -> list[Path]:
    return sorted(path for path in node.files.root.rglob("*") if path.is_file())


def test_an_echo_is_answered(node: Node) -> None:
    with associate(node) as association:
        assert association.send_c_echo().Status == 0x0000


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_an_acknowledged_instance_is_indexed_and_its_file_holds_the_bytes_sent(node: Node, syntax: str) -> None:
    sent = ct_slice(syntax=syntax)
    assert store(node, sent) == [(0x0000, "")]
    with node.database.read() as tx:
        row = tx.execute(select(instances)).one()
    assert row.sop_instance_uid == sent.SOPInstanceUID
    assert row.transfer_syntax_uid == syntax
    kept = dcmread(node.files.absolute(row.path))
    assert kept == sent
    assert kept.file_meta.MediaStorageSOPInstanceUID == sent.SOPInstanceUID


def test_the_same_bytes_again_are_acknowledged_and_kept_once(node: Node) -> None:
    sent = ct_slice()
    assert store(node, sent, sent) == [(0x0000, ""), (0x0000, "")]
    assert len(stored(node)) == 1


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_resend_is_kept_where_the_file_of_the_first_was_lost(node: Node, damage: str) -> None:
    """A receiver that died between row and fsync, or a disk that lost the file: the row alone acknowledges nothing."""
    sent = ct_slice()
    store(node, sent)
    (first,) = stored(node)
    first.unlink() if damage == "gone" else first.write_bytes(first.read_bytes()[:-1])
    assert store(node, sent) == [(0x0000, "")]
    with node.database.read() as tx:
        row = tx.execute(select(instances)).one()
    assert node.files.absolute(row.path) != first
    node.files.read_verified(row.path, row.sha256)
    assert dcmread(node.files.absolute(row.path)) == sent
    assert events(node).count("instance.restored") == 1


def test_a_resend_is_acknowledged_once_the_first_ones_file_is_durable(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = ct_slice()
    store(node, sent)
    (first,) = stored(node)
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    assert store(node, sent) == [(0x0000, "")]
    assert str(first) in synced
    assert synced.index(str(first)) < len(synced) - 1 - synced[::-1].index(str(first.parent))
    assert stored(node) == [first]


def test_the_same_conflict_again_is_kept_once(node: Node) -> None:
    first, other = ct_slice(), ct_slice()
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    other.SeriesInstanceUID, other.StudyInstanceUID = first.SeriesInstanceUID, first.StudyInstanceUID
    assert store(node, first, other, other) == [(0x0000, "")] * 3
    assert len(stored(node)) == 2
    with node.database.read() as tx:
        kept = tx.execute(select(conflicts)).one()
    assert kept.times_seen == 2
    node.files.read_verified(kept.path, kept.sha256)


def test_other_bytes_under_the_same_uid_are_acknowledged_and_kept_aside(node: Node) -> None:
    first, other = ct_slice(), ct_slice()
    other.SOPInstanceUID = first.SOPInstanceUID
    other.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    other.SeriesInstanceUID, other.StudyInstanceUID = first.SeriesInstanceUID, first.StudyInstanceUID
    other.PixelData = bytes(len(first.PixelData))
    assert store(node, first, other) == [(0x0000, ""), (0x0000, "")]
    assert len(stored(node)) == 2
    assert "instance.second-copy" in events(node)


# Result, source and reason of an A-ASSOCIATE-RJ, PS3.8 Table 9-21.
TRANSIENT, CALLED_AE_UNKNOWN, CALLING_AE_UNKNOWN = b"\0\2\3\1", b"\0\1\1\7", b"\0\1\1\3"


def answer(node: Node, **how: bytes) -> tuple[int, bytes]:
    """What an association request is answered with. Not pynetdicom's SCU: it takes a fast rejection for an abort."""
    with attacker(node.port) as sender:
        sender.send(association_request(**how))
        return sender.answer()


def without(element: str) -> Dataset:
    sent = ct_slice()
    del sent[element]
    return sent


def test_a_data_set_without_series_is_refused_and_leaves_no_file(node: Node) -> None:
    assert store(node, without("SeriesInstanceUID")) == [(0xC000, "Series Instance UID is missing")]
    assert stored(node) == []


def test_a_uuid_string_for_a_study_is_refused_by_name(node: Node) -> None:
    sent = ct_slice()
    sent.StudyInstanceUID = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
    assert store(node, sent) == [(0xC000, "Study Instance UID is a UUID string")]


def test_a_command_for_another_instance_than_the_data_sets_is_refused(node: Node) -> None:
    sent = ct_slice()
    sent.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    assert store(node, sent) == [(0xC000, "SOP instance of command and data set differ")]
    assert stored(node) == []


def test_a_data_set_of_another_class_than_its_command_is_refused(node: Node) -> None:
    sent = ct_slice()
    sent.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    sent.file_meta.MediaStorageSOPClassUID = CTImageStorage
    assert store(node, sent) == [(0xA900, "SOP class of command and data set differ")]


def test_one_refused_instance_does_not_end_the_association(node: Node) -> None:
    assert [status for status, _ in store(node, ct_slice(), without("StudyInstanceUID"), ct_slice())] == [
        0x0000,
        0xC000,
        0x0000,
    ]


def test_a_full_disk_refuses_associations_as_transient(tmp_path: Path) -> None:
    with Node(tmp_path, storage={"low_disk_mb": 10**9}) as node:
        assert answer(node) == (REJECT, TRANSIENT)
        node.stop()
        assert "association.rejected" in events(node)


def test_a_full_disk_does_not_hide_that_the_node_can_be_reached(tmp_path: Path) -> None:
    with Node(tmp_path, storage={"low_disk_mb": 10**9}) as node:
        entity = AE(ae_title="SENDER")
        entity.add_requested_context(Verification)
        association = entity.associate("127.0.0.1", node.port, ae_title="DICOM_NODE")
        assert association.is_established
        assert association.send_c_echo().Status == 0x0000
        association.release()
        entity.add_requested_context(CTImageStorage)
        # Not is_rejected: pynetdicom's SCU takes a fast rejection for an abort.
        assert not entity.associate("127.0.0.1", node.port, ae_title="DICOM_NODE").is_established
        node.receiver._registry.drain()
        entity.requested_contexts = entity.requested_contexts[1:]
        assert not entity.associate("127.0.0.1", node.port, ae_title="DICOM_NODE").is_established, "it is shutting down"
        node.stop()
        assert "low-disk" in reasons(node)
        assert "shutting-down" in reasons(node)


def test_a_disk_that_fills_during_an_association_answers_a700(node: Node) -> None:
    with associate(node) as association:
        assert association.send_c_store(ct_slice()).Status == 0x0000
        node.fill_disk()
        answer = association.send_c_store(ct_slice())
        assert (answer.Status, answer.ErrorComment) == (0xA700, "out of storage space")
    assert len(stored(node)) == 1


def test_another_called_ae_title_is_rejected_and_audited(node: Node) -> None:
    assert answer(node, called_ae=b"SOMEBODY") == (REJECT, CALLED_AE_UNKNOWN)
    node.stop()
    assert "association.rejected" in events(node)


def test_an_unknown_sender_is_rejected_once_sources_are_configured(tmp_path: Path) -> None:
    with Node(tmp_path, sources=[{"ae_title": "PACS", "addresses": ["127.0.0.0/8"]}]) as node:
        assert answer(node, calling_ae=b"STRANGER") == (REJECT, CALLING_AE_UNKNOWN)
        assert answer(node, calling_ae=b"PACS")[0] == ACCEPT


def test_a_known_sender_from_another_address_is_rejected(tmp_path: Path) -> None:
    sources = [{"ae_title": "PACS", "addresses": ["10.0.0.1"]}, {"ae_title": "OTHER", "addresses": ["127.0.0.1"]}]
    with Node(tmp_path, sources=sources) as node:
        assert answer(node, calling_ae=b"PACS") == (REJECT, CALLING_AE_UNKNOWN)


def test_stopping_lets_a_running_instance_end(node: Node) -> None:
    sent = [ct_slice() for _ in range(5)]
    with associate(node) as association:
        assert association.send_c_store(sent[0]).Status == 0x0000
        node.stop_soon()
        assert [association.send_c_store(each).Status for each in sent[1:]] == [0, 0, 0, 0]
    node.stop()
    assert len(stored(node)) == 5


def test_a_queue_of_analyses_over_its_mark_refuses_associations_as_transient(tmp_path: Path) -> None:
    with Node(tmp_path, {"max_queued_series": 1}) as node:
        assert [status for status, _ in store(node, ct_slice(), ct_slice())] == [0, 0]
        for pk in (1, 2):
            with node.database.transaction() as tx:
                series.close_series(tx, pk, time.time(), series.Closing(MODEL, "command"))
        wait_for(lambda: answer(node) == (REJECT, TRANSIENT), 10, "associations are refused")
        with node.database.transaction() as tx:
            jobs.claim(tx, "worker", time.time(), 60, 3)
        wait_for(lambda: answer(node)[0] == ACCEPT, 10, "associations are accepted again")
        node.stop()
        assert "queue-full" in reasons(node)


def test_an_index_that_hangs_refuses_associations_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "SLOW_INDEX_S", 0.3)
    with Node(tmp_path) as node:
        other = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as one:
            waiting = one.submit(store, node, ct_slice())
            wait_for(lambda: answer(node) == (REJECT, TRANSIENT), 10, "associations are refused")
            other.execute("ROLLBACK")
            assert waiting.result(30) == [(0x0000, "")]
        other.close()
        wait_for(lambda: answer(node)[0] == ACCEPT, 10, "associations are accepted again")
        node.stop()
        assert "slow-index" in reasons(node)


def test_of_several_processes_on_the_port_each_makes_its_file_safe_before_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, submit = os.fsync, Committer.submit

    def synced(fd: int) -> None:
        fsync(fd)
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).suffix or "folder")

    def submitted(self: Committer, arrival: Arrival) -> Ticket:
        order.append("row")
        return submit(self, arrival)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Committer, "submit", submitted)
    with Node(tmp_path, {"processes": 2}) as node:
        assert store(node, ct_slice()) == [(0x0000, "")]
    assert order.index(".dcm") < order.index("row")
    assert "folder" in order[order.index(".dcm") - 1 : order.index("row")]


@pytest.mark.parametrize("longest", [None, 0, 7, 128, 16384, 0xFFFFFFFF])
def test_a_peer_gets_its_answers_in_pdus_of_the_length_that_it_takes(node: Node, longest: int | None) -> None:
    request = bytearray(association_request())
    at = request.index(b"\x51\x00\x00\x04")
    if longest is None:
        request[at] = 0x7F  # an item that nobody knows: no length is named
    else:
        request[at + 4 : at + 8] = longest.to_bytes(4, "big")
    echo = command_element(0x0100, b"\x30\x00") + command_element(0x0110, b"\1\0") + command_element(0x0800, b"\1\1")
    with attacker(node.port) as one:
        one.send(bytes(request))
        assert one.answer()[0] == ACCEPT
        one.send(pdu(DATA, pdv(echo, 3, VERIFICATION_ID)))
        joined, is_last = b"", False
        while not is_last:
            kind, content = one.answer()
            assert kind == DATA
            assert not longest or len(content) <= longest
            joined, is_last = joined + content[6:], bool(content[5] & 2)
    assert joined.endswith(command_element(0x0900, b"\0\0"))


def test_a_message_may_come_in_pieces_of_any_size(node: Node) -> None:
    uid = generate_uid().encode()
    content = data_set(uid, series=generate_uid().encode())
    command = store_command(uid)
    pieces = [pdu(DATA, pdv(command[n : n + 7], 3 if n + 7 >= len(command) else 1)) for n in range(0, len(command), 7)]
    pieces += [pdu(DATA, pdv(content[n : n + 3], 0)) for n in range(0, len(content), 3)]
    with attacker(node.port) as one:
        assert one.associate() == ACCEPT
        one.send(b"".join(pieces) + pdu(DATA, pdv(b"", 2)))  # some peers end with an empty piece
        kind, response = one.answer()
    assert kind == DATA
    assert command_element(0x0900, b"\0\0") in response
