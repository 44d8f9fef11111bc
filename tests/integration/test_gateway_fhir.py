"""Results on their way to a FHIR server that keeps the standard's rules: told once, whatever goes wrong in between."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from joserfc.jwk import ECKey, RSAKey
from typer.testing import CliRunner

from config.gateways.fhir import FhirDestination
from dicom_node.cli.app import app
from dicom_node.delivery.sender import DestinationSender
from dicom_node.gateways.fhir.gateway import FhirGateway
from dicom_node.gateways.verdict import AttemptOutcome
from dicom_node.logs import _without_words
from storage import identity
from tests.fhir_server import FhirServer, fhir_server
from tests.programs import free_port
from tests.storage_factory import Store
from tests.told import ToldSeries, node_of

SYSTEM = "urn:oid:1.2.276.0.76.3.1"
IDENTIFYING = re.compile(r"4711|Müller|Jörg|AC 7|HOSP|1960")
REPORT = "DiagnosticReport"
PAGES = Path(__file__).parents[2] / "docs" / "gateways"


@pytest.fixture
def server():
    with fhir_server() as found:
        found.add_patient(SYSTEM, "4711")
        yield found


@pytest.fixture
def series(tmp_path):
    with Store(tmp_path / "store") as store:
        yield ToldSeries(store, tmp_path / "series")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A result and one that replaces it."""
    folder = tmp_path_factory.mktemp("told")
    with Store(folder / "store") as store:
        made = ToldSeries(store, folder / "series")
        yield [made.analysed(), made.analysed(0.2)]


def told(url: str, **more) -> FhirDestination:
    values = {"kind": "fhir", "name": "fhir", "url": url, "patient_systems": {"HOSP": SYSTEM}}
    return FhirDestination(**(values | more))


def gateway(server: FhirServer, **more) -> FhirGateway:
    destination = told(server.url, **more)
    return FhirGateway(destination, node_settings(destination).sender)


def node_settings(destination):
    class Somewhere:
        folder, database, files = Path("."), None, None

    return node_of(Somewhere(), destination).settings


def sender_of(node):
    return DestinationSender(node.settings, node.settings.destinations[0], node.database, node.files)


def certainty(server: FhirServer) -> list[float]:
    """What the server holds as certain, of what still stands."""
    held = [one for one in server.all("Observation") if one["code"]["coding"][0]["code"] == "111012"]
    return [one["valueQuantity"]["value"] for one in held if one["status"] != "entered-in-error"]


def test_a_result_arrives_with_its_number(server, series):
    series.analysed()
    node = node_of(series.store, told(server.url))
    assert sender_of(node).work_once(time.time())
    assert node.states() == {"fhir": "SENT"}
    assert certainty(server) == [91] and len(server.all(REPORT)) == 1


def test_a_later_result_takes_the_place_of_the_one_that_is_there(server, series):
    node = node_of(series.store, told(server.url))
    series.analysed()
    sender_of(node).work_once(time.time())
    series.analysed(0.2)
    sender_of(node).work_once(time.time())
    assert certainty(server) == [20]
    assert [one["status"] for one in server.all(REPORT)] == ["amended"]


def test_a_server_that_is_away_gets_it_when_it_is_back(series):
    held, port = FhirServer(), free_port()
    held.add_patient(SYSTEM, "4711")
    series.analysed()
    node = node_of(series.store, told(f"http://127.0.0.1:{port}/fhir"))
    sender, now = sender_of(node), time.time()
    assert sender.work_once(now)
    assert node.states() == {"fhir": "PENDING"} and "cannot be connected to" in node.deliveries()[0].error
    with fhir_server(port, held) as server:
        sender.work_once(now + 100)
        assert node.states() == {"fhir": "SENT"} and certainty(server) == [91]


def test_a_sender_that_is_killed_between_sending_and_the_answer_tells_it_once(server, series):
    series.analysed()
    identity.claim(series.store.database, series.store.files)
    destination = {"kind": "fhir", "name": "fhir", "url": server.url, "patient_systems": {"HOSP": SYSTEM}}
    environment = {
        **os.environ,
        "DICOM_NODE_DATA_DIR": str(series.store.folder),
        "DICOM_NODE_DESTINATIONS": json.dumps([destination]),
        "DICOM_NODE_STORAGE__DATABASE_URL": series.store.url,
        "DICOM_NODE_SENDER__LEASE_S": "2",
        "DICOM_NODE_SENDER__POLL_S": "0.05",
        "DICOM_NODE_LOGGING__LEVEL": "error",
    }
    command = [sys.executable, "-m", "dicom_node", "deliver"]
    sender = subprocess.Popen(command, env=environment)
    server.on_done = sender.kill
    assert sender.wait(60) == -signal.SIGKILL
    server.on_done = lambda: None
    versions = dict(server.store.versions)
    node = node_of(series.store, told(server.url))
    assert node.states() == {"fhir": "SENDING"} and len(server.requests) == 1
    assert sender_of(node).work_once(time.time() + 100)  # its lease is over
    assert node.states() == {"fhir": "SENT"}
    assert server.requests[0] == server.requests[1] and server.store.versions == versions


def test_a_lost_answer_changes_nothing(server, results):
    there = gateway(server)
    message = there.compose(results[0])
    server.silent = 1
    assert there.send(message).outcome == AttemptOutcome.UNANSWERED
    versions = dict(server.store.versions)
    verdict = there.send(message)
    assert (verdict.outcome, verdict.text) == (AttemptOutcome.DELIVERED, "")
    assert server.store.versions == versions and len(server.all(REPORT)) == 1


def outcome(code: str) -> dict:
    issue = {"severity": "error", "code": code, "diagnostics": "Patient?identifier=4711 Müller^Jörg is not there"}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, outcome("invalid"), "REFUSED"),
        (400, outcome("Müller") | {"resourceType": "Parameters"}, "REFUSED"),
        (400, outcome("Müller") | {"issue": [{"code": "Müller"}, {"code": ["4711"]}, {"code": "required"}]}, "REFUSED"),
        (404, outcome("not-found"), "REFUSED"),
        (409, outcome("conflict"), "REFUSED"),
        (412, outcome("multiple-matches"), "REFUSED"),
        (422, outcome("structure"), "REFUSED"),
        (413, b"too large", "REFUSED"),
        (404, b"<html>", "UNANSWERED"),
        (403, outcome("forbidden"), "UNANSWERED"),
        (429, outcome("throttled"), "UNANSWERED"),
        (503, b"", "UNANSWERED"),
        (302, b"", "UNANSWERED"),
        (500, outcome("exception"), "TRANSIENT"),
        (200, b"<html>welcome</html>", "TRANSIENT"),
        (200, {"resourceType": "Bundle", "type": "batch-response", "entry": [
            {"response": {"status": "200"}}]}, "TRANSIENT"),
        (200, {"resourceType": "Bundle", "type": "transaction-response", "entry": [{}]}, "TRANSIENT"),
        (200, {"resourceType": "Bundle", "type": "transaction-response", "entry": [
            {"response": {"status": "422 Müller"}}]}, "REFUSED"),
        (200, {"resourceType": "Bundle", "type": "transaction-response", "entry": [
            {"response": {"status": "2 Müller"}}]}, "REFUSED"),
        (200, {"resourceType": "Bundle", "type": "transaction-response", "entry": [
            {"response": {"status": "201 Created"}}]}, "TRANSIENT"),
        (200, {"resourceType": "Bundle", "type": "transaction-response"}, "TRANSIENT"),
        (200, b"[" * 100000, "TRANSIENT"),
    ],
)  # fmt: skip
def test_every_answer_is_understood_and_none_is_quoted(server, results, status, body, expected):
    there = gateway(server)
    server.answers = [(status, body)]
    verdict = there.send(there.compose(results[0]))
    assert verdict.outcome == expected
    assert not IDENTIFYING.search(verdict.text) and (str(status) in verdict.text or status == 200)
    if isinstance(body, dict) and body["resourceType"] == "OperationOutcome":
        assert body["issue"][-1]["code"] in verdict.text
    assert there.send(there.compose(results[0])).outcome == AttemptOutcome.DELIVERED


def test_a_report_that_the_index_does_not_know_is_no_delivery(server, results):
    there = gateway(server)
    assert there.send(there.compose(results[0])).outcome == AttemptOutcome.DELIVERED
    unaware = there.compose(replace(results[1], replaces=None))
    verdict = there.send(unaware)
    assert verdict.outcome == AttemptOutcome.REFUSED and "another report" in verdict.text
    assert certainty(server) == [91]


def test_nothing_is_sent_of_what_the_site_does_not_want_to_hear(server, series):
    series.refused()
    node = node_of(series.store, told(server.url, tell_not_analysed=False))
    sender_of(node).work_once(time.time())
    assert node.states() == {"fhir": "SENT"} and not server.requests
    assert node.deliveries()[0].warning == "not told: tell_not_analysed is false"


def test_no_log_line_names_the_patient(server, series, tmp_path):
    series.analysed()
    node = node_of(series.store, told(server.url))
    server.store.held["Patient"] = {}
    lines = []
    structlog.configure(processors=[_without_words, lambda _, __, event: lines.append(dict(event)) or ""])
    try:
        sender_of(node).work_once(time.time())
    finally:
        structlog.reset_defaults()
    assert lines and not IDENTIFYING.search(repr(lines))
    assert node.deliveries()[0].error == "HTTP status 412 (not-found)"


def with_key(server: FhirServer, folder: Path, key: RSAKey | ECKey) -> FhirGateway:
    """A gateway that signs with a key, of which the server knows the public part."""
    path = folder / "key.pem"
    path.write_bytes(key.as_pem(private=True))
    server.require_tokens("dicom-node", key)
    smart = {"auth": "smart", "user": "dicom-node", "key": path, "key_id": "one", "token_url": server.token_url}
    return gateway(server, **smart)


@pytest.mark.parametrize("kind", ["RS384", "ES384"])
def test_the_node_signs_for_its_token_and_keeps_it(server, results, tmp_path, kind):
    parameters = {"kid": "one"}
    key = RSAKey.generate_key(2048, parameters) if kind == "RS384" else ECKey.generate_key("P-384", parameters)
    there = with_key(server, tmp_path, key)
    for result in results:
        assert there.send(there.compose(result)).outcome == AttemptOutcome.DELIVERED
    assert server.token_requests == 1 and certainty(server) == [20]


def test_a_token_that_is_refused_is_renewed_at_once(server, results, tmp_path):
    there = with_key(server, tmp_path, ECKey.generate_key("P-384", {"kid": "one"}))
    there.send(there.compose(results[0]))
    server.end_tokens()
    assert there.send(there.compose(results[1])).outcome == AttemptOutcome.DELIVERED
    assert server.token_requests == 2


def test_a_node_that_the_server_does_not_know_keeps_its_results(server, results, tmp_path):
    there = with_key(server, tmp_path, ECKey.generate_key("P-384", {"kid": "one"}))
    server.require_tokens("dicom-node", ECKey.generate_key("P-384", {"kid": "one"}))
    verdict = there.send(there.compose(results[0]))
    assert verdict.outcome == AttemptOutcome.UNANSWERED and verdict.text.startswith("no token: HTTP status 401")
    server.refuses_tokens = (200, {"access_token": "to\nken"})
    assert there.send(there.compose(results[0])).outcome == AttemptOutcome.UNANSWERED
    assert not server.requests


@pytest.mark.parametrize("content", [b"", b"not a key", ECKey.generate_key("P-256").as_pem(private=True)])
def test_a_key_that_cannot_sign_is_named_and_never_shown(server, results, tmp_path, content):
    there = with_key(server, tmp_path, ECKey.generate_key("P-384", {"kid": "one"}))
    (tmp_path / "key.pem").write_bytes(content)
    verdict = there.send(there.compose(results[0]))
    assert verdict.outcome == AttemptOutcome.UNANSWERED and "P-384" in verdict.text
    (tmp_path / "key.pem").unlink()
    assert "cannot be read" in there.send(there.compose(results[0])).text


def test_a_static_token_is_read_from_its_file(server, results, tmp_path):
    server.tokens = {"a-token": time.time() + 100}
    (tmp_path / "token").write_text("a-token\n")
    there = gateway(server, auth="bearer", credentials=tmp_path / "token")
    assert there.send(there.compose(results[0])).outcome == AttemptOutcome.DELIVERED
    (tmp_path / "token").write_text("another\n")
    assert there.send(there.compose(results[0])).outcome == AttemptOutcome.UNANSWERED


def test_a_person_sees_that_nothing_will_be_told(series, monkeypatch):
    result = series.refused()
    identity.claim(series.store.database, series.store.files)
    settings = series.store.folder / "node.toml"
    settings.write_text(
        f'data_dir = "{series.store.folder}"\n[[destinations]]\nkind = "fhir"\nname = "fhir"\n'
        f'url = "http://127.0.0.1/fhir"\npatient = "contained"\ntell_not_analysed = false\n'
    )
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE_URL", series.store.url)
    command = ["gateway", "preview", "fhir", str(result.result_id), "--config", str(settings)]
    assert CliRunner().invoke(app, command).output.startswith("nothing: ")


def test_a_person_can_ask_and_look_before_anything_is_sent(server, series, monkeypatch):
    result = series.analysed()
    identity.claim(series.store.database, series.store.files)
    settings = series.store.folder / "node.toml"
    settings.write_text(
        f'data_dir = "{series.store.folder}"\n[[destinations]]\nkind = "fhir"\nname = "fhir"\n'
        f'url = "{server.url}"\npatient_systems = {{ HOSP = "{SYSTEM}" }}\n'
    )
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE_URL", series.store.url)
    at = ["--config", str(settings)]
    assert CliRunner().invoke(app, ["gateway", "test", "fhir", *at]).exit_code == 0
    shown = CliRunner().invoke(app, ["gateway", "preview", "fhir", str(result.result_id), *at])
    assert json.loads(shown.output)["type"] == "transaction" and not server.requests
    # The page's example: after a change, write what was shown into the file, and its Observation into the page.
    assert shown.output.rstrip() == (PAGES / "fhir-example.json").read_text().rstrip()
    (quoted,) = re.findall(r"```json\n(.*?)```", (PAGES / "fhir.md").read_text(), re.DOTALL)
    told_first = [one["resource"] for one in json.loads(shown.output)["entry"]]
    assert json.loads(quoted) == next(one for one in told_first if one["resourceType"] == "Observation")
