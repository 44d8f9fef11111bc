"""Recording instances, quiet times, closing, late slices."""

import hashlib

import pytest
from sqlalchemy import insert

from config.reasons import Refusal
from storage import arrival, clock, quiet_time, recording, series
from storage.arrival import Outcome
from storage.errors import NotDueYet, NotFound
from storage.jobs import ModelRef
from storage.models import instances
from tests.storage_factory import MODEL, QUIET_S, Store

NEW, DUPLICATE, CONFLICT = Outcome.NEW, Outcome.DUPLICATE, Outcome.CONFLICT
SECOND_COPY = Outcome.SECOND_COPY


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def due(store, now):
    with store.database.transaction() as tx:
        return [item.series_instance_uid for item in quiet_time.due_series(tx, now)]


def record(store, series_uid="1.2.3"):
    with store.database.read() as tx:
        return series.get_series(tx, series_uid)


def test_an_instance_becomes_a_patient_a_study_a_series_and_a_row(store):
    arrival = store.arrival(1)
    with store.database.transaction() as tx:
        assert recording.record_instance(tx, arrival, 5.0, QUIET_S) == NEW
        found = series.get_series(tx, "1.2.3")
        [held] = series.series_instances(tx, found.series_pk)
    assert (found.patient_id, found.study_instance_uid, found.modality) == ("P1", "1.2", "CT")
    assert (found.state, found.revision, found.instance_count, found.due_at) == ("OPEN", 1, 1, 35.0)
    assert (held.path, held.sha256, held.gone) == (arrival.file.path, arrival.file.sha256, None)


def test_the_same_bytes_again_change_nothing_but_the_audit(store):
    store.receive(1, now=0)
    before = store.rows("SELECT * FROM series"), store.rows("SELECT * FROM instances")
    assert store.receive(1, now=20) == [DUPLICATE]
    assert (store.rows("SELECT * FROM series"), store.rows("SELECT * FROM instances")) == before
    assert store.events()[-1] == "instance.duplicate"


def test_the_same_uid_with_other_bytes_is_set_aside_to_be_compared(store):
    store.receive(1, now=0)
    before = store.rows("SELECT * FROM series"), store.rows("SELECT * FROM instances")
    assert store.receive(1, now=20, content="other") == [SECOND_COPY]
    assert (store.rows("SELECT * FROM series"), store.rows("SELECT * FROM instances")) == before
    [aside] = store.rows("SELECT * FROM conflicts")
    assert aside["sha256"] == hashlib.sha256(b"other").hexdigest()
    assert store.files.read_verified(aside["path"], aside["sha256"]) == b"other"
    assert store.events()[-1] == "instance.second-copy"


def test_the_same_conflict_again_is_counted(store):
    store.receive(1, now=0)
    store.receive(1, now=1, content="other")
    store.receive(1, now=2, content="other")
    store.receive(1, now=3, content="third")
    assert [row["times_seen"] for row in store.rows("SELECT times_seen FROM conflicts ORDER BY id")] == [2, 1]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"sop_uid": "1.2.3.1", "series_uid": "9.9"}, "another series"),
        ({"sop_uid": "7.7", "study_uid": "9.9"}, "another study"),
        ({"sop_uid": "7.7", "patient_id": "P2"}, "another patient"),
    ],
)
def test_what_belongs_elsewhere_is_set_aside(store, how, reason):
    store.receive(1, now=0)
    assert store.receive(2, now=1, **how) == [CONFLICT]
    [aside] = store.rows("SELECT reason FROM conflicts")
    assert reason in aside["reason"]
    assert len(store.rows("SELECT * FROM series")) == 1


def test_one_batch_may_hold_the_same_instance_twice_and_a_conflict(store):
    arrivals = [store.arrival(1), store.arrival(1), store.arrival(1, content="other"), store.arrival(2)]
    with store.database.transaction() as tx:
        outcomes = recording.record_instances(tx, arrivals, 0, QUIET_S)
    assert outcomes == [NEW, DUPLICATE, SECOND_COPY, NEW]
    assert record(store).instance_count == 2


def test_a_batch_may_hold_many_series_of_many_patients(store):
    arrivals = [
        store.arrival(n, series_uid=f"1.{n % 5}", study_uid=f"2.{n % 5}", patient_id=f"P{n % 5}") for n in range(20)
    ]
    with store.database.transaction() as tx:
        assert set(recording.record_instances(tx, arrivals, 0, QUIET_S)) == {NEW}
        assert {found.instance_count for found in series.list_series(tx)} == {4}
        assert len(series.list_series(tx, study_uid="2.1", limit=3)) == 1


def test_patients_without_an_id_are_not_one_patient(store):
    store.receive(1, now=0, series_uid="1.1", study_uid="2.1", patient_id="")
    store.receive(1, now=0, series_uid="1.2", study_uid="2.2", patient_id="")
    assert len(store.rows("SELECT * FROM patients")) == 2


def test_a_header_is_cleaned_and_never_refused():
    header = arrival.IndexedHeader(patient_id=" 47\x0011 ", patient_name="\ud800Doe", series_description="x" * 500)
    assert header.patient_id == "4711"
    assert header.patient_name == "?Doe"
    assert len(header.series_description) == 64


def test_the_quiet_time_may_depend_on_the_sender(store):
    with store.database.transaction() as tx:
        slow = store.arrival(1, series_uid="1.1", calling_ae="SLOW")
        fast = store.arrival(1, series_uid="1.2", calling_ae="FAST")
        recording.record_instances(tx, [slow, fast], 0, lambda ae: {"SLOW": 100.0, "FAST": 10.0}[ae])
    assert due(store, 10) == ["1.2"]
    assert due(store, 100) == ["1.2", "1.1"]


def test_each_new_slice_moves_the_deadline(store):
    store.receive(1, now=0)
    store.receive(2, now=20)
    assert due(store, 49.9) == []
    assert due(store, 50) == ["1.2.3"]


def test_closing_queues_one_job_with_the_digest_of_the_input(store):
    store.receive(2, 1, now=0)
    assert store.close_due(30) == [1]
    lines = sorted(
        f"{row['sop_instance_uid']} {row['sha256']}\n"
        for row in store.rows("SELECT sop_instance_uid, sha256 FROM instances")
    )
    [job] = store.rows("SELECT * FROM jobs")
    assert job["instances_digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (job["state"], job["model_digest"], job["instance_count"]) == ("QUEUED", MODEL.digest, 2)
    assert store.events()[-2:] == ["series.closed", "job.queued"]
    assert due(store, 1000) == []


def test_a_series_is_not_closed_on_a_quiet_time_that_a_slice_ended(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        [found] = quiet_time.due_series(tx, 30)
    store.receive(2, now=30)
    with store.database.transaction() as tx, pytest.raises(NotDueYet):
        series.close_series(tx, found.series_pk, 30, series.Closing(MODEL))
    assert store.states("series") == ["OPEN"]


def test_a_decision_about_a_count_does_not_close_on_another(store):
    store.receive(1, 2, now=0)
    with store.database.transaction() as tx:
        with pytest.raises(NotDueYet):
            series.close_series(tx, 1, 1, series.Closing(MODEL, "pacs-count", expected=3, if_count=3))
        assert series.close_series(tx, 1, 1, series.Closing(MODEL, "pacs-count", expected=2, if_count=2)) == 1
    found = record(store)
    assert (found.completeness, found.expected_count, found.closed_at) == ("pacs-count", 2, 1.0)


def test_a_series_may_be_closed_without_a_job_and_with_a_reason(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        assert (
            series.close_series(
                tx, 1, 1, series.Closing(None, "loop-guard", refusal=Refusal("OWN_OBJECT", "It is ours."))
            )
            is None
        )
    assert store.states("jobs") == []
    assert record(store).refusal_code == "OWN_OBJECT"


def test_a_refusal_goes_with_the_job_to_the_worker(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        series.close_series(
            tx,
            1,
            1,
            series.Closing(MODEL, "pacs-count", expected=9, refusal=Refusal("MISSING_SLICES", "8 of 9 missing.")),
        )
    assert store.claim(2).refusal == Refusal("MISSING_SLICES", "8 of 9 missing.")


def test_closing_again_adds_no_job_but_another_model_does(store):
    store.receive(1, now=0)
    store.close_due(30)
    with store.database.transaction() as tx:
        assert series.close_series(tx, 1, 31, series.Closing(MODEL)) == 1
        assert series.close_series(tx, 1, 31, series.Closing(ModelRef("demo", "2", "model-digest-2"))) == 2
    assert store.states("jobs") == ["QUEUED", "QUEUED"]


def test_a_closed_series_has_its_job_or_neither_happened(store):
    store.receive(1, now=0)
    with pytest.raises(ZeroDivisionError), store.database.transaction() as tx:
        series.close_series(tx, 1, 30, series.Closing(MODEL))
        raise ZeroDivisionError
    assert (store.states("series"), store.states("jobs"), "series.closed" in store.events()) == (["OPEN"], [], False)


def test_after_a_restart_a_half_received_series_waits_its_full_quiet_time(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        assert quiet_time.restart_quiet_times(tx, 1000) == 1
    assert due(store, 1029.9) == []
    assert due(store, 1030) == ["1.2.3"]


@pytest.mark.parametrize("jump", [1.0, 6.0, 11.0, 31.0, 3600.0, 1e6])
def test_a_clock_that_jumped_back_neither_hurries_nor_hangs_a_series(store, jump):
    last_slice, offset = 2e6, 10 - jump  # ten seconds after the last slice the clock jumps
    store.receive(1, now=last_slice)
    closed_after = next(
        seconds for seconds in range(10, 100) if due(store, last_slice + offset + (seconds - 10)) == ["1.2.3"]
    )
    assert QUIET_S <= closed_after <= QUIET_S + max(10, min(jump, 10 + clock.TOLERANCE_S))


def test_a_slice_after_the_clock_jumped_back_waits_its_quiet_time_from_then(store):
    store.receive(1, now=10_000)
    store.receive(2, now=500)
    assert due(store, 529.9) == []
    assert due(store, 530) == ["1.2.3"]


def test_a_batch_that_waited_for_the_lock_does_not_shorten_the_quiet_time(store):
    store.receive(1, now=100.0)
    store.receive(2, now=99.5)
    assert due(store, 129.9) == []


def test_quiet_series_may_be_asked_about_before_their_deadline(store):
    store.receive(1, now=0)
    with store.database.read() as tx:
        assert quiet_time.quiet_series(tx, 0.5, idle_s=1) == []
        [found] = quiet_time.quiet_series(tx, 1.0, idle_s=1)
    assert (found.patient_id, found.instance_count, found.due_at) == ("P1", 1, 30.0)


def test_a_late_slice_supersedes_the_queued_job(store):
    store.receive(1, now=0)
    store.close_due(30)
    assert store.receive(2, now=31) == [NEW]
    assert store.states("jobs") == ["SUPERSEDED"]
    assert (record(store).state, record(store).revision, record(store).refusal_code) == ("OPEN", 2, None)
    assert store.claim(32) is None
    assert store.close_due(61) == [2]
    assert store.states("jobs") == ["SUPERSEDED", "QUEUED"]


def test_a_duplicate_or_a_conflict_after_the_close_reopens_nothing(store):
    store.reported("PACS")
    before = (
        store.rows("SELECT * FROM jobs"),
        store.rows("SELECT * FROM deliveries"),
        store.rows("SELECT * FROM series"),
    )
    store.receive(1, now=99)
    store.receive(1, now=99, content="other")
    assert before == (
        store.rows("SELECT * FROM jobs"),
        store.rows("SELECT * FROM deliveries"),
        store.rows("SELECT * FROM series"),
    )


def test_a_late_slice_supersedes_the_report_that_nobody_has(store):
    store.reported("PACS")
    store.receive(3, now=50)
    assert store.states("deliveries") == ["SUPERSEDED"]
    assert store.rows("SELECT superseded_at FROM results") == [{"superseded_at": 50.0}]
    assert store.states("jobs") == ["REPORTED"]


def test_the_database_itself_refuses_a_second_row_for_an_instance(store):
    from sqlalchemy.exc import IntegrityError

    store.receive(1, now=0)
    [row] = store.rows("SELECT * FROM instances")
    with pytest.raises(IntegrityError) as error, store.database.transaction() as tx:
        tx.execute(insert(instances).values({**row, "id": 2, "path": "elsewhere"}))
    assert "elsewhere" not in str(error.value)


def test_unknown_series_are_not_found(store):
    with store.database.read() as tx, pytest.raises(NotFound):
        series.get_series(tx, "9.9.9")
