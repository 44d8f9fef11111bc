"""What the index knows of the choice of a study's best series: when a study is ready, and what recording it does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.reasons import Refusal
from storage import jobs, quiet_time, selection, series
from storage.errors import NotDueYet
from storage.jobs import Models
from storage.selection import Choice, Member
from storage.series_state import Selection
from tests.storage_factory import MODEL, QUIET_S, Store, not_analysed


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def close_due(store: Store, now: float) -> None:
    with store.database.transaction() as tx:
        for due in quiet_time.due_series(tx, now):
            series.close_series(tx, due.series_pk, now, series.Closing(MODEL, to_choose=True))


def ready(store: Store, now: float) -> list[int]:
    with store.database.read() as tx:
        return selection.undecided_studies(tx, now)


def members(store: Store) -> list[Member]:
    with store.database.read() as tx:
        return selection.members(tx, 1)


def choose(store: Store, found: list[Member], chosen: int | None, now: float) -> int | None:
    others = {
        m.series_pk: (Selection.PASSED_OVER, Refusal("PASSED_OVER", "Why.")) for m in found if m.series_pk != chosen
    }
    with store.database.transaction() as tx:
        return selection.record_choice(tx, Choice(found, chosen, None, others, {"why": "a test"}), now, Models(MODEL))


def two_series(store: Store) -> None:
    store.receive(1, 2, now=0, series_uid="1.2.1")
    store.receive(1, 2, now=10, series_uid="1.2.2")
    close_due(store, QUIET_S + 10)


def test_a_study_is_ready_when_all_its_series_are_closed_and_quiet(store: Store) -> None:
    store.receive(1, 2, now=0, series_uid="1.2.1")
    store.receive(1, 2, now=10, series_uid="1.2.2")
    close_due(store, QUIET_S)
    assert ready(store, QUIET_S) == []
    close_due(store, QUIET_S + 10)
    assert ready(store, QUIET_S + 10) == [1]
    assert [m.selection for m in members(store)] == [Selection.WAITING] * 2
    assert store.claim(QUIET_S + 10) is None


def test_one_series_is_queued_and_the_others_say_why_not(store: Store) -> None:
    two_series(store)
    assert choose(store, members(store), 2, 50) is not None
    assert ready(store, 50) == []  # its job is not done
    rows = store.rows("SELECT selection, refusal_code FROM series ORDER BY id")
    assert rows == [
        {"selection": "PASSED_OVER", "refusal_code": "PASSED_OVER"},
        {"selection": "CHOSEN", "refusal_code": None},
    ]
    assert "study.series-chosen" in store.events()
    job = store.claim(50)
    assert job is not None and job.series_pk == 2
    store.finish(job, 60)
    assert ready(store, 60) == [1]
    assert [m.outcome for m in members(store)] == [None, "ANALYSED"]


def test_who_reads_ahead_stays_with_a_series_that_waits_to_be_chosen(store: Store) -> None:
    def next_after(stay: int) -> int | None:
        with store.database.read() as tx:
            return series.next_series(tx, None, stay)

    two_series(store)
    assert next_after(2) == 2, "it was closed, and nothing is queued yet"
    assert choose(store, members(store), 2, 50) is not None
    assert next_after(2) == 2, "now its job is"
    assert next_after(1) == 2, "the other one was passed over"
    assert store.claim(50) is not None
    assert next_after(2) is None


def test_a_refused_result_makes_the_study_ready_again(store: Store) -> None:
    two_series(store)
    choose(store, members(store), 2, 50)
    job = store.claim(50)
    assert job is not None
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 60, not_analysed("NOT_CHEST", "No lungs."), [], [])
    assert ready(store, 60) == [1]
    assert members(store)[1].reason == Refusal("NOT_CHEST", "No lungs.")


def test_a_slice_that_came_meanwhile_stops_the_recording(store: Store) -> None:
    two_series(store)
    before = members(store)
    store.receive(3, now=50, series_uid="1.2.1")
    with pytest.raises(NotDueYet):
        choose(store, before, 2, 51)
    assert store.claim(51) is None
    assert ready(store, 51) == []


def test_a_late_slice_takes_its_series_out_until_it_closes_again(store: Store) -> None:
    two_series(store)
    choose(store, members(store), 2, 50)
    store.receive(3, now=55, series_uid="1.2.2")
    assert [m.series_pk for m in members(store)] == [1]
    assert store.states("jobs") == ["SUPERSEDED"]
    close_due(store, 55 + QUIET_S)
    assert ready(store, 55 + QUIET_S) == [1]
    assert [m.selection for m in members(store)] == [Selection.PASSED_OVER, Selection.WAITING]
