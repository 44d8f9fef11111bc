"""Alert rules and dashboard with the programs that read them: promtool, and a Prometheus that scrapes a real node."""

import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from dicom_node.runtime.metrics import WORDS
from tests.conftest import require_program
from tests.programs import free_port, listening, wait_for
from tests.programs import running as program
from tests.receiving import associate, ct_slice
from tests.running import Node, running

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "packaging" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
RULES = (FOLDER / "alerts.yml").read_text().split("- alert: ")[1:]
"""The text of each rule; it begins with the alert's name."""
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
HEADINGS = {line.strip("# \n").lower() for line in RUNBOOK.splitlines() if line.startswith("#")}
OF_FEW = {"dicom_node_certificate_expiry_seconds", "dicom_node_drift_alarms"}
"""Only a node that has certificates, or alarms of drift, has these."""
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def promtool(*arguments: str, told: str | None = None) -> str:
    command = [require_program("promtool"), *arguments]
    done = subprocess.run(command, cwd=FOLDER, input=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_every_alert_and_every_word_of_health_has_its_section_in_the_runbook() -> None:
    for rule in RULES:
        name = rule.split()[0].lower()
        assert f"runbook: docs/runbook.md#{name}\n" in rule
        assert name in HEADINGS
    for word in WORDS:
        assert f"`{word}`" in RUNBOOK
        assert any(f'word="{word}"' in rule for rule in RULES)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    port = free_port()
    more = {
        "DICOM_NODE_METRICS__PORT": str(port),
        "DICOM_NODE_REPORT__REPORT_NOT_ANALYSED": "true",
        "DICOM_NODE_WATCH__ENABLED": "true",
    }
    one = Node(tmp_path_factory.mktemp("node"), free_port(), **more)
    one.metrics_port = port  # type: ignore[attr-defined]
    with running(one):
        wait_for(lambda: listening(port), 120, "the metrics answer")
        for number in range(3):
            with associate(one) as association:  # type: ignore[arg-type]
                assert association.send_c_store(ct_slice(number, series_uid="1.2.3.4")).Status == 0
        with associate(one, called_ae="ANOTHER"):  # type: ignore[arg-type]
            pass
        # Three slices are no volume: there is a result that says so, and a delivery that nobody takes.
        wait_for(lambda: 'destination_waiting{destination="pacs"} 1.0' in scraped(one), 240, "the result waits")
        yield one


def scraped(node: Node) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.metrics_port}/metrics", timeout=10) as answer:  # type: ignore[attr-defined]
        return str(answer.read().decode())


def test_promtool_finds_nothing_to_mend_in_the_metrics(node: Node) -> None:
    promtool("check", "metrics", told=scraped(node))


class Prometheus:
    """A server that scrapes the node."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant value of an expression; nothing while the server still starts."""
        where = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(where, timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
            return []
        return found


@pytest.fixture(scope="module")
def prometheus(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    settings = (FOLDER / "prometheus.yml").read_text().replace("15s", "1s")
    settings = settings.replace("9107", str(node.metrics_port)).replace("alerts.yml", str(FOLDER / "alerts.yml"))  # type: ignore[attr-defined]
    (folder / "prometheus.yml").write_text(settings)
    address = f"127.0.0.1:{port}"
    command = [require_program("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    with program([*command, f"--storage.tsdb.path={folder}", f"--web.listen-address={address}"], port, folder):
        server = Prometheus(port)
        scrapes = "count_over_time(dicom_node_index_up[5m])"
        wait_for(lambda: any(float(one["value"][1]) >= 3 for one in server.query(scrapes)), 60, "it scrapes")
        yield server


def test_every_query_of_the_dashboard_has_an_answer_from_a_real_node(prometheus: Prometheus) -> None:
    instances = prometheus.query("dicom_node_disk_free_bytes")
    (instance,) = {one["metric"]["instance"] for one in instances}
    silent = []
    for expression in EXPRESSIONS:
        asked = expression.replace("$instance", re.escape(instance).replace("\\", "\\\\"))
        # Nothing here has a certificate.
        if not prometheus.query(asked) and "certificate" not in expression:
            silent.append(asked)
    assert not silent

    def waits() -> bool:  # not at the moment in which it is tried
        (waiting,) = prometheus.query("dicom_node_destination_waiting")
        return (waiting["metric"]["destination"], waiting["value"][1]) == ("pacs", "1")

    wait_for(waits, 60, "the result that waits, as Prometheus has it")
    assert [one["value"][1] for one in prometheus.query('dicom_node_results{outcome="NOT_ANALYSED"}')] == ["1"]


def test_every_metric_that_an_alert_asks_for_exists(prometheus: Prometheus) -> None:
    for rule in RULES:
        for name in set(re.findall(r"dicom_node_\w+", rule)) - OF_FEW:
            assert prometheus.query(name), f"{rule.split()[0]} asks for {name}"
    assert {one["metric"]["word"] for one in prometheus.query("dicom_node_problem")} == set(WORDS)
    # Of a node that works none is on fire.
    assert [one["metric"]["alertname"] for one in prometheus.query('ALERTS{alertstate="firing"}')] == []
