"""An operator has a series analysed again: a new revision that replaces the former result, as a late slice does."""

from collections.abc import Iterator

import pytest

from storage import deliveries, jobs, results, series
from storage.errors import CorruptFile, IllegalMove
from storage.jobs import ModelRef
from storage.reopening import analyse_again
from tests.storage_factory import MODEL, Store

OTHER = ModelRef("other", "2", "other-digest")


@pytest.fixture
def reported(tmp_path) -> Iterator[Store]:
    """A series whose report was delivered."""
    with Store(tmp_path) as store:
        store.receive(1, 2, now=0)
        store.close_due(30)
        store.finish(store.claim(31), 32, "PACS")
        with store.database.transaction() as tx:
            [sent] = deliveries.claim(tx, "PACS", 33, 60)
            deliveries.mark_sent(tx, sent.delivery_id, sent.fence, 34)
        yield store


def again(store: Store, now: float, model: ModelRef = MODEL, series_pk: int = 1) -> int:
    with store.database.transaction() as tx:
        return analyse_again(tx, series_pk, now, model)


def previous(store: Store) -> int | None:
    with store.database.read() as tx:
        found = results.previous_result(tx, 1)
    return found.result_id if found else None


@pytest.mark.parametrize("model", [MODEL, OTHER])
def test_the_next_result_of_the_same_or_another_model_replaces_the_former_and_names_it(reported, model):
    again(reported, 40, model)
    job = reported.claim(41)
    assert (job.revision, job.model, previous(reported)) == (2, model, 1)
    second = reported.finish(job, 42, "PACS")
    with reported.database.read() as tx:
        assert series.get_series(tx, 1).result_id == second
    standing = reported.rows("SELECT id FROM results WHERE superseded_at IS NULL")
    assert [row["id"] for row in standing] == [second]
    assert reported.states("deliveries") == ["SENT", "PENDING"]


def test_the_series_is_closed_again_at_once_with_rows_in_the_audit_that_say_why(reported):
    again(reported, 40)
    assert reported.states("series") == ["CLOSED"]
    rows = reported.rows("SELECT event, detail FROM audit ORDER BY id DESC LIMIT 3")[::-1]
    assert [row["event"] for row in rows] == ["series.open", "series.closed", "job.queued"]
    assert all("operator" in row["detail"] for row in rows[:2])


def test_a_report_that_nobody_has_yet_is_taken_out_of_the_outbox(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        store.close_due(30)
        store.finish(store.claim(31), 32, "PACS")
        again(store, 40)
        assert (store.states("deliveries"), previous(store)) == (["SUPERSEDED"], None)


def test_asking_twice_leaves_one_job_to_do(reported):
    again(reported, 40)
    again(reported, 41, OTHER)
    assert reported.states("jobs") == ["REPORTED", "SUPERSEDED", "QUEUED"]
    assert reported.claim(42).revision == 3


def test_a_series_that_still_waits_for_images_is_not_analysed_early(tmp_path):
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        with pytest.raises(IllegalMove, match="waits for images"):
            again(store, 1)


def test_a_series_whose_images_are_gone_says_so_and_keeps_its_result(reported):
    with reported.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE instances SET gone_at = 39, gone_reason = 'retention' WHERE id = 1")
    with pytest.raises(CorruptFile, match="no longer stored"):
        again(reported, 40)
    assert reported.rows("SELECT superseded_at FROM results") == [{"superseded_at": None}]


@pytest.mark.parametrize(("code", "kept"), [("MISSING_SLICES", "MISSING_SLICES"), ("NOT_WANTED", None)])
def test_an_incomplete_series_is_refused_again_and_a_filter_is_overruled(tmp_path, code, kept):
    with Store(tmp_path) as store:
        store.receive(1, now=0)
        store.close_due(30)
        with store.database.transaction() as tx:
            tx.exec_driver_sql(f"UPDATE series SET refusal_code = '{code}', refusal_text = 'why'")
        again(store, 40)
        refusal = store.claim(41).refusal
        assert (refusal.code if refusal else None) == kept


def test_where_the_best_series_of_a_study_is_chosen_this_one_is(reported):
    with reported.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE series SET selection = 'PASSED_OVER', refusal_code = 'PASSED_OVER'")
    again(reported, 40)
    assert reported.rows("SELECT selection FROM series") == [{"selection": "CHOSEN"}]
    with reported.database.transaction() as tx:
        assert jobs.claim(tx, "w", 41, 60, 3).refusal is None
