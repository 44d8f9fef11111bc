"""The receiver over real sockets: pynetdicom as sender, real SQLite, real files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from sqlalchemy import select

from storage.models import audit, conflicts, instances
from tests.attacker import ACCEPT, REJECT, association_request, attacker
from tests.receiving import Node, associate, ct_slice, store


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as running:
        yield running


def events(node: Node) -> list[str]:
    with node.database.read() as tx:
        return list(tx.scalars(select(audit.c.event).order_by(audit.c.id)))


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
    assert "instance.conflict" in events(node)


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
