"""What an operator sees of a series that several models analyse: each model by name, and what to do about one that
failed."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from config.coding import LUNG, Code
from dicom_node.cli.app import main
from storage import jobs, quiet_time, series
from storage.coded import CodedMeasurement, Content
from storage.jobs import ModelRef
from storage.replaces import Replaces
from storage.results import NewResult
from tests.storage_factory import MODEL, Store, analysed

OTHER = ModelRef("a-model-with-quite-a-long-name", "2.1", "model-digest-2")
SHARE = CodedMeasurement(Code("SHARE", "99TEST", "Share of air"), 12.5, Code("%", "UCUM", "Percent"), LUNG)
MEASURED = NewResult("ANALYSED", OTHER.name, OTHER.version, OTHER.digest, Content((), (SHARE,)))
REFUSED = replace(MEASURED, outcome="NOT_ANALYSED", content=Content(), reason_code="KERNEL", reason_text="Too sharp.")
Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command on the data folder of this test. Returns what it prints."""
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(tmp_path / "var"))

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dicom-node", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert not ended.value.code, printed.err
        return printed.out

    return run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three series for two models. Of the first, the second model has a measurement; it refuses the second series,
    and its analysis of the third failed, as did the first model's."""
    (tmp_path / "var").mkdir()
    with Store(tmp_path / "var", f"sqlite:///{tmp_path / 'var' / 'node.db'}") as store:
        for number in (1, 2, 3):
            store.receive(number, now=100 * number, series_uid=f"1.2.{number}", study_uid=f"1.{number}")
            with store.database.transaction() as tx:
                for due in quiet_time.due_series(tx, 100 * number + 50):
                    closing = series.Closing(MODEL, beside=(OTHER,))
                    series.close_series(tx, due.series_pk, 100 * number + 50, closing)
            if number < 3:
                end(store, analysed(0.1), Replaces(but=frozenset({OTHER.name})))
                end(store, MEASURED if number == 1 else REFUSED, Replaces(only=OTHER.name))
        for reason in ("the first reason", "the second reason"):
            job = claimed(store)
            with store.database.transaction() as tx:
                jobs.fail(tx, job.job_id, job.fence, 500.0, reason, None)
        yield store


def claimed(store: Store) -> jobs.ClaimedJob:
    job = store.claim(450.0)
    assert job is not None
    return job


def end(store: Store, result: NewResult, replaces: Replaces) -> None:
    job = claimed(store)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 460.0, result, [store.report()], ["pacs"], replaces)


def test_the_list_has_a_line_for_each_model_in_80_columns(store: Store, command: Command) -> None:
    lines = command("series", "list").splitlines()
    assert max(map(len, lines)) <= 80
    said = [found[0].strip() for line in lines if (found := re.search(r"\S+: (?!dicom).*", line))]
    assert said == [
        "demo: analysis FAILED", "a-model-with-qu…: analysis FAILED",
        "demo: negative, 10 %", "a-model-wi…: not analysed: KERNEL",
        "demo: negative, 10 %", "a-model-with-quite-a-l…: measured",
    ]  # fmt: skip
    listed = json.loads(command("series", "list", "--json"))
    assert [[one["outcome"] for one in row["models"]] for row in listed] == [
        [None, None], ["ANALYSED", "NOT_ANALYSED"], ["ANALYSED", "ANALYSED"]
    ]  # fmt: skip


def test_a_series_shows_what_each_model_says_and_where_it_went(store: Store, command: Command) -> None:
    measured, refused, failed = (command("series", "show", str(number)) for number in (1, 2, 3))
    assert measured.startswith(f"Series 1: demo: negative, 10 %; {OTHER.name}: measured\n")
    first, second = measured.split(f"\n{OTHER.name} 2.1: measured\n")
    assert "\ndemo 1: negative, 10 %\n" in first and "Pneumonia: Negative, 10 %" in first
    assert "Share of air" in second and "12.5 %" in second and "Share" not in first
    for part in (first, second):
        assert part.count("Delivery ") == 1 and part.count("Objects of the result") == 1
    assert f"{OTHER.name} 2.1: not analysed: KERNEL\n  result 4, of job 4\n  because Too sharp.\n" in refused
    assert "  because the first reason; try again: dicom-node retry --job 5\n" in failed
    assert "  because the second reason; try again: dicom-node retry --job 6\n" in failed


def test_the_status_names_the_model_that_failed_and_a_retry_brings_all_of_a_series_back(
    store: Store, command: Command
) -> None:
    said = command("status")
    assert "2 analyses failed" in said and f"job 6 ({OTHER.name} 2.1) of series 3" in said
    assert "results     3 analysed, 1 not analysed" in said
    assert json.loads(command("retry", "--series", "3", "--json")) == {"job": 5, "jobs": [5, 6]}
    assert store.states("jobs")[4:] == ["QUEUED", "QUEUED"]


def test_a_series_waits_for_the_model_that_has_no_outcome(store: Store) -> None:
    waiting = (
        "SELECT series_instance_uid AS uid, model_name AS model, waits_for FROM series_without_outcome ORDER BY 1, 2"
    )
    failed = {"uid": "1.2.3", "model": OTHER.name, "waits_for": "failed: the second reason"}
    assert store.rows(waiting)[0] == failed and [row["model"] for row in store.rows(waiting)] == [OTHER.name, "demo"]
    with store.database.transaction() as tx:
        jobs.retry(tx, 5, time.time())
    end_of_first = store.claim(time.time() + 1)
    assert end_of_first is not None and end_of_first.model.name == "demo"
    store.finish(end_of_first, time.time() + 2)
    assert store.rows(waiting) == [failed], "one model has reported, the other is still owed"
