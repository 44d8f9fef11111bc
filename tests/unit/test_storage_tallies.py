"""Counts, days and marks that are kept up to date instead of counted: they say what counting would say."""

import pytest
from sqlalchemy import text

from storage import deliveries, jobs, reconcile, retention, tallies
from storage.lost import mark_lost
from storage.migrations.versions.v0009_summaries import DAYS, SPANS
from storage.models import instances
from storage.status import status
from tests.storage_factory import Store, not_analysed

DAY = 86400.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def differences(store):
    with store.database.read() as tx:
        return tallies.differences(tx)


def live(store):
    """A series that is reported and delivered, one that is refused, one that fails, second copies, and a lost file."""
    store.reported("PACS", "ARCHIVE")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 41)
    store.receive(1, now=42, content="other")
    store.receive(1, 2, 3, now=50, series_uid="5.5")
    store.close_due(100)
    job = store.claim(101)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 102, not_analysed("SLICE_GAP", "A gap."), [], ["PACS"])
        mark_lost(tx, instances.c.sop_instance_uid == "5.5.3", "missing", 103)
    store.receive(3, now=110, series_uid="5.5")
    store.receive(1, now=200, series_uid="6.6")
    store.close_due(300)
    job = store.claim(301)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, 302, "no memory", None)
    with pytest.raises(ZeroDivisionError), store.database.transaction() as tx:
        jobs.retry(tx, job.job_id, 303)
        raise ZeroDivisionError


def test_counts_are_what_counting_gives(store):
    live(store)
    assert differences(store) == {}
    with store.database.read() as tx:
        counts = tallies.read(tx)
    assert counts.rows("deliveries", "SENT", "PACS") == 1
    assert counts.rows("instances") == 6
    assert counts.parts("deliveries", "PENDING") == ["ARCHIVE", "PACS"]


def test_counts_follow_retention_and_what_comes_again(store):
    store.reported("PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 41)
    assert retention.delete_old_images(store.database, store.files, 10 * DAY, 1) == 2
    assert differences(store) == {}
    assert store.rows("SELECT id FROM series WHERE emptied_at IS NULL") == []
    store.receive(1, now=11 * DAY)
    assert differences(store) == {}
    assert len(store.rows("SELECT id FROM series WHERE emptied_at IS NULL")) == 1, "it has an image again"
    assert retention.delete_old_images(store.database, store.files, 20 * DAY, 1) == 1


def test_retention_goes_on_behind_what_is_not_finished(store, monkeypatch):
    monkeypatch.setattr(retention, "AT_ONCE", 2)
    for number in range(5):
        store.receive(1, now=0, series_uid=f"8.{number}")
    store.close_due(30)
    for _ in range(3):
        store.claim(31)
    last = [store.claim(31) for _ in range(2)]
    for job in last:
        store.finish(job, 40)
    assert retention.delete_old_images(store.database, store.files, 10 * DAY, 1) == 2
    assert retention.delete_old_images(store.database, store.files, 10 * DAY, 1) == 0


def test_a_start_corrects_what_an_earlier_version_did_not_count(store):
    live(store)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE tallies SET rows = rows + 7 WHERE subject = 'series'"))
        tx.execute(text("DELETE FROM tallies WHERE subject = 'instances'"))
    assert differences(store)
    reconcile.reconcile(store.database, store.files, 1000)
    assert differences(store) == {}
    with store.database.read() as tx:
        assert status(tx, 1000)["instances"] == 6


def test_the_summary_of_a_day_is_what_a_walk_through_its_results_gives(store):
    for number in range(12):
        store.receive(1, now=number % 5, series_uid=f"5.{number}")
        store.close_due(40)
        store.finish(store.claim(41 + number), 41 + 7 * number % 60 + number // 8 * DAY, "PACS", "ARCHIVE")
    for _ in range(10):
        with store.database.transaction() as tx:
            [claimed] = deliveries.claim(tx, "PACS", 2 * DAY, 60)
            deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 2 * DAY + 3 * claimed.delivery_id % 7)
    with store.database.transaction() as tx:
        [second] = deliveries.claim(tx, "ARCHIVE", 2 * DAY, 60)
        deliveries.mark_sent(tx, second.delivery_id, second.fence, 3 * DAY)
    days = store.rows("SELECT * FROM turnaround_days ORDER BY day_utc")
    spans = store.rows("SELECT * FROM turnarounds ORDER BY result_id")
    assert [(day["results"], day["delivered"]) for day in days] == [(8, 8), (4, 2)]
    with store.database.transaction() as tx:
        tx.execute(text("DELETE FROM turnaround_days"))
        tx.execute(text("DELETE FROM turnarounds"))
        tx.exec_driver_sql(SPANS.replace("%", "%%") if tx.dialect.name == "postgresql" else SPANS)
        tx.execute(text(DAYS))
    assert store.rows("SELECT * FROM turnarounds ORDER BY result_id") == spans
    assert store.rows("SELECT * FROM turnaround_days ORDER BY day_utc") == days
