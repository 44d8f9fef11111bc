"""A series that names a canary's study: neither the canary nor the patient's series counts for the other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from storage import quiet_time, selection, study_results
from storage.jobs import Models
from tests.storage_factory import MODEL, QUIET_S, Store

CANARY, PATIENT, SECOND = 1, 2, 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """One study with a canary and two series of a patient, all reported; the canary is positive, the others not."""
    with Store(tmp_path) as store:
        for number, probability in ((CANARY, 0.9), (PATIENT, 0.1), (SECOND, 0.1)):
            now = 100.0 * number
            store.receive(1, now=now, series_uid=f"1.2.{number}")
            store.close_due(now + QUIET_S)
            job = store.claim(now + QUIET_S)
            assert job is not None
            store.finish(job, now + QUIET_S, probability=probability)
        change(store, "canary = TRUE WHERE id = 1")
        yield store


def change(store: Store, what: str) -> None:
    with store.database.transaction() as tx:
        tx.execute(text(f"UPDATE series SET {what}"))


def test_no_report_names_a_canarys_result_and_a_canarys_names_no_patients(store: Store) -> None:
    with store.database.read() as tx:
        named = {pk: [one.series_pk for one in study_results.others(tx, pk)] for pk in (CANARY, PATIENT, SECOND)}
    assert named == {CANARY: [], PATIENT: [SECOND], SECOND: [PATIENT]}


def test_no_series_is_passed_over_for_a_canary_or_waits_for_one(store: Store) -> None:
    change(store, "state = 'OPEN' WHERE id = 1")
    change(store, "selection = 'WAITING' WHERE id > 1")
    with store.database.read() as tx:
        assert selection.undecided_studies(tx, 9000.0) == [1]
        members = selection.members(tx, 1)
    assert [one.series_pk for one in members] == [PATIENT, SECOND]
    with store.database.transaction() as tx:
        choice = selection.Choice(members, PATIENT, None, {}, {})
        selection.record_choice(tx, choice, 9000.0, Models(MODEL))
    with store.database.transaction() as tx:
        assert quiet_time.end_study_wait(tx, PATIENT, {"1.2.2", "1.2.3"}, 9000.0)
