"""Messages to destinations that are no DICOM peers leave through the outbox, once composed and always the same."""

import time
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select

from config.gateways.stow import StowDestination
from config.settings import ModelSettings, StorageSettings
from dicom_node.delivery.sender import DestinationSender
from dicom_node.gateways import kinds
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.verdict import AttemptOutcome, Verdict
from storage import deliveries, pauses, results
from storage.messages import Message, Messages
from storage.models import deliveries as delivery_table
from storage.models import messages as message_table
from storage.pauses import Pausable
from tests.outbox import make_node

NOW = 1_700_000_000.0


@dataclass
class Peer:
    """A gateway without a network: what it composed, what it sent, and its verdicts, the last one for ever."""

    verdicts: list[AttemptOutcome] = field(default_factory=lambda: [AttemptOutcome.DELIVERED])
    composed: int = 0
    sent: list[Message] = field(default_factory=list)
    error: Exception | None = None

    def compose(self, result):
        if self.error is not None:
            raise self.error
        self.composed += 1
        text = f"{result.patient.name.text} {result.study.study_uid} {self.composed}"
        return Message(text.encode(), "text/plain", f"key-{result.result_id}")

    def send(self, message):
        self.sent.append(message)
        outcome = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        return Verdict(outcome, f"it was {outcome.lower()}")


@pytest.fixture
def peer(monkeypatch):
    """The gateway of every destination of the kind that the tests use."""
    peer = Peer()
    monkeypatch.setattr(kinds, "OBJECTS", {})
    monkeypatch.setattr("dicom_node.delivery.ways.OBJECTS", {})
    monkeypatch.setattr(kinds, "MESSAGES", {"stow": lambda destination, settings: peer})
    return peer


def told(url="http://127.0.0.1:9/x", **more):
    return StowDestination(kind="stow", name="ris", url=url, **more)


def node_with_a_result(folder, **sections):
    node = make_node(folder, told(), **sections)
    node.add_result(NOW)
    return node


def sender_of(node):
    return DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)


def work(node, sender, times=1, now=NOW):
    for number in range(times):
        sender.work_once(now + 100 * number)


def kept(node):
    with node.database.read() as tx:
        return tx.execute(select(message_table)).all()


def test_a_message_is_composed_once_and_every_attempt_sends_the_same_bytes(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    peer.verdicts = [AttemptOutcome.UNANSWERED, AttemptOutcome.TRANSIENT, AttemptOutcome.DELIVERED]
    for number in range(3):
        work(node, sender_of(node), now=NOW + 100 * number)  # a new process each time
    assert node.states() == {"ris": "SENT"}
    assert peer.composed == 1 and len(peer.sent) == 3 and len(set(peer.sent)) == 1
    assert peer.sent[0].content.startswith(b"Test^Outbox ")
    (row,) = kept(node)
    assert (row.content, row.key, row.sha256) == (peer.sent[0].content, "key-1", peer.sent[0].sha256)


def test_it_is_kept_before_it_is_first_sent(tmp_path, peer, monkeypatch):
    node = node_with_a_result(tmp_path)
    seen = []
    monkeypatch.setattr(peer, "send", lambda message: seen.append(kept(node)) or Verdict(AttemptOutcome.DELIVERED, ""))
    work(node, sender_of(node))
    assert [rows[0].key for rows in seen] == ["key-1"]


def test_a_person_sends_the_same_bytes_again(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    work(node, sender_of(node))
    with node.database.transaction() as tx:
        deliveries.resend(tx, 1, ["ris"], NOW + 50)
    work(node, sender_of(node), now=NOW + 100)
    assert node.states() == {"ris": "SENT"}
    assert peer.composed == 1 and peer.sent[0] == peer.sent[1]


def test_final_refusals_are_counted_and_end(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    peer.verdicts = [AttemptOutcome.REFUSED]
    work(node, sender_of(node), times=5)
    assert node.states() == {"ris": "FAILED"} and len(peer.sent) == 3
    assert node.deliveries()[0].error == "it was refused"


def test_what_a_later_result_replaces_is_not_told_any_more(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    peer.verdicts = [AttemptOutcome.TRANSIENT]
    work(node, sender_of(node))
    with node.database.transaction() as tx:
        deliveries.supersede_unsent(tx, 1, NOW + 50, "a later report of the series replaces it")
    work(node, sender_of(node), now=NOW + 100)
    assert node.states() == {"ris": "SUPERSEDED"} and len(peer.sent) == 1


def test_a_result_that_is_replaced_while_it_is_told_is_not_told_again(tmp_path, peer):
    node = node_with_a_result(tmp_path)

    def replaced(message):
        peer.sent.append(message)
        with node.database.transaction() as tx:
            results.supersede(tx, 1, NOW + 1)
        return Verdict(AttemptOutcome.UNANSWERED, "no answer")

    peer.send = replaced
    work(node, sender_of(node), times=2)
    assert node.states() == {"ris": "SUPERSEDED"} and len(peer.sent) == 1


def test_a_result_that_is_replaced_before_its_message_goes_is_not_told(tmp_path, peer, monkeypatch):
    node = node_with_a_result(tmp_path)
    compose = peer.compose

    def slowly(result):
        with node.database.transaction() as tx:
            results.supersede(tx, 1, NOW + 1)
        return compose(result)

    monkeypatch.setattr(peer, "compose", slowly)
    work(node, sender_of(node), times=2)
    assert node.states() == {"ris": "SUPERSEDED"} and not peer.sent


def test_a_result_that_no_message_can_be_made_of_is_refused_with_the_reason(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    peer.error = CannotCompose("it has no patient")
    work(node, sender_of(node))
    assert node.deliveries()[0].error == "no message can be made of the result: it has no patient"
    assert not kept(node) and not peer.sent


def test_a_peer_that_is_away_is_left_alone_whatever_else_waits_for_it(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    node.add_result(NOW + 1)
    peer.verdicts = [AttemptOutcome.UNANSWERED]
    sender = sender_of(node)
    assert sender.work_once(NOW + 2)
    assert not sender.work_once(NOW + 2.001)
    assert len(peer.sent) == 1


def test_a_paused_destination_is_told_nothing(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    with node.database.transaction() as tx:
        pauses.pause(tx, Pausable.DESTINATION, "ris", "anna", NOW)
    work(node, sender_of(node))
    assert node.states() == {"ris": "PENDING"} and not peer.sent


def test_a_demonstration_models_result_does_not_leave_this_machine(tmp_path, peer, monkeypatch):
    node = make_node(tmp_path, told("https://pacs.example/x"), model=ModelSettings())
    node.add_result(NOW)
    monkeypatch.setattr("dicom_node.delivery.sender.is_demonstration", lambda *_: True)
    work(node, sender_of(node))
    assert node.states() == {"ris": "FAILED"} and peer.composed == 0 and not peer.sent


def test_a_sender_that_lost_the_delivery_while_it_composed_keeps_and_sends_nothing(tmp_path, peer, monkeypatch):
    node = node_with_a_result(tmp_path)
    compose = peer.compose

    def slowly(result):
        with node.database.transaction() as tx:
            tx.execute(delivery_table.update().values(fence=delivery_table.c.fence + 1))
        return compose(result)

    monkeypatch.setattr(peer, "compose", slowly)
    work(node, sender_of(node))
    assert not kept(node) and not peer.sent
    assert node.states() == {"ris": "SENDING"}


def test_a_destination_of_another_kind_gets_another_message(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    with node.database.transaction() as tx:
        Messages("").keep(tx, 1, "formerly", Message(b"of another kind", "x/y", "k"), NOW)
    work(node, sender_of(node))
    assert peer.composed == 1 and [row.kind for row in kept(node)] == ["stow"]


def test_a_message_that_was_altered_in_the_index_is_not_sent(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    peer.verdicts = [AttemptOutcome.UNANSWERED]
    work(node, sender_of(node))
    with node.database.transaction() as tx:
        tx.execute(message_table.update().values(content=b"something else"))
    work(node, sender_of(node), now=NOW + 100)
    assert len(peer.sent) == 1
    assert "is not what was composed" in node.deliveries()[0].error


def test_with_a_pseudonym_key_the_index_holds_no_message_that_can_be_read(tmp_path, peer):
    node = node_with_a_result(tmp_path, storage=StorageSettings(pseudonym_key="0123456789abcdef"))
    peer.verdicts = [AttemptOutcome.UNANSWERED, AttemptOutcome.DELIVERED]
    work(node, sender_of(node))
    (row,) = kept(node)
    assert b"Outbox" not in row.content and b"Outbox" in peer.sent[0].content
    work(node, sender_of(node), now=NOW + 100)
    assert peer.sent[0] == peer.sent[1] and node.states() == {"ris": "SENT"}


def test_without_the_key_an_encrypted_message_is_not_sent(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    with node.database.transaction() as tx:
        Messages("0123456789abcdef").keep(tx, 1, "stow", Message(b"x", "x/y", "k"), NOW)
    work(node, sender_of(node))
    assert not peer.sent and "there is no pseudonym key" in node.deliveries()[0].error


def test_a_wait_for_a_confirmation_ends_when_the_destination_is_no_pacs_any_more(tmp_path, peer):
    node = node_with_a_result(tmp_path)
    with node.database.transaction() as tx:
        (claimed,) = deliveries.claim(tx, "ris", NOW, 30)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, NOW, {}, None, commitment_at=NOW)
    sender = sender_of(node)
    assert sender.work_once(NOW + 1)
    assert not sender.work_once(NOW + 2)
    assert node.deliveries()[0].unconfirmed_at is not None
    assert time.time() > NOW
