"""What the node refused makes its series incomplete, until it comes or a person decides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from config.reasons import ReasonCode
from storage import refused
from storage.errors import NotFound
from storage.refused import RefusedInstance
from tests.storage_factory import QUIET_S, Store

SERIES = "1.2.3"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as store:
        yield store


def refusal(number: int, **changes: Any) -> RefusedInstance:
    values: dict[str, Any] = {
        "sop_instance_uid": f"{SERIES}.{number}",
        "series_instance_uid": SERIES,
        "study_instance_uid": "1.2",
        "patient_id": "P1",
        "status": "C000",
        "reason": "data set is cut short",
        "calling_ae": "CT",
        "address": "127.0.0.1",
    }
    return RefusedInstance(**(values | changes))


def refuse(store: Store, *numbers: int, now: float, **changes: Any) -> None:
    with store.database.transaction() as tx:
        for number in numbers:
            refused.record(tx, refusal(number, **changes), now)


def series_row(store: Store) -> dict[str, Any]:
    [row] = store.rows("SELECT state, revision, refusal_code, refusal_text, due_at FROM series")
    return row


def standings(store: Store) -> list[object]:
    return [row["standing"] for row in store.rows("SELECT standing FROM instances_refused ORDER BY sop_instance_uid")]


def test_a_series_of_which_slices_were_refused_is_closed_as_incomplete(store: Store) -> None:
    refuse(store, 1, 2, now=0)
    store.receive(3, 4, 5, now=1)
    store.close_due(now=1 + QUIET_S)
    row = series_row(store)
    assert row["refusal_code"] == ReasonCode.REFUSED_INSTANCES
    assert "2 instances" in row["refusal_text"]
    assert "data set is cut short" in row["refusal_text"]
    job = store.claim(now=40)
    assert job is not None and job.refusal is not None and job.refusal.code == "REFUSED_INSTANCES"


def test_a_series_whose_refused_slices_came_again_is_analysed(store: Store) -> None:
    refuse(store, 1, now=0)
    store.receive(1, 2, 3, now=1)
    store.close_due(now=1 + QUIET_S)
    assert series_row(store)["refusal_code"] is None
    assert standings(store) == ["came later"]


def test_a_slice_refused_in_another_series_does_not_matter(store: Store) -> None:
    refuse(store, 1, now=0, series_instance_uid="9.9")
    refuse(store, 1, now=0, series_instance_uid="")
    store.receive(2, 3, now=1)
    store.close_due(now=1 + QUIET_S)
    assert series_row(store)["refusal_code"] is None


def test_a_refused_slice_that_comes_after_the_closing_has_the_series_analysed(store: Store) -> None:
    refuse(store, 1, now=0)
    store.receive(2, now=1)
    store.close_due(now=40)
    store.receive(1, now=50)
    store.close_due(now=50 + QUIET_S)
    assert series_row(store)["refusal_code"] is None
    assert store.states("jobs") == ["SUPERSEDED", "QUEUED"]


def test_a_slice_refused_after_the_report_supersedes_it(store: Store) -> None:
    store.reported("PACS", now=0)
    refuse(store, 9, now=100)
    row = series_row(store)
    assert (row["state"], row["revision"], row["due_at"]) == ("OPEN", 2, 100 + QUIET_S)
    assert store.states("deliveries") == ["SUPERSEDED"]
    store.close_due(now=100 + QUIET_S)
    assert series_row(store)["refusal_code"] == "REFUSED_INSTANCES"


def test_the_same_refusal_again_is_counted_and_opens_nothing(store: Store) -> None:
    store.receive(2, now=0)
    refuse(store, 1, now=1)
    store.close_due(now=40)
    for second in range(50, 60):
        refuse(store, 1, now=second)
    assert series_row(store)["revision"] == 1
    [row] = store.rows("SELECT times, first_utc, last_utc FROM instances_refused")
    assert row["times"] == 11
    assert store.events().count("instance.refused") == 1
    refuse(store, 1, now=200)
    assert store.events().count("instance.refused") == 2


def test_a_person_may_decide_that_the_series_is_whole(store: Store) -> None:
    store.receive(2, 3, now=0)
    refuse(store, 1, now=1)
    store.close_due(now=40)
    with store.database.transaction() as tx:
        assert refused.accept(tx, SERIES, now=100) == 1
    store.close_due(now=100)
    assert series_row(store)["refusal_code"] is None
    assert standings(store) == ["accepted"]
    # The decision holds when the same slice is offered and refused once more, for another reason.
    refuse(store, 1, now=110, reason="an element occurs twice")
    assert series_row(store)["state"] == "CLOSED"


def test_a_series_that_lacks_nothing_cannot_be_accepted(store: Store) -> None:
    store.receive(1, now=0)
    refuse(store, 1, now=1)
    with pytest.raises(NotFound), store.database.transaction() as tx:
        refused.accept(tx, SERIES, now=2)


def test_what_a_rule_of_the_site_refuses_is_noted_and_not_missed(store: Store) -> None:
    refuse(store, 1, now=0, wanted=False)
    store.receive(2, now=1)
    store.close_due(now=40)
    assert series_row(store)["refusal_code"] is None
    assert standings(store) == ["unwanted"]


def test_an_auditor_finds_the_refusal_by_patient_and_by_series(store: Store) -> None:
    refuse(store, 1, now=0)
    [row] = store.rows("SELECT * FROM patient_history WHERE patient_id = 'P1' AND event = 'instance.refused'")
    assert (row["series_uid"], row["sop_uid"], row["peer_ae"]) == (SERIES, f"{SERIES}.1", "CT")
    assert "data set is cut short" in str(row["detail"])


def test_a_lost_file_is_not_an_instance_that_came(store: Store) -> None:
    store.receive(1, 2, now=0)
    refuse(store, 1, now=1)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE instances SET gone_at = 5, gone_reason = 'missing' WHERE sop_instance_uid = '1.2.3.1'"))
    store.close_due(now=40)
    assert series_row(store)["refusal_code"] == "REFUSED_INSTANCES"
