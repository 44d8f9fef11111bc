"""The queue: leases, fencing, attempts, and the transaction that ends a job."""

import json

import pytest
from sqlalchemy.exc import IntegrityError

from storage import job_state, job_takeover, jobs, results
from storage.errors import IllegalMove, NotFound, StaleLease
from storage.results import NewObject
from tests.storage_factory import ATTEMPTS, LEASE_S, Store, analysed, not_analysed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


@pytest.fixture
def queued(store):
    """One series closed, its job queued at 30."""
    store.receive(1, 2, now=0)
    store.close_due(30)
    return store


def move(store, function, *arguments):
    with store.database.transaction() as tx:
        return function(tx, *arguments)


def test_claiming_counts_the_attempt_and_fences(queued):
    job = queued.claim(31)
    assert (job.attempt, job.fence, job.lease_until) == (1, 1, 31 + LEASE_S)
    assert (job.series_instance_uid, job.study_instance_uid, job.instance_count, job.refusal) == (
        "1.2.3",
        "1.2",
        2,
        None,
    )
    assert queued.states("jobs") == ["RUNNING"]
    assert queued.claim(32) is None


def test_jobs_are_claimed_in_the_order_in_which_they_were_queued(store):
    for number in range(4):
        store.receive(1, now=number, series_uid=f"1.{number}")
    store.close_due(100)
    assert [store.claim(101).series_instance_uid for _ in range(4)] == ["1.0", "1.1", "1.2", "1.3"]


def test_a_job_whose_lease_is_over_goes_to_the_next_worker(queued):
    first = queued.claim(31)
    assert queued.claim(31 + LEASE_S - 0.1) is None
    second = queued.claim(31 + LEASE_S, worker="worker-2")
    assert (second.job_id, second.attempt, second.fence) == (first.job_id, 2, 2)


def test_a_heartbeat_lengthens_the_lease(queued):
    job = queued.claim(31)
    assert move(queued, jobs.heartbeat, job.job_id, job.fence, 80, LEASE_S)
    assert queued.claim(31 + LEASE_S) is None
    assert queued.claim(80 + LEASE_S) is not None
    assert not move(queued, jobs.heartbeat, job.job_id, job.fence, 81, LEASE_S)


def test_a_worker_that_comes_back_late_writes_nothing(queued):
    late = queued.claim(31)
    current = queued.claim(200, worker="worker-2")
    for attempt in (
        lambda: queued.finish(late, 201, "PACS"),
        lambda: move(queued, jobs.fail, late.job_id, late.fence, 201, "why", None),
        lambda: move(queued, jobs.hand_back, late.job_id, late.fence, 201),
    ):
        with pytest.raises(StaleLease):
            attempt()
    assert queued.rows("SELECT * FROM results") == []
    queued.finish(current, 202, "PACS")
    assert queued.states("jobs") == ["REPORTED"]


def test_finishing_twice_is_refused(queued):
    job = queued.claim(31)
    queued.finish(job, 40, "PACS")
    with pytest.raises(StaleLease):
        queued.finish(job, 41, "PACS")
    assert len(queued.rows("SELECT * FROM deliveries")) == 1


def test_a_series_that_kills_its_workers_ends_failed_and_stops_nothing_else(store):
    store.receive(1, now=0, series_uid="1.1")
    store.close_due(30)
    store.receive(1, now=1, series_uid="1.2")
    store.close_due(31)
    now = 40.0
    for attempt in range(1, ATTEMPTS + 1):
        killer = store.claim(now)
        assert (killer.series_instance_uid, killer.attempt) == ("1.1", attempt)
        if attempt == 1:
            store.finish(store.claim(now), now, "PACS")
        now += LEASE_S
    assert store.claim(now) is None
    assert store.states("jobs") == ["FAILED", "REPORTED"]
    [row] = store.rows("SELECT failure_reason FROM jobs WHERE state = 'FAILED'")
    assert row["failure_reason"] == f"out of attempts after {ATTEMPTS}: its worker died or stopped answering"


def test_a_killer_goes_behind_what_waits(store):
    store.receive(1, now=0, series_uid="1.1")
    store.close_due(30)
    assert store.claim(31).series_instance_uid == "1.1"
    store.receive(1, now=32, series_uid="1.2")
    store.close_due(62)
    assert store.claim(31 + LEASE_S).series_instance_uid == "1.2"


def test_an_operator_brings_a_failed_job_back_with_all_attempts(queued):
    job = queued.claim(31)
    move(queued, jobs.fail, job.job_id, job.fence, 32, "the model file is missing", None)
    assert queued.states("jobs") == ["FAILED"]
    move(queued, jobs.retry, job.job_id, 40)
    again = queued.claim(41)
    assert (again.attempt, again.fence) == (1, 2)
    with pytest.raises(IllegalMove):
        move(queued, jobs.retry, job.job_id, 42)
    with pytest.raises(NotFound):
        move(queued, jobs.retry, 999, 42)


def test_a_failed_attempt_is_tried_again_later_and_its_reason_is_kept(queued):
    for attempt in range(ATTEMPTS):
        job = queued.claim(100 * (attempt + 1))
        move(queued, jobs.fail, job.job_id, job.fence, 100 * (attempt + 1), "out of memory", 100 * (attempt + 1) + 50)
        assert queued.claim(100 * (attempt + 1) + 49) is None
    assert queued.claim(1000) is None
    [row] = queued.rows("SELECT state, failure_reason FROM jobs")
    assert row == {"state": "FAILED", "failure_reason": f"out of attempts after {ATTEMPTS}: out of memory"}


def test_a_job_handed_back_loses_no_attempt(queued):
    job = queued.claim(31)
    move(queued, jobs.hand_back, job.job_id, job.fence, 32)
    assert queued.states("jobs") == ["QUEUED"]
    assert queued.claim(33).attempt == 1


def test_a_stop_of_the_node_costs_no_attempt_but_not_for_ever(queued):
    for stop in range(job_takeover.MAX_INTERRUPTIONS):
        assert queued.claim(40 + stop).attempt == 1
        assert move(queued, job_takeover.release_all, 40 + stop) == 1
    assert queued.claim(100).attempt == 1
    move(queued, job_takeover.release_all, 100)
    assert queued.states("jobs") == ["FAILED"]


@pytest.mark.parametrize("jump", [60.0, 3600.0, 1e6])
def test_a_clock_that_jumped_back_leaves_no_job_hanging(store, jump):
    start = 2e6
    store.receive(1, now=start)
    store.close_due(start + 30)
    back = start + 30 - jump
    job = store.claim(back)
    assert job is not None
    assert store.claim(back + LEASE_S - 1) is None
    further = back - jump
    assert store.claim(further) is None, "the worker may be alive: it gets a whole lease by the new clock"
    assert store.claim(further + LEASE_S).attempt == 2


def test_finishing_writes_result_objects_outbox_and_audit_together(queued):
    job = queued.claim(31)
    result_id = queued.finish(job, 40, "PACS", "ARCHIVE", "PACS")
    [row] = queued.rows("SELECT * FROM results")
    assert (row["id"], row["outcome"], row["superseded_at"]) == (result_id, "ANALYSED", None)
    [found], [measured] = queued.rows("SELECT * FROM findings"), queued.rows("SELECT * FROM measurements")
    assert (found["result_id"], found["certainty"]) == (result_id, 0.9)
    assert (measured["result_id"], measured["value"]) == (result_id, 4200.0)
    assert row["pixel_digest"] == "p" * 64
    assert [r["destination"] for r in queued.rows("SELECT destination FROM deliveries ORDER BY id")] == [
        "PACS",
        "ARCHIVE",
    ]
    assert len(queued.rows("SELECT * FROM result_objects")) == 1
    assert queued.events()[-4:] == ["job.reported", "result.recorded", "delivery.pending", "delivery.pending"]


def test_finishing_happens_whole_or_not_at_all(queued):
    job = queued.claim(31)
    same = queued.report("2.25.5")
    again = NewObject("report", "2.25.5", same.sop_class_uid, "2.25.1", queued.files.write_durably([b"x"]))
    with pytest.raises(IntegrityError), queued.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 40, analysed(), [same, again], ["PACS"])
    assert queued.states("jobs") == ["RUNNING"]
    for table in ("results", "result_objects", "deliveries"):
        assert queued.rows(f"SELECT * FROM {table}") == []
    assert queued.events()[-1] == "job.running"


def test_a_slice_that_comes_while_the_job_runs_keeps_its_result_out_of_the_outbox(queued):
    job = queued.claim(31)
    queued.receive(3, now=35)
    assert not move(queued, jobs.heartbeat, job.job_id, job.fence, 36, LEASE_S)
    result_id = queued.finish(job, 40, "PACS")
    assert queued.states("jobs") == ["SUPERSEDED"]
    assert queued.rows("SELECT * FROM deliveries") == []
    assert queued.rows("SELECT id, superseded_at FROM results") == [{"id": result_id, "superseded_at": 40.0}]
    with pytest.raises(StaleLease):
        queued.finish(job, 41, "PACS")


def test_a_report_that_was_never_sent_is_not_a_predecessor(store):
    store.reported("PACS")
    store.receive(3, now=50)
    store.close_due(80)
    second = store.claim(81)
    assert move(store, results.previous_result, second.series_pk) is None


def test_a_report_that_may_be_at_a_destination_is_the_predecessor(store):
    from storage import deliveries

    first = store.reported("PACS")
    [sending] = move(store, deliveries.claim, "PACS", 40, LEASE_S)
    store.receive(3, now=50)
    store.close_due(80)
    store.finish(store.claim(81), 82, "PACS")
    store.receive(4, now=90)
    previous = move(store, results.previous_result, 1)
    assert (previous.result_id, previous.revision) == (first, 1), "the second was superseded before it was sent"
    assert previous.report == sending.objects[0]


def test_a_report_whose_delivery_was_retried_may_be_at_the_destination_all_the_same(store):
    """An operator's retry counts the attempts from 0 again; that does not unsend what an earlier one sent."""
    from storage import deliveries

    first = store.reported("PACS")
    [sending] = move(store, deliveries.claim, "PACS", 40, LEASE_S)
    move(store, deliveries.fail, sending.delivery_id, sending.fence, 41, "segmentation: status 0xA900")
    with store.database.transaction() as tx:
        deliveries.retry(tx, sending.delivery_id, 42)
    store.receive(3, now=50)
    assert store.states("deliveries") == ["SUPERSEDED"]
    assert move(store, results.previous_result, 1).result_id == first


def test_a_new_report_supersedes_the_one_before_it(store):
    first = store.reported("PACS")
    store.receive(3, now=50)
    store.close_due(80)
    second = store.finish(store.claim(81), 82, "PACS")
    assert store.rows("SELECT id FROM results WHERE superseded_at IS NULL") == [{"id": second}]
    assert first != second
    assert store.states("deliveries") == ["SUPERSEDED", "PENDING"]


def test_a_series_not_analysed_has_a_reason_and_no_probability(queued):
    job = queued.claim(31)
    with queued.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 40, not_analysed("GAP", "A slice is missing."), [], [])
    [row] = queued.rows("SELECT * FROM results")
    assert (row["outcome"], row["reason_code"]) == ("NOT_ANALYSED", "GAP")
    assert queued.rows("SELECT * FROM findings") == queued.rows("SELECT * FROM measurements") == []


@pytest.mark.parametrize(
    "bad",
    [
        {"outcome": "NOT_ANALYSED"},
        {"reason_code": "GAP"},
        {"outcome": "MAYBE"},
    ],
)
def test_the_database_itself_refuses_a_result_that_contradicts_itself(queued, bad):
    from dataclasses import replace

    job = queued.claim(31)
    with pytest.raises(IntegrityError), queued.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 40, replace(analysed(), **bad), [], [])


def test_states_that_nothing_leaves_are_final():
    left = {state for froms in job_state.TRANSITIONS.values() for state in froms}
    assert set(job_state.JobState) - left == {job_state.JobState.REPORTED, job_state.JobState.SUPERSEDED}
    assert set(job_state.TRANSITIONS) == set(job_state.JobState)


def test_the_audit_row_of_a_result_is_short_and_seals_what_the_result_says(queued):
    queued.finish(queued.claim(31), 32, "PACS")
    [row] = queued.rows("SELECT detail FROM audit WHERE event = 'result.recorded'")
    assert len(row["detail"]) < 160
    noted = json.loads(row["detail"])["content_sha256"]

    def now() -> str:
        with queued.database.read() as tx:
            return results.content_sha256(tx, 1)

    assert now() == noted
    for tampering in (
        "UPDATE findings SET certainty = 0.1",
        "UPDATE measurements SET value = 1",
        "UPDATE codes SET meaning = 'other'",
        "UPDATE model_weights SET sha256 = 'other'",
        "UPDATE result_objects SET sha256 = 'other'",
    ):
        with queued.database.transaction() as tx:
            tx.exec_driver_sql(tampering)
        assert now() != noted
        noted = now()
