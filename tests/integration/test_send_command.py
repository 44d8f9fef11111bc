"""`dicom-node send` and `echo`: they read from the settings how the node's own receiver is reached."""

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.receiver.certificates import Authority
from storage import audit
from tests.outbox import ct_series, write_all
from tests.receiving import Node

PACS_SOURCE = {"ae_title": "PACS", "addresses": ["127.0.0.0/8"]}
ELSEWHERE = {"ae_title": "ELSEWHERE", "addresses": ["192.0.2.0/24"]}


def run(monkeypatch: pytest.MonkeyPatch, node: Node, *arguments: str) -> tuple[int, str]:
    """A command with the node's own settings. Returns exit status and output."""
    tls = not node.settings.receiver.plain
    receiver = node.settings.receiver.model_copy(update={"tls_port" if tls else "port": node.port})
    settings = node.settings.model_copy(update={"receiver": receiver})
    monkeypatch.setattr("dicom_node.cli.network.settings_from", lambda _config: settings)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output + str(result.exception or "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_all(ct_series(2), tmp_path / "slices")
    return tmp_path / "slices"


def test_send_uses_an_ae_title_that_a_source_has_and_this_machine_may_use(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Node(tmp_path / "node", sources=[ELSEWHERE, PACS_SOURCE]) as node:
        status, output = run(monkeypatch, node, "send", str(folder))
        assert (status, "2 stored, 0 failed" in output) == (0, True), output
        assert run(monkeypatch, node, "echo")[0] == 0
        assert run(monkeypatch, node, "send", str(folder), "--calling", "SENDER")[0] == 3, "as before, when asked to"
        with node.database.read() as tx:
            assert {row["peer_ae"] for row in audit.search(tx, event="instance.received")} == {"PACS"}


def test_send_says_so_if_no_source_may_store_from_this_machine(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Node(tmp_path / "node", sources=[ELSEWHERE]) as node:
        status, output = run(monkeypatch, node, "send", str(folder))
        assert status != 0
        assert "no source of the settings may store from this machine" in output
        assert run(monkeypatch, node, "send", str(folder), "--calling", "a" * 17)[0] == 2


def test_send_and_echo_use_tls_if_the_receiver_takes_nothing_else(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Authority("ours", time.time()), Authority("theirs", time.time())
    ca = ours.write(tmp_path / "ca.pem")
    certificate, key = ours.issue(tmp_path, "node")
    strange, strange_key = theirs.issue(tmp_path, "strange")
    files = {"tls_certificate": certificate, "tls_key": key, "tls_authorities": ca}
    receiver = {"plain": False, "tls_port": 0, **files}
    with Node(tmp_path / "node", receiver=receiver, sources=[PACS_SOURCE]) as node:
        status, output = run(monkeypatch, node, "send", str(folder))
        assert (status, "2 stored, 0 failed" in output) == (0, True), output
        assert run(monkeypatch, node, "echo")[0] == 0
        assert run(monkeypatch, node, "echo", "--no-tls", "--json")[0] == 3
        own = ["--tls-certificate", str(strange), "--tls-key", str(strange_key)]
        assert run(monkeypatch, node, "send", str(folder), *own)[0] == 3, "a certificate of another authority"


def test_send_to_a_configured_destination_calls_itself_what_the_sender_does(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Node(tmp_path / "node", sources=[{"ae_title": "OUTBOX"}]) as node:
        pacs = {"name": "pacs", "ae_title": "DICOM_NODE", "host": "127.0.0.1", "port": node.port}
        given = {"destinations": [pacs], "sender": {"calling_ae_title": "OUTBOX"}}
        node.settings = type(node.settings)(**{**node.settings.model_dump(), **given})
        assert run(monkeypatch, node, "send", str(folder), "--to", "pacs")[0] == 0
        assert run(monkeypatch, node, "echo", "pacs")[0] == 0
        assert run(monkeypatch, node, "send", str(folder), "--to", "nobody")[0] != 0
        assert run(monkeypatch, node, "send", str(folder), "--to", "pacs", "--port", "1")[0] == 2
