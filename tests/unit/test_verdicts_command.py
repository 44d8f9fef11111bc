"""`dicom-node verdicts export` and `evaluate node --verdicts`: labels and agreement from what readers said."""

import csv
import io
import json
import stat
import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from typer.testing import CliRunner

from dicom_node.cli.app import app
from dicom_node.runtime.index import who
from inference.evaluation.agreement import Judged, agreements, disagreements
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
    assert "Readers agree with 4 of 6 results that they judge; below 50, no rate is given." in text
    assert "not the model's accuracy" in text
    found = {one["name"]: one for one in json.loads(run(node, "evaluate", "node", "--verdicts", "--json").stdout)}
    whole = found["all"]
    assert (whole["agree"], whole["disagree"], whole["cannot_say"], whole["cases"]) == (4, 2, 1, 5)
    assert (whole["share"], whole["interval"], whole["kappa"]) == (None, None, None)
    assert (found["the model says positive"]["agree"], found["the model says positive"]["disagree"]) == (3, 2)
    assert found["reader ben"]["agree"] == 1
    apart = found["disagreements"]["of"]
    assert [(one["result"], one["reader"], one["model_says"], one["reader_says"]) for one in apart] == [
        (2, "anna", "positive", "negative"),
        (3, "ben", "positive", "negative"),
    ]
    assert "To look at again: 2 verdicts" in text and "secret" not in text and "P0" not in text
    assert found["model demo 1"]["verdicts"] == 7


def test_without_verdicts_it_says_so(node):
    assert "No reader has given a verdict yet." in run(node, "evaluate", "node", "--verdicts").stdout
    assert run(node, "verdicts", "export").stdout.strip() == "case,label,patient,verdicts"


def test_labels_of_a_file_are_judged_like_a_reader_who_has_not_seen_the_results(node, tmp_path):
    (tmp_path / "truth.csv").write_text("case,label,report\n1.2.0.1,1,secret words\n1.2.1.1,0,secret words\n9.9,1,-\n")
    arguments = ("evaluate", "node", "--verdicts", "--labels", str(tmp_path / "truth.csv"), "--json")
    done = run(node, *arguments)
    found = {one["name"]: one for one in json.loads(done.stdout)}
    whole = found["reader (labels) truth.csv"]
    assert (whole["cases"], whole["agree"], whole["disagree"]) == (2, 1, 1)
    assert found["disagreements"]["of"][0]["result"] == 2
    assert "secret" not in done.output


def many(count, agree, positive=True, **groups):
    """`count` verdicts on results of one sign, of which `agree` agree."""
    return [
        Judged(f"{positive}{groups}{n}", "anna", "m", n < agree, positive, positive is (n < agree), groups)
        for n in range(count)
    ]


def test_rates_kappa_and_subgroups_come_with_intervals_from_fifty_verdicts_on():
    rows = many(60, 50, sex="female") + many(40, 36, positive=False, sex="male")
    found = {one.name: one for one in agreements(rows)}
    assert found["all"].share == pytest.approx(0.86)
    assert found["all"].interval.low == pytest.approx(wilson(86, 100).low)
    said = [row.positive for row in rows], [row.label for row in rows]
    assert found["all"].kappa == pytest.approx(cohen_kappa_score(*said))
    draws = np.random.default_rng(1).integers(0, 100, (4000, 100))
    signs = np.array(said)[:, draws]
    agreed = (signs[0] == signs[1]).mean(1)
    share = signs.mean(2)
    chance = share[0] * share[1] + (1 - share[0]) * (1 - share[1])
    low, high = np.quantile((agreed - chance) / (1 - chance), (0.025, 0.975))
    assert found["all"].kappa_interval.low == pytest.approx(low, abs=0.03)
    assert found["all"].kappa_interval.high == pytest.approx(high, abs=0.03)
    assert found["sex female"].share == pytest.approx(50 / 60)
    assert (found["sex male"].share, found["sex male"].agree) == (None, 36), "forty verdicts are too few for a rate"


def test_where_both_say_one_thing_only_there_is_no_kappa():
    assert agreements(many(60, 60))[0].kappa is None


def test_disagreements_on_positive_results_come_first():
    rows = many(3, 2, positive=False) + many(3, 2)
    assert [row.positive for row in disagreements(rows)] == [True, False]


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
