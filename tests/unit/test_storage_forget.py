"""A patient is forgotten: nothing names them any longer, everybody else's data stay, and the audit trail is whole."""

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import structlog
from sqlalchemy import insert, text, update
from sqlalchemy.exc import DatabaseError
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.runtime.forgetting import Forgetter
from dicom_node.runtime.node_lock import only_node
from dicom_node.runtime.startup import prepare
from storage import (
    audit,
    audit_archive,
    batches,
    deliveries,
    forgetting,
    forgotten_rows,
    known_of_patient,
    notifications,
    recording,
    refused,
    rejections,
    tallies,
)
from storage import verdicts as given
from storage.audit_check import check
from storage.batches import NewBatch, NewCase
from storage.database import Database, open_database
from storage.messages import Message, Messages
from storage.models import Base, examinations
from storage.models import audit as trail
from storage.refused import RefusedInstance
from tests.factories import Grid, slice_dataset
from tests.postgresql import server_programs
from tests.storage_factory import INDEX, MODEL, QUIET_S, Store, check_listings

NAME, PATIENT, STUDY, SERIES = "Zyxwv^Ottilie", "PID-8830-Q", "9.8830.8830", "9.8830.8830.1"
ISSUER = "HOSPITAL-Q"
OTHERS = ("7.1", "7.2")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A node's folder with everything that may name a patient; SQLite."""
    folder = tmp_path_factory.mktemp("filled")
    with Store(folder, f"sqlite:///{folder}/{INDEX}") as made:
        fill(made)
    return folder


@pytest.fixture
def store(tmp_path, filled):
    if os.environ.get("DICOM_NODE_TEST_DATABASE"):
        with Store(tmp_path) as made:
            fill(made)
            yield made
        return
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    with Store(tmp_path, f"sqlite:///{tmp_path}/{INDEX}") as made:
        yield made


def dicom(name=NAME, patient=PATIENT, issuer=ISSUER):
    """A slice as a scanner sends it."""
    made = slice_dataset(Grid(), 0, np.zeros((32, 40), np.int16), PatientName=name, PatientID=patient)
    made.IssuerOfPatientID = issuer
    made.TextComments = f"about {name}"
    buffer = io.BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def receive(store, number, now, series_uid, study_uid, patient, name, content=None):
    one = store.arrival(number, series_uid=series_uid, study_uid=study_uid, patient_id=patient)
    store.files.remove(one.file.path)
    file = store.files.write_durably([content or dicom(name, patient)])
    header = replace(one.header, patient_name=name, birth_date="19310405", accession_number=f"ACC{patient}")
    with store.database.transaction() as tx:
        return recording.record_instances(tx, [replace(one, file=file, header=header)], now, QUIET_S)


def reported(store, now, series_uid, study_uid, patient, name):
    """A series of two slices with a result that was sent."""
    for number in (1, 2):
        receive(store, number, now, series_uid, study_uid, patient, name)
    store.close_due(now + QUIET_S)
    result_id = store.finish(store.claim(now + QUIET_S), now + 40, "PACS")
    with store.database.transaction() as tx:
        (one,) = deliveries.claim(tx, "PACS", now + 41, 60)
        deliveries.mark_sent(tx, one.delivery_id, one.fence, now + 42)
        Messages("").keep(tx, result_id, "hl7", Message(f"PID|{patient}|{name}".encode(), "x", "k"), now)
        given.record_verdict(tx, result_id, "reader", "AGREES", None, f"as I told {name}", now + 41)
        person = {"person": patient, "model_name": "demo", "day": "2026-01-01", "scan": "{}", "said": "[]"}
        tx.execute(insert(examinations).values(result_id=result_id, **person))
    return result_id


def fill(store):
    """Everything that may name a patient, and the same of two others; the first archive holds some of it."""
    reported(store, 0, *(f"{OTHERS[0]}.1", OTHERS[0]), "P1", "One^A")
    reported(store, 100, SERIES, STUDY, PATIENT, NAME)
    audit_archive.archive(store.database, store.folder / "audit", 105, 1000.0, {"user": "root"})
    reported(store, 200, *(f"{OTHERS[1]}.1", OTHERS[1]), "P2", "Two^B")
    # The patient's slice that was set aside, beside another patient's series; and one of the same UID.
    receive(store, 9, 300, f"{OTHERS[0]}.1", OTHERS[0], PATIENT, NAME)
    receive(store, 1, 301, SERIES, STUDY, PATIENT, NAME, dicom(issuer="OTHER"))
    aside = store.files.write_durably([dicom()]).path
    store.files.set_aside(aside, store.files.quarantine_of(0.0))
    with store.database.transaction() as tx:
        refused.record(tx, RefusedInstance(SERIES, f"{SERIES}.7", STUDY, PATIENT, "A700", "full", "CT", ""), 302)
        refused.record(tx, RefusedInstance("9.9", "9.9.1", "9", PATIENT, "A700", "full", "CT", ""), 302)
        rejections.reject(tx, [rejections.Rejected(STUDY, SERIES, f"{SERIES}.1", "quality")], "1.9", 303)
        query = json.dumps({"where": "", "keys": {"PatientID": PATIENT}})
        batch = batches.create(tx, NewBatch("pacs", query, MODEL), 304, "root")
        cases = [NewCase(SERIES, json.dumps({"study": STUDY})), NewCase("7.7.7")]
        batches.add_cases(tx, batch, cases, PATIENT)
        notifications.add(tx, "rule", "mail", "positive", {"patient": {"id": PATIENT}}, 305)
        notifications.add(tx, "rule", "mail", "positive", {"patient": {"id": "P1"}}, 305)
        audit.append(tx, 306, "web.read", audit.Subject(patient_id=PATIENT), detail={"page": "series"})
        audit.append(tx, 306, "operator.retry", detail={"about": f"series {SERIES}"})


def run(store, *arguments, status=0):
    environment = {"DICOM_NODE_DATA_DIR": str(store.folder), "DICOM_NODE_STORAGE__DATABASE_URL": store.url}
    store.database.close()
    done = CliRunner().invoke(app, ["forget", *arguments], env=environment)
    store.database = open_database(store.url)  # its file may have become shorter
    structlog.reset_defaults()
    assert done.exit_code == status, (done.output, done.exception)
    return done


def forget(store, *arguments, status=0):
    return run(store, PATIENT, "--yes", "--even-undelivered", *arguments, status=status)


def left_of(store, *words):
    """Where the bytes of some words are: files below the data folder, and the dump of a server's database."""
    found = []
    for path in [path for path in store.folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        found += [(path.name, word) for word in words if word.encode() in content]
    if store.database.is_server:
        plain = store.database.url.set(drivername="postgresql")
        asked = [server_programs() / "pg_dump", "-d", plain.render_as_string(hide_password=False)]
        dump = subprocess.run(asked, capture_output=True, check=True).stdout
        assert b"7.1.1" in dump
        found += [("dump", word) for word in words if word.encode() in dump]
    return found


WORDS = (PATIENT, "Zyxwv", "Ottilie", SERIES)


def trail_of(store):
    with store.database.read() as tx:
        return check(tx, None, store.folder / "audit")


def test_neither_name_nor_id_is_left_and_the_trail_is_whole(store):
    before = trail_of(store)
    assert before.problems == ()
    assert {word for _, word in left_of(store, *WORDS)} == set(WORDS), "the search finds what is there"
    done = json.loads(forget(store, "--reason", "asked by letter", "--json").stdout)
    assert left_of(store, *WORDS) == []
    after = trail_of(store)
    assert after.problems == ()
    assert after.rows > before.rows
    assert (done["series"], done["destinations"], done["written_anew"]) == (1, ["PACS"], True)
    assert done["files"] == 2 + 1 + 2 + 1, "slices, the report, two set aside, one of the quarantine"
    with store.database.read() as tx:
        assert tallies.differences(tx) == {}
        check_listings(tx)
    assert "audit.archived" in store.events()


@pytest.mark.sqlite
def test_the_heads_that_were_noted_before_still_hold(store):
    with store.database.read() as tx:
        noted = {row.id: row.hash for row in tx.execute(trail.select())}
        noted |= {
            row["id"]: row["hash"]
            for one in audit_archive.archives(tx)
            for row in audit_archive.archived_rows(store.folder / "audit", one)
        }
    forget(store)
    with store.database.read() as tx:
        assert check(tx, None, store.folder / "audit", noted).problems == ()


@pytest.mark.sqlite
def test_the_data_of_others_stay_as_they_were(store):
    def theirs():
        with store.database.read() as tx:
            rows = tx.execute(trail.select().where(trail.c.patient_id == "P2").order_by(trail.c.id)).all()
        asked = "SELECT series_instance_uid, has_result FROM series WHERE series_instance_uid LIKE '7.%' ORDER BY id"
        asked_files = "SELECT path, sha256 FROM instances JOIN series ON series.id = series_pk WHERE {} ORDER BY 1"
        files = store.rows(asked_files.format("series_instance_uid LIKE '7.%'"))
        for file in files:
            store.files.read_verified(file["path"], file["sha256"])
        kept = [store.rows(f"SELECT count(*) AS n FROM {name} WHERE {key}") for name, key in (
            ("results", "true"), ("verdicts", "true"), ("messages", "true"), ("examinations", "true"),
            ("batch_cases", "true"), ("notifications", "true"), ("patients", "true"), ("studies", "true"))]  # fmt: skip
        return rows, store.rows(asked), files, kept

    before = theirs()
    forget(store)
    after = theirs()
    assert after[:3] == before[:3]
    fewer = [old[0]["n"] - new[0]["n"] for old, new in zip(before[3], after[3], strict=True)]
    assert fewer == [1] * 8


@pytest.mark.sqlite
def test_no_table_that_refers_to_a_patients_rows_is_left_out():
    going = {table.name for table, _ in forgotten_rows.of_series(1, "1")} | {"patients", "studies"}
    by_hand = {"listings", "batch_cases", "canary_runs"}
    referring = {
        table.name
        for table in Base.metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table.name in going
    }
    assert referring <= going | by_hand


@pytest.mark.sqlite
def test_a_series_of_the_patient_that_comes_later_is_a_new_one(store):
    forget(store)
    assert [str(one) for one in receive(store, 1, 5000, SERIES, STUDY, PATIENT, NAME)] == ["NEW"]
    store.close_due(5000 + QUIET_S)
    assert store.finish(store.claim(5000 + QUIET_S), 5040, "PACS")
    assert trail_of(store).problems == ()


@pytest.mark.sqlite
def test_a_dry_run_says_what_would_go_and_deletes_nothing(store):
    before = {word: path for path, word in left_of(store, *WORDS) if path.endswith(".dcm")}
    said = run(store, PATIENT, "--dry-run").stdout
    assert "series 2  CT" in said and "3 files, 1 result" in said
    assert [
        one["series_instance_uid"] for one in json.loads(run(store, PATIENT, "--dry-run", "--json").stdout)["series"]
    ]
    assert {word: path for path, word in left_of(store, *WORDS) if path.endswith(".dcm")} == before
    assert "patient.forgetting" not in store.events()


@pytest.mark.sqlite
def test_what_is_not_delivered_yet_is_kept_unless_a_person_insists(store):
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE deliveries SET state = 'PENDING', due_at = 0 WHERE id = 2"))
    done = run(store, PATIENT, "--yes", status=1)
    assert "deliveries did not get through yet" in str(done.exception)
    assert PATIENT not in str(done.exception)
    assert left_of(store, PATIENT)
    forget(store)
    assert left_of(store, *WORDS) == []


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("busy", "said"),
    [("jobs SET state = 'RUNNING'", "is being analysed"), ("deliveries SET state = 'SENDING'", "is being sent")],
)
def test_what_a_process_has_in_hand_is_waited_for(store, busy, said):
    with store.database.transaction() as tx:
        tx.execute(text(f"UPDATE {busy}, due_at = 1e12 WHERE id = 2"))
    assert said in str(forget(store, status=1).exception)
    assert left_of(store, PATIENT)


@pytest.mark.sqlite
def test_without_a_yes_nothing_goes(store):
    assert "cannot be undone" in run(store, PATIENT, "--even-undelivered", status=1).output
    assert left_of(store, PATIENT)


@pytest.mark.sqlite
def test_the_reason_must_not_name_the_patient(store):
    for reason in (f"for {PATIENT.lower()}", "Mrs Zyxwv asked"):
        assert "names the patient" in str(forget(store, "--reason", reason, status=1).exception)


@pytest.mark.sqlite
def test_only_the_series_of_an_issuer_go(store):
    reported(store, 400, "9.8831.8831.1", "9.8831.8831", PATIENT, NAME)
    with store.database.transaction() as tx:
        path = store.files.write_durably([dicom(issuer="ELSEWHERE")]).path
        own = "series_pk = (SELECT id FROM series WHERE series_instance_uid = '9.8831.8831.1')"
        tx.execute(text(f"UPDATE instances SET path = '{path}' WHERE sop_instance_uid = '9.8831.8831.1.1' AND {own}"))
    forget(store, "--issuer", ISSUER)
    left = {row["series_instance_uid"] for row in store.rows("SELECT series_instance_uid FROM series")}
    assert left == {"7.1.1", "7.2.1", "9.8831.8831.1"}
    assert trail_of(store).problems == ()
    assert "nothing" not in run(store, PATIENT, "--dry-run").stdout


@pytest.mark.sqlite
def test_an_unknown_patient_is_an_error_that_does_not_repeat_the_id(store):
    done = run(store, "NOBODY-77", "--yes", status=1)
    assert "nothing of this patient" in str(done.exception) and "NOBODY-77" not in str(done.exception)


@pytest.mark.sqlite
def test_an_archive_that_was_moved_must_be_named(store, tmp_path_factory):
    tape = tmp_path_factory.mktemp("tape")
    for path in (store.folder / "audit").iterdir():
        path.rename(tape / path.name)
    assert "--archives" in str(forget(store, status=1).exception)
    forget(store, "--archives", str(tape))
    assert not any(PATIENT.encode() in gzip.decompress(path.read_bytes()) for path in tape.iterdir())
    with store.database.read() as tx:
        assert check(tx, None, tape).problems == ()


class Killed(BaseException):
    """As a process that is gone: nothing outlives it."""


EVERY = 1 if os.environ.get("NODE_FAULT_ROUNDS") else 9
"""At each of how many steps it is killed."""


@pytest.mark.sqlite
def test_killed_at_any_step_it_is_carried_out_by_the_next_start(filled, tmp_path, monkeypatch):
    """Before and after each commit, and before and after each file."""
    steps, killed = EVERY - 1, True
    while killed:
        folder = tmp_path / str(steps)
        shutil.copytree(filled, folder)
        with Store(folder, f"sqlite:///{folder}/{INDEX}") as copy:
            killed = killed_after(copy, steps, monkeypatch)
            Forgetter(Settings(data_dir=folder), copy.database, copy.files).go_on()
            assert trail_of(copy).problems == (), steps
            assert [name for name, _ in left_of(copy, PATIENT, SERIES) if not name.startswith(INDEX)] == [], steps
            assert copy.rows("SELECT * FROM forgotten_files") == []
            (row,) = copy.rows("SELECT * FROM forgettings")
            assert row["about"] == "" and row["ended_at"]
            with copy.database.read() as tx:
                assert tallies.differences(tx) == {}
        steps += EVERY
    assert steps > 25


def begin(store):
    """A request is noted, and the process is killed."""
    with store.database.transaction() as tx:
        found = known_of_patient.known_series(tx, PATIENT, 1e9)
        forgetting.begin(tx, forgetting.about(tx, PATIENT, found, whole=True), "root", "", 1e9)


def killed_after(store, steps, monkeypatch):
    """Whether the process was killed at that step of a request. The first one is when it was noted."""
    begin(store)
    left = [steps]

    def stepping(call):
        def counted(*arguments, **options):
            _step(left)
            done = call(*arguments, **options)
            _step(left)
            return done

        return counted

    transaction = Database.transaction

    @contextlib.contextmanager
    def transactions(self):
        _step(left)
        with transaction(self) as tx:
            yield tx
        _step(left)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "transaction", transactions)
        patch.setattr(os, "replace", stepping(os.replace))
        patch.setattr(Path, "unlink", stepping(Path.unlink))
        try:
            Forgetter(Settings(data_dir=store.folder), store.database, store.files).go_on()
        except Killed:
            return True
    return False


def _step(left):
    if left[0] == 0:
        raise Killed
    left[0] -= 1


@pytest.mark.sqlite
def test_the_start_of_the_node_goes_on_with_a_request(store):
    settings = Settings(data_dir=store.folder, storage={"database_url": store.url, "low_disk_mb": 1})
    begin(store)
    prepare(settings)
    assert [name for name, _ in left_of(store, *WORDS) if not name.startswith(INDEX)] == []
    assert trail_of(store).problems == ()


@pytest.mark.sqlite
def test_a_job_that_is_claimed_meanwhile_is_waited_for(store, monkeypatch):
    begin(store)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE jobs SET state = 'RUNNING', due_at = 1e12 WHERE id = 2"))
    waits = []

    def finish(_):
        waits.append(store.rows("SELECT id FROM series WHERE id = 2"))
        with store.database.transaction() as tx:
            tx.execute(text("UPDATE jobs SET state = 'REPORTED' WHERE id = 2"))

    monkeypatch.setattr(time, "sleep", finish)
    Forgetter(Settings(data_dir=store.folder), store.database, store.files).go_on()
    assert waits == [[{"id": 2}]]
    assert store.rows("SELECT id FROM series WHERE id = 2") == []


@pytest.mark.sqlite
def test_under_a_running_node_the_index_is_written_anew_later(store):
    with only_node(store.folder, threading.Event(), patience_s=0):
        assert "stop the node and call `dicom-node forget`" in forget(store).stdout
    store.database.close()
    assert "no requests" in run(store).stdout
    assert left_of(store, *WORDS) == []


def test_an_emptied_row_cannot_be_changed_again(store):
    forget(store)
    emptied = trail.c.detail.like('{"forgotten"%')
    values = {"address": "x", "patient_id": "P9", "hash": "x", "detail": None}
    for column, value in (*values.items(), ("detail", '{"forgotten": "9.9"}')):
        with pytest.raises(DatabaseError, match="only grows"), store.database.transaction() as tx:
            tx.execute(update(trail).where(emptied).values({column: value}))


@pytest.mark.sqlite
def test_no_row_can_be_emptied_but_for_a_patient(store):
    with pytest.raises(DatabaseError, match="only grows"), store.database.transaction() as tx:
        tx.execute(update(trail).where(trail.c.patient_id == "P2").values(patient_id=None))
    with store.database.transaction() as tx:  # what a database editor can do, the check finds
        empty = {"patient_id": None, "study_uid": None, "series_uid": None, "sop_uid": None, "job_id": None}
        tx.execute(update(trail).where(trail.c.patient_id == "P2").values(
            **empty, result_id=None, detail='{"forgotten": "1.1"}'))  # fmt: skip
    assert "no audit row tells of it" in trail_of(store).problems[0]


@pytest.mark.sqlite
def test_an_emptied_row_that_is_altered_behind_the_triggers_shows(store):
    forget(store)
    with Store(store.folder, store.url) as again, again.database.transaction() as tx:
        tx.execute(text("DROP TRIGGER audit_no_update"))
        tx.execute(
            text("UPDATE audit SET address = '10.0.0.9' WHERE detail LIKE '{\"forgotten\"%' AND event = 'job.queued'")
        )
    with Store(store.folder, store.url) as again:
        assert "altered afterwards" in trail_of(again).problems[0]
