"""The views and the status: each question that a site may ask has its answer."""

import re
from pathlib import Path

import pytest

import storage
from config.reasons import Refusal
from storage import audit, copies, deliveries, jobs, series
from storage.status import status
from tests.storage_factory import MODEL, Store, not_analysed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def view(store, name, **where):
    conditions = " AND ".join(f"{column} = :{column}" for column in where)
    return store.rows(f"SELECT * FROM {name}" + (f" WHERE {conditions}" if where else ""), **where)


def judge(store, *differences):
    """Decide about what was set aside, as the comparison does."""
    with store.database.transaction() as tx:
        for copy, difference in zip(copies.to_compare(tx, 10), differences, strict=True):
            copies.judge(tx, copy, difference, 50)


def test_every_view_is_named_explained_and_answers_on_an_empty_index(store):
    script = (Path(storage.__file__).parent / "views.sql").read_text()
    explained = re.findall(r"^-- .*\nCREATE VIEW (\w+)", script, re.MULTILINE)
    assert len(explained) == script.count("CREATE VIEW") >= 9
    for name in explained:
        assert view(store, name) == [] or name == "views_version"


def test_what_touched_this_patient(store):
    store.reported("PACS")
    store.receive(1, now=5, series_uid="9.9", study_uid="9", patient_id="P2")
    touched = view(store, "patient_history", patient_id="P1")
    assert [row["event"] for row in touched][-1] == "delivery.pending"
    assert touched[0]["time_utc"] == "1970-01-01 00:00:00.000"
    assert {row["patient_id"] for row in touched} == {"P1"}


def test_series_received_without_an_outcome_and_why(store):
    store.reported("PACS")
    for number in range(5):
        store.receive(1, now=100 + number, series_uid=f"8.{number}", study_uid="8")
    with store.database.transaction() as tx:
        for uid in ("8.1", "8.2", "8.3"):
            pk = series.get_series(tx, uid).series_pk
            series.close_series(tx, pk, 110, series.Closing(MODEL, "command"))
        series.close_series(
            tx,
            series.get_series(tx, "8.4").series_pk,
            110,
            series.Closing(None, "x", refusal=Refusal("OWN_OBJECT", "Ours.")),
        )
    first, second = store.claim(111), store.claim(111)
    with store.database.transaction() as tx:
        jobs.fail(tx, first.job_id, first.fence, 112, "the model file is missing", None)
    assert second.series_instance_uid == "8.2"
    assert {row["series_instance_uid"]: row["waits_for"] for row in view(store, "series_without_outcome")} == {
        "8.0": "its quiet time is not over",
        "8.1": "failed: the model file is missing",
        "8.2": "being analysed",
        "8.3": "queued",
        "8.4": "kept, not analysed: OWN_OBJECT",
    }


def test_which_weights_made_this_result(store):
    result_id = store.reported("PACS")
    [row] = view(store, "result_weights", result_id=result_id)
    assert (row["unet_sha256"], row["decovnet_sha256"], row["device"]) == ("u" * 64, "d" * 64, "cpu")
    assert (row["model_name"], row["model_digest"], row["pixel_digest"]) == ("demo", "model-digest-1", "p" * 64)
    assert len(row["input_digest"]) == 64


def test_all_results_of_a_model(store):
    first = store.reported("PACS")
    store.receive(3, now=50)
    store.close_due(80)
    second = store.finish(store.claim(81), 82, "PACS", probability=0.1)
    rows = view(store, "model_results", model_name="demo")
    assert {row["result_id"]: row["standing"] for row in rows} == {first: "superseded", second: "current"}


def test_turnaround_is_the_nearest_rank_of_each_day(store):
    for number in range(20):
        store.receive(1, now=0, series_uid=f"5.{number}")
    store.close_due(30)
    for number in range(20):
        store.finish(store.claim(31 + number), 31 + number, "PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 60, 60)
        deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, 61)
    [day] = view(store, "turnaround_per_day")
    assert (day["day_utc"], day["results"], day["delivered"]) == ("1970-01-01", 20, 1)
    assert (day["to_result_p50_s"], day["to_result_p95_s"]) == (40.0, 49.0)
    assert (day["to_delivery_p50_s"], day["to_delivery_p95_s"]) == (61.0, 61.0)


def test_who_connected_and_who_was_refused(store):
    with store.database.transaction() as tx:
        audit.append(
            tx, 1, "association.accepted", peer=audit.Peer(ae_title="CT", address="10.0.0.1"), outcome="ACCEPTED"
        )
        audit.append(
            tx, 2, "association.rejected", peer=audit.Peer(ae_title="EVIL", address="10.0.0.9"), outcome="UNKNOWN_AE"
        )
    rows = view(store, "connections")
    assert [(row["peer_ae"], row["outcome"]) for row in rows] == [("CT", "ACCEPTED"), ("EVIL", "UNKNOWN_AE")]


def test_failures_by_cause(store):
    store.reported("PACS")
    with store.database.transaction() as tx:
        [claimed] = deliveries.claim(tx, "PACS", 40, 60)
        deliveries.fail(tx, claimed.delivery_id, claimed.fence, 41, "0xA900")
        audit.append(tx, 50, "association.rejected", outcome="UNKNOWN_AE")
        audit.append(tx, 51, "association.rejected", outcome="UNKNOWN_AE")
    store.receive(1, now=42, content="other")
    judge(store, "other pixels")
    store.receive(1, now=43, series_uid="6.6")
    store.close_due(100)
    job = store.claim(101)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 102, not_analysed("GAP", "A slice is missing."), [], [])
    counted = {(row["what"], row["cause"]): row["times"] for row in view(store, "failures_by_cause")}
    assert counted == {
        ("delivery failed to PACS", "0xA900"): 1,
        ("association rejected", "UNKNOWN_AE"): 2,
        ("instance set aside", "the SOP Instance UID holds other content"): 1,
        ("series not analysed", "GAP"): 1,
    }


def test_where_results_went_and_what_was_set_aside(store):
    store.reported("PACS")
    store.receive(1, now=42, content="other")
    [delivery] = view(store, "delivery_overview")
    assert (delivery["state"], delivery["next_attempt_utc"]) == ("PENDING", "1970-01-01 00:00:30.000")
    [aside] = view(store, "instances_set_aside")
    assert (aside["sop_instance_uid"], aside["standing"]) == ("1.2.3.1", "to be compared")
    judge(store, "other pixels")
    assert [row["standing"] for row in view(store, "instances_set_aside")] == ["contradicts"]
    store.receive(1, now=43, content="third")
    judge(store, None)
    assert [row["standing"] for row in view(store, "instances_set_aside")] == ["contradicts"]


def test_status_counts_everything(store):
    store.reported("PACS")
    store.receive(1, now=40, series_uid="1.9")
    store.receive(1, now=41, content="other")
    store.receive(1, now=41, content="third")
    judge(store, "other pixels", None)
    with store.database.read() as tx:
        found = status(tx, 100)
    assert found["series"] == {"OPEN": 1, "CLOSED": 1}
    assert found["jobs"]["REPORTED"] == 1
    assert found["deliveries"]["PENDING"] == 1
    assert (found["instances"], found["conflicts"], found["results"]["ANALYSED"]) == (3, 1, 1)
    assert (found["second_copies"], found["second_copies_to_compare"]) == (1, 0)
    assert found["oldest_pending_s"] == 70.0
    assert found["destinations"]["PACS"]["PENDING"] == 1
