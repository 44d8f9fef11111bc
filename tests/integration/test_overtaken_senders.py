"""A sender that stands still for longer than its lease, in a process of its own that a real SIGSTOP freezes."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from config.gateways.hl7 import Hl7Destination
from dicom_node import heartbeat
from dicom_node.delivery import ways
from dicom_node.delivery.sender import DestinationSender
from dicom_node.gateways.hl7 import mllp
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from storage import deliveries
from storage.deliveries import ClaimedDelivery
from storage.errors import DatabaseBusy, StaleLease, StoreUnavailable
from tests.mllp_server import mllp_server, wait_for
from tests.outbox import Node, instance, make_node

UIDS = (generate_uid(), generate_uid())


def sender_of(node: Node) -> DestinationSender:
    return DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)


def node_in(folder: Path, port: int) -> Node:
    ris = Hl7Destination(kind="hl7", name="ris", host="127.0.0.1", port=port)
    return make_node(folder, ris, sender={"lease_s": 1.01})


def stands_still(function: Callable[..., object]) -> Callable[..., object]:
    """The function, before which this process is frozen."""

    def frozen(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGSTOP)
        return function(*arguments)

    return frozen


def send_and_freeze(folder: Path, port: int, module: object, name: str) -> None:
    """Work on the outbox, stand still right before the first call of a function, and die once it has returned."""
    heartbeat.BEATS = 0.01  # type: ignore[assignment]  # frozen in a transaction, it would keep all others from SQLite
    node, whole = node_in(folder, port), getattr(module, name)
    setattr(module, name, stands_still(whole))
    sender_of(node).work_once(time.time())


@contextmanager
def frozen_sender(*arguments: object) -> Iterator[BaseProcess]:
    """A sender that has frozen."""
    process = multiprocessing.get_context("fork").Process(target=send_and_freeze, args=arguments)
    process.start()
    try:
        wait_for(lambda: ") T " in Path(f"/proc/{process.pid}/stat").read_text())
        yield process
    finally:
        process.kill()
        process.join()


def wake(process: BaseProcess) -> None:
    """Let it go on to its end."""
    os.kill(process.pid or 0, signal.SIGCONT)
    process.join(30)
    assert process.exitcode == 0


def report_replacing(former: Dataset) -> Dataset:
    """A report that names another one in Predecessor Documents."""
    named, of_series, study = Dataset(), Dataset(), Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = former.SOPClassUID, former.SOPInstanceUID
    of_series.SeriesInstanceUID, of_series.ReferencedSOPSequence = former.SeriesInstanceUID, [named]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = former.StudyInstanceUID, [of_series]
    return instance(StudyInstanceUID=former.StudyInstanceUID, PredecessorDocumentsSequence=[study])


def keys(messages: list[bytes]) -> list[tuple[str, str]]:
    """MSH-10, and OBR-25: P for the first result, C for the one that replaces it."""
    found = []
    for message in messages:
        segments = {line.split("|")[0]: line.split("|") for line in message.decode().split("\r") if line}
        found.append((segments["MSH"][9], segments["OBR"][25]))
    return found


@pytest.mark.parametrize(
    ("module", "name", "told"),
    [(ways, "still_held", "C"), (ways.MessagesWay, "_is_replaced", "C"), (mllp, "_send", "CPC")],
    ids=["before its look", "between its looks", "after them"],
)
def test_what_a_frozen_sender_tells_late_is_not_what_stands_in_the_end(
    tmp_path: Path, module: object, name: str, told: str
) -> None:
    with mllp_server(tmp_path / "engine") as engine:
        node = node_in(tmp_path / "node", engine.port)
        former = node.add_result(time.time(), uids=UIDS)["report"]
        node.database.close()
        with frozen_sender(tmp_path / "node", engine.port, module, name) as process:
            node = node_in(tmp_path / "node", engine.port)
            node.add_result(time.time() + 2, objects={"report": report_replacing(former)}, uids=UIDS)
            other = sender_of(node)
            wait_for(lambda: (other.work_once(node.database.now()), engine.messages)[1] != [])
            assert node.deliveries()[0].state == "SUPERSEDED", "its lease was over before the successor went"
            wake(process)
            other.work_once(node.database.now())
        said = keys(engine.messages)
    assert "".join(status for _, status in said) == told
    assert len({key for key, _ in said}) == len(told), "the receiver takes none for a repetition"
    assert [row.state for row in node.deliveries()] == ["SUPERSEDED", "SENT"]
    assert len(node.audited("delivery.late")) == (1 if told == "CPC" else 0)


UNREADABLE, BUSY = StoreUnavailable("the bucket is away"), DatabaseBusy("another process held the index")
SENT = Verdict(AttemptOutcome.UNANSWERED, "no answer in time")


class Overtaken:
    """A way to a destination: while it is used, another sender takes the delivery and begins to tell a successor."""

    def __init__(self, node: Node, way: ways.Way, ends: Verdict | Exception) -> None:
        self.node, self.ends = node, ends
        self.successors: list[ClaimedDelivery] = []
        self.set_right, self.forget, self.stored = way.set_right, way.forget, way.stored

    def attempt(self, claimed: ClaimedDelivery, clock: Callable[[], float]) -> Verdict:
        with self.node.database.transaction() as tx:
            deliveries.release_all(tx, time.time())
        self.node.add_result(time.time() + 2, uids=UIDS)
        with self.node.database.transaction() as tx:
            self.successors += deliveries.claim(tx, "ris", time.time() + 3, 60.0)
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends


def overtaken(folder: Path, ends: Verdict | Exception) -> tuple[Node, ClaimedDelivery]:
    """A sender whose attempt ends like this after it was overtaken. Returns the successor as the other one holds it."""
    node = node_in(folder, 1)
    node.add_result(time.time() - 10, uids=UIDS)
    sender = sender_of(node)
    way = Overtaken(node, sender._way, ends)
    sender._way = way
    sender.work_once(time.time())
    [successor] = way.successors
    return node, successor


def test_a_successor_that_is_being_told_meanwhile_is_told_again_by_whoever_is_there(tmp_path: Path) -> None:
    node, successor = overtaken(tmp_path, SENT)
    assert [row.state for row in node.deliveries()] == ["SUPERSEDED", "PENDING"]
    with pytest.raises(StaleLease), node.database.transaction() as tx:
        deliveries.mark_sent(tx, successor.delivery_id, successor.fence, time.time() + 3)
    assert len(node.audited("delivery.late")) == 1


@pytest.mark.parametrize("ends", [UNREADABLE, BUSY], ids=["its files", "the index"])
def test_what_could_not_be_read_was_not_told_late(tmp_path: Path, ends: Exception) -> None:
    node, _ = overtaken(tmp_path, ends)
    assert [row.state for row in node.deliveries()] == ["SUPERSEDED", "SENDING"]
    assert node.audited("delivery.late") == []


def test_a_message_to_a_port_where_nothing_listens_was_not_sent() -> None:
    ris = Hl7Destination(kind="hl7", name="ris", host="127.0.0.1", port=1)
    assert mllp.exchange(ris, b"MSH", "1").sent is False
