"""A model that a site has calibrated: fitted by command, reported with the networks' own output beside it, replayed."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from dicom_node.cli.own_data import outputs_of
from inference.errors import ModelError
from inference.evaluation.errors import EvaluationError
from inference.models.calibrated import base_of
from inference.models.cards import Card, read_card, shipped_folder
from inference.models.registry import find_model
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.integration.test_replay import take_in
from tests.running import command
from tests.storage_factory import Store
from tests.unit.test_recalibration import INTERCEPT, SLOPE, planted

SITE = "St. Elsewhere"


def write_csv(path: Path, column: str, values: list[object]) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("case", column), *enumerate(values)])
    return str(path)


def calibrate(data_dir: Path, cases: int, *more: str) -> tuple[int, str, str]:
    """The command on planted cases, whose outputs are too high and too extreme."""
    found = planted(cases, INTERCEPT, SLOPE)
    data_dir.mkdir(exist_ok=True)
    labels = write_csv(data_dir.parent / "labels.csv", "label", found.label.astype(int).tolist())
    outputs = write_csv(data_dir.parent / "outputs.csv", "probability", found.probability.tolist())
    asked = ("--from", outputs, "--labels", labels, "--site", SITE, *more)
    return command(data_dir, "models", "calibrate", "demonstration", *asked)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card, dict[str, Any]]:
    """A node with a calibrated model that has analysed a phantom: its data folder, the card, what the command said."""
    folder = tmp_path_factory.mktemp("calibrated")
    asked = ("--sensitivity", "0.9", "--as", "2.0-here", "--activate", "--json")
    status, said, why = calibrate(folder / "node", 600, *asked, "--output", str(folder / "figures"))
    assert status == 0, why
    with Store(folder / "node", f"sqlite:///{folder}/node/node.db") as store:
        paths = write_series(make_phantom(12, slices=40, size=256, lesions="none"), folder / "series")
        take_in(store, paths, time.time() - 60)
    return folder / "node", read_card(find_model(folder / "node" / "models")), json.loads(said)


def reports(store: Store) -> list[Dataset]:
    rows = store.rows("SELECT path FROM result_objects WHERE kind = 'report'")
    return [dcmread(store.folder / "files" / str(row["path"])) for row in rows]


def numbers(item: Dataset) -> dict[str, float]:
    """Every number of a report by its code."""
    found = {}
    for one in item.get("ContentSequence", ()):
        if one.ValueType == "NUM":
            value = one.MeasuredValueSequence[0].NumericValue
            found[one.ConceptNameCodeSequence[0].CodeValue] = float(value)
        found |= numbers(one)
    return found


def test_the_command_writes_a_new_version_with_its_figures(node: tuple[Path, Card, dict[str, Any]]) -> None:
    data_dir, card, said = node
    assert (card.name, card.version) == ("demonstration", "2.0-here")
    assert card.calibration is not None and card.calibration.method == "platt"
    assert said["written"]["digest"] == card.digest() and said["after"]["error"] < said["before"]["error"] / 2
    assert card.threshold == said["point"]["threshold"] != 0.5
    assert {path.name for path in (data_dir.parent / "figures").iterdir()} == {
        "calibration.json", "calibration.png", "calibration.svg", "decision-curve.png", "decision-curve.svg"
    }  # fmt: skip
    shown = command(data_dir, "models", "show")[1]
    assert "own calibration" in shown and SITE in shown
    with Store(data_dir, f"sqlite:///{data_dir}/node.db") as store:
        (row,) = store.rows("SELECT detail FROM audit WHERE event = 'model.calibrated'")
    assert json.loads(str(row["detail"]))["digest"] == card.digest()


def test_reports_state_the_calibrated_number_and_the_networks_own(node: tuple[Path, Card, dict[str, Any]]) -> None:
    data_dir, card, _ = node
    base = read_card(shipped_folder() / "demonstration")
    alone = command(data_dir.parent / "plain", "analyse", str(data_dir.parent / "series"), "--json")[1]
    raw = json.loads(alone)["probability"]
    with Store(data_dir, f"sqlite:///{data_dir}/node.db") as store:
        (row,) = store.rows("SELECT f.*, c.meaning FROM findings f JOIN codes c ON c.id = f.interpretation_id")
        (report,) = reports(store)
    assert row["certainty"] == card.calibrated(raw) != raw
    assert row["threshold"] == card.threshold != base.threshold
    assert (row["meaning"] == "Positive") is (card.calibrated(raw) >= (card.threshold or 0))
    stated = numbers(report)
    assert stated["111012"] == pytest.approx(100 * card.calibrated(raw), abs=0.6)
    assert stated["RAW_OUTPUT"] == pytest.approx(100 * raw, abs=0.006)
    said = " ".join(element.value for element in report.iterall() if element.keyword == "TextValue")
    assert f"as this site has calibrated it ({SITE}" in said and "calibration=platt" in said


def test_a_calibrated_result_comes_out_again_bit_for_bit(node: tuple[Path, Card, dict[str, Any]]) -> None:
    status, said, why = command(node[0], "replay", "1", "--json")
    assert (status, json.loads(said)["agrees"]) == (0, True), why


def test_a_later_calibration_starts_from_the_networks_own_output(node: tuple[Path, Card, dict[str, Any]]) -> None:
    data_dir, card, _ = node
    folder, base = base_of(find_model(data_dir / "models"), data_dir / "models", card)
    assert (base.version, base.calibration) == (read_card(shipped_folder() / "demonstration").version, None)
    assert folder == shipped_folder() / "demonstration"
    with Store(data_dir, f"sqlite:///{data_dir}/node.db") as store:
        (series,) = store.rows("SELECT series_instance_uid FROM series")
        (row,) = store.rows("SELECT certainty FROM findings")
        labels = data_dir.parent / "of-node.csv"
        labels.write_text(f"case,label\n{series['series_instance_uid']},0\n")
        with store.database.read() as tx:
            (found,) = outputs_of(tx, labels, base.digest(), {card.digest()}).rows
            with pytest.raises(EvaluationError, match="no result of this model"):
                outputs_of(tx, labels, base.digest(), set())
    assert card.calibrated(float(found["probability"])) == pytest.approx(float(str(row["certainty"])))


def test_too_few_cases_write_nothing_and_say_how_many_more(tmp_path: Path) -> None:
    status, _, why = calibrate(tmp_path / "node", 70)
    assert status != 0 and "are needed" in why and "Traceback" not in why
    assert not (tmp_path / "node" / "models").exists()
    status, said, why = calibrate(tmp_path / "node", 600, "--dry-run")
    assert status == 0, why
    assert "calibrated, on unseen cases" in said and not (tmp_path / "node" / "models").exists()


def test_models_without_a_certainty_are_refused(tmp_path: Path) -> None:
    folder = shipped_folder() / "densitometry"
    with pytest.raises(ModelError, match="no certainty that could be calibrated"):
        base_of(folder, tmp_path, read_card(folder))
