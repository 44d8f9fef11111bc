"""A site's own evaluation replaces the published figures in what the node says, for exactly the model that it is of."""

from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from pydicom.uid import generate_uid
from typer.testing import CliRunner, Result

from dicom_node.analysis.figures import figures_of
from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from dicom_node.report.wording import operating_points
from inference.models.cards import Card, OperatingPoint, read_card
from inference.models.registry import find_model
from inference.models.site_evaluation import site_evaluation_file
from storage import jobs, quiet_time, series
from storage.jobs import ModelRef
from storage.results import NewResult
from tests.outbox import Node, ct_series, make_node
from tests.storage_factory import said

PUBLISHED = (OperatingPoint("published", 0.5, 0.84, 0.982, "one hospital"),)
CASES = [(0.9, 1), (0.8, 1), (0.3, 1), (1.0, 1), (0.6, 0), (0.1, 0), (0.0, 0), (0.4, 0)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node with a result of its model for each case, and labels.csv in its folder."""
    made = make_node(tmp_path / "node", report={"institution": "St. Elsewhere"})
    card = the_card(made)
    model = ModelRef(card.name, card.version, card.digest())
    lines = ["case,label"]
    for number, (probability, label) in enumerate(CASES):
        (one,) = ct_series(1)
        one.StudyInstanceUID = generate_uid()
        now = 1000.0 * (number + 1)
        made.receive([one], now, 1.0)
        with made.database.transaction() as tx:
            (due,) = quiet_time.due_series(tx, now + 2)
            series.close_series(tx, due.series_pk, now + 2, series.Closing(model))
            job = jobs.claim(tx, "test", now + 3, 60, 3)
            assert job is not None
            result = NewResult(
                "ANALYSED", model.name, model.version, model.digest, said(probability), threshold=card.threshold
            )
            jobs.finish(tx, job.job_id, job.fence, now + 4, result, [], [])
        lines.append(f"{one.SeriesInstanceUID},{label}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return made


def the_card(node: Node) -> Card:
    return read_card(find_model(node.settings.models_dir))


def run(node: Node, *arguments: str) -> Result:
    data_dir = str(node.settings.data_dir)
    environment = {"DICOM_NODE_DATA_DIR": data_dir, "DICOM_NODE_REPORT__INSTITUTION": "St. Elsewhere"}
    try:
        return CliRunner().invoke(app, list(arguments), env=environment)
    finally:
        structlog.reset_defaults()  # the command's log is closed with it


def evaluate(node: Node, *arguments: str) -> Result:
    labels = str(node.settings.data_dir.parent / "labels.csv")
    return run(node, "evaluate", "node", "--labels", labels, *arguments)


def test_an_adopted_evaluation_is_what_reports_and_models_show_print(node: Node) -> None:
    card = replace(the_card(node), operating_points=PUBLISHED)
    assert figures_of(card, node.settings.models_dir) == PUBLISHED
    assert evaluate(node, "--adopt").exit_code == 0
    figures = figures_of(card, node.settings.models_dir)
    (sentence, _) = operating_points(figures, card.threshold, None)
    assert 'Operating point "own evaluation": at threshold 0.50 sensitivity 0.750, specificity 0.750' in sentence
    assert (
        "(St. Elsewhere, 20" in sentence and ": 8 cases, 4 with COVID-19; 95 % intervals 0.30 to 0.95 and" in sentence
    )
    assert "St. Elsewhere, 20" in run(node, "models", "show").stdout
    (row,) = node.audited("model.evaluation-adopted")
    assert row["outcome"] == "ADOPTED"


def test_it_counts_for_no_other_model_nor_threshold(node: Node) -> None:
    assert evaluate(node, "--adopt").exit_code == 0
    other = replace(the_card(node), threshold=0.4, operating_points=PUBLISHED)
    assert figures_of(other, node.settings.models_dir) == PUBLISHED


def test_a_file_that_is_about_another_model_is_not_used(node: Node) -> None:
    assert evaluate(node, "--adopt").exit_code == 0
    card = replace(the_card(node), operating_points=PUBLISHED)
    other = replace(card, threshold=0.4)
    models = node.settings.models_dir
    site_evaluation_file(models, card.digest()).rename(site_evaluation_file(models, other.digest()))
    assert figures_of(other, models) == PUBLISHED


def test_what_is_not_known_to_be_of_the_model_is_not_adopted(node: Node, tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("probability,label\n" + "\n".join(f"{value},{label}" for value, label in CASES))
    of_a_file = run(node, "evaluate", str(table), "--adopt")
    other_threshold = evaluate(node, "--adopt", "--threshold", "0.3")
    assert isinstance(of_a_file.exception, NodeError) and "known model" in str(of_a_file.exception)
    assert isinstance(other_threshold.exception, NodeError) and "leave --threshold out" in str(
        other_threshold.exception
    )
    assert not (node.settings.models_dir / "evaluations").exists()


def test_the_published_figures_say_where_they_are_from(node: Node) -> None:
    shipped = read_card(Path("config/models/zheng2020-authors"))
    for sentence in operating_points(shipped.operating_points, shipped.threshold, None)[:-1]:
        assert "one hospital, one scanner, early 2020; elsewhere unknown" in sentence
