"""A watched model whose work fails, waits or differs from its shadow's: by a look at a real index, without canaries."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, select, text, update

from config.coding import POSITIVE
from config.settings import ModelEntry, Settings
from dicom_node.analysis.current_model import current_model, shadow_model
from dicom_node.runtime import watching
from storage import canaries, deliveries, jobs, shadow_pairs, watch_alarms, watch_state, watch_work
from storage.jobs import ModelRef
from storage.models import codes, findings, results, series
from storage.models import deliveries as delivery_table
from storage.models import jobs as job_table
from tests.integration.test_watching import BEGAN, DAY_S, add, settings_of, studies
from tests.storage_factory import Store

NOW = time.time()
HOUR_S = 3600.0
STUDIES = 160


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def watched(store: Store, settings: Settings) -> ModelRef:
    """A model with a frozen reference, and 160 studies of the last four weeks."""
    model = current_model(settings)
    add(store, model, studies(1, 0, 60, 3))
    store.close_due(100.0, None)
    watching.look(settings, store.database, BEGAN + 61 * DAY_S)
    add(store, model, studies(2, 75, 16, 10))
    if store.database.is_server:  # `add` numbers its rows itself
        with store.database.transaction() as tx:
            tx.execute(text("SELECT setval('jobs_id_seq', 1000), setval('results_id_seq', 1000)"))
    return model


def stands(store: Store, settings: Settings, model: ModelRef) -> dict[tuple[str, str], watch_state.Assessed]:
    """How the watches stand after a look."""
    watching.look(settings, store.database, NOW)
    with store.database.read() as tx:
        return {(one.watch, one.fact): one for one in watch_state.latest(tx, model.digest)[1]}


def late_results(store: Store) -> list[int]:
    rows = store.rows("SELECT result_id FROM watch_facts ORDER BY result_id DESC LIMIT :most", most=STUDIES)
    return [int(str(row["result_id"])) for row in rows]


def deliver(store: Store, result_ids: list[int], **changed: object) -> None:
    with store.database.transaction() as tx:
        for result_id in result_ids:
            deliveries.create(tx, result_id, ["PACS"], NOW - 60)
        of_these = delivery_table.c.result_id.in_(result_ids)
        tx.execute(update(delivery_table).where(of_these).values({"state": "SENT", "due_at": None, **changed}))


def give_up(store: Store, series_uid: str, model: ModelRef, at: float) -> None:
    """An analysis that fails for good."""
    store.receive(1, now=at - 40, series_uid=series_uid, study_uid=canary_study(series_uid))
    store.close_due(at - 5, model)
    job = store.claim(at - 4)
    assert job is not None
    with store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, at, "no memory", None)


def canary_study(series_uid: str) -> str:
    return series_uid.rsplit(".", 1)[0]


def make_canary(store: Store, series_uid: str) -> None:
    """From now on this series is a canary's."""
    with store.database.transaction() as tx:
        run = canaries.ask(tx, canary_study(series_uid), series_uid, "a test", NOW, 600.0)
        canaries.begin(tx, run, [f"{series_uid}.1"], "source", NOW)


def test_failures_retries_and_what_is_not_delivered_are_told_but_not_those_of_canaries(store: Store) -> None:
    settings = settings_of(store)
    model = watched(store, settings)
    before = stands(store, settings, model)
    served = {key: one.level for key, one in before.items() if key[0] in ("failures", "delivery age")}
    assert set(served.values()) == {"ok"} and len(served) == 4

    late = late_results(store)
    deliver(store, late[:10], state="FAILED")
    deliver(store, late[10:13], attempts=2)
    with store.database.transaction() as tx:
        tx.execute(update(job_table).where(job_table.c.id == late[20]).values(attempts=2))
    for number in range(10):
        give_up(store, f"2.25.{number}.1", model, NOW - DAY_S)
    make_canary(store, "2.25.90.1")
    give_up(store, "2.25.90.1", model, NOW - DAY_S)
    give_up(store, "2.25.91.1", ModelRef("other", "1", "other"), NOW - DAY_S)
    found = stands(store, settings, model)
    assert found["failures", "failed"].level == "alarm"
    assert found["failures", "failed"].sentence.startswith("Analyses given up: 10 of 170 studies")
    assert found["failures", "retried"].level == "warn"
    assert "4 of 160 studies" in found["failures", "retried"].sentence
    assert found["failures", "undelivered"].level == "alarm"
    assert "10 of 160 studies" in found["failures", "undelivered"].sentence
    with store.database.read() as tx:
        assert {one.fact for one in watch_alarms.standing(tx)} == {"failed", "undelivered"}
        assert watch_work.failed_jobs(tx, model.digest, NOW) == 0, "before that moment"


def test_a_result_that_waits_for_an_hour_is_told_but_not_a_canarys(store: Store) -> None:
    settings = settings_of(store)
    model = watched(store, settings)
    make_canary(store, "2.25.90.1")
    store.receive(1, now=NOW - 9 * HOUR_S, series_uid="2.25.90.1", study_uid="2.25.90")
    store.close_due(NOW - 8 * HOUR_S, model)
    job = store.claim(NOW - 8 * HOUR_S)
    assert job is not None and job.canary
    store.finish(job, NOW - 8 * HOUR_S, "PACS")
    assert stands(store, settings, model)["delivery age", "oldest_delivery"].level == "ok"
    with store.database.transaction() as tx:
        deliveries.create(tx, late_results(store)[0], ["PACS", "ARCHIVE"], NOW - 2 * HOUR_S)
        deliveries.claim(tx, "ARCHIVE", NOW - HOUR_S / 2, 7200.0)
    found = stands(store, settings, model)["delivery age", "oldest_delivery"]
    assert found.level == "alarm" and "has waited 120 minutes" in found.sentence
    with store.database.transaction() as tx:
        tx.execute(update(delivery_table).where(delivery_table.c.destination == "PACS").values(created_at=NOW))
    assert stands(store, settings, model)["delivery age", "oldest_delivery"].level == "alarm", "the one under way"


def test_a_queue_that_grows_is_told(store: Store) -> None:
    settings = settings_of(store)
    model = current_model(settings)
    add(store, model, studies(1, 0, 60, 3))
    _queued_for(store, 20.0)
    watching.look(settings, store.database, BEGAN + 61 * DAY_S)
    add(store, model, studies(2, 75, 20, 8))
    assert stands(store, settings, model)["queue", "queue_s"].level == "too_few", "jobs without a start"
    _queued_for(store, 20.0)
    assert stands(store, settings, model)["queue", "queue_s"].level == "ok"
    _queued_for(store, 900.0)
    found = stands(store, settings, model)["queue", "queue_s"]
    assert found.level == "alarm" and "95% of" in found.sentence and "within 900 s" in found.sentence


def _queued_for(store: Store, seconds: float) -> None:
    with store.database.transaction() as tx:
        tx.execute(update(job_table).values(queued_at=0.0, started_at=seconds))


def test_a_shadow_model_that_says_something_else_is_told(store: Store) -> None:
    entries = [ModelEntry(name="demonstration"), ModelEntry(name="densitometry", shadow=True)]
    settings = settings_of(store, models=entries)
    model, shadow = current_model(settings), shadow_model(settings)
    assert shadow is not None
    watched(store, settings)
    assert stands(store, settings, model)["shadow model", "probability"].level == "too_few"
    _analysed_by_both(store, shadow)
    assert stands(store, settings, model)["shadow model", "probability"].level == "ok"
    with store.database.transaction() as tx:
        of_shadow = select(results.c.id).where(results.c.shadow)
        tx.execute(update(findings).where(findings.c.result_id.in_(of_shadow)).values(certainty=1.0))
    found = stands(store, settings, model)["shadow model", "probability"]
    assert found.level == "alarm" and f"of the same {STUDIES} studies" in found.sentence
    with store.database.read() as tx:
        assert shadow_pairs.latest_pairs(tx, shadow.digest, model.digest, since=NOW + 1) == []
    alone = stands(store, settings_of(store), model)
    assert ("shadow model", "probability") not in alone, "no shadow, no alarm"
    with store.database.read() as tx:
        assert all(one.watch != "shadow model" for one in watch_alarms.standing(tx))


def _analysed_by_both(store: Store, shadow: ModelRef) -> None:
    """Each late study becomes a series of its own, of which both models say the same."""
    late = late_results(store)
    named = {"model_digest": shadow.digest, "model_name": shadow.name, "model_version": shadow.version, "shadow": True}
    with store.database.transaction() as tx:
        code = {"value": POSITIVE.value, "scheme": POSITIVE.scheme, "meaning": POSITIVE.meaning}
        tx.execute(insert(codes).values(id=900, **code))
        one = dict(tx.execute(select(series).where(series.c.id == 1)).mappings().one())
        many = [{**one, "id": 1000 + live, "series_instance_uid": f"1.2.3.{live}"} for live in late]
        tx.execute(insert(series), many)
        for table in (job_table, results):
            tx.execute(update(table).where(table.c.id.in_(late)).values(series_pk=1000 + table.c.id))
            rows = tx.execute(select(table).where(table.c.id.in_(late))).mappings().all()
            beside = [{**row, **named, "id": 5000 + row["id"]} for row in rows]
            tx.execute(insert(table), [{**row, "job_id": row["id"]} if "job_id" in row else row for row in beside])
        certainties = np.random.default_rng(3).beta(1.5, 4.0, len(late))
        tx.execute(
            insert(findings),
            [
                {"result_id": live + more, "title": "t", "concept_id": 900, "interpretation_id": 900, "certainty": said}
                for live, said in zip(late, certainties.tolist(), strict=True)
                for more in (0, 5000)
            ],
        )
