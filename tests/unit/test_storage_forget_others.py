"""A patient is forgotten whose data are mixed with others': theirs stay, and nothing of the patient does."""

import json
import os
import threading
from dataclasses import replace

import pytest
import structlog
from sqlalchemy import text
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.batch.creating import Source
from dicom_node.cli.app import app
from dicom_node.runtime.forgetting import Forgetter
from dicom_node.runtime.startup import prepare
from storage import audit, audit_archive, batches, forgetting, forgotten_trail, known_of_patient, recording, tallies
from storage.audit_check import check
from storage.batches import NewBatch
from storage.database import open_database
from storage.models import audit as trail
from storage.pseudonyms import Pseudonyms
from tests.storage_factory import MODEL, QUIET_S, Store
from tests.unit.test_storage_forget import dicom

A, B, C = "AAA-4711", "BBB-4712", "CCC-4713"
SERIES = "1.2.840.113619.77.1"
KEY = "k" * 40


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as made:
        yield made


def forget(store, patient, whole=True, **settings):
    """Carry out a request, as the command does. Returns what is left of the patient."""
    forgetter = Forgetter(Settings(data_dir=store.folder, **settings), store.database, store.files)
    forgetter.find_out_whose()
    with store.database.transaction() as tx:
        found = known_of_patient.known_series(tx, patient, 1e9)
        about = forgetting.about(tx, patient, found, whole=whole)
        forgetting.begin(tx, about, "root", "", 1e9)
    forgetter.go_on()
    with store.database.read() as tx:
        assert tallies.differences(tx) == {}
        assert check(tx, None, store.folder / "audit").problems == ()
        return forgetting.left_of(tx, about, 1e9)


def command(store, *arguments):
    store.database.close()
    environment = {"DICOM_NODE_DATA_DIR": str(store.folder), "DICOM_NODE_STORAGE__DATABASE_URL": store.url}
    done = CliRunner().invoke(app, ["forget", *arguments], env=environment)
    store.database = open_database(store.url)
    structlog.reset_defaults()
    return done


def mixed_study(store):
    """One study: the first series under a temporary ID, the second under the real one."""
    store.receive(1, 2, now=0, series_uid=f"{SERIES}.1", study_uid=SERIES, patient_id=A)
    store.receive(1, 2, now=1, series_uid=f"{SERIES}.2", study_uid=SERIES, patient_id=B)


def whole_trail(store):
    """The rows of the archives, and those of the index."""
    folder = store.folder / "audit"
    with store.database.read() as tx:
        rows = [row for one in audit_archive.archives(tx) for row in audit_archive.archived_rows(folder, one)]
        return rows + list(tx.execute(trail.select()).mappings().all())


def series_of(store):
    return [row["patient_key"] for row in store.rows("SELECT patient_key FROM series ORDER BY id")]


def test_a_series_goes_with_its_own_patient_and_not_with_the_first_of_its_study(store):
    mixed_study(store)
    assert forget(store, B) == []
    assert series_of(store) == [f"id:{A}"]
    assert store.rows("SELECT patient_id FROM patients") == [{"patient_id": A}]
    assert len(list(store.folder.rglob("*.dcm"))) == 2
    left = {row["patient_id"] for row in store.rows("SELECT DISTINCT patient_id FROM audit")}
    assert A in left and B not in left


def test_a_study_of_which_the_first_patient_is_forgotten_is_filed_under_the_other(store):
    mixed_study(store)
    assert forget(store, A) == []
    assert series_of(store) == [f"id:{B}"]
    assert store.rows("SELECT patient_id, key FROM patients") == [{"patient_id": B, "key": f"id:{B}"}]
    assert store.rows("SELECT count(*) AS n FROM instances") == [{"n": 2}]
    arrivals = "SELECT patient_id FROM audit WHERE event = 'instance.received' AND patient_id IS NOT NULL"
    assert store.rows(arrivals) == [{"patient_id": B}] * 2
    assert forget(store, B) == []
    assert store.rows("SELECT id FROM studies") == store.rows("SELECT id FROM patients") == []


@pytest.mark.sqlite
def test_what_came_in_meanwhile_is_named_and_nobody_is_called_forgotten(store, monkeypatch):
    mixed_study(store)
    go_on = Forgetter.go_on

    def going_on(self):
        done = go_on(self)
        with Store(store.folder, store.url) as other:
            other.receive(1, now=2e9, series_uid=f"{SERIES}.3", study_uid=SERIES, patient_id=B)
        return done

    monkeypatch.setattr(Forgetter, "go_on", going_on)
    done = command(store, B, "--yes", "--even-undelivered")
    assert done.exit_code == 1 and "Forgotten" not in done.output
    assert "not everything of the patient is gone: series 2" in str(done.exception)


def set_aside(store):
    """Beside A's series: A's own instance, and B's and C's, of one SOP Instance UID."""
    at = {"series_uid": f"{SERIES}.1", "study_uid": SERIES}
    store.receive(1, now=0, patient_id=A, **at)
    for patient in (A, B, C):
        arrival = store.arrival(1, patient_id=patient, **at)
        store.files.remove(arrival.file.path)
        file = store.files.write_durably([dicom(patient=patient)])
        with store.database.transaction() as tx:
            recording.record_instance(tx, replace(arrival, file=file), 1, QUIET_S)


def aside(store):
    return [row["patient_key"] for row in store.rows("SELECT patient_key FROM conflicts ORDER BY id")]


@pytest.mark.parametrize("recorded", [True, False])
def test_what_was_set_aside_goes_with_the_patient_whose_it_is(store, recorded):
    set_aside(store)
    if not recorded:
        with store.database.transaction() as tx:
            tx.execute(text("UPDATE conflicts SET patient_key = NULL"))
    audit_archive.archive(store.database, store.folder / "audit", 500, 1000.0, {"user": "root"})
    assert forget(store, B) == []
    assert aside(store) == [f"id:{A}", f"id:{C}"]
    assert forget(store, A) == []
    assert aside(store) == [f"id:{C}"]
    (path,) = [row["path"] for row in store.rows("SELECT path FROM conflicts")]
    assert (store.folder / "files" / path).is_file()
    assert {row["patient_id"] for row in whole_trail(store)} == {None, C}, "C's row still says what came"
    assert forget(store, C) == []
    assert aside(store) == []


@pytest.mark.sqlite
def test_what_was_set_aside_and_cannot_be_read_is_named(store):
    set_aside(store)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE conflicts SET patient_key = NULL"))
    (path,) = store.rows("SELECT id, path FROM conflicts WHERE id = 2")
    store.files.remove(path["path"])
    assert forget(store, A) == ["the instance set aside as 2, of which nobody knows whose it is"]


@pytest.mark.sqlite
def test_the_node_starts_though_the_disk_is_too_full_to_forget(store, monkeypatch):
    mixed_study(store)
    settings = Settings(data_dir=store.folder, storage={"database_url": store.url, "low_disk_mb": 1})
    audit_archive.archive(store.database, store.folder / "audit", 500, 1000.0, {"user": "root"})
    with store.database.transaction() as tx:
        about = forgetting.about(tx, B, known_of_patient.known_series(tx, B, 1e9), whole=True)
        forgetting.begin(tx, about, "root", "", 1e9)
    full = open_full(monkeypatch)
    with structlog.testing.capture_logs() as said:
        prepare(settings)
    (line,) = [one for one in said if one["log_level"] == "error"]
    assert "not forgotten to the end" in line["event"] and line["reason"] == "No space left on device"
    assert store.events()[-1] == "node.started"
    full.undo()
    prepare(settings)
    assert store.rows("SELECT id FROM forgettings WHERE ended_at IS NULL") == []


def open_full(monkeypatch):
    """No archive can be begun."""
    open_file = os.open

    def opening(path, *arguments, **options):
        if str(path).endswith("audit.unfinished"):
            raise OSError(28, "No space left on device")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opening)
    return monkeypatch


@pytest.mark.sqlite
def test_while_the_trail_is_archived_a_request_waits_and_both_come_out_whole(store, monkeypatch):
    """Rows that are emptied on their way into an archive would be there as they were."""
    mixed_study(store)
    folder = store.folder / "audit"
    done, waiting, line_of = [], threading.Event(), audit_archive.line_of
    thread = threading.Thread(target=lambda: done.append(forget(store, B)))
    empty = forgotten_trail.empty

    def emptying(*arguments):
        waiting.set()
        empty(*arguments)

    def line(row):
        if not thread.ident:
            thread.start()
            assert waiting.wait(60)
            thread.join(3)  # without the lock it would be done
        return line_of(row)

    monkeypatch.setattr(forgotten_trail, "empty", emptying)
    monkeypatch.setattr(audit_archive, "line_of", line)
    with store.database.transaction() as tx:
        audit.append(tx, 400, "x.y")
    audit_archive.archive(store.database, folder, 350, 1000.0, {"user": "root"})
    thread.join()
    assert done == [[]]
    with store.database.read() as tx:
        assert check(tx, None, folder).problems == ()
        (one,) = audit_archive.archives(tx)
        assert not [row for row in audit_archive.archived_rows(folder, one) if row["patient_id"] == B]


@pytest.mark.parametrize(
    ("patient", "other", "archived"),
    [("MÜLLER-1", "MÜLLER-12", False), ('Q"\\7', "Q", True), ("77", "777", False)],
)
def test_a_search_for_the_patient_goes_and_those_for_others_stay(store, patient, other, archived):
    store.receive(1, now=0, series_uid=f"{SERIES}.2", study_uid=SERIES, patient_id=patient)
    with store.database.transaction() as tx:
        for who in (patient, other):
            audit.append(tx, 2, "web.read", detail={"page": "audit", "asked": {"patient": who}, "user": "u"})
            sql = f"SELECT * FROM audit WHERE patient_id = '{who}' LIMIT 770"
            audit.append(tx, 3, "web.question", detail={"sql": sql, "characters": 9, "user": "u"})
        audit.append(tx, 400, "x.y")
    if archived:
        audit_archive.archive(store.database, store.folder / "audit", 300, 1000.0, {"user": "root"})
    assert forget(store, patient) == []
    left = [row["detail"] for row in whole_trail(store) if row["event"] in ("web.read", "web.question")]
    assert len([one for one in left if "forgotten" in one]) == 2
    assert len([one for one in left if json.dumps(other, ensure_ascii=False)[1:-1] in one]) == 2


@pytest.mark.parametrize("key", ["", KEY])
def test_a_batch_no_longer_says_for_whom_it_asked(store, key):
    asked = ["MÜLLER-1", "MÜLLER-12", "OTHER\\MÜLLER-1", "X-1"]
    with store.database.transaction() as tx:
        for one in asked:
            batches.create(tx, NewBatch("pacs", Source("pacs", "p", {"PatientID": one}).query, MODEL), 1.0, "root")
    patient = Pseudonyms(key).of("MÜLLER-1")
    store.receive(1, now=0, series_uid=f"{SERIES}.2", study_uid=SERIES, patient_id=patient)
    assert forget(store, patient, storage={"pseudonym_key": key}) == []
    queries = [json.loads(row["query"]) for row in store.rows("SELECT query FROM batches ORDER BY id")]
    left = [one["keys"].get("PatientID") for one in queries]
    assert left == [None, "MÜLLER-12", None, "X-1"]
