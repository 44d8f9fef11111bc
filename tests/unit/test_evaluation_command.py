"""`dicom-node evaluate`: what it prints, what it writes, and what it never writes."""

import json
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
from subprocess import run

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.errors import NodeError
from inference.evaluation.errors import MissingExtra, UnusablePredictions

LINES = [
    f"secret-{n:03d},{probability},{label},{scanner},{45 + n}"
    for n, (probability, label) in enumerate(
        [(0.9, 1), (0.8, 1), (0.35, 1), (1.0, 1), (0.6, 0), (0.1, 0), (0.0, 0), (0.35, 0)]
    )
    for scanner in ["<script>A$1$</script>" if n % 2 else "联影 & co"]
]


@pytest.fixture
def csv_file(tmp_path):
    return write_cases(tmp_path / "site.csv")


def write_cases(path):
    path.write_text("case,probability,label,scanner,age\n" + "\n".join(LINES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """What the command printed with --json, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("evaluated")
    out = folder / "deep" / "out"
    return evaluate(write_cases(folder / "site.csv"), "--output", out, "--json").stdout, out


def evaluate(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def strict_json(text):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_the_figures_by_their_names(evaluated):
    figures = strict_json(evaluated[0])
    assert figures["roc_auc"] == pytest.approx(14.5 / 16)
    assert 0.5 < figures["pr_auc"] < 1
    assert [row["threshold"] for row in figures["thresholds"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    row = figures["thresholds"][4]
    assert (row["accuracy"], row["sensitivity"], row["specificity"], row["ppv"], row["npv"]) == (0.75,) * 5
    assert {"high_sensitivity", "high_specificity", "balanced"} <= set(figures["operating_points"])
    assert figures["predictive_values"]["rows"][0].keys() == {"prevalence", "ppv", "npv"}
    assert set(figures["subgroups"]) == {"scanner", "age"}


def test_one_class_is_still_json(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("probability,label\n0.2,0\n0.9,0\n")
    figures = strict_json(evaluate(path, "--output", tmp_path / "out", "--json").stdout)
    assert (figures["roc_auc"], figures["thresholds"][0]["sensitivity"]) == (None, None)
    assert "no positive case" in figures["notes"][0]
    assert not (tmp_path / "out" / "roc.png").exists()
    assert "There is no positive case" in (tmp_path / "out" / "evaluation.html").read_text()


def test_the_folder_holds_page_tables_and_each_plot_twice(evaluated):
    printed, out = evaluated
    listed = strict_json(printed)["files"]
    assert sorted(listed) == sorted(str(path) for path in out.iterdir())
    plots = ["roc", "precision-recall", "calibration", "predictive-values", "probabilities"]
    for name in [*plots, "subgroups-scanner", "subgroups-age"]:
        width, height = struct.unpack(">II", (out / f"{name}.png").read_bytes()[16:24])
        assert width > 500 < height or name.startswith("subgroups")
        assert ElementTree.fromstring((out / f"{name}.svg").read_bytes()).tag.endswith("svg")
    assert (
        (out / "thresholds.csv")
        .read_text()
        .splitlines()[0]
        .startswith("threshold,accuracy,sensitivity,specificity,ppv")
    )
    assert strict_json((out / "evaluation.json").read_text())["cases"] == 8


def test_the_page_stands_alone_and_runs_nothing_from_the_file(evaluated):
    page = (evaluated[1] / "evaluation.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;A$1$&lt;/script&gt;" in page
    assert "联影 &amp; co" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)


def test_no_file_names_a_case(evaluated):
    printed, out = evaluated
    assert "secret-" not in printed
    for path in out.iterdir():
        assert b"secret-" not in path.read_bytes(), path.name


def test_the_same_file_gives_the_same_bytes(evaluated, csv_file, tmp_path):
    evaluate(csv_file, "--output", tmp_path / "again")
    for path in evaluated[1].iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_table_for_people_has_areas_points_and_thresholds(csv_file):
    printed = evaluate(csv_file).stdout
    for words in ("ROC AUC      0.9062", "Operating points", "Thresholds", "specificity", "By scanner"):
        assert words in printed


def test_a_sites_prevalence_and_thresholds_are_taken(csv_file):
    figures = strict_json(evaluate(csv_file, "--prevalence", 0.03, "--thresholds", "0.25,0.35", "--json").stdout)
    assert [row["threshold"] for row in figures["thresholds"]] == [0.25, 0.35]
    assert 0.03 in [row["prevalence"] for row in figures["predictive_values"]["rows"]]


@pytest.mark.parametrize("wrong", [("--thresholds", "0.1;0.2"), ("--thresholds", "0.5,nan"), ("--prevalence", "57")])
def test_options_that_make_no_sense_are_wrong_usage(csv_file, wrong):
    assert evaluate(csv_file, *wrong).exit_code == 2


def test_a_folder_of_scans_needs_labels_and_an_output(csv_file, tmp_path):
    with pytest.raises(NodeError, match="needs --labels"):
        evaluate(tmp_path, "--output", tmp_path / "out")


def test_a_second_model_is_compared(csv_file, tmp_path):
    shadow = tmp_path / "shadow.csv"
    shadow.write_text(csv_file.read_text(encoding="utf-8").replace(",0.6,0,", ",0.2,0,"), encoding="utf-8")
    figures = strict_json(evaluate(csv_file, "--shadow", shadow, "--output", tmp_path / "out", "--json").stdout)
    assert figures["comparison"]["only_shadow_right"] == 1
    assert "A second model on the same cases" in (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")


def test_a_bad_line_stops_everything_before_a_file_is_written(csv_file, tmp_path):
    csv_file.write_text(csv_file.read_text(encoding="utf-8") + "last,1.5,1,A,50\n", encoding="utf-8")
    with pytest.raises(UnusablePredictions, match=r"^site\.csv, line 10, column probability: 1\.5 is not"):
        evaluate(csv_file, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    figures = strict_json(evaluate(csv_file, "--skip-unusable", "--json").stdout)
    assert figures["left_out"] == ["site.csv, line 10, column probability: 1.5 is not a probability between 0 and 1"]


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_without_the_extra_the_message_says_what_to_install(csv_file, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'dicom-node\[evaluate\]'"):
        evaluate(csv_file, "--output", tmp_path / "out")


def test_the_command_costs_nothing_until_it_is_used():
    code = "import sys, dicom_node.cli.app; sys.exit(bool({'sklearn', 'matplotlib', 'torch'} & set(sys.modules)))"
    run([sys.executable, "-c", code], check=True)
