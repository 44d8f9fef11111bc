"""What a person at the command line sees: the question first, then the answer, within 80 columns."""

import json
import os
import pwd
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.coding import Code
from dicom_node.cli.app import main
from dicom_node.runtime.node_lock import lock_path, only_node
from storage import deliveries, jobs
from storage.coded import CodedMeasurement, Content
from storage.results import NewResult
from tests.programs import free_port
from tests.receiving import Node as Receiver
from tests.receiving import ct_slice
from tests.shown_series import claimed
from tests.storage_factory import MODEL, Store, not_analysed

LONG = "1.2.840.113619.2.55.3.604688119.868.1234567890.12"
Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run a command on the data folder of this test. Returns what it prints; checks the exit status."""
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(tmp_path / "var"))
    monkeypatch.setenv("DICOM_NODE_RECEIVER__PORT", str(free_port()))
    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()

    def run(*arguments: str, rc: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["dicom-node", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == rc, printed.err
        return printed.out + printed.err

    yield run
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def store(tmp_path: Path, command: Command) -> Iterator[Store]:
    """A positive series whose report waits for the PACS, one whose analysis failed, one that is still arriving."""
    now = time.time()
    (tmp_path / "var").mkdir()
    with Store(tmp_path / "var", f"sqlite:///{tmp_path / 'var' / 'node.db'}") as store:
        store.receive(1, 2, now=now - 5000)
        store.close_due(now - 4000)
        store.finish(store.claim(now - 3900), now - 3800, "pacs")
        store.receive(11, 12, now=now - 3000, series_uid=f"{LONG}1")
        store.close_due(now - 2000)
        job = store.claim(now - 1900)
        with store.database.transaction() as tx:
            jobs.fail(tx, job.job_id, job.fence, now - 1800, "the reason of the failure", None)
            [due] = deliveries.claim(tx, "pacs", now - 1700, 60)
            deliveries.retry_later(tx, due.delivery_id, due.fence, now - 1690, now + 900, "connection refused")
        store.receive(21, 22, now=now - 20, series_uid=f"{LONG}2", quiet_s=100)
        yield store


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def test_the_list_says_what_became_of_each_series_in_80_columns(store: Store, command: Command) -> None:
    listed = command("series", "list")
    assert widest(listed) <= 80
    for said in ("positive, 90 %", "analysis FAILED", "waiting for images"):
        assert said in listed
    assert LONG in command("series", "list", "--wide")


def test_no_reason_and_no_unit_is_cut_or_cryptic(store: Store, command: Command) -> None:
    now = time.time()
    hu = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
    for number, code in ((3, "UNSUPPORTED_TRANSFER_SYNTAX"), (4, "NO_LUNGS")):
        store.receive(number * 10, number * 10 + 1, now=now - 900, series_uid=f"{LONG}{number}")
        store.close_due(now - 800)
        job = claimed(store, f"{LONG}{number}", now - 700)
        with store.database.transaction() as tx:
            jobs.finish(tx, job.job_id, job.fence, now - 600, not_analysed(code, "Because."), [], [])
    listed = command("series", "list")
    assert "UNSUPPORTED_TRANSFER_SYNTAX" in listed and "not analysed: NO_LUNGS" in listed
    assert widest(listed) <= 80
    density = CodedMeasurement(Code("112031", "DCM", "Attenuation Coefficient"), -812.0, hu)
    store.receive(51, 52, now=now - 500, series_uid=f"{LONG}5")
    store.close_due(now - 400)
    job = claimed(store, f"{LONG}5", now - 300)
    with store.database.transaction() as tx:
        measured = NewResult("ANALYSED", MODEL.name, MODEL.version, MODEL.digest, Content((), (density,)))
        jobs.finish(tx, job.job_id, job.fence, now - 200, measured, [], [])
    assert "Attenuation Coefficient: -812 HU\n" in command("series", "show", f"{LONG}5")


def test_a_list_as_json_is_whole(store: Store, command: Command) -> None:
    assert [row["series_pk"] for row in json.loads(command("series", "list", "--json"))] == [3, 2, 1]


@pytest.mark.parametrize("wanted", ["2", f"{LONG}1"])
def test_a_series_is_shown_by_its_number_or_its_uid(store: Store, command: Command, wanted: str) -> None:
    shown = command("series", "show", wanted)
    assert shown.startswith("Series 2: analysis FAILED\n  because       the reason of the failure")


def test_a_unique_beginning_of_a_uid_is_enough_and_another_names_the_numbers(store: Store, command: Command) -> None:
    assert command("series", "show", "1.2.3").startswith("Series 1: positive, 90 %")
    assert "numbers 2, 3" in command("series", "show", "1.2.840", rc=1)
    assert "series list" in command("series", "show", "1.9", rc=1)


def test_times_are_those_of_the_site_and_name_its_zone(store: Store, command: Command) -> None:
    shown = command("series", "show", "1")
    [row] = [line for line in shown.splitlines() if "first, last" in line]
    [received] = store.rows("SELECT first_instance_at AS at FROM series WHERE id = 1")
    assert time.strftime("%Y-%m-%d %H:%M", time.gmtime(float(str(received["at"])) + 5.5 * 3600)) in row
    assert row.endswith(time.tzname[0])


def test_no_series_and_no_index_are_said_in_words(tmp_path: Path, command: Command) -> None:
    assert "has not run" in command("series", "list", rc=1)
    assert not (tmp_path / "var").exists(), "a command that reads makes no files that the node could not open"
    with Store(tmp_path / "var", f"sqlite:///{tmp_path / 'var' / 'node.db'}"):
        assert command("series", "list") == "No series has come yet.\n"
        assert command("series", "list", "--state", "open") == "No series is open.\n"


def test_status_says_that_the_node_is_down_what_waits_and_what_to_do(store: Store, command: Command) -> None:
    said = command("status")
    assert said.startswith("The node does NOT run on this machine.")
    assert "1 series still arriving; no analyses; 1 delivery" in said
    assert "dicom-node retry --job 2" in said
    assert "to pacs: 1 waiting, 0 failed; last error: connection refused" in said
    assert "{" not in said


def test_status_tells_a_node_that_runs_from_one_that_takes_images(
    tmp_path: Path, store: Store, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setenv("DICOM_NODE_STORAGE__LOW_DISK_MB", "1")
    with only_node(tmp_path / "var", threading.Event()):
        assert "runs but does NOT take images" in command("status")
        with socket.create_server(("127.0.0.1", int(os.environ["DICOM_NODE_RECEIVER__PORT"]))):
            assert "The node runs and takes images" in command("status")
            monkeypatch.setenv("DICOM_NODE_STORAGE__LOW_DISK_MB", str(2**40))
            assert "are free below" in command("status")
    assert lock_path(tmp_path / "var").exists()
    assert json.loads(command("status", "--json"))["node"]["runs"] is False


def test_a_waiting_delivery_is_hurried_and_a_failed_job_comes_back(store: Store, command: Command) -> None:
    command("retry", "--delivery", "1")
    [delivery] = store.rows("SELECT attempts, due_at FROM deliveries")
    assert (delivery["attempts"], float(str(delivery["due_at"])) <= time.time()) == (0, True)
    command("retry", "--series", "2")
    assert store.states("jobs") == ["REPORTED", "QUEUED"]
    assert "give one of" in command("retry", rc=2)


def test_a_result_is_sent_again_with_the_user_in_the_audit_trail(
    store: Store, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [{"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": 104} for name in ("pacs", "second")]
    monkeypatch.setenv("DICOM_NODE_DESTINATIONS", json.dumps(places))
    assert "destinations: pacs, second" in command("resend", "1", "--to", "nowhere", rc=1)
    command("resend", "1", "--to", "second")
    assert [row["destination"] for row in store.rows("SELECT destination FROM deliveries")] == ["pacs", "second"]
    [row] = store.rows("SELECT detail, result_id FROM audit WHERE event = 'operator.resend'")
    user = pwd.getpwuid(os.getuid()).pw_name
    assert (json.loads(str(row["detail"])), row["result_id"]) == ({"user": user, "destinations": ["second"]}, 1)


def test_a_series_is_analysed_again_with_the_nodes_model_or_another(store: Store, command: Command) -> None:
    assert "demonstration" in command("reanalyse", "1")
    assert store.states("jobs") == ["REPORTED", "FAILED", "QUEUED"]
    assert "still waits for images" in command("reanalyse", "3", rc=1)
    assert "no such model" in command("reanalyse", "1", "--model", "no such model:1", rc=1)


def test_the_audit_trail_shows_the_latest_events_in_80_columns_and_how_to_see_more(
    store: Store, command: Command
) -> None:
    shown = command("audit")
    events = [line for line in shown.splitlines() if line[:2] == "20"]
    assert len(events) == 20 and widest(shown) <= 80
    assert "The latest 20; more with --limit" in shown
    assert len(json.loads(command("audit", "--json"))) > 20
    assert command("audit", "--event", "no-such").startswith("No event is like that.")
    of_series = command("audit", "--series", "2")
    assert f"series   {LONG}1" in of_series and f"{LONG}2" not in of_series


def test_a_study_is_found_by_the_beginning_of_its_uid(store: Store, command: Command) -> None:
    for number, uid in enumerate(("1.2.7.10", "1.2.7.20")):
        store.receive(70 + number, now=time.time(), study_uid=uid, series_uid=f"{uid}.1")
    found = json.loads(command("audit", "--study", "1.2.7.2", "--event", "instance", "--json"))
    assert {row["study_uid"] for row in found} == {"1.2.7.20"}
    assert "several studies" in command("audit", "--study", "1.2.7", rc=1)
    assert json.loads(command("audit", "--study", "1.2", "--event", "instance", "--json")), (
        "a whole UID is not ambiguous"
    )
    assert command("audit", "--study", "1.9").startswith("No event is like that.")


def test_who_read_about_which_series_is_in_the_audit_trail(store: Store, command: Command) -> None:
    command("series", "show", "1")
    command("series", "list", "--json")
    rows = store.rows("SELECT series_uid, detail FROM audit WHERE event = 'operator.read' ORDER BY id")
    assert [(row["series_uid"], json.loads(str(row["detail"]))["command"]) for row in rows] == [
        ("1.2.3", "series show"),
        (None, "series list"),
    ]


def test_files_that_cannot_be_sent_are_named_and_the_command_fails(tmp_path: Path, command: Command) -> None:
    ct_slice().save_as(tmp_path / "good.dcm", enforce_file_format=True)
    (tmp_path / "empty.dcm").write_bytes(b"")
    with Receiver(tmp_path / "node") as receiver:
        said = command("send", str(tmp_path), "--port", str(receiver.port), rc=1)
    assert f"not sent, cannot be read: {tmp_path / 'empty.dcm'}: empty" in said
    assert "1 stored, 0 failed, 1 not readable" in said


def test_a_series_with_files_that_cannot_be_read_is_not_explained(tmp_path: Path, command: Command) -> None:
    ct_slice().save_as(tmp_path / "good.dcm", enforce_file_format=True)
    (tmp_path / "empty.dcm").write_bytes(b"")
    assert "1 file of the series, or beside it, cannot be read (empty)" in command("explain", str(tmp_path), rc=1)


def test_the_version_is_told_without_a_command(command: Command) -> None:
    assert command("--version").startswith("dicom-node ")
