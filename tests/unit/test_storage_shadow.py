"""A shadow model: computed and audited beside the model that reports, and never sent."""

import json
from dataclasses import replace

import pytest

from config.reasons import Refusal
from storage import jobs, quiet_time, retention, series
from storage.jobs import ClaimedJob, ModelRef
from storage.status import status
from tests.storage_factory import MODEL, QUIET_S, Store, analysed

CANDIDATE = ModelRef("demo", "2", "model-digest-2")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def close(store: Store, now: float, **how: object) -> None:
    with store.database.transaction() as tx:
        for due in quiet_time.due_series(tx, now):
            series.close_series(tx, due.series_pk, now, series.Closing(MODEL, shadow=CANDIDATE, **how))


def finish(store: Store, job: ClaimedJob, now: float, probability: float) -> int:
    """What a worker would hand in at worst: with a report and destinations, whatever kind of job it is."""
    result = replace(analysed(probability), model_version=job.model.version, model_digest=job.model.digest)
    with store.database.transaction() as tx:
        return jobs.finish(tx, job.job_id, job.fence, now, result, [store.report()], ["PACS"])


def both(store: Store) -> tuple[int, int]:
    """One series reported, and computed by the shadow model. Returns both results' ids."""
    store.receive(1, 2, now=0)
    close(store, QUIET_S)
    first, second = store.claim(QUIET_S), store.claim(QUIET_S)
    return finish(store, first, 31, 0.9), finish(store, second, 32, 0.2)


def test_reporting_jobs_are_claimed_before_shadow_jobs_that_wait_longer(store):
    store.receive(1, now=0)
    close(store, QUIET_S)
    store.receive(1, now=40, series_uid="9.9")
    close(store, 40 + QUIET_S)
    claimed = [store.claim(200) for _ in range(4)]
    assert [(job.shadow, job.series_instance_uid) for job in claimed] == [
        (False, "1.2.3"),
        (False, "9.9"),
        (True, "1.2.3"),
        (True, "9.9"),
    ]
    assert {job.model for job in claimed if job.shadow} == {CANDIDATE}


def test_a_shadow_result_is_kept_and_audited_and_sent_nowhere(store):
    reported, shadow = both(store)
    assert [row["result_id"] for row in store.rows("SELECT * FROM deliveries")] == [reported]
    assert [row["result_id"] for row in store.rows("SELECT * FROM result_objects")] == [reported]
    standing = store.rows("SELECT result_id, model_version, standing, probability FROM model_results ORDER BY 1")
    assert [tuple(row.values()) for row in standing] == [(reported, "1", "current", 0.9), (shadow, "2", "shadow", 0.2)]
    [row] = store.rows("SELECT detail FROM audit WHERE event = 'result.recorded' AND result_id = :id", id=shadow)
    detail = json.loads(row["detail"])
    assert (detail["shadow"], detail["model"]) == (True, "demo 2")
    with store.database.read() as tx:
        counted = status(tx, 100)["results"]
    assert counted == {"ANALYSED": 1, "NOT_ANALYSED": 0, "SHADOW": 1}


def test_the_series_shows_the_reported_result_whichever_came_last(store):
    both(store)
    with store.database.read() as tx:
        [shown] = series.list_series(tx)
    assert (shown.probability, shown.job_state) == (0.9, "REPORTED")


def test_a_series_that_only_the_shadow_has_analysed_has_no_outcome(store):
    store.receive(1, now=0)
    close(store, QUIET_S)
    first, second = store.claim(QUIET_S), store.claim(QUIET_S)
    finish(store, second, 31, 0.2)
    with store.database.transaction() as tx:
        jobs.fail(tx, first.job_id, first.fence, 32, "the model file is missing", None)
    [waiting] = store.rows("SELECT * FROM series_without_outcome")
    assert waiting["waits_for"] == "failed: the model file is missing"
    assert store.rows("SELECT * FROM turnaround_per_day") == []
    with store.database.read() as tx:
        assert retention.finished_series(tx, 1e9) == ([], None)


def test_a_late_slice_supersedes_both(store):
    both(store)
    store.receive(3, now=50)
    assert {row["standing"] for row in store.rows("SELECT standing FROM model_results")} == {"superseded"}
    close(store, 50 + QUIET_S)
    assert [store.claim(90).shadow, store.claim(90).shadow] == [False, True]


def test_the_shadow_model_made_the_reporting_one_reports_the_same_input(store):
    both(store)
    with store.database.transaction() as tx:
        series.close_series(tx, 1, 60, series.Closing(CANDIDATE))
    job = store.claim(61)
    assert (job.shadow, job.model) == (False, CANDIDATE)
    finish(store, job, 62, 0.2)
    rows = store.rows("SELECT model_version, standing FROM model_results ORDER BY result_id")
    assert [tuple(row.values()) for row in rows] == [("1", "superseded"), ("2", "shadow"), ("2", "current")]


def test_a_series_refused_before_analysis_is_not_shadowed(store):
    store.receive(1, now=0)
    close(store, QUIET_S, refusal=Refusal("MISSING_SLICES", "1 of 9 missing."))
    assert store.claim(60).refusal == Refusal("MISSING_SLICES", "1 of 9 missing.")
    assert store.claim(60) is None
