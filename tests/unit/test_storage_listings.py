"""The worklist's rows say where each series stands, in whichever way it came there."""

import pytest
from sqlalchemy import select, text

from benchmarks.index_fill import fill
from config.reasons import Refusal
from storage import jobs, listings, quiet_time, recording, reopening, series, worklist
from storage.database import open_database
from storage.listings import Kind, Standing
from storage.models import listing_kinds, patients
from storage.models import listings as listing_table
from storage.names import name_key
from tests.fixtures import index_of
from tests.storage_factory import MODEL, Store, check_listings, fresh_url, not_analysed

MONDAY = 1_796_601_600.0 - 4 * 86400.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def held(store):
    """What is listed: (series, standing, reason, model, finding), and that the counts say the same."""
    with store.database.read() as tx:
        check_listings(tx)
        rows = tx.execute(
            select(listing_table.c.series_pk, listing_kinds, listing_table.c.probability)
            .join(listing_kinds, listing_kinds.c.id == listing_table.c.kind)
            .order_by(listing_table.c.series_pk, listing_table.c.id)
        ).all()
        return [(row.series_pk, row.standing, row.reason_code, row.model, row.finding) for row in rows]


def test_a_series_waits_until_it_has_a_result(store):
    store.receive(1, now=MONDAY)
    assert held(store) == [(1, "PENDING", "", "", "")]
    store.close_due(MONDAY + 30)
    job = store.claim(MONDAY + 31)
    assert held(store) == [(1, "PENDING", "", "", "")]
    store.finish(job, MONDAY + 40)
    assert held(store) == [(1, "ANALYSED", "", "demo 1", "POSITIVE")]


def test_a_late_slice_puts_the_series_back_to_waiting(store):
    store.reported(now=MONDAY)
    store.receive(3, now=MONDAY + 100)
    assert held(store) == [(1, "PENDING", "", "", "")]
    store.close_due(MONDAY + 130)
    store.finish(store.claim(MONDAY + 130), MONDAY + 131, probability=0.1)
    assert held(store) == [(1, "ANALYSED", "", "demo 1", "NEGATIVE")]


def test_why_a_series_was_not_analysed_is_listed(store):
    store.receive(1, now=MONDAY)
    store.close_due(MONDAY + 30)
    job = store.claim(MONDAY + 31)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, MONDAY + 32, not_analysed("NOT_CHEST", "No lungs."), [], [])
    assert held(store) == [(1, "NOT_ANALYSED", "NOT_CHEST", "demo 1", "")]


def test_a_failed_analysis_is_listed_until_it_is_tried_again(store):
    store.receive(1, now=MONDAY)
    store.close_due(MONDAY + 30)
    job = store.claim(MONDAY + 31)
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, MONDAY + 32, "no memory", None)
    assert held(store) == [(1, "FAILED", "", "demo 1", "")]
    with store.database.transaction() as tx:
        jobs.retry(tx, job.job_id, MONDAY + 40)
    assert held(store) == [(1, "PENDING", "", "", "")]


def test_a_series_that_is_only_kept_is_listed_with_the_reason_until_a_person_has_it_analysed(store):
    store.receive(1, now=MONDAY)
    refusal = Refusal("NOT_WANTED", "The rule of its source.")
    with store.database.transaction() as tx:
        [due] = quiet_time.due_series(tx, MONDAY + 30)
        series.close_series(tx, due.series_pk, MONDAY + 30, series.Closing(None, refusal=refusal))
    assert held(store) == [(1, "KEPT", "NOT_WANTED", "", "")]
    with store.database.transaction() as tx:
        reopening.analyse_again(tx, 1, MONDAY + 50, MODEL)
    assert held(store) == [(1, "PENDING", "", "", "")]


def test_what_is_rolled_back_is_not_listed(store):
    with pytest.raises(RuntimeError), store.database.transaction() as tx:
        recording.record_instances(tx, [store.arrival(1)], MONDAY, 30.0)
        raise RuntimeError
    assert held(store) == []
    store.receive(1, now=MONDAY)
    assert [standing for _, standing, *_ in held(store)] == ["PENDING"]


def test_names_that_senders_choose_cannot_make_endless_kinds(store, monkeypatch):
    monkeypatch.setattr(listings, "MANY_KINDS", 3)
    with store.database.transaction() as tx:
        for number in range(40):
            listings.kind_id(tx, Kind(f"SOURCE{number}", f"scanner {number}", Standing.PENDING))
    kinds = store.rows("SELECT source, scanner FROM listing_kinds ORDER BY id")
    assert kinds[-1] == {"source": "(others)", "scanner": "(others)"}
    assert len(kinds) <= 8


@pytest.mark.sqlite
def test_an_index_of_version_0_2_0_is_listed_as_if_it_had_always_been(tmp_path):
    database = open_database(f"sqlite:///{index_of('0.2.0', tmp_path / 'node.db')}")
    with database.read() as tx:
        check_listings(tx)
        assert set(tx.scalars(select(listing_kinds.c.standing))) == {"ANALYSED"}


def test_a_large_index_is_listed_as_if_it_had_always_been(tmp_path):
    url = fresh_url(tmp_path)
    fill(url, 160, failing=20)
    database = open_database(url)
    with database.read() as tx:
        check_listings(tx)
        assert set(tx.scalars(select(listing_kinds.c.standing))) >= {"PENDING", "ANALYSED", "NOT_ANALYSED", "FAILED"}
        named = tx.execute(select(patients.c.name, patients.c.name_key).where(patients.c.name != "")).all()
        assert named and all(key == name_key(name) != "" for name, key in named)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("MÜLLER^HANS", "mueller hans"),
        ("Müller, Hans", "mueller hans"),
        ("Mu\u0308ller^Hans", "mueller hans"),
        ("Núñez^José^^Dr", "nunez jose dr"),
        ("Yamada^Tarou=山田^太郎", "yamada tarou"),
        ("=山田^太郎", "山田 太郎"),
        ("^^^", ""),
        ("O'Neill^X", "o'neill x"),
    ],
)
def test_a_name_is_found_however_it_is_written(name, key):
    assert name_key(name) == key


def test_what_was_imported_for_a_batch_is_not_listed(store):
    store.reported(now=MONDAY)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE series SET imported = TRUE"))
        listings.touch(tx, 1)
    assert held(store) == []
    with store.database.read() as tx:
        assert worklist.find(tx, worklist.Search()).total == 0
