"""Every exchange that repeats gets slower and comes to an end: messages are counted over simulated days.

The PACS is a real SCP on loopback and its messages are real; only the clock is ours. No test here waits.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from sqlalchemy import func, select
from typer.testing import CliRunner

from config.settings import SenderSettings
from dicom_node.cli.app import app
from dicom_node.delivery.sender import DestinationSender
from storage import deliveries
from storage.models import deliveries as delivery_table
from storage.status import status
from tests.attacker import DATA, command_element, pdu, pdv
from tests.odd_peers import OddPeer, acceptance, maximum_length
from tests.outbox import Node, destination, make_node
from tests.programs import free_port

BEGIN, HOUR, DAY = 2e9, 3600.0, 86400.0
# As delivered, but for the network's own times.
DEFAULTS = SenderSettings()
REAL = {
    "first_retry_s": DEFAULTS.first_retry_s,
    "longest_retry_s": DEFAULTS.longest_retry_s,
    "response_timeout_s": 2.0,
    "commitment": {"wait_s": 0.0, "resend_s": DEFAULTS.commitment.resend_s},
}


class ForgetfulPacs:
    """Takes everything and has none of it when it is asked.

    how: "renames" (each object is there under another UID), "missing" (there is nothing), "no-answer" (queries fail),
    "fails-requests" (storage commitment requests are refused), "silent" (requests are taken and never answered).
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self.messages: Counter[str] = Counter()
        self.when_asked: Callable[[], None] | None = None
        self.held: list[tuple[str, str]] = []
        entity = AE(ae_title="STORESCP")
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax))
        entity.add_supported_context(StorageCommitmentPushModel)
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_N_ACTION, self._action), (evt.EVT_C_FIND, self._find)]
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "ForgetfulPacs":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _store(self, event: evt.Event) -> int:
        self.messages["store"] += 1
        self.held.append((str(event.dataset.SeriesInstanceUID), generate_uid()))
        return 0

    def _action(self, _event: evt.Event) -> tuple[int, None]:
        self.messages["request"] += 1
        return (0x0110 if self.how == "fails-requests" else 0), None

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        self.messages["query"] += 1
        act, self.when_asked = self.when_asked, None
        if act is not None:
            act()
        if self.how == "no-answer":
            yield 0xA700, None
        for series_uid, uid in self.held if self.how == "renames" else ():
            answer = Dataset()
            answer.QueryRetrieveLevel = "IMAGE"
            answer.SeriesInstanceUID, answer.SOPInstanceUID = series_uid, uid
            yield 0xFF00, answer


def live(node: Node, until: float, most: int = 500, restart_every: int = 0) -> float:
    """Let the sender do what is due until then, each time as late as it may. Returns when it did the last.

    restart_every: a new process after so many steps: it remembers nothing but the index.
    """
    sender, now, last = _sender(node), BEGIN, BEGIN
    for step in range(most):
        if restart_every and step % restart_every == restart_every - 1:
            sender = _sender(node)
        with node.database.read() as tx:
            due = tx.scalar(select(func.min(delivery_table.c.due_at)))
        if due is None or due > until:
            return last
        now = max(now + 0.01, due)
        if not sender.work_once(now):
            now += 60.0  # the destination is left alone for a while
            continue
        last = now
    raise AssertionError(f"still busy after {most} steps")


def _sender(node: Node) -> DestinationSender:
    return DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)


@contextmanager
def forgetting(folder: Path, how: str, commitment: str) -> Iterator[tuple[Node, ForgetfulPacs]]:
    with ForgetfulPacs(how) as pacs:
        node = make_node(folder, destination(pacs.port, commitment=commitment), sender=REAL)
        node.add_result(BEGIN, ["report", "segmentation"])
        yield node, pacs


@pytest.mark.parametrize("restart_every", [0, 1])
@pytest.mark.parametrize("how", ["renames", "missing"])
def test_objects_that_are_never_there_are_sent_a_few_times_and_then_fail(
    tmp_path: Path, how: str, restart_every: int
) -> None:
    with forgetting(tmp_path, how, "query") as (node, pacs):
        last = live(node, BEGIN + 5 * DAY, restart_every=restart_every)
        assert pacs.messages["store"] == 2 * (1 + DEFAULTS.commitment.max_resends)
        assert pacs.messages["query"] == 2 * (1 + DEFAULTS.commitment.max_resends)  # one for each object's series
    assert node.states() == {"pacs": "FAILED"}
    assert BEGIN + 7 * 60 <= last <= BEGIN + HOUR
    (row,) = node.audited("delivery.failed")
    assert "not kept although it was sent 5 times" in row["detail"]["reason"]  # type: ignore[index]
    with node.database.read() as tx:
        (failed,) = status(tx, last)["failed_deliveries"]
    assert "2 of 2 objects are not there, says C-FIND" in failed["error"]


@pytest.mark.parametrize(
    ("how", "requests", "queries"),
    [("no-answer", 3, 21), ("silent", 3, 0), ("fails-requests", 0, 0)],
)
def test_a_question_without_an_answer_is_asked_ever_more_rarely_and_then_no_more(
    tmp_path: Path, how: str, requests: int, queries: int
) -> None:
    with forgetting(tmp_path, how, "request") as (node, pacs):
        live(node, BEGIN + DAY / 4)
        early = pacs.messages.copy()
        last = live(node, BEGIN + 5 * DAY)
        if how == "no-answer":
            assert pacs.messages["request"] == requests
            assert pacs.messages["query"] == queries
            assert early["query"] < queries, "not all at once"
            assert node.states() == {"pacs": "SENT"}
            (row,) = node.audited("delivery.unconfirmed")
            assert row["outcome"] == "UNCONFIRMED"
            with node.database.read() as tx:
                counts = status(tx, last)
            assert counts["unconfirmed"] == 1
            assert "24 questions" in counts["unconfirmed_deliveries"][0]["error"]
            said = CliRunner(env={"DICOM_NODE_DATA_DIR": str(tmp_path)}).invoke(app, ["status"]).output
            assert "1 delivery sent but never confirmed" in said
            assert "ask again: dicom-node retry --delivery 1" in said
        else:
            # Here the queries say that nothing is there: it is sent again, and each time asked about anew.
            assert node.states() == {"pacs": "FAILED"}
            assert pacs.messages["store"] == 2 * (1 + DEFAULTS.commitment.max_resends)
            assert pacs.messages["request"] <= DEFAULTS.commitment.attempts * (1 + DEFAULTS.commitment.max_resends)
            assert sum(pacs.messages.values()) < 60
        before = pacs.messages.copy()
        assert live(node, BEGIN + 30 * DAY) == BEGIN, "nothing is left to do"
        assert pacs.messages == before


@pytest.mark.parametrize("how", ["missing", "no-answer"])
def test_an_answer_about_what_an_operator_sends_again_in_the_meantime_changes_nothing(tmp_path: Path, how: str) -> None:
    with forgetting(tmp_path, how, "query") as (node, pacs):
        sender = _sender(node)
        assert sender.work_once(BEGIN)
        (row,) = node.deliveries()

        def resend() -> None:
            with node.database.transaction() as tx:
                deliveries.resend(tx, row.result_id, ["pacs"], BEGIN + 61)  # type: ignore[attr-defined]

        pacs.when_asked = resend
        assert sender.work_once(BEGIN + 60)  # however long the first took
        (row,) = node.deliveries()
    assert (row.state, row.resends, row.due_at) == ("PENDING", 0, BEGIN + 61)  # type: ignore[attr-defined]


def test_a_pacs_that_is_away_when_it_is_asked_is_asked_no_more_after_some_days(tmp_path: Path) -> None:
    with ForgetfulPacs("missing") as pacs:
        port = pacs.port
        node = make_node(tmp_path, destination(port, commitment="query"), sender={**REAL, "connect_timeout_s": 0.5})
        node.add_result(BEGIN)
        assert _sender(node).work_once(BEGIN)
    assert node.states() == {"pacs": "SENT"}
    last = live(node, BEGIN + 5 * DAY)
    assert BEGIN + DAY / 2 < last < BEGIN + 2 * DAY
    assert len(node.audited("delivery.commitment-not-answered")) == DEFAULTS.commitment.max_questions
    assert node.deliveries()[0].unconfirmed_at is not None


def test_a_pacs_that_is_away_is_tried_as_long_as_it_takes_but_seldom_however_much_waits(tmp_path: Path) -> None:
    node = make_node(tmp_path, destination(free_port()), sender={**REAL, "connect_timeout_s": 0.5})
    for _ in range(10):
        node.add_result(BEGIN)
    live(node, BEGIN + HOUR / 6)
    attempts = sum(row.attempts for row in node.deliveries())  # type: ignore[attr-defined]
    assert attempts <= 28, "one for all that wait, every half minute at most, and not six for each of the ten"
    assert node.states() == {"pacs": "PENDING"}
    live(node, BEGIN + 2 * HOUR)
    before = sum(row.attempts for row in node.deliveries())  # type: ignore[attr-defined]
    live(node, BEGIN + 3 * HOUR)
    assert before < sum(row.attempts for row in node.deliveries()) <= before + 30  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: acceptance(request, b""), "without a maximum PDU length"),
        (lambda request: acceptance(request, maximum_length(7)), "PDUs of 7 bytes at most"),
        (lambda _request: b"\x09\x00\x00\x00\x00\x04abcd", "aborted or not answered"),
        (lambda _request: bytes(range(200)), "aborted or not answered"),
    ],
)
def test_a_peer_that_answers_as_no_toolkit_would_costs_one_attempt_and_its_backoff(
    tmp_path: Path, answer: object, why: str
) -> None:
    with OddPeer(answer) as peer:  # type: ignore[arg-type]
        node = make_node(tmp_path, destination(peer.port), sender=REAL)
        node.add_result(BEGIN)
        _sender(node).work_once(BEGIN)
        assert (peer.requests, peer.received) == (1, 0), "nothing is sent to it"
    (row,) = node.deliveries()
    assert (row.state, row.attempts) == ("PENDING", 1)  # type: ignore[attr-defined]
    assert BEGIN + 5 <= row.due_at <= BEGIN + 30  # type: ignore[attr-defined]
    assert why in row.error  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "later",
    [
        b"\x09\x00\x00\x00\x00\x04abcd",  # a PDU of no type
        pdu(DATA, pdv(b"\xff" * 14, 3)),  # a command set that is none
        pdu(DATA, b"\xff\xff\xff\xff\x01\x03" + b"\xff" * 14),  # a length that lies
        pdu(DATA, pdv(command_element(0x0100, b"\x30\x80"), 3)),  # the answer to another question
    ],
)
def test_garbage_instead_of_an_answer_costs_one_attempt_and_its_backoff(tmp_path: Path, later: bytes) -> None:
    with OddPeer(acceptance, later) as peer:
        node = make_node(tmp_path, destination(peer.port), sender=REAL)
        node.add_result(BEGIN)
        _sender(node).work_once(BEGIN)
    (row,) = node.deliveries()
    assert (row.state, row.attempts) == ("PENDING", 1)  # type: ignore[attr-defined]
    assert row.due_at >= BEGIN + 5  # type: ignore[attr-defined]
    assert row.error  # type: ignore[attr-defined]


def test_an_error_of_our_own_costs_one_attempt_and_its_backoff_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> list[object]:
        raise ZeroDivisionError("Patient^Name")

    monkeypatch.setattr("dicom_node.delivery.ways.store", broken)
    node = make_node(tmp_path, destination(1), sender=REAL)
    node.add_result(BEGIN)
    _sender(node).work_once(BEGIN)
    (row,) = node.deliveries()
    assert (row.state, row.attempts) == ("PENDING", 1)  # type: ignore[attr-defined]
    assert row.error == "could not be sent (ZeroDivisionError)"  # type: ignore[attr-defined]
    assert row.due_at >= BEGIN + 5  # type: ignore[attr-defined]


def test_what_is_hurried_goes_at_once_although_its_next_attempt_was_hours_away(tmp_path: Path) -> None:
    port = free_port()
    node = make_node(tmp_path, destination(port), sender={**REAL, "connect_timeout_s": 0.5})
    node.add_result(BEGIN)
    live(node, BEGIN + DAY / 2)
    (row,) = node.deliveries()
    now = BEGIN + DAY / 2
    assert row.due_at > now  # type: ignore[attr-defined]
    with node.database.transaction() as tx:
        deliveries.hurry(tx, row.id, now)  # type: ignore[attr-defined]
    assert _sender(node).work_once(now)
    assert node.deliveries()[0].attempts == 1  # type: ignore[attr-defined]
