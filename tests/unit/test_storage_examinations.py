"""Which earlier result of a patient counts, and that it can be shown which one was used."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import text

from storage import examinations, jobs, results
from storage.audit_check import check
from storage.examinations import Examination, change_of, earlier_ids, earlier_result
from tests.storage_factory import MODEL, QUIET_S, Store, analysed

JANE = Examination("jane", MODEL.name, "2025-06-01", {"kernel": "B30f"})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def scanned(store, number, day, *, person="jane", model=MODEL, study=None, compared_with=None, said=(), shadow=False):
    """One series of a patient, reported and noted. Returns (number of the series, id of the result)."""
    now = 1000.0 * number
    store.receive(1, now=now, series_uid=f"1.{number}", study_uid=study or f"2.{number}")
    store.close_due(now + QUIET_S, model)
    job = store.claim(now + QUIET_S)
    result = replace(analysed(), model_name=model.name, model_digest=model.digest)
    with store.database.transaction() as tx:
        if shadow:
            tx.execute(text("UPDATE jobs SET shadow = TRUE WHERE id = :id"), {"id": job.job_id})
        result_id = jobs.finish(tx, job.job_id, job.fence, now + 40, result, [store.report()], [])
        examined = Examination(person, model.name, day, {"kernel": "B30f"})
        examinations.record(tx, now + 40, result_id, examined, compared_with, said)
    return job.series_pk, result_id


def found(store, series_pk, examination=JANE, **how):
    with store.database.transaction() as tx:
        return earlier_ids(tx, series_pk, examination, **how)


def test_the_results_of_the_latest_earlier_day_count_and_no_others(store):
    scanned(store, 1, "2023-01-01")
    _, first = scanned(store, 2, "2024-01-01")
    _, second = scanned(store, 3, "2024-01-01", study="2.2")
    scanned(store, 4, "2026-01-01")
    scanned(store, 5, "2025-01-01", person="john")
    scanned(store, 6, "2025-01-01", model=replace(MODEL, name="other", digest="other"))
    scanned(store, 7, "2025-01-02", shadow=True)
    series_pk, _ = scanned(store, 8, "2025-06-01")
    assert found(store, series_pk) == (second, first)
    assert found(store, series_pk, locked=True) == (second, first)
    assert found(store, series_pk, replace(JANE, person="nobody")) == ()


def test_another_series_of_the_same_study_is_not_an_earlier_scan_even_past_midnight(store):
    scanned(store, 1, "2025-05-31", study="2.1")
    series_pk, _ = scanned(store, 2, "2025-06-01", study="2.1")
    assert found(store, series_pk) == ()


def test_a_result_that_was_replaced_does_not_count(store):
    _, older = scanned(store, 1, "2023-01-01")
    earlier_pk, latest = scanned(store, 2, "2024-01-01")
    series_pk, _ = scanned(store, 3, "2025-06-01")
    assert found(store, series_pk) == (latest,)
    with store.database.transaction() as tx:
        results.supersede(tx, earlier_pk, 9000.0)
    assert found(store, series_pk) == (older,)


def test_an_earlier_result_is_given_with_all_that_it_says(store):
    _, result_id = scanned(store, 1, "2024-01-01")
    with store.database.read() as tx:
        earlier = earlier_result(tx, result_id)
        assert earlier.content == results.get_result(tx, result_id)["content"] and earlier.content.measurements
    assert (earlier.day, earlier.scan, earlier.study_instance_uid) == ("2024-01-01", {"kernel": "B30f"}, "2.1")
    assert (earlier.model_name, earlier.model_digest) == (MODEL.name, MODEL.digest)
    assert earlier.report is not None and earlier.report.kind == "report"


def test_which_earlier_result_was_used_and_what_was_said_stays_on_record(store):
    earlier_pk, earlier = scanned(store, 1, "2024-01-01")
    said = ("Since 2024-01-01 (517 days): more.", "The scans differ in kernel.")
    _, result_id = scanned(store, 2, "2025-06-01", compared_with=earlier, said=said)
    with store.database.read() as tx:
        change = change_of(tx, result_id)
        assert change_of(tx, earlier) is None
    assert (change.earlier_id, change.said, change.replaced) == (earlier, said, False)
    assert change.examination == JANE
    [row] = store.rows("SELECT * FROM audit WHERE event = 'result.compared'")
    assert (row["result_id"], row["patient_id"], row["series_uid"]) == (result_id, "P1", "1.2")
    assert json.loads(row["detail"]) == change.seal and change.seal["earlier_result"] == earlier
    with store.database.transaction() as tx:
        results.supersede(tx, earlier_pk, 9000.0)
    with store.database.read() as tx:
        assert change_of(tx, result_id).replaced


@pytest.mark.parametrize("tampering", ["earlier_id = NULL", "said = '[\"better\"]'", "earlier_id = 2"])
def test_a_change_that_is_altered_in_the_index_shows_in_the_audit_trail(store, tampering):
    _, earlier = scanned(store, 1, "2024-01-01")
    _, result_id = scanned(store, 2, "2025-06-01", compared_with=earlier, said=("more",))
    with store.database.transaction() as tx:
        assert check(tx).problems == ()
        tx.execute(text(f"UPDATE examinations SET {tampering} WHERE result_id = :id"), {"id": result_id})
    with store.database.read() as tx:
        assert f"result {result_id}: its change since an earlier result was altered" in check(tx).problems[0]
