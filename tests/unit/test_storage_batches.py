"""Batches: a lane of their own, results that stay apart, and exactly one outcome for each case."""

import contextlib
import json
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from config.reasons import ReasonCode, Refusal
from config.settings import BatchSettings, Settings
from dicom_node.analysis.worker import Worker
from dicom_node.batch.creating import Creator, read_source
from dicom_node.batch.feeder import Feeder
from dicom_node.batch.labels import CaseLabels
from dicom_node.cli import processes
from dicom_node.runtime.supervisor import children_of
from storage import batch_cases, batches, jobs, reopening, results, retention, series, study_results, tallies
from storage.audit_check import check
from storage.batches import BatchState, NewBatch
from storage.errors import IllegalMove
from storage.jobs import ModelRef
from storage.status import status
from tests.storage_factory import MODEL, Store, analysed, not_analysed

OTHER = ModelRef("other", "1", "model-digest-2")
NOW = time.time() - 100_000


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as made:
        yield made


def settings_of(store, **batch):
    return Settings(data_dir=store.folder, batch=BatchSettings(enabled=True, **batch))


def feeder(store, **batch):
    return Feeder(settings_of(store, **batch), store.database, store.files, threading.Event())


def closed_series(store, count, model=None):
    """Closed series of the index, without a live job unless a model is given."""
    for number in range(count):
        store.receive(
            1, 2, now=NOW, series_uid=f"1.2.{number + 1}", study_uid=f"1.{number + 1}", patient_id=f"P{number}"
        )
    store.close_due(NOW + 100, model)


def created(store, source="store", model=OTHER, labels=None, start=True):
    settings = settings_of(store)
    wanted = read_source(source, settings)
    new = NewBatch(wanted.kind, wanted.query, model)
    with store.database.transaction() as tx:
        half = batches.half_created(tx, new)
        batch_id = half.id if half else batches.create(tx, new, NOW, "somebody")
        batch = batches.get(tx, batch_id)
    Creator(settings, store.database, labels or CaseLabels()).fill(batch, wanted)
    if start:
        with store.database.transaction() as tx:
            batches.bring_to(tx, batch_id, BatchState.RUNNING, NOW, "somebody")
    return batch_id


def claim(store, now=None, *, batch=True):
    with store.database.transaction() as tx:
        return jobs.claim(tx, "w", now or time.time(), 60.0, 3, batches=batch)


def finish(store, job, result=None):
    model = {"model_name": job.model.name, "model_version": job.model.version, "model_digest": job.model.digest}
    with store.database.transaction() as tx:
        said = replace(result or analysed(), **model)
        return jobs.finish(tx, job.job_id, job.fence, time.time(), said, [], ["pacs"])


def work_through(store, feeding, most=100):
    for _ in range(most):
        feeding.step()
        job = claim(store)
        if job is None:
            break
        finish(store, job)
    feeding.step()


def record(store, batch_id):
    with store.database.read() as tx:
        return batches.get(tx, batch_id)


def test_each_series_of_the_store_gets_one_result_and_nothing_is_sent(store):
    closed_series(store, 5)
    batch_id = created(store)
    work_through(store, feeder(store, ahead=2))
    done = record(store, batch_id)
    assert (done.state, done.cases, done.done, done.queued, done.without_result) == (BatchState.DONE, 5, 5, 0, 0)
    assert store.rows("SELECT count(*) AS n, count(DISTINCT series_pk) AS s FROM results") == [{"n": 5, "s": 5}]
    assert store.rows("SELECT id FROM deliveries") == store.rows("SELECT id FROM result_objects") == []
    assert len(store.rows("SELECT 1 FROM batch_results WHERE outcome = 'ANALYSED' AND probability = 0.9")) == 5
    with store.database.read() as tx:
        assert check(tx).problems == ()
        assert tallies.differences(tx) == {}


def test_a_live_series_comes_first_and_a_reserved_worker_never_takes_a_batch_up(store):
    closed_series(store, 3)
    created(store)
    feeder(store).step()
    store.receive(1, now=NOW, series_uid="1.9", study_uid="1.99")
    store.close_due(NOW + 100)
    live = claim(store)
    assert (live.series_instance_uid, live.batch_id) == ("1.9", None)
    assert claim(store, batch=False) is None
    assert claim(store).batch_id == 1


def test_what_a_live_report_says_is_the_same_with_a_batch_and_without(store):
    store.receive(1, now=NOW, series_uid="1.1", study_uid="1")
    store.receive(1, now=NOW, series_uid="1.2", study_uid="1")
    store.close_due(NOW + 100)
    for _ in range(2):
        store.finish(claim(store), NOW + 120, "pacs")
    before = seen(store)
    created(store)
    work_through(store, feeder(store))
    assert store.rows("SELECT count(*) AS n FROM results WHERE batch_id = 1") == [{"n": 2}]
    assert seen(store) == before
    assert store.rows("SELECT superseded_at FROM results") == [{"superseded_at": None}] * 4


def seen(store):
    """What anything live shows, and what a report would name."""
    views = ("model_results", "result_measurements", "turnaround_per_day", "failures_by_cause", "delivery_overview")
    with store.database.read() as tx:
        shown = status(tx, NOW)
        shown.pop("batches_running")
        said = [results.previous_result(tx, 1), study_results.others(tx, 2), results.all_current_of(tx, 1)]
        said += [results.latest_of_series(tx, "1.1"), series.list_series(tx), shown]
    return [*said, *(store.rows(f"SELECT * FROM {view}") for view in views)]


def test_the_same_batch_again_takes_no_worker(store):
    closed_series(store, 4)
    created(store)
    work_through(store, feeder(store))
    again = created(store)
    feeding = feeder(store)
    feeding.step()
    feeding.step()
    assert claim(store) is None
    assert (record(store, again).state, record(store, again).done) == (BatchState.DONE, 4)
    assert store.rows("SELECT count(*) AS n FROM jobs") == [{"n": 4}]


def test_what_was_reported_live_with_this_model_is_taken_as_it_is(store):
    closed_series(store, 1, OTHER)
    live = store.finish(claim(store), NOW + 100, "pacs")
    batch_id = created(store)
    feeding = feeder(store)
    feeding.step()
    feeding.step()
    assert record(store, batch_id).done == 1
    assert store.rows("SELECT result_id FROM batch_cases") == [{"result_id": live}]


def test_a_creation_that_was_interrupted_goes_on_and_lists_nothing_twice(store, monkeypatch):
    closed_series(store, 7)
    monkeypatch.setattr("dicom_node.batch.creating.AT_ONCE", 2)
    add, calls = batches.add_cases, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*arguments)

    monkeypatch.setattr(batches, "add_cases", dies)
    with pytest.raises(KeyboardInterrupt):
        created(store)
    assert record(store, 1).state == BatchState.CREATING
    assert created(store) == 1
    assert (record(store, 1).cases, record(store, 1).waiting) == (7, 7)
    assert store.rows("SELECT count(*) AS n FROM batch_cases") == [{"n": 7}]


def test_paused_nothing_more_is_claimed_and_resumed_it_goes_on(store):
    closed_series(store, 3)
    batch_id = created(store)
    feeding = feeder(store)
    feeding.step()
    with store.database.transaction() as tx:
        batches.bring_to(tx, batch_id, BatchState.PAUSED, NOW, "somebody")
    assert claim(store) is None
    with store.database.transaction() as tx:
        batches.bring_to(tx, batch_id, BatchState.RUNNING, NOW, "somebody")
    work_through(store, feeding)
    assert record(store, batch_id).done == 3


def test_cancelled_its_jobs_are_withdrawn_but_not_those_that_another_batch_wants(store):
    closed_series(store, 3)
    first = created(store)
    feeding = feeder(store)
    feeding.step()
    second = created(store, "store Modality=C?")
    feeding.step()
    with store.database.transaction() as tx:
        batches.bring_to(tx, first, BatchState.CANCELLED, time.time(), "somebody")
        while batch_cases.withdraw(tx, first, time.time()):
            pass
    work_through(store, feeding)
    assert record(store, second).done == 3
    ended = record(store, first)
    assert (ended.state, ended.queued) == (BatchState.CANCELLED, 0)
    third = created(store, "store Modality=CT")
    work_through(store, feeding)
    assert record(store, third).done == 3


def test_a_job_that_was_withdrawn_is_queued_again_by_the_next_batch(store):
    closed_series(store, 2)
    first = created(store)
    feeding = feeder(store)
    feeding.step()
    with store.database.transaction() as tx:
        batches.bring_to(tx, first, BatchState.CANCELLED, time.time(), "somebody")
        while batch_cases.withdraw(tx, first, time.time()):
            pass
    feeding.step()
    assert (record(store, first).waiting, record(store, first).queued) == (2, 0)
    second = created(store)
    work_through(store, feeding)
    assert record(store, second).done == 2


def test_a_case_that_fails_at_every_attempt_ends_with_the_reason_and_holds_nothing_up(store):
    closed_series(store, 2)
    batch_id = created(store)
    feeding = feeder(store)
    feeding.step()
    job = claim(store)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, time.time(), "MemoryError", None)
    work_through(store, feeding)
    done = record(store, batch_id)
    assert (done.state, done.done, done.without_result) == (BatchState.DONE, 1, 1)
    [failed] = store.rows("SELECT reason_code, reason_text FROM batch_results WHERE outcome = 'WITHOUT_RESULT'")
    assert failed == {"reason_code": "ANALYSIS_FAILED", "reason_text": "The analysis failed: MemoryError."}
    with store.database.read() as tx:
        assert status(tx, NOW)["failed_jobs"] == []


def test_a_late_slice_sends_a_case_back_until_its_series_is_complete_again(store):
    closed_series(store, 1)
    batch_id = created(store)
    feeding = feeder(store)
    feeding.step()
    job = claim(store)
    store.receive(3, now=NOW + 200, series_uid="1.2.1", study_uid="1.1", patient_id="P0")
    finish(store, job)  # it may hand in what it found of the former slices
    feeding.step()
    assert (record(store, batch_id).done, record(store, batch_id).waiting) == (0, 1)
    store.close_due(NOW + 1000, None)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE batch_cases SET due_at = 0"))
    work_through(store, feeding)
    assert store.rows(
        "SELECT results.revision FROM batch_cases JOIN results ON results.id = batch_cases.result_id"
    ) == [{"revision": 2}]


def test_an_incomplete_series_is_not_analysed_and_the_case_says_why(store):
    store.receive(1, now=NOW, series_uid="1.1", study_uid="1")
    refusal = Refusal(ReasonCode.MISSING_SLICES, "2 slices are missing.")
    with store.database.transaction() as tx:
        series.close_series(tx, 1, NOW + 100, series.Closing(None, refusal=refusal))
    created(store)
    feeding = feeder(store)
    feeding.step()
    job = claim(store)
    assert job.refusal == refusal
    finish(store, job, not_analysed("MISSING_SLICES", "2 slices are missing."))
    feeding.step()
    assert store.rows("SELECT outcome, reason_code FROM batch_results") == [
        {"outcome": "NOT_ANALYSED", "reason_code": "MISSING_SLICES"}
    ]


def test_retention_waits_only_for_the_series_in_hand_and_its_case_says_that_images_are_gone(store):
    closed_series(store, 2, OTHER)
    for _ in range(2):
        store.finish(claim(store), NOW + 200)
    batch_id = created(store, model=ModelRef("third", "1", "model-digest-3"))
    feeding = feeder(store, ahead=1)
    feeding.step()
    assert retention.delete_old_images(store.database, store.files, time.time(), days=1.0) == 2
    job = claim(store)
    gone = "SELECT count(*) AS n FROM instances WHERE gone_at IS NOT NULL AND series_pk <> :pk"
    assert store.rows(gone, pk=job.series_pk) == [{"n": 2}]
    work_through(store, feeding)
    finish(store, job)
    work_through(store, feeding)
    done = record(store, batch_id)
    assert (done.done, done.without_result) == (1, 1)
    assert retention.delete_old_images(store.database, store.files, time.time(), days=1.0) == 2, "its result is recent"


def test_labels_choose_the_series_and_two_lines_for_one_series_are_refused(store):
    closed_series(store, 4)
    created(store, labels=CaseLabels({"P1": 2, "1.2.3": 3}))
    assert store.rows("SELECT series_uid, label_line FROM batch_cases ORDER BY id") == [
        {"series_uid": "1.2.2", "label_line": 2},
        {"series_uid": "1.2.3", "label_line": 3},
    ]
    with pytest.raises(Exception, match="lines 2 and 5 of the labels name the same series"):
        created(store, "store Modality=*", labels=CaseLabels({"P1": 2, "1.2.2": 5}))


@pytest.mark.parametrize(
    ("keys", "count"),
    [("", 3), ("Modality=MR", 0), ("StudyDate=20200101-20200102", 0), ("CallingAE=c*", 3), ("SeriesDescription=x*", 0)],
)
def test_keys_narrow_what_is_taken_of_the_store(store, keys, count):
    closed_series(store, 3)
    created(store, f"store {keys}", start=False)
    assert record(store, 1).cases == count


def test_a_batch_that_runs_cannot_be_resumed_and_one_that_is_done_cannot_be_paused(store):
    closed_series(store, 1)
    batch_id = created(store)
    for state in (BatchState.RUNNING, BatchState.CREATING):
        with pytest.raises(IllegalMove), store.database.transaction() as tx:
            batches.bring_to(tx, batch_id, state, NOW, "somebody")
    work_through(store, feeder(store))
    with pytest.raises(IllegalMove), store.database.transaction() as tx:
        batches.bring_to(tx, batch_id, BatchState.PAUSED, NOW, "somebody")


@pytest.mark.parametrize(
    ("hours", "moment", "may"),
    [
        (("07:00-19:00",), "12:00", False),
        (("07:00-19:00",), "19:00", True),
        (("19:00-07:00",), "23:00", False),
        (("19:00-07:00",), "06:59", False),
        (("19:00-07:00",), "12:00", True),
        (("08:00-09:00", "12:00-13:00"), "12:30", False),
        ((), "12:00", True),
    ],
)
def test_nothing_of_a_batch_begins_in_the_hours_kept_for_live_series(hours, moment, may):
    hour, minute = map(int, moment.split(":"))
    seconds = time.mktime((2026, 11, 30, hour, minute, 0, 0, 0, -1))
    assert BatchSettings(enabled=True, live_hours=hours).may_begin(seconds) is may
    assert not BatchSettings(live_hours=hours).may_begin(seconds)


def test_the_audit_trail_tells_who_did_what_and_how_each_case_ended(store):
    closed_series(store, 1)
    batch_id = created(store)
    with store.database.transaction() as tx:
        batches.bring_to(tx, batch_id, BatchState.PAUSED, NOW, "somebody")
        batches.bring_to(tx, batch_id, BatchState.RUNNING, NOW, "somebody")
    work_through(store, feeder(store))
    found = [event for event in store.events() if event.startswith(("batch", "result"))]
    assert found == [
        *("batch.created", "batch.running", "batch.paused", "batch.running"),
        *("result.recorded", "batch.case-ended", "batch.done"),
    ]
    details = [json.loads(row["detail"]) for row in store.rows("SELECT detail FROM audit WHERE event = 'batch.paused'")]
    assert details == [{"batch": 1, "from": "RUNNING", "user": "somebody"}]
    assert store.rows("SELECT series_uid, result_id FROM audit WHERE event = 'batch.case-ended'") == [
        {"series_uid": "1.2.1", "result_id": 1}
    ]


def test_an_operator_cannot_have_an_imported_series_analysed_as_a_live_one(store):
    closed_series(store, 1)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE series SET imported = TRUE"))
    with pytest.raises(IllegalMove), store.database.transaction() as tx:
        reopening.analyse_again(tx, 1, NOW, OTHER)


@pytest.mark.parametrize(
    ("batch", "live_only", "takes"),
    [
        ({"enabled": True}, False, True),
        ({"enabled": True}, True, False),
        ({"enabled": True, "live_hours": ("00:00-00:00",)}, False, False),
        ({}, False, False),
    ],
)
def test_a_worker_takes_a_batch_up_only_if_the_site_lets_it(store, monkeypatch, batch, live_only, takes):
    closed_series(store, 1)
    created(store)
    feeder(store).step()
    settings = Settings(data_dir=store.folder, batch=BatchSettings(**batch))
    worker = Worker(settings, store.database, store.files, "cpu", live_only=live_only)
    taken = []
    monkeypatch.setattr(worker, "handle", taken.append)
    assert worker.work_once(time.time()) is takes
    assert [job.batch_id for job in taken] == [1] * takes


def test_the_first_workers_of_a_machine_are_those_that_are_kept_for_live_series(monkeypatch):
    settings = Settings(worker={"devices": ("cpu", "cpu", "cpu")}, batch=BatchSettings(enabled=True, live_workers=2))
    numbers = [child.arguments[4] for child in children_of(settings, None, 0) if child.arguments[0] == "work"]
    assert numbers == ["0", "1", "2"]
    kept = []

    class Stub:
        def __init__(self, *_, live_only):
            kept.append(live_only)

        def run(self, _stop):
            return True

    monkeypatch.setattr("dicom_node.analysis.worker.Worker", Stub)
    for name in ("die_with_parent", "_database_of", "files_of", "watched", "stop_on_signals"):
        monkeypatch.setattr(processes, name, lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(processes, "settings_from", lambda _: settings)
    monkeypatch.setattr("os.nice", lambda _: 0)
    for number in range(3):
        processes.work(None, "cpu", number)
    assert kept == [True, True, False]


def test_a_series_that_opens_again_leaves_the_results_of_batches_as_they_were_made(store):
    closed_series(store, 1, MODEL)
    store.finish(claim(store), NOW + 100)
    created(store)
    work_through(store, feeder(store))
    store.receive(3, now=NOW + 200, series_uid="1.2.1", study_uid="1.1", patient_id="P0")
    stands = store.rows("SELECT batch_id, superseded_at IS NULL AS stands FROM results ORDER BY id")
    assert [(row["batch_id"], bool(row["stands"])) for row in stands] == [(None, False), (1, True)]
