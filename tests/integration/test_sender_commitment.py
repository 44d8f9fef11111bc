"""Storage commitment against an SCP on loopback that answers as real PACS do, and as they should not."""

import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from config.settings import Destination, ReceiverSettings
from dicom_node.delivery import sender
from dicom_node.delivery.commitment import Asking
from dicom_node.demo.pacs import Pacs
from dicom_node.receiver.certificates import Authority
from dicom_node.scu.association import Address, tls_context
from tests.outbox import Node, destination, make_node, sending
from tests.programs import free_port, wait_for

MODEL, MODEL_INSTANCE = StorageCommitmentPushModel, StorageCommitmentPushModelInstance


class CommittingPacs:
    """A Storage and Storage Commitment SCP.

    how: "same" association, "own" association to `report_port`, "refuse" (N-ACTION fails), "silent".
    failing: how many requests are answered with failures first.
    tls: a context for its own associations.
    """

    def __init__(self, how: str, report_port: int = 0, failing: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.how = how
        self.tls = tls
        self.report_port = report_port
        self.failing = failing
        self.stored: list[str] = []
        self.requests: list[Dataset] = []
        entity = AE(ae_title="STORESCP")
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax))
        entity.add_supported_context(StorageCommitmentPushModel)
        self._server = entity.start_server(
            ("127.0.0.1", 0),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action)],
        )
        self.port = int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def _store(self, event: evt.Event) -> int:
        self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    def _action(self, event: evt.Event) -> tuple[int, None]:
        if self.how == "refuse":
            return 0x0110, None
        information = event.action_information
        self.requests.append(information)
        if self.how != "silent":
            threading.Thread(target=self._answer, args=(event.assoc, information), daemon=True).start()
        return 0, None

    def _answer(self, association: Association, information: Dataset) -> None:
        time.sleep(0.1)
        report = Dataset()
        report.TransactionUID = information.TransactionUID
        references = list(information.ReferencedSOPSequence)
        fails = len(self.requests) <= self.failing
        if fails:
            references[0].FailureReason = 0x0112
            report.FailedSOPSequence = references[:1]
            references = references[1:]
        report.ReferencedSOPSequence = references
        kind = 2 if fails else 1
        if self.how == "same":
            association.send_n_event_report(report, kind, MODEL, MODEL_INSTANCE)
            return
        own = open_own(self.report_port, tls=self.tls)
        assert own.is_established
        own.send_n_event_report(report, kind, MODEL, MODEL_INSTANCE)
        own.release()


def open_own(
    port: int, calling_ae: str = "STORESCP", tls: ssl.SSLContext | None = None, source: str = "127.0.0.1"
) -> Association:
    """An association that a PACS opens to the node, whether or not the node accepts it."""
    entity = AE(ae_title=calling_ae)
    entity.acse_timeout = entity.network_timeout = 10
    return entity.associate(
        "127.0.0.1",
        port,
        [build_context(StorageCommitmentPushModel)],
        "NODE_SC",
        tls_args=(tls, "127.0.0.1") if tls else None,
        bind_address=(source, 0),
    )


def answer_to(request: Dataset) -> Dataset:
    """Event information: everything is kept."""
    report = Dataset()
    report.TransactionUID = request.TransactionUID
    report.ReferencedSOPSequence = request.ReferencedSOPSequence
    return report


@contextmanager
def committing_node(
    folder: Path,
    how: str,
    failing: int = 0,
    tls: ssl.SSLContext | None = None,
    more: Sequence[Destination] = (),
    receiver: ReceiverSettings | None = None,
    **options: object,
) -> Iterator[tuple[Node, CommittingPacs]]:
    """A sender that asks such a PACS for commitment, running. more: destinations after the PACS."""
    port = free_port()
    pacs = CommittingPacs(how, port, failing, tls)
    asking = {"wait_s": 1.0, "ae_title": "NODE_SC", "port": port, **options}
    first = destination(pacs.port, commitment="request")
    node = make_node(folder, first, *more, sender={"commitment": asking}, receiver=receiver or ReceiverSettings())
    stop = threading.Event()
    thread = threading.Thread(target=sender.run, args=(node.settings, node.database, node.files, stop))
    thread.start()
    try:
        yield node, pacs
    finally:
        stop.set()
        thread.join(30)
        pacs.stop()
        assert not thread.is_alive()


@pytest.mark.parametrize("how", ["same", "own"])
def test_an_answer_on_either_association_commits_the_delivery(tmp_path: Path, how: str) -> None:
    with committing_node(tmp_path, how) as (node, pacs):
        objects = node.add_result(time.time(), ["report", "segmentation"])
        wait_for(lambda: node.states() == {"pacs": "COMMITTED"})
    (request,) = pacs.requests
    asked = {(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in request.ReferencedSOPSequence}
    assert asked == {(o.SOPClassUID, o.SOPInstanceUID) for o in objects.values()}
    (row,) = node.audited("delivery.committed")
    assert row["detail"]["how"] == "storage-commitment"  # type: ignore[index]


@pytest.mark.parametrize("how", ["same", "own"])
def test_what_is_not_committed_is_sent_again_until_it_is(tmp_path: Path, how: str) -> None:
    with committing_node(tmp_path, how, failing=2) as (node, pacs):
        objects = node.add_result(time.time())
        wait_for(lambda: node.states() == {"pacs": "COMMITTED"})
    assert pacs.stored == [objects["report"].SOPInstanceUID] * 3
    assert len({r.TransactionUID for r in pacs.requests}) == 3
    reasons = [row["detail"].get("reason", "") for row in node.audited("delivery.pending")]  # type: ignore[attr-defined]
    assert sum("0x0112" in reason for reason in reasons) == 2


def test_a_pacs_that_never_commits_to_a_result_gets_it_a_few_times_and_then_it_fails(tmp_path: Path) -> None:
    with committing_node(tmp_path, "same", failing=99, max_resends=2) as (node, pacs):
        node.add_result(time.time())
        wait_for(lambda: node.states() == {"pacs": "FAILED"})
    assert len(pacs.stored) == len(pacs.requests) == 3
    assert "does not commit to 1 of 1 objects: 0x0112" in node.deliveries()[0].error


def test_an_unanswered_request_is_repeated_and_the_delivery_stays_sent(tmp_path: Path) -> None:
    quick = {"timeout_s": 0.3, "wait_s": 0.1, "attempts": 3}
    with committing_node(tmp_path, "silent", **quick) as (node, pacs):
        node.add_result(time.time())
        # This PACS answers no query either: in the end nothing says more than its success status did.
        wait_for(lambda: node.audited("delivery.unconfirmed"))
        assert node.states() == {"pacs": "SENT"}
        assert node.deliveries()[0].error.startswith("unconfirmed: ")
    assert len(pacs.requests) == 3
    assert len(pacs.stored) == 1


def test_a_late_answer_to_an_outdated_request_commits_nothing(tmp_path: Path) -> None:
    quick = {"timeout_s": 0.3, "wait_s": 0.1, "attempts": 2}
    with committing_node(tmp_path, "silent", **quick) as (node, pacs):
        node.add_result(time.time())
        wait_for(lambda: len(pacs.requests) == 2)
        pacs.how = "own"
        report = answer_to(pacs.requests[0])
        own = open_own(pacs.report_port)
        status, _ = own.send_n_event_report(report, 1, MODEL, MODEL_INSTANCE)
        own.release()
        assert status.Status == 0x0110
        assert node.states() == {"pacs": "SENT"}


@pytest.mark.parametrize("commitment", ["request", "query"])
def test_a_pacs_without_commitment_is_asked_by_query_and_what_it_lost_is_sent_again(
    tmp_path: Path, commitment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = make_node(tmp_path / "node", destination(pacs.port, commitment=commitment))
        objects = node.add_result(time.time(), ["report", "segmentation"])
        uid = objects["report"].SOPInstanceUID
        lost: list[bool] = []
        settle = Asking.settle_one

        def lose_once(*arguments: object) -> bool:
            if not lost and node.states() == {"pacs": "SENT"}:
                lost.append(True)
                pacs.delete(uid)
            return settle(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Asking, "settle_one", lose_once)
        with sending(node):
            wait_for(lambda: node.states() == {"pacs": "COMMITTED"})
    (row,) = node.audited("delivery.committed")
    assert row["detail"]["how"] == "c-find"  # type: ignore[index]
    assert node.deliveries()[0].attempts >= 2, "it was sent again"


def test_strangers_cannot_reach_the_commitment_port(tmp_path: Path) -> None:
    """127.0.0.2 is this machine too, and no destination's address."""
    with committing_node(tmp_path, "silent") as (node, pacs):
        wait_for(lambda: _reaches(pacs.report_port, "127.0.0.1"))
        stranger = socket.create_connection(("127.0.0.1", pacs.report_port), source_address=("127.0.0.2", 0), timeout=5)
        assert stranger.recv(1) == b""
        stranger.close()
        assert node.states() == {}


def test_an_unknown_ae_title_cannot_bring_answers(tmp_path: Path) -> None:
    with committing_node(tmp_path, "silent") as (node, pacs):
        node.add_result(time.time())
        wait_for(lambda: pacs.requests)
        stranger = open_own(pacs.report_port, "SOMEBODY")
        assert not stranger.is_established
        assert node.states() == {"pacs": "SENT"}
    assert [row["detail"]["reason"] for row in node.audited("commitment.refused")] == ["association-rejected"]  # type: ignore[index]


def test_a_destination_cannot_answer_for_another(tmp_path: Path) -> None:
    """The other one has the same address here, and knows the transaction: only its AE title tells it apart."""
    other = destination(1, "other", ae_title="OTHER", commitment="request", send_results=False)
    with committing_node(tmp_path, "silent", more=[other], wait_s=0.1) as (node, pacs):
        node.add_result(time.time())
        wait_for(lambda: pacs.requests)
        for calling_ae, expected in (("OTHER", 0x0110), ("STORESCP", 0x0000)):
            own = open_own(pacs.report_port, calling_ae)
            status, _ = own.send_n_event_report(answer_to(pacs.requests[0]), 1, MODEL, MODEL_INSTANCE)
            own.release()
            assert status.Status == expected
        assert node.states()["pacs"] == "COMMITTED"


def test_a_pacs_that_answers_under_another_ae_title_than_it_listens_under_can_say_so(tmp_path: Path) -> None:
    answering = destination(1, "other", ae_title="OTHER", answers_as="OTHER_SCU", commitment="request")
    with committing_node(tmp_path, "silent", more=[answering]) as (_node, pacs):
        wait_for(lambda: _reaches(pacs.report_port, "127.0.0.1"))
        assert not open_own(pacs.report_port, "OTHER").is_established
        own = open_own(pacs.report_port, "OTHER_SCU")
        assert own.is_established
        own.release()


def test_where_the_receiver_takes_tls_only_answers_come_with_tls_only(tmp_path: Path) -> None:
    ours = Authority("ours", time.time())
    ca = ours.write(tmp_path / "ca.pem")
    certificate, key = ours.issue(tmp_path, "node")
    receiver = ReceiverSettings(plain=False, tls_certificate=certificate, tls_key=key, tls_authorities=ca)
    shown, shown_key = ours.issue(tmp_path, "pacs")
    tls = tls_context(Address("NODE_SC", "127.0.0.1", 1, True, ca, shown, shown_key))
    nobody = tls_context(Address("NODE_SC", "127.0.0.1", 1, True, ca))
    patient = {"pdu_deadline_s": 20.0, "max_connections_per_address": 16}
    with committing_node(tmp_path / "node", "own", tls=tls, receiver=receiver, **patient) as (node, pacs):
        wait_for(lambda: _reaches(pacs.report_port, "127.0.0.1"))
        # One that says nothing holds up nobody: the handshake is in the association's own thread.
        silent = socket.create_connection(("127.0.0.1", pacs.report_port), timeout=5)
        assert not open_own(pacs.report_port).is_established, "without TLS"
        assert not open_own(pacs.report_port, tls=nobody).is_established, "without a certificate"
        node.add_result(time.time())
        wait_for(lambda: node.states() == {"pacs": "COMMITTED"})
        silent.close()
    (row,) = node.audited("delivery.committed")
    assert row["detail"]["how"] == "storage-commitment"  # type: ignore[index]
    assert "tls" in {row["detail"]["reason"] for row in node.audited("commitment.refused")}  # type: ignore[index]


def test_the_node_commits_to_nothing_itself(tmp_path: Path) -> None:
    """Who asks it for commitment, on the port for answers, is refused: what it keeps may go once it is analysed."""
    information = Dataset()
    information.TransactionUID = generate_uid()
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CTImageStorage, generate_uid()
    information.ReferencedSOPSequence = [item]
    with committing_node(tmp_path, "silent") as (_node, pacs):
        wait_for(lambda: _reaches(pacs.report_port, "127.0.0.1"))
        asking = AE(ae_title="STORESCP").associate("127.0.0.1", pacs.report_port, [build_context(MODEL)], "NODE_SC")
        status, _ = asking.send_n_action(information, 1, MODEL, MODEL_INSTANCE)
        asking.release()
    assert status.Status == 0x0211, "unrecognised operation"


def _reaches(port: int, source: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), source_address=(source, 0), timeout=5).close()
        return True
    except OSError:
        return False
