"""Start-up: files and rows agree, held work is given back; retention: only the finished, only the images."""

import os

import pytest

from config.reasons import Refusal
from storage import deliveries, jobs, reconcile, retention, series
from storage.arrival import Outcome
from tests.storage_factory import MODEL, QUIET_S, Store

DAY = 86400.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def start(store, now=1000.0, **how):
    return reconcile.reconcile(store.database, store.files, now, **how)


def age(store, path):
    os.utime(store.files.absolute(path), (1, 1))


def instance(store, number=1):
    return store.rows("SELECT * FROM instances WHERE sop_instance_uid = :uid", uid=f"1.2.3.{number}")[0]


def test_a_clean_stop_leaves_nothing_to_do(store):
    store.reported("PACS")
    assert set(start(store).values()) == {0}


def test_an_open_series_waits_its_full_quiet_time_again(store):
    store.receive(1, now=0)
    assert start(store, now=1000)["series_waiting_again"] == 1
    assert store.close_due(1000 + QUIET_S - 0.1) == []
    assert store.close_due(1000 + QUIET_S) == [1]


def test_what_was_running_is_queued_again_and_what_was_sending_pending(store):
    store.receive(1, now=0, series_uid="1.9")
    store.reported("PACS")
    store.claim(31)
    with store.database.transaction() as tx:
        deliveries.claim(tx, "PACS", 31, 60)
    found = start(store, now=32)
    assert (found["jobs_released"], found["deliveries_released"]) == (1, 1)
    assert "RUNNING" not in store.states("jobs")
    assert store.states("deliveries") == ["PENDING"]


def test_leases_may_be_left_to_other_machines(store):
    store.receive(1, now=0)
    store.close_due(30)
    store.claim(31)
    assert start(store, now=32, release=False)["jobs_released"] == 0
    assert store.states("jobs") == ["RUNNING"]


def test_files_without_a_row_are_set_aside_and_named_in_the_audit(store):
    store.reported("PACS")
    store.receive(1, now=0, content="other")
    kept = [
        row["path"]
        for table in ("instances", "conflicts", "result_objects")
        for row in store.rows(f"SELECT path FROM {table}")
    ]
    orphan, young = store.files.write_durably([b"orphan"]), store.files.write_durably([b"young"])
    for path in [*kept, orphan.path]:
        age(store, path)
    assert start(store)["orphans_swept"] == 1
    assert not store.files.absolute(orphan.path).exists()
    assert store.files.absolute(f"quarantine/1970-01-01/{orphan.path}").read_bytes() == b"orphan"
    assert all(store.files.absolute(path).exists() for path in [*kept, young.path])
    assert store.events()[-1] == "files.swept"


@pytest.mark.parametrize("reason", ["missing", "corrupt", "torn"])
def test_a_lost_file_is_marked_once_and_taken_again_when_it_is_resent(store, reason):
    store.receive(1, 2, now=0)
    path = store.files.absolute(instance(store)["path"])
    if reason == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if reason == "torn" else b"x" * path.stat().st_size)
    found = start(store, now=10)
    assert found["files_missing"] + found["files_corrupt"] == 1
    assert "instance.lost" in store.events()
    second = start(store, now=11)
    assert second["files_missing"] + second["files_corrupt"] == 0
    assert store.receive(1, now=12) == [Outcome.NEW]
    assert instance(store)["gone_reason"] is None
    assert store.files.read_verified(instance(store)["path"], instance(store)["sha256"])
    with store.database.read() as tx:
        assert series.get_series(tx, 1).instance_count == 2


def test_old_files_are_checked_by_size_and_young_ones_by_digest(store):
    store.receive(1, now=0)
    store.receive(2, now=reconcile.VERIFY_LAST_S + 1)
    for number in (1, 2):
        path = store.files.absolute(instance(store, number)["path"])
        path.write_bytes(b"x" * path.stat().st_size)
    assert start(store)["files_corrupt"] == 1
    assert instance(store, 2)["gone_reason"] == "corrupt"


def test_a_job_that_failed_for_a_lost_file_goes_on_when_the_file_comes_back(store):
    store.receive(1, now=0)
    store.close_due(30)
    store.files.remove(instance(store)["path"])
    start(store, now=31)
    job = store.claim(32)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, 33, "a file is missing", None)
    assert store.receive(1, now=34) == [Outcome.NEW]
    assert store.states("series") == ["CLOSED"]
    assert store.claim(35).job_id == job.job_id


def test_content_that_was_replaced_and_comes_back_is_analysed_and_reported_anew(store):
    """The report on the content between must not be the last word."""
    store.receive(1, now=0)
    store.close_due(30)
    first = store.finish(store.claim(30), 31, "PACS")
    for number, content in enumerate(["other", ""], 1):
        store.files.remove(instance(store)["path"])
        start(store, now=100 * number)
        assert store.receive(1, now=100 * number + 1, content=content) == [Outcome.NEW]
        store.close_due(100 * number + 40)
        job = store.claim(100 * number + 41)
        assert job is not None and job.revision == number + 1
        last = store.finish(job, 100 * number + 42, "PACS")
    assert store.rows("SELECT id FROM results WHERE superseded_at IS NULL") == [{"id": last}]
    assert last != first


def test_a_lost_file_that_comes_back_with_other_content_opens_its_series_again(store):
    store.receive(1, now=0)
    store.close_due(30)
    store.files.remove(instance(store)["path"])
    start(store, now=31)
    assert store.receive(1, now=32, content="other") == [Outcome.NEW]
    assert store.states("jobs") == ["SUPERSEDED"]
    assert store.close_due(62) == [2]


def test_a_lost_report_is_told(store):
    store.reported("PACS")
    store.files.remove(store.rows("SELECT path FROM result_objects")[0]["path"])
    assert start(store)["reports_lost"] == 1
    assert "result.lost" in store.events()


def delete(store, now, days=7):
    return retention.delete_old_images(store.database, store.files, now, days)


def finished(store):
    """A series reported and delivered at 41."""
    store.reported("PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 41)


def test_images_go_after_their_days_and_everything_else_stays(store):
    finished(store)
    assert delete(store, 41 + 7 * DAY - 1) == 0
    assert delete(store, 41 + 7 * DAY) == 2
    assert delete(store, 41 + 8 * DAY) == 0
    assert [row["gone_reason"] for row in store.rows("SELECT gone_reason FROM instances")] == ["retention"] * 2
    [report] = store.rows("SELECT path, sha256 FROM result_objects")
    assert store.files.read_verified(report["path"], report["sha256"])
    assert sum(path.is_file() for path in store.files.root.rglob("*")) == 1
    assert store.events()[-1] == "series.images-deleted"
    assert start(store, now=41 + 9 * DAY)["files_missing"] == 0


def pending(store):
    store.reported("PACS")


def failed_delivery(store):
    store.reported("PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.fail(tx, claimed.delivery_id, claimed.fence, 41, "0xA900")


def sending(store):
    store.reported("PACS")
    with store.database.transaction() as tx:
        deliveries.claim(tx, "PACS", 40, 60)


def uncommitted(store):
    store.reported("PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 41, commitment_at=41)


def one_of_two(store):
    store.reported("PACS", "ARCHIVE")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 41)


def reopened(store):
    finished(store)
    store.receive(3, now=50)


def failed_job(store):
    store.receive(1, now=0)
    store.close_due(30)
    job = store.claim(31)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, 32, "broken", None)


def queued(store):
    store.receive(1, now=0)
    store.close_due(30)


def another_model_queued(store):
    finished(store)
    with store.database.transaction() as tx:
        series.close_series(tx, 1, 50, series.Closing(MODEL.__class__("other", "1", "other-digest")))


def closed_without_a_word(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        series.close_series(tx, 1, 30, series.Closing(None))


def retried(store):
    failed_delivery(store)
    with store.database.transaction() as tx:
        deliveries.retry(tx, 1, 42)


@pytest.mark.parametrize(
    "unfinished",
    [
        pending,
        failed_delivery,
        sending,
        uncommitted,
        one_of_two,
        reopened,
        failed_job,
        queued,
        another_model_queued,
        closed_without_a_word,
        retried,
    ],
)
def test_what_is_not_finished_is_never_deleted(store, unfinished):
    unfinished(store)
    assert delete(store, 1000 * DAY) == 0
    assert all(row["gone_at"] is None for row in store.rows("SELECT gone_at FROM instances"))


def test_what_was_kept_on_purpose_without_a_job_goes_too(store):
    store.receive(1, now=0)
    with store.database.transaction() as tx:
        series.close_series(tx, 1, 30, series.Closing(None, "loop-guard", refusal=Refusal("OWN_OBJECT", "It is ours.")))
    assert delete(store, 30 + 7 * DAY) == 1


def test_what_retention_was_deleting_at_a_crash_is_deleted_at_the_start(store, monkeypatch):
    finished(store)
    monkeypatch.setattr(store.files, "remove", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        delete(store, 100 * DAY)
    monkeypatch.undo()
    paths = [store.files.absolute(row["path"]) for row in store.rows("SELECT path FROM instances")]
    assert all(path.exists() for path in paths)
    for path in paths:
        os.utime(path, (1, 1))
    assert start(store, now=100 * DAY)["orphans_swept"] == 0
    assert not any(path.exists() for path in paths)


def test_a_deleted_image_that_is_sent_again_changes_no_result(store):
    finished(store)
    delete(store, 41 + 7 * DAY)
    assert store.receive(1, now=50 * DAY) == [Outcome.NEW]
    assert (store.states("series"), store.states("jobs")) == (["CLOSED"], ["REPORTED"])
    assert store.receive(2, now=50 * DAY, content="other") == [Outcome.CONFLICT]
    assert delete(store, 50 * DAY + 1) == 0, "it has just come"
    assert delete(store, 57 * DAY) == 1
