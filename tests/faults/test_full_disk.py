"""The disk is full at every write: no success without a readable file and its row, and recovery when there is space."""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select

from storage import audit
from storage.models import instances
from tests.attacker import ABORT, ACCEPT, DATA, REJECT, Attacker, attacker, data_set, pdu, pdv, store_command
from tests.faults.campaign import Node, Pacs, check, ct_series, send
from tests.faults.disk import PAGE, Disk, small_disk
from tests.programs import wait_for
from tests.receiving import Node as Receiver
from tests.zygote import Zygote

ROUNDS = int(os.environ.get("NODE_FAULT_ROUNDS", "0"))
TRANSIENT = b"\0\2\3"  # rejected transient, by the presentation-related provider (PS3.8 Table 9-21), any reason


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk", 12) as mounted:
        yield mounted


def slice_of(uid: str, series: str, kib: int) -> bytes:
    extra = b"\x09\x00\x01\x10OB\x00\x00" + (kib * 1024).to_bytes(4, "little") + os.urandom(kib * 1024)
    return data_set(uid.encode(), extra, series.encode())


def test_whatever_is_left_on_the_disk_an_acknowledged_instance_is_whole(disk: Disk) -> None:
    """The space runs out at every page in turn: at the file, at its name, at the row and at the index's log.

    The short run leaves two of three out.
    """
    statuses: dict[int, list[int]] = {}
    with Receiver(disk.folder / "node", storage={"low_disk_mb": 0}) as node:
        acknowledged: dict[str, str] = {}
        refused: list[str] = []
        for pages in range(60) if ROUNDS else range(0, 36, 3):
            for kib in (1, 21):
                uid, series = generate_uid(), generate_uid()
                content = slice_of(uid, series, kib)
                disk.leave(pages)
                status = _store(node.port, uid, content)
                disk.free()
                statuses.setdefault(status, []).append(pages)
                if status == 0:
                    acknowledged[uid] = hashlib.sha256(content).hexdigest()
                else:
                    refused.append(uid)
                assert status in (0, 0xA700), f"{status:04X} with {pages} pages left"
        assert set(statuses) == {0, 0xA700}, "both happened"
        # There is space again, so what was refused is now accepted.
        for uid in refused:
            assert _store(node.port, uid, slice_of(uid, generate_uid(), 1)) == 0
        with node.database.read() as tx:
            rows = {row.sop_instance_uid: row for row in tx.execute(select(instances))}
            assert audit.verify(tx) is None
        assert rows.keys() == acknowledged.keys() | set(refused)
        for uid, sha256 in acknowledged.items():
            data = node.files.read_verified(rows[uid].path, rows[uid].sha256)
            assert sha256 == _data_set_digest(data)
        assert {str(path.relative_to(node.files.root)) for path in node.files.root.rglob("*.dcm")} == {
            row.path for row in rows.values()
        }, "nothing half written is left"


def _data_set_digest(data: bytes) -> str:
    length = int.from_bytes(data[140:144], "little")  # of the file meta information, after its own group length
    return hashlib.sha256(data[144 + length :]).hexdigest()


def _store(port: int, uid: str, content: bytes) -> int:
    with attacker(port) as sender:
        assert sender.associate() == ACCEPT
        status = sender.store(uid.encode(), content)
    assert status is not None, "the association was ended instead of answered"
    return status


def test_below_the_watermark_associations_are_refused_as_transient_and_taken_again_later(disk: Disk) -> None:
    with Receiver(disk.folder / "node", storage={"low_disk_mb": 2}) as node:
        uid = generate_uid()
        assert _store(node.port, uid, slice_of(uid, generate_uid(), 1)) == 0
        with closing(Attacker(node.port)) as within:
            assert within.associate() == ACCEPT
            disk.leave(1024**2 // PAGE)
            time.sleep(0.6)  # the receiver looks every half second
            assert within.store(uid.encode(), slice_of(uid, generate_uid(), 1)) == 0xA700
        with attacker(node.port) as late:
            assert late.associate() == REJECT
        disk.free()
        time.sleep(0.6)
        uid = generate_uid()
        assert _store(node.port, uid, slice_of(uid, generate_uid(), 1)) == 0


def test_a_disk_that_fills_in_the_middle_of_an_instance_answers_and_goes_on(disk: Disk) -> None:
    with Receiver(disk.folder / "node", storage={"low_disk_mb": 0}) as node, attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        uid = generate_uid()
        content = slice_of(uid, generate_uid(), 400)
        sender.send(pdu(DATA, pdv(store_command(uid.encode()), 3)) + pdu(DATA, pdv(content[:16000], 0)))
        wait_for(lambda: list(node.files.root.rglob("*.dcm")), what="the file is begun")
        disk.leave(2)
        for start in range(16000, len(content), 16000):
            sender.send(pdu(DATA, pdv(content[start : start + 16000], 2 if start + 16000 >= len(content) else 0)))
        kind, answer = sender.answer()
        assert kind != ABORT and b"\x00\xa7" in answer
        assert list(node.files.root.rglob("*.dcm")) == []
        disk.free()
        assert sender.store(uid.encode(), content) == 0


def test_a_disk_that_turns_read_only_is_answered_as_transient_and_forgiven(disk: Disk) -> None:
    with Receiver(disk.folder / "node", storage={"low_disk_mb": 0}) as node:
        uid, series = generate_uid(), generate_uid()
        content = slice_of(uid, series, 1)
        # While the index is open, its log can be written: a remount is impossible while any file is open for writing.
        node.database.close()
        disk.protect(on=True)
        assert _store(node.port, uid, content) == 0xA700
        disk.protect(on=False)
        assert _store(node.port, uid, content) == 0
        assert len(list(node.files.root.rglob("*.dcm"))) == 1


@pytest.mark.timeout(1800)
def test_a_node_whose_disk_is_full_again_and_again_loses_nothing_and_ends_its_work(
    zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    """Every process finds the disk full: the receiver, the worker with its report, the sender with its row."""
    choose = random.Random(5)
    times = 60 if ROUNDS else 3
    pacs = Pacs()
    with small_disk(tmp_path / "life", 40) as disk:
        node = Node(zygote, disk.folder, pacs.port, DICOM_NODE_STORAGE__LOW_DISK_MB="0")
        acknowledged: dict[str, str] = {}
        try:
            node.start()
            wait_for(lambda: node.listens, 60)
            for _ in range(times):
                instances_ = ct_series()
                disk.leave(choose.randrange(0, 40))
                send(node.port, instances_, acknowledged)
                time.sleep(choose.uniform(0.2, 2.0))
                disk.free()
                node.send(instances_, acknowledged)
            node.settle()
            counts = check(node, pacs, acknowledged)
            node.end()
        finally:
            node.kill()
            pacs.stop()
    figures.append(f"disk full {times} times under a whole node: {counts}; lost 0, twice 0, stuck 0")
