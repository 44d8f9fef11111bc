"""A person pauses a source or a destination: nothing is lost, nothing goes on by itself, and both outlive a restart."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom import AE

from dicom_node.delivery.sender import DestinationSender
from dicom_node.demo.pacs import Pacs
from dicom_node.errors import NodeError
from dicom_node.runtime.pausing import set_paused
from dicom_node.web.health import examine
from storage import pauses
from storage.database import Database
from storage.errors import IllegalMove
from storage.pauses import Pausable
from storage.status import lateness
from tests.outbox import destination, make_node, sending
from tests.postgresql import postgresql_server
from tests.programs import free_port, wait_for
from tests.receiving import Node, ct_slice, store

CT_IMAGE, VERIFICATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1"
SOURCE = {"ae_title": "SENDER", "addresses": ("127.0.0.1",)}


def change(database: Database, settings, peer, *, paused: bool) -> None:
    with database.transaction() as tx:
        set_paused(tx, settings, peer, "ada", time.time(), paused=paused)


def test_what_waits_for_a_paused_destination_stays_and_goes_on_when_it_is_resumed(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs, Pacs(tmp_path / "other") as other:
        node = make_node(tmp_path / "node", destination(pacs.port), destination(other.port, "other"))
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
        node.add_result(time.time())
        with sending(node):
            wait_for(lambda: node.states()["other"] == "SENT")
            time.sleep(0.2)
            assert (node.states()["pacs"], pacs.received()) == ("PENDING", [])
        sender = DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)
        assert sender.work_once(time.time()) is False  # another process, later
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=False)
        with sending(node):
            wait_for(lambda: node.states()["pacs"] == "SENT")
    assert [(row["event"], row["detail"]["user"]) for row in node.audited("destination")] == [
        ("destination.paused", "ada"),
        ("destination.resumed", "ada"),
    ]


def test_resuming_a_destination_that_did_not_answer_sends_at_once(tmp_path: Path) -> None:
    port, impatient_no_more = free_port(), {"first_retry_s": 3000.0, "longest_retry_s": 3000.0}
    node, now = make_node(tmp_path / "node", destination(port), sender=impatient_no_more), time.time()
    node.add_result(now)
    sender = DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)
    assert sender.work_once(now)
    assert not sender.work_once(now + 1)  # it does not answer, and is left alone for a minute
    change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
    assert not sender.work_once(now + 2)
    with Pacs(tmp_path / "pacs", port=port):
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=False)
        assert sender.work_once(now + 3)
    assert node.states() == {"pacs": "SENT"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql_server() as url:
        yield url


@pytest.mark.parametrize("index", ["sqlite", "postgresql"])
def test_a_pause_outlives_restarts_and_ends_without_one(
    tmp_path: Path, index: str, request: pytest.FixtureRequest
) -> None:
    storage = {"low_disk_mb": 1} | (
        {"database_url": request.getfixturevalue("server")} if index == "postgresql" else {}
    )
    given = {"sources": (SOURCE,), "storage": storage, "destinations": (destination(1),)}
    with Node(tmp_path, **given) as node:
        change(node.database, node.settings, (Pausable.SOURCE, "SENDER"), paused=True)
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
    with Node(tmp_path, **given) as node:
        assert not _accepts(node, "SENDER")  # from the first association on
        with node.database.read() as tx:
            assert pauses.is_paused(tx, Pausable.DESTINATION, "pacs")
        change(node.database, node.settings, (Pausable.SOURCE, "SENDER"), paused=False)
        wait_for(lambda: _accepts(node, "SENDER"), 10, "the source is accepted again")
    with Node(tmp_path, **given) as node:
        assert _accepts(node, "SENDER")


def test_a_paused_source_is_refused_as_transient_and_others_are_not(tmp_path: Path) -> None:
    sources = (SOURCE, {"ae_title": "STORESCU", "addresses": ("127.0.0.1",)})
    with Node(tmp_path, sources=sources) as node:
        change(node.database, node.settings, (Pausable.SOURCE, "SENDER"), paused=True)
        wait_for(lambda: not _accepts(node, "SENDER"), 10, "the source is refused")
        assert _rejection(node, "SENDER") == (2, 3, 1)  # transient: it may come again
        assert _accepts(node, "STORESCU")
        change(node.database, node.settings, (Pausable.SOURCE, "SENDER"), paused=False)
        wait_for(lambda: _accepts(node, "SENDER"), 10, "the source is accepted again")
        assert [status for status, _ in store(node, ct_slice())] == [0]


def _accepts(node: Node, calling_ae: str) -> bool:
    return _rejection(node, calling_ae) is None


def _rejection(node: Node, calling_ae: str, sop_class: str = CT_IMAGE) -> tuple[int, int, int] | None:
    ae = AE(calling_ae)
    ae.add_requested_context(sop_class)
    for _ in range(20):
        association = ae.associate("127.0.0.1", node.port, ae_title="DICOM_NODE")
        try:
            if association.is_established:
                return None
            answer = association.acceptor.primitive
            if answer is not None:  # pynetdicom takes a fast rejection for an abort now and then
                return answer.result, answer.result_source, answer.diagnostic
        finally:
            association.abort()
    raise AssertionError("no answer to an association request")


def test_a_paused_source_may_still_ask_whether_the_node_is_there(tmp_path: Path) -> None:
    with Node(tmp_path, sources=(SOURCE,)) as node:
        change(node.database, node.settings, (Pausable.SOURCE, "SENDER"), paused=True)
        wait_for(lambda: not _accepts(node, "SENDER"), 10, "the source is refused")
        assert _rejection(node, "SENDER", VERIFICATION) is None


def test_what_waits_for_a_paused_destination_is_not_late_nor_when_it_is_resumed(tmp_path: Path) -> None:
    node = make_node(tmp_path, destination(1))
    then, now = time.time() - 90_000, time.time()
    node.add_result(then)

    def problems() -> list[str]:
        return [one.what for one in examine(node.settings, node.database, node.files, time.time()).problems]

    assert any("Results wait to be sent and are not tried" in what for what in problems())
    change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
    with node.database.read() as tx:
        assert lateness(tx, now)["sending"] is None
    [said] = [what for what in problems() if "pacs" in what or "sent" in what]
    assert said.startswith("The destination pacs has been paused by ada for ")
    change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=False)
    with node.database.read() as tx:
        assert (lateness(tx, now)["sending"] or 0) <= 0


def test_nothing_is_paused_that_the_settings_do_not_name_and_nothing_twice(tmp_path: Path) -> None:
    node = make_node(tmp_path, destination(1))
    with pytest.raises(NodeError, match="there are: pacs"):
        change(node.database, node.settings, (Pausable.DESTINATION, "elsewhere"), paused=True)
    with pytest.raises(IllegalMove, match="not paused"):
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=False)
    change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
    with pytest.raises(IllegalMove, match="paused already"):
        change(node.database, node.settings, (Pausable.DESTINATION, "pacs"), paused=True)
    with node.database.read() as tx:
        assert [(one.kind, one.name, one.paused_by) for one in pauses.all_of(tx)] == [("destination", "pacs", "ada")]


def test_the_command_line_pauses_and_status_says_so(tmp_path: Path) -> None:
    node = make_node(tmp_path, destination(1))
    config = tmp_path / "node.toml"
    config.write_text(
        f'data_dir = "{tmp_path}"\n[[destinations]]\nname = "pacs"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 1\n'
    )

    def command(*arguments: str) -> str:
        whole = [sys.executable, "-m", "dicom_node", *arguments, "--config", str(config)]
        return subprocess.run(whole, capture_output=True, text=True, timeout=60, check=True).stdout

    assert "its results wait" in command("pause", "--destination", "pacs")
    assert "PAUSED      destination pacs, by " in command("status")
    assert json.loads(command("resume", "--destination", "pacs", "--json"))["paused"] is False
    assert len(node.audited("destination")) == 2
