"""Readers' verdicts: the latest of each reader counts, none is lost, and no result or report changes."""

import pytest
from sqlalchemy.exc import IntegrityError

from storage import jobs, results, verdicts
from storage.errors import NotFound, UnusableVerdict
from storage.models import verdicts as verdict_table
from storage.verdicts import Opinion, Verdict, labelled_results, record_verdict, verdicts_on
from tests.storage_factory import Store, not_analysed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def give(store, result_id, reader, verdict, opinion=None, text="", now=100.0):
    with store.database.transaction() as tx:
        return record_verdict(tx, result_id, reader, verdict, opinion, text, now)


def on(store, result_id, **how):
    with store.database.read() as tx:
        return verdicts_on(tx, result_id, **how)


def test_the_latest_verdict_of_each_reader_counts_and_the_former_ones_are_kept(store):
    result_id = store.reported()
    give(store, result_id, "anna", "AGREES", now=100.0)
    give(store, result_id, "ben", "CANNOT_SAY", now=110.0)
    give(store, result_id, "anna", "DISAGREES", "NEGATIVE", "artefact", now=120.0)
    assert [(one.reader, one.verdict, one.own_opinion, one.text) for one in on(store, result_id)] == [
        ("ben", Verdict.CANNOT_SAY, None, ""),
        ("anna", Verdict.DISAGREES, Opinion.NEGATIVE, "artefact"),
    ]
    first, *_ = on(store, result_id, history=True)
    assert (first.reader, first.verdict, first.replaced_at) == ("anna", "AGREES", 120.0)
    standings = store.rows("SELECT reader, verdict, standing FROM reader_verdicts ORDER BY verdict_id")
    assert [row["standing"] for row in standings] == ["replaced", "current", "current"]


def test_a_verdict_changes_no_result_and_no_report(store):
    result_id = store.reported("PACS")
    with store.database.read() as tx:
        before = results.content_sha256(tx, result_id), results.get_result(tx, result_id)
    states = store.states("deliveries"), store.states("jobs"), store.states("series")
    give(store, result_id, "anna", "DISAGREES")
    with store.database.read() as tx:
        assert (results.content_sha256(tx, result_id), results.get_result(tx, result_id)) == before
    assert (store.states("deliveries"), store.states("jobs"), store.states("series")) == states


def test_the_audit_says_who_gave_which_verdict_and_seals_the_text_without_holding_it(store):
    result_id = store.reported()
    give(store, result_id, "anna", "DISAGREES", "NEGATIVE", "Mr Smith moved")
    [row] = store.rows("SELECT * FROM audit WHERE event = 'verdict.given'")
    assert (row["result_id"], row["patient_id"], row["series_uid"]) == (result_id, "P1", "1.2.3")
    assert row["outcome"] == "DISAGREES"
    assert '"reader": "anna"' in row["detail"]
    assert "Smith" not in str(row)
    assert "text_sha256" in row["detail"]


def test_a_verdict_and_its_audit_row_come_together_or_not_at_all(store):
    result_id = store.reported()
    with pytest.raises(RuntimeError), store.database.transaction() as tx:
        record_verdict(tx, result_id, "anna", "AGREES", None, "", 100.0)
        raise RuntimeError
    assert on(store, result_id) == []
    assert "verdict.given" not in store.events()


@pytest.mark.parametrize(
    ("verdict", "opinion", "reader", "text"),
    [
        ("AGREES", "NEGATIVE", "anna", ""),  # the model said positive
        ("DISAGREES", "POSITIVE", "anna", ""),
        ("MAYBE", None, "anna", ""),
        ("AGREES", "PERHAPS", "anna", ""),
        ("AGREES", None, "", ""),
        ("AGREES", None, "anna", "x" * 4001),
    ],
)
def test_a_verdict_that_cannot_be_meant_is_refused(store, verdict, opinion, reader, text):
    result_id = store.reported()
    with pytest.raises(UnusableVerdict):
        give(store, result_id, reader, verdict, opinion, text)
    assert on(store, result_id) == []


def test_a_verdict_on_no_result_is_refused(store):
    with pytest.raises(NotFound):
        give(store, 4711, "anna", "AGREES")


def test_the_database_itself_keeps_one_verdict_of_a_reader_that_counts(store):
    result_id = store.reported()
    give(store, result_id, "anna", "AGREES")
    row = {"result_id": result_id, "reader": "anna", "verdict": "AGREES", "text": "", "given_at": 1.0}
    with pytest.raises(IntegrityError), store.database.transaction() as tx:
        tx.execute(verdict_table.insert().values(row))


@pytest.mark.parametrize(
    ("probability", "verdict", "opinion", "label"),
    [
        (0.9, "AGREES", None, True),
        (0.9, "DISAGREES", None, False),
        (0.1, "AGREES", None, False),
        (0.1, "DISAGREES", None, True),
        (0.9, "CANNOT_SAY", None, None),
        (0.9, "CANNOT_SAY", "NEGATIVE", False),
    ],
)
def test_a_verdict_is_a_label_of_the_scan(store, probability, verdict, opinion, label):
    store.receive(1, now=0.0)
    store.close_due(30.0)
    result_id = store.finish(store.claim(30.0), 30.0, probability=probability)
    give(store, result_id, "anna", verdict, opinion)
    with store.database.read() as tx:
        [one] = labelled_results(tx)
    assert (one.label, one.series_instance_uid, one.model) == (label, "1.2.3", "demo 1")


def test_a_series_that_was_not_analysed_has_a_label_only_from_the_reader(store):
    store.receive(1, now=0.0)
    store.close_due(30.0)
    job = store.claim(30.0)
    with store.database.transaction() as tx:
        result_id = jobs.finish(tx, job.job_id, job.fence, 31.0, not_analysed("NOT_CHEST", "No lungs."), [], [])
    give(store, result_id, "anna", "AGREES")
    give(store, result_id, "ben", "DISAGREES", "POSITIVE")
    with store.database.read() as tx:
        assert {one.given.reader: one.label for one in labelled_results(tx)} == {"anna": None, "ben": True}
        assert [one.given.reader for one in labelled_results(tx, reader="ben")] == ["ben"]
    assert verdicts.label_of("AGREES", None, None) is None
