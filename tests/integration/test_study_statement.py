"""Several series of one study are reported: their reports are one statement, and a positive and a negative never stand
alone. Phantoms, the demonstration model, real workers and files."""

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from config.reasons import Refusal
from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.result_objects import ResultObjects
from dicom_node.analysis.study_statement import NOT_COMPARABLE, REPORTED_FIRST, study_statement
from dicom_node.analysis.worker import Worker
from dicom_node.cli.app import app
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from dicom_node.report.context import EarlierResult
from inference.models.cards import read_card
from inference.models.registry import find_model
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import jobs, results, study_results
from tests.integration.test_selection import chest
from tests.outbox import Node, destination, make_node, part10
from tests.storage_factory import Store
from tests.validators import rows

STUDY = "1.2.826.0.1.3680043.8.498.77"


def phantom(folder: Path, seed: int, lesions: str, number: int) -> list[Dataset]:
    """A series of the study."""
    paths = write_series(make_phantom(seed, slices=40, size=256, lesions=lesions), folder / str(number))
    slices = [dcmread(path) for path in paths]
    for one in slices:
        one.StudyInstanceUID, one.PatientID, one.SeriesNumber = STUDY, "P1", number
        one.SeriesDescription = f"Thorax {number}"
    return slices


def reported(node: Node, slices: list[Dataset], now: float) -> Dataset:
    """What a node that takes every series sends of one more series."""
    node.receive(slices, now, 1.0)
    completion = Completion(node.settings, node.database, node.files)
    completion.close_due_series(current_models(node.settings), now + 2)
    completion.stop()
    assert Worker(node.settings, node.database, node.files, "cpu").work_once(now + 3)
    with node.database.read() as tx:
        latest = results.latest_of_series(tx, slices[0].SeriesInstanceUID)
        report = results.objects_of(tx, latest)[0]
    return dcmread(io.BytesIO(node.files.read_verified(report.path, report.sha256)))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Dataset, Dataset]:
    """A node that has reported one series as negative, then another of the same study as positive."""
    folder = tmp_path_factory.mktemp("study")
    node = make_node(folder / "node", destination(1), completion={"select": "all"})
    now = time.time() - 60
    negative = reported(node, phantom(folder, 12, "none", 3), now)
    return node, negative, reported(node, phantom(folder, 31, "mixed", 4), now + 10)


@pytest.fixture
def opened(study: tuple[Node, Dataset, Dataset]) -> Node:
    """The node, with an index of its own for one test."""
    return make_node(study[0].settings.data_dir, destination(1), completion={"select": "all"})


def said(report: Dataset) -> str:
    return "\n".join(value for _, _, kind, _, value in rows(report) if kind == "TEXT")


def test_the_later_report_names_the_earlier_one_and_what_the_study_rests_on(
    study: tuple[Node, Dataset, Dataset],
) -> None:
    _, negative, positive = study
    assert "results, which are one statement" not in said(negative)
    text = said(positive)
    (statement,) = [line for line in text.splitlines() if line.startswith("This study has 2 results")]
    assert re.search(r'series 3 "Thorax 3", reported before: \S+ %, negative; this series: \S+ %, positive', statement)
    assert "THEY DIFFER" in statement
    assert "The statement of the study rests on " in statement
    of_negative = negative.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    (earlier,) = [value for _, _, _, name, value in rows(positive) if name == "112002,DCM"]
    assert earlier in {series.SeriesInstanceUID for series in of_negative}
    evidence = positive.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence}
    assert negative.SOPInstanceUID in named


@pytest.mark.parametrize(("number", "sign", "other"), [(1, "negative", "positive"), (2, "positive", "negative")])
def test_series_show_tells_both_results_for_either_series(opened: Node, number: int, sign: str, other: str) -> None:
    environment = {"DICOM_NODE_DATA_DIR": str(opened.settings.data_dir)}
    shown = CliRunner().invoke(app, ["series", "show", str(number)], env=environment).stdout
    assert shown.startswith(f"Series {number}: {sign}, ")
    assert "THEY DIFFER: the study was also reported on, to be read together:" in shown
    assert f"  series {3 - number}: {other}, " in shown


def test_a_series_that_comes_after_every_series_was_reported_is_passed_over_by_a_node_that_wants_the_best(
    opened: Node, tmp_path: Path
) -> None:
    late = chest(1.25, StudyInstanceUID=STUDY, PatientID="P1")
    settings = opened.settings.model_copy(
        update={"completion": opened.settings.completion.model_copy(update={"select": "best"})}
    )
    now = time.time()
    opened.receive(late, now, 1.0)
    completion = Completion(settings, opened.database, opened.files)
    completion.close_due_series(current_models(settings), now + 2)
    completion.stop()
    BestSeries(settings, opened.database, opened.files).choose(current_models(settings), now + 2)
    with opened.database.transaction() as tx:
        assert jobs.claim(tx, "test", now + 3, 60, 3) is None
    with opened.database.read() as tx:
        assert len(study_results.others(tx, 3)) == 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def two_claimed(store: Store) -> list[jobs.ClaimedJob]:
    store.receive(1, 2, now=0)
    store.receive(1, 2, now=0, series_uid="1.2.4")
    store.close_due(60)
    return [job for job in (store.claim(60), store.claim(60)) if job is not None]


def test_a_result_that_another_worker_recorded_meanwhile_is_named_too(store: Store) -> None:
    first, second = two_claimed(store)
    node = make_node(store.folder)
    worker = Worker(node.settings, store.database, store.files, "cpu")
    with store.database.read() as tx:
        before = study_results.others(tx, second.series_pk)
    store.finish(first, 61)
    model = read_card(find_model(node.settings.models_dir)).identity()
    analysis = Analysis(None, Refusal("NOT_CHEST", "No lungs."), None)
    assert not worker._commit(second, analysis, model, ResultObjects(), before)
    with store.database.read() as tx:
        (after,) = study_results.others(tx, second.series_pk)
    assert (after.series_pk, after.positive) == (first.series_pk, True)
    assert worker._commit(second, analysis, model, ResultObjects(), (after,))


def test_a_report_that_a_late_slice_will_replace_still_stands_for_its_series(store: Store) -> None:
    first, second = two_claimed(store)
    store.finish(first, 61)
    store.receive(3, now=62)
    assert store.rows("SELECT state FROM series WHERE id = 1") == [{"state": "OPEN"}]
    with store.database.read() as tx:
        (standing,) = study_results.others(tx, second.series_pk)
    assert standing.probability == 0.9


def on_disk(folder: Path, slices: list[Dataset]) -> tuple[str, list[Path]]:
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(len(slices))]
    for path, one in zip(paths, slices, strict=True):
        path.write_bytes(part10(one))
    return str(slices[0].SeriesInstanceUID), paths


@pytest.mark.parametrize(
    ("own", "earlier", "rests_on_own", "why"),
    [
        ({"spacing_mm": 1.25}, {"spacing_mm": 5.0}, True, "its thickness is nearer to the 1 mm of the training"),
        ({"spacing_mm": 5.0}, {"spacing_mm": 1.25}, False, "its thickness is nearer to the 1 mm of the training"),
        ({"spacing_mm": 5.0}, {"spacing_mm": 5.0}, False, REPORTED_FIRST),
        ({"spacing_mm": 1.25}, None, False, NOT_COMPARABLE),
    ],
    ids=["own better", "earlier better", "equal", "gone"],
)
def test_the_statement_rests_on_the_series_that_would_have_been_chosen(
    tmp_path: Path, own: dict[str, Any], earlier: dict[str, Any] | None, rests_on_own: bool, why: str
) -> None:
    card = read_card(find_model(tmp_path / "models"))
    uid, paths = on_disk(tmp_path / "own", chest(**own))
    other, others = on_disk(tmp_path / "other", chest(**earlier)) if earlier else ("1.2.3", [])
    statement = study_statement(uid, paths, [(EarlierResult(other, "3", "", 0.2, 0.5), others)], card)
    assert statement is not None
    assert (statement.rests_on == uid, statement.why) == (rests_on_own, why)
