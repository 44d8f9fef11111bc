"""One message to a real MLLP server process, and every answer it may give."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicom_node.gateways.hl7.mllp import exchange
from dicom_node.gateways.verdict import AttemptOutcome
from dicom_node.receiver.certificates import Authority
from tests.mllp_server import Engine, mllp_server

MESSAGE = b"MSH|^~\\&|NODE|SITE|RIS|SITE|20260101||ORU^R01^ORU_R01|KEY1|P|2.5.1\rPID|||7\r"


@dataclass(frozen=True)
class Listener:
    port: int
    host: str = "127.0.0.1"
    connect_timeout_s: float = 0.5
    response_timeout_s: float = 1.0
    tls: bool = False
    tls_authorities: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_check_host: bool = True


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with mllp_server(tmp_path_factory.mktemp("engine")) as running:
        yield running


@pytest.mark.parametrize(
    ("behaviour", "outcome", "said"),
    [
        ("AA", AttemptOutcome.DELIVERED, ""),
        ("CA", AttemptOutcome.DELIVERED, ""),
        ("AE", AttemptOutcome.REFUSED, "AE (MSA-1), error 207 (ERR-3)"),
        ("AR", AttemptOutcome.REFUSED, "AR (MSA-1), error 207 (ERR-3)"),
        ("CE", AttemptOutcome.REFUSED, "CE (MSA-1), error 207 (ERR-3)"),
        ("CR", AttemptOutcome.REFUSED, "CR (MSA-1), error 207 (ERR-3)"),
        ("ZZ", AttemptOutcome.TRANSIENT, "an acknowledgement with an unknown code (MSA-1)"),
        ("another", AttemptOutcome.TRANSIENT, "an acknowledgement of another message (MSA-2)"),
        ("late", AttemptOutcome.DELIVERED, ""),
        ("garbage", AttemptOutcome.TRANSIENT, "an answer that is not an HL7 acknowledgement"),
        ("no-msa", AttemptOutcome.TRANSIENT, "an answer that is not an HL7 acknowledgement"),
        ("truncated", AttemptOutcome.TRANSIENT, "an answer without an end"),
        ("huge", AttemptOutcome.TRANSIENT, "an answer of more than 256 KiB"),
        ("slow", AttemptOutcome.TRANSIENT, "an answer without an end"),
        ("silent", AttemptOutcome.UNANSWERED, "no answer in time"),
        ("hang-up", AttemptOutcome.UNANSWERED, "the connection was closed without an acknowledgement"),
    ],
)
def test_each_answer_has_its_verdict_and_none_quotes_the_peer(
    engine: Engine, behaviour: str, outcome: AttemptOutcome, said: str
) -> None:
    before = len(engine.messages)
    engine.behave(behaviour)
    verdict = exchange(Listener(engine.port), MESSAGE, "KEY1")
    assert (verdict.outcome, verdict.text) == (outcome, said)
    assert engine.messages[before:] == [MESSAGE]


def test_nobody_there_is_unanswered() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        verdict = exchange(Listener(unused.getsockname()[1]), MESSAGE, "KEY1")
    assert (verdict.outcome, verdict.text) == (AttemptOutcome.UNANSWERED, "no connection: nothing listens at its port")


def test_a_peer_that_does_not_read_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        verdict = exchange(Listener(deaf.getsockname()[1]), MESSAGE * 200_000, "KEY1")
    assert (verdict.outcome, verdict.text) == (AttemptOutcome.UNANSWERED, "no answer in time")


def test_a_file_of_tls_that_is_not_there_is_no_fault_of_the_peer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as engine:
        gone = Listener(engine.getsockname()[1], tls=True, tls_authorities=tmp_path / "gone.pem")
        verdict = exchange(gone, MESSAGE, "KEY1")
    assert verdict.text == "TLS: a file that the settings name is not there"


def test_tls_shows_our_certificate_and_checks_theirs(tmp_path: Path) -> None:
    ours, theirs = Authority("ours", time.time()), Authority("theirs", time.time())
    ca, other = ours.write(tmp_path / "ca.pem"), theirs.write(tmp_path / "other.pem")
    certificate, key = ours.issue(tmp_path, "engine")
    own, own_key = ours.issue(tmp_path, "node")
    with mllp_server(tmp_path, "AA", certificate, key, ca) as engine:
        mutual = {"tls": True, "tls_authorities": ca, "tls_certificate": own, "tls_key": own_key}
        assert exchange(Listener(engine.port, **mutual), MESSAGE, "KEY1").outcome == AttemptOutcome.DELIVERED
        for wrong in (
            {"tls": False},
            {**mutual, "tls_authorities": other},
            {**mutual, "tls_certificate": None, "tls_key": None},
            {**mutual, "host": "localhost"},
            {**mutual, "tls_certificate": tmp_path / "gone.pem"},
        ):
            verdict = exchange(Listener(engine.port, **wrong), MESSAGE, "KEY1")
            assert verdict.outcome == AttemptOutcome.UNANSWERED, wrong
            assert verdict.text, wrong
        assert engine.messages == [MESSAGE]
