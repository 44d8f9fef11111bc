"""What the node refuses leaves a trace that an auditor can use, and its series is not analysed without it."""

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import generate_uid
from sqlalchemy import text

from dicom_node.analysis.current_model import current_model
from dicom_node.analysis.worker import Worker
from dicom_node.receiver import refusals
from storage import quiet_time, results, series
from tests.attacker import ACCEPT, DATA, attacker, data_set, element, pdu, pdv, store_command
from tests.outbox import MODEL
from tests.programs import wait_for
from tests.receiving import PATIENT_ID, Node, associate, ct_slice, store

SERIES = "1.2.826.0.1.3680043.8.498.14"
QUIET_S = 1e6


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as running:
        yield running


def rows(node: Node, view: str = "instances_refused") -> list[dict[str, Any]]:
    with node.database.read() as tx:
        return [dict(row) for row in tx.execute(text(f"SELECT * FROM {view}")).mappings()]


def close(node: Node) -> dict[str, Any]:
    """Close the one series, as its quiet time being over would. Returns its row."""
    with node.database.transaction() as tx:
        [due] = quiet_time.due_series(tx, time.time() + QUIET_S)
        series.close_series(tx, due.series_pk, time.time() + QUIET_S, series.Closing(MODEL))
    [row] = rows(node, "series")
    return row


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`dicom-node` at the command line."""
    return subprocess.run([sys.executable, "-m", "dicom_node", *arguments], capture_output=True, text=True, timeout=120)


def broken(number: int = 1) -> FileDataset:
    """A slice whose command names another instance."""
    sent = ct_slice(number, series_uid=SERIES)
    sent.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return sent


def test_a_refused_slice_is_remembered_before_it_is_answered_and_keeps_its_series_from_analysis(node: Node) -> None:
    bad = broken()
    answers = store(node, bad, ct_slice(2, series_uid=SERIES), ct_slice(3, series_uid=SERIES))
    assert [status for status, _ in answers] == [0xC000, 0, 0]
    [row] = rows(node)
    assert (row["status"], row["reason"]) == ("C000", "SOP instance of command and data set differ")
    assert (row["series_instance_uid"], row["sop_instance_uid"]) == (SERIES, bad.SOPInstanceUID)
    assert (row["calling_ae"], row["address"], row["patient_id"]) == ("SENDER", "127.0.0.1", PATIENT_ID)
    assert row["standing"] == "missing"
    assert close(node)["refusal_code"] == "REFUSED_INSTANCES"


def test_a_slice_that_comes_after_all_makes_the_series_whole(node: Node) -> None:
    bad = broken()
    store(node, bad, ct_slice(2, series_uid=SERIES))
    bad.file_meta.MediaStorageSOPInstanceUID = bad.SOPInstanceUID
    assert store(node, bad) == [(0, "")]
    assert [row["standing"] for row in rows(node)] == ["came later"]
    assert close(node)["refusal_code"] is None


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (lambda: data_set(series=SERIES.encode())[:-20], 0xC000, "data set is cut short"),
        (
            lambda: element(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99") + data_set(series=SERIES.encode()),
            0xC000,
            "data set has elements below group 0008",
        ),
        (
            lambda: bytes(128) + b"DICM" + element(0x00020010, b"UI", b"1.2") + data_set(series=SERIES.encode()),
            0xC000,
            "data set is a whole file: preamble and file meta come first",
        ),
        (
            lambda: data_set(series=SERIES.encode()).replace(b"5.1.4.1.1.2\0", b"5.1.4.1.1.4\0"),
            0xA900,
            "SOP class of command and data set differ",
        ),
    ],
)
def test_whatever_is_wrong_with_a_data_set_its_series_is_known(
    node: Node, content: Any, status: int, reason: str
) -> None:
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        assert sender.store(b"1.2.3.4.5", content()) == status
    [row] = rows(node)
    assert (row["series_instance_uid"], row["sop_instance_uid"]) == (SERIES, "1.2.3.4.5")
    assert row["reason"] == reason
    assert not [path for path in node.files.root.rglob("*") if path.is_file()]


def test_a_refusal_for_want_of_space_is_one_too(node: Node) -> None:
    with associate(node) as association:
        assert association.send_c_store(ct_slice(1, series_uid=SERIES)).Status == 0
        node.fill_disk()
        lacking = ct_slice(2, series_uid=SERIES)
        assert association.send_c_store(lacking).Status == 0xA700
    [row] = rows(node)
    assert (row["status"], row["sop_instance_uid"]) == ("A700", lacking.SOPInstanceUID)
    assert close(node)["refusal_code"] == "REFUSED_INSTANCES"


def test_an_instance_that_the_node_cuts_off_is_missing_too(tmp_path: Path) -> None:
    with Node(tmp_path, {"max_instance_bytes": 2**20}) as node:
        with attacker(node.port) as sender:
            assert sender.associate() == ACCEPT
            large = data_set(series=SERIES.encode()) + element(0x7FE11010, b"OB", bytes(2**21))
            assert sender.store(b"1.2.3.4.5", large) is None
        wait_for(lambda: bool(rows(node)), 10, "the refusal is remembered")
        [row] = rows(node)
        assert (row["status"], row["reason"]) == ("ABORT", "data set is larger than allowed")
        assert row["series_instance_uid"] == SERIES


def test_an_instance_during_which_the_connection_broke_is_missing_until_it_comes_whole(node: Node) -> None:
    content = data_set(b"1.2.3.4.5", series=SERIES.encode())
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        sender.send(pdu(DATA, pdv(store_command(b"1.2.3.4.5"), 3)))
        sender.send(pdu(DATA, pdv(content[:-10], 0)))
    wait_for(lambda: bool(rows(node)), 10, "the interruption is remembered")
    [row] = rows(node)
    assert (row["status"], row["series_instance_uid"], row["standing"]) == ("ABORT", SERIES, "missing")
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        assert sender.store(b"1.2.3.4.5", content) == 0
    assert [row["standing"] for row in rows(node)] == ["came later"]


def test_the_series_is_found_behind_a_header_that_is_longer_than_what_is_kept_of_it(node: Node) -> None:
    extra = element(0x00091001, b"OB", bytes(100_000))
    content = data_set(series=SERIES.encode(), extra=extra)[:-20]
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        assert sender.store(b"1.2.3.4.5", content) == 0xC000
        sender.send(pdu(DATA, pdv(store_command(b"1.2.3.4.6"), 3)))
        for start in range(0, len(content), 16000):
            sender.send(pdu(DATA, pdv(content[start : start + 16000], 0)))
    wait_for(lambda: len(rows(node)) == 2, 10, "both are remembered")
    assert [row["series_instance_uid"] for row in rows(node)] == [SERIES, SERIES]
    wait_for(lambda: not any(path.is_file() for path in node.files.root.rglob("*")), 10, "no file is left")


def test_what_cannot_be_read_at_all_is_remembered_under_the_uid_of_its_command(node: Node) -> None:
    with attacker(node.port) as sender:
        assert sender.associate() == ACCEPT
        assert sender.store(b"1.2.3.4.5", b"not dicom at all, just text") == 0xC000
    [row] = rows(node)
    assert (row["series_instance_uid"], row["sop_instance_uid"]) == ("", "1.2.3.4.5")


def test_a_flood_of_refusals_is_counted_and_the_series_still_known_to_lack_instances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MAX_INSTANCES", 5)
    with Node(tmp_path) as node:
        store(node, *(broken(number) for number in range(30)), ct_slice(99, series_uid=SERIES))
        found = rows(node)
        assert len(found) == 6
        assert [row["sop_instance_uid"] for row in found].count("") == 1
        assert close(node)["refusal_code"] == "REFUSED_INSTANCES"
        node.stop()
        refused_rows = [row for row in rows(node, "audit") if row["event"] == "instance.refused"]
        assert len(refused_rows) == 8  # six of instances, the first that was only counted, and the number of the rest
        assert '"times": 24' in refused_rows[-1]["detail"]


def test_a_refusal_while_the_index_fails_is_remembered_when_it_works_again(tmp_path: Path) -> None:
    with Node(tmp_path) as node:
        node.database._busy_timeout_s = 0.2
        node.database.engine.dispose()
        store(node, ct_slice(1, series_uid=SERIES))
        node.database.close()
        other = sqlite3.connect(tmp_path / "node.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answers: list[tuple[int, str]] = []
        sender = threading.Thread(target=lambda: answers.extend(store(node, broken(2))))
        sender.start()
        sender.join(20)
        assert [status for status, _ in answers] == [0xC000]
        other.execute("ROLLBACK")
        other.close()
        store(node, ct_slice(3, series_uid=SERIES))
        assert [row["status"] for row in rows(node)] == ["C000"]


def test_with_pseudonyms_a_refusal_names_no_patient(tmp_path: Path) -> None:
    with Node(tmp_path, storage={"low_disk_mb": 1, "pseudonym_key": "a secret of the site"}) as node:
        store(node, broken())
        [row] = rows(node)
        assert row["patient_id"].startswith("~")
        assert PATIENT_ID not in str(rows(node, "audit"))


def test_a_person_decides_that_the_series_is_whole(node: Node) -> None:
    store(node, broken(), ct_slice(2, series_uid=SERIES))
    close(node)
    config = node.settings.data_dir / "node.toml"
    config.write_text(f'data_dir = "{node.settings.data_dir}"\n')
    done = command("series", "accept", SERIES, "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert "whole without 1 instance" in done.stdout
    assert close(node)["refusal_code"] is None
    assert [row["series_uid"] for row in rows(node, "audit") if row["event"] == "operator.accept"] == [SERIES]
    again = command("series", "accept", SERIES, "--config", str(config))
    assert again.returncode == 1
    assert "no refused instance of this series is missing" in again.stderr


def test_send_says_of_each_instance_why_it_was_refused(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    good, cut = ct_slice(1, series_uid=SERIES), ct_slice(2, series_uid=SERIES)
    del cut.StudyInstanceUID
    for number, each in enumerate((good, cut)):
        each.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    arguments = ["send", str(folder), "--host", "127.0.0.1", "--port", str(node.port)]
    done = command(*arguments)
    assert done.returncode == 1
    line = f"{cut.SOPInstanceUID}: status 0xC000: Study Instance UID is missing"
    assert line in done.stderr.splitlines()
    listed = json.loads(command(*arguments, "--json").stdout)
    assert listed["failures"] == [
        {"sop_instance_uid": cut.SOPInstanceUID, "reason": "status 0xC000: Study Instance UID is missing"}
    ]


def test_the_report_and_the_command_line_say_that_instances_were_refused(tmp_path: Path) -> None:
    with Node(tmp_path, report={"report_not_analysed": True}) as node:
        store(node, broken(), ct_slice(2, series_uid=SERIES), ct_slice(3, series_uid=SERIES))
        now = time.time() + QUIET_S
        with node.database.transaction() as tx:
            [due] = quiet_time.due_series(tx, now)
            series.close_series(tx, due.series_pk, now, series.Closing(current_model(node.settings)))
        assert Worker(node.settings, node.database, node.files, "cpu").work_once(now)
        with node.database.read() as tx:
            record = series.get_series(tx, SERIES)
            objects = results.objects_of(tx, record.result_id or 0)
        assert (record.outcome, record.reason_code) == ("NOT_ANALYSED", "REFUSED_INSTANCES")
        report = node.files.absolute(objects[0].path).read_bytes()
        assert b"refused 1 instance of the series" in report
        assert b"SOP instance of command and data set differ" in report
        config = tmp_path / "node.toml"
        config.write_text(f'data_dir = "{tmp_path}"\n')
        shown = command("series", "show", SERIES, "--config", str(config))
        assert "This node refused 1 instance of the series" in shown.stdout
