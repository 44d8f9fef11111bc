"""`dicom-node verdicts export` and `evaluate node --verdicts`: labels and agreement from what readers said."""

import csv
import io
import json
import stat
import time

import pytest
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.runtime.index import who
from inference.evaluation.agreement import Judged, agreements
from inference.evaluation.intervals import wilson
from inference.evaluation.predictions import read_labels
from storage.verdicts import record_verdict, verdicts_on
from tests.storage_factory import Store


@pytest.fixture
def node(tmp_path):
    """A node with five results, one for each series; the first three are positive."""
    with Store(tmp_path, f"sqlite:///{tmp_path}/index.sqlite") as store:
        for number in range(5):
            uid = f"1.2.{number}"
            store.receive(1, now=100.0 * number, series_uid=f"{uid}.1", study_uid=uid, patient_id=f"P{number // 2}")
            store.close_due(100.0 * number + 30)
            store.finish(store.claim(100.0 * number + 30), 100.0 * number + 31, probability=0.9 if number < 3 else 0.1)
        yield store


def give(store, *verdicts):
    with store.database.transaction() as tx:
        for result_id, reader, verdict, opinion in verdicts:
            record_verdict(tx, result_id, reader, verdict, opinion, "=secret words", time.time())


def run(node, *arguments):
    environment = {"DICOM_NODE_DATA_DIR": str(node.folder), "DICOM_NODE_STORAGE__DATABASE_URL": node.url}
    done = CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


GIVEN = [
    (1, "anna", "AGREES", None),
    (1, "ben", "AGREES", None),
    (2, "anna", "DISAGREES", None),
    (3, "anna", "AGREES", None),
    (3, "ben", "DISAGREES", None),
    (4, "anna", "AGREES", None),
    (5, "anna", "CANNOT_SAY", None),
]


def test_the_labels_are_those_that_the_readers_agree_on(node):
    give(node, *GIVEN)
    done = run(node, "verdicts", "export")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["case"], row["label"], row["patient"], row["verdicts"]) for row in rows] == [
        ("1.2.0.1", "1", "1", "2"),
        ("1.2.1.1", "0", "1", "1"),
        ("1.2.3.1", "0", "2", "1"),
    ]
    assert "1 series left out: their readers differ" in done.stderr
    assert "1 series left out: no reader says what they are" in done.stderr
    assert "secret" not in done.output
    assert "P0" not in done.output


def test_the_file_is_for_evaluate_and_for_its_owner_alone(node, tmp_path):
    give(node, *GIVEN)
    file = tmp_path / "labels.csv"
    run(node, "verdicts", "export", "--reader", "anna", "--output", str(file))
    assert {case: row.roles["label"] for case, row in read_labels(file).rows.items()} == {
        "1.2.0.1": "1",
        "1.2.1.1": "0",
        "1.2.2.1": "1",
        "1.2.3.1": "0",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "operator.read" in node.events()


def test_a_later_verdict_changes_the_label(node):
    give(node, *GIVEN)
    give(node, (1, "anna", "DISAGREES", None), (1, "ben", "CANNOT_SAY", "NEGATIVE"))
    rows = json.loads(run(node, "verdicts", "export", "--json").stdout)
    assert next(row["label"] for row in rows if row["case"] == "1.2.0.1") == 0


def test_how_often_readers_agree_has_an_interval(node):
    give(node, *GIVEN)
    text = run(node, "evaluate", "node", "--verdicts").stdout
    assert "Readers agree with 66.7% of the results that they judge (95% 30.0 to 90.3, Wilson)." in text
    assert "not the model's accuracy" in text
    found = {one["name"]: one for one in json.loads(run(node, "evaluate", "node", "--verdicts", "--json").stdout)}
    whole = found["all"]
    assert (whole["agree"], whole["disagree"], whole["cannot_say"], whole["cases"]) == (4, 2, 1, 5)
    assert whole["interval"]["low"] == pytest.approx(wilson(4, 6).low)
    assert found["the model says positive"]["share"] == pytest.approx(3 / 5)
    assert found["reader ben"]["agree"] == 1
    assert found["model demo 1"]["verdicts"] == 7


def test_without_verdicts_it_says_so(node):
    assert "No reader has given a verdict yet." in run(node, "evaluate", "node", "--verdicts").stdout
    assert run(node, "verdicts", "export").stdout.strip() == "case,label,patient,verdicts"


def test_of_readers_who_cannot_say_there_is_no_share():
    (whole, *_) = agreements([Judged("a", "anna", "m", None, True)])
    assert (whole.share, whole.interval, whole.cannot_say) == (None, None, 1)


def test_a_verdict_is_given_under_the_name_of_the_user_and_its_text_is_not_audited(node):
    arguments = ("verdicts", "give", "1", "--verdict", "disagrees", "--opinion", "negative", "--text", "secret words")
    assert "Your verdict on result 1 is kept: disagrees." in run(node, *arguments).stdout
    with node.database.read() as tx:
        [kept] = verdicts_on(tx, 1)
    assert (kept.reader, kept.verdict, kept.own_opinion, kept.text) == (who(), "DISAGREES", "NEGATIVE", "secret words")
    [row] = node.rows("SELECT detail FROM audit WHERE event = 'verdict.given'")
    assert "secret" not in row["detail"]
