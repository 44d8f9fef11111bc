"""A model that a person has suspended reports nothing; its series are kept, and analysed later if that is asked."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import Destination, ReportSettings, Settings
from dicom_node.analysis.suspended import suspended
from dicom_node.analysis.worker import Worker
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import deliveries, jobs, suspensions
from storage.reopening import analyse_again
from tests.integration.test_replay import take_in
from tests.running import command
from tests.storage_factory import ModelRef, Store

WHY = "scanner 2 was recalibrated"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(make_phantom(12, slices=40, size=256, lesions="none"), tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path, f"sqlite:///{tmp_path}/node.db") as opened:
        yield opened


def results(store: Store) -> list[dict[str, object]]:
    wanted = "SELECT outcome, reason_code, reason_text, superseded_at IS NULL AS stands FROM results ORDER BY id"
    return store.rows(wanted)


def test_its_series_are_kept_and_analysed_when_it_is_resumed(store: Store, phantom: list[Path]) -> None:
    assert command(store.folder, "models", "suspend", "demonstration", "--reason", WHY)[0] == 0
    status, _, why = command(store.folder, "models", "suspend", "demonstration", "--reason", WHY)
    assert status == 1 and "suspended already" in why
    take_in(store, phantom, time.time() - 60, ReportSettings(report_not_analysed=True))
    (kept,) = results(store)
    assert (kept["outcome"], kept["reason_code"]) == ("NOT_ANALYSED", "MODEL_SUSPENDED")
    assert WHY in str(kept["reason_text"])
    (row,) = store.rows("SELECT path FROM result_objects WHERE kind = 'report'")
    report = dcmread(store.folder / "files" / str(row["path"]))
    said = " ".join(element.value for element in report.iterall() if element.keyword == "TextValue")
    assert WHY in said and "Certainty" not in str(report)
    assert f"SUSPENDED   model demonstration, by {suspended_by(store)}" in command(store.folder, "status")[1]
    status, _, why = command(store.folder, "replay", "1")
    assert status == 1 and "refused before any analysis" in why

    status, said, why = command(store.folder, "models", "resume", "demonstration", "--analyse", "--json")
    assert (status, json.loads(said)["queued"]) == (0, 1), why
    assert Worker(Settings(data_dir=store.folder), store.database, store.files, "cpu").work_once(time.time())
    former, now = results(store)
    assert (former["stands"], now["stands"], now["outcome"]) == (0, 1, "ANALYSED")
    events = [row["event"] for row in store.rows("SELECT event FROM audit WHERE event LIKE 'model.%' ORDER BY id")]
    assert events == ["model.suspended", "model.resumed"]
    assert "SUSPENDED" not in command(store.folder, "status")[1]
    again = command(store.folder, "models", "resume", "demonstration", "--analyse", "--json")
    assert (again[0], json.loads(again[1])["queued"]) == (0, 0), "to go on where it was interrupted does no harm"
    assert command(store.folder, "models", "resume", "demonstration")[0] == 1


def suspended_by(store: Store) -> str:
    with store.database.read() as tx:
        (found,) = suspensions.all_of(tx)
    return found.suspended_by


def test_what_is_being_analysed_when_it_is_suspended_is_not_reported(
    store: Store, phantom: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Worker._built

    def suspend_first(self: Worker, *arguments: Any) -> Any:
        built = build(self, *arguments)
        with store.database.transaction() as tx:
            if suspensions.of_model(tx, "demonstration") is None:
                suspensions.suspend(tx, "demonstration", "somebody", WHY, time.time())
        return built

    monkeypatch.setattr(Worker, "_built", suspend_first)
    take_in(store, phantom, time.time() - 60)
    (result,) = results(store)
    assert (result["outcome"], result["reason_code"]) == ("NOT_ANALYSED", "MODEL_SUSPENDED")
    assert store.rows("SELECT COUNT(*) AS n FROM findings") == [{"n": 0}]


def test_what_it_said_is_taken_back_by_analysing_again(store: Store, phantom: list[Path]) -> None:
    take_in(store, phantom, time.time() - 60)
    with store.database.transaction() as tx:
        deliveries.create(tx, 1, ["pacs", "ris"], time.time() - 50)
        (sent,) = deliveries.claim(tx, "pacs", time.time() - 40, 30.0)
        deliveries.mark_sent(tx, sent.delivery_id, sent.fence, time.time() - 40)
    assert command(store.folder, "models", "suspend", "demonstration", "--reason", WHY)[0] == 0
    status, _, why = command(store.folder, "reanalyse", "1")
    assert status == 0, why
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=11113)
    settings = Settings(data_dir=store.folder, destinations=(pacs,))
    assert not settings.report.report_not_analysed
    assert Worker(settings, store.database, store.files, "cpu").work_once(time.time())

    former, now = results(store)
    assert (former["stands"], now["stands"]) == (0, 1)
    assert (now["outcome"], now["reason_code"]) == ("NOT_ANALYSED", "MODEL_SUSPENDED")
    told = store.rows("SELECT result_id, destination, state FROM deliveries ORDER BY id")
    states = [tuple(row.values()) for row in told]
    assert states == [(1, "pacs", "SENT"), (1, "ris", "SUPERSEDED"), (2, "pacs", "PENDING")]
    reports = store.rows("SELECT path FROM result_objects WHERE kind = 'report' ORDER BY result_id")
    first, second = (dcmread(store.folder / "files" / str(row["path"])) for row in reports)
    assert WHY in " ".join(element.value for element in second.iterall() if element.keyword == "TextValue")
    (series,) = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [first.SOPInstanceUID]


def test_a_shadow_and_a_batch_go_on(store: Store, phantom: list[Path]) -> None:
    take_in(store, phantom, time.time() - 60)
    with store.database.transaction() as tx:
        suspensions.suspend(tx, "demonstration", "somebody", WHY, time.time())
        (model,) = tx.exec_driver_sql("SELECT model_name, model_version, model_digest FROM results").all()
        analyse_again(tx, 1, time.time(), ModelRef(*model))
        job = jobs.claim(tx, "test", time.time() + 1, 60, 3)
        assert job is not None and suspended(tx, job) is not None
        assert suspended(tx, replace(job, shadow=True)) is None
        assert suspended(tx, replace(job, batch_id=1)) is None


def test_a_suspension_needs_a_model_and_a_reason(tmp_path: Path) -> None:
    for name, reason, named in (("nobody", WHY, "no model nobody"), ("demonstration", " ", "say why")):
        status, _, why = command(tmp_path, "models", "suspend", name, "--reason", reason)
        assert status == 1 and named in why
    status, _, why = command(tmp_path, "models", "resume", "demonstration")
    assert status == 1 and "Traceback" not in why
