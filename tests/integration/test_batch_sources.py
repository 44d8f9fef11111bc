"""Batches of a folder and of a PACS: real files and a real C-FIND and C-GET; nothing pretends to have been received."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from sqlalchemy import text
from typer.testing import CliRunner

from config.own_equipment import OwnEquipment
from config.settings import BatchSettings, Settings
from dicom_node.batch import creating, importing, local_files
from dicom_node.batch.creating import Creator, read_source
from dicom_node.batch.feeder import Feeder
from dicom_node.batch.labels import CaseLabels
from dicom_node.cli.app import app
from dicom_node.demo.pacs import Pacs
from dicom_node.errors import NodeError
from dicom_node.receiver.part10 import encode_file_start
from dicom_node.runtime.adoption import Adopter
from storage import batches, jobs, recording, series, status
from storage.arrival import Arrival, IndexedHeader
from storage.audit_check import check
from storage.batches import BatchState, NewBatch
from storage.jobs import ModelRef
from storage.pseudonyms import Pseudonyms
from tests.factories import Grid, chest, slice_dataset
from tests.programs import free_port
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, Store, analysed

MODEL = ModelRef("other", "1", "model-digest-2")
GRID = Grid((3, 16, 20))
SEND = {"name": "archive", "ae_title": "DEMO_PACS", "host": "127.0.0.1", "port": 1}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "node").mkdir()
    with Store(tmp_path / "node") as made:
        yield made


@pytest.fixture
def scans(tmp_path):
    return tmp_path / "scans"


def write(folder: Path, number: int, grid: Grid = GRID, **attributes: object) -> list[Path]:
    """A series in a folder of its own."""
    folder.mkdir(parents=True)
    uids = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1"}
    made = []
    for z in range(grid.shape[0]):
        one = slice_dataset(
            grid,
            z,
            chest(grid)[z],
            **{**uids, "SOPInstanceUID": f"1.2.{number}.1.{z}", **attributes},  # type: ignore[arg-type]
        )
        path = folder / f"{z}.dcm"
        one.save_as(path, enforce_file_format=True)
        made.append(path)
    return made


def settings_of(store: Store, pacs_port: int = 0, **batch: object) -> Settings:
    destinations = [{**SEND, "port": pacs_port}] if pacs_port else []
    options = BatchSettings(**{"enabled": True, "pacs_pause_s": 0.0, **batch})  # type: ignore[arg-type]
    return Settings(data_dir=store.folder, batch=options, destinations=destinations)  # type: ignore[arg-type]


def created(store: Store, source: str, settings: Settings, labels: CaseLabels | None = None) -> int:
    wanted = read_source(source, settings)
    with store.database.transaction() as tx:
        batch_id = batches.create(tx, NewBatch(wanted.kind, wanted.query, MODEL), time.time(), "somebody")
        batch = batches.get(tx, batch_id)
    Creator(settings, store.database, labels or CaseLabels()).fill(batch, wanted)
    with store.database.transaction() as tx:
        batches.bring_to(tx, batch_id, BatchState.RUNNING, time.time())
    return batch_id


def feeder(store: Store, settings: Settings) -> Feeder:
    return Feeder(settings, store.database, store.files, threading.Event())


def work(store: Store, feeding: Feeder, rounds: int = 30) -> None:
    """Feed and analyse until nothing is left."""
    for _ in range(rounds):
        feeding.step()
        with store.database.transaction() as tx:
            job = jobs.claim(tx, "w", time.time(), 60.0, 3, batches=True)
        if job is None:
            break
        with store.database.read() as tx:
            held = series.series_instances(tx, job.series_pk)
        assert series.instances_digest(held) == job.instances_digest
        with store.files.at_hand(held) as paths:  # every file is there, and is what its digest says
            assert all(dcmread(path).pixel_array.shape == (16, 20) for path in paths)
        said = replace(analysed(), model_name="other", model_digest=MODEL.digest)
        with store.database.transaction() as tx:
            jobs.finish(tx, job.job_id, job.fence, time.time(), said, [], ["pacs"])
    feeding.step()


def stored(store: Store) -> list[Path]:
    return sorted((store.folder / "files").rglob("*.dcm"))


def reasons(store: Store) -> list[dict[str, object]]:
    return store.rows("SELECT state, reason_code FROM batch_cases ORDER BY series_uid")


def test_a_folder_is_imported_a_few_series_at_a_time_and_its_copies_go_when_they_are_analysed(store, scans):
    for number in range(5):
        write(scans / f"case{number}", number)
    settings = settings_of(store, ahead=2)
    created(store, f"folder {scans}", settings)
    feeding = feeder(store, settings)
    feeding.step()
    assert len(stored(store)) == 2 * 3, "no more than is bounded"
    work(store, feeding)
    assert reasons(store) == [{"state": "DONE", "reason_code": None}] * 5
    assert stored(store) == []
    assert store.rows("SELECT id FROM instances WHERE gone_reason <> 'retention'") == []
    with store.database.read() as tx:
        assert check(tx).problems == ()


def test_an_imported_file_says_what_it_was_and_pretends_no_sender(store, scans):
    [first, *_] = write(scans / "case", 1)
    settings = settings_of(store, keep_images=True)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    rows = store.rows("SELECT sop_instance_uid, calling_ae, address, path FROM instances ORDER BY sop_instance_uid")
    assert {(row["calling_ae"], row["address"]) for row in rows} == {("IMPORTED", "")}
    copy = dcmread(store.files.absolute(str(rows[0]["path"])))
    assert copy == dcmread(first) and copy.SOPInstanceUID == str(rows[0]["sop_instance_uid"]).partition("#")[0]
    events = store.rows(
        "SELECT event, series_uid, detail FROM audit WHERE event LIKE '%imported%' OR event LIKE 'inst%'"
    )
    [imported] = events
    assert (imported["event"], imported["series_uid"]) == ("batch.imported", "1.2.1.1")
    detail = json.loads(str(imported["detail"]))
    assert detail["instances"] == 3 and len(detail["source_sha256"]) == len(detail["instances_digest"]) == 64


def test_an_imported_series_is_in_no_list_and_waits_for_nothing(store, scans):
    write(scans / "case", 1)
    settings = settings_of(store, keep_images=True)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    with store.database.read() as tx:
        assert series.list_series(tx) == []
        assert status.status(tx, time.time())["series"] == {"OPEN": 0, "CLOSED": 0}
    for view in ("series_without_outcome", "model_results", "result_measurements", "failures_by_cause"):
        assert store.rows(f"SELECT * FROM {view}") == [], view
    assert store.rows("SELECT id FROM listings") == []


def test_the_same_series_from_another_patient_may_be_received_meanwhile(store, scans):
    write(scans / "case", 1, PatientID="anonymous")
    settings = settings_of(store, keep_images=True)
    created(store, f"folder {scans}", settings)
    feeder(store, settings).step()
    arrivals = [
        replace(store.arrival(z, series_uid="1.2.1.1", study_uid="1.2.1"), sop_instance_uid=f"1.2.1.1.{z}")
        for z in range(3)
    ]
    with store.database.transaction() as tx:
        assert set(recording.record_instances(tx, arrivals, time.time(), 30.0)) == {"NEW"}
    assert store.rows("SELECT id FROM conflicts") == []
    work(store, feeder(store, settings))
    assert store.rows("SELECT COUNT(*) AS n FROM series") == [{"n": 2}]


def test_what_was_received_already_is_not_copied_and_not_deleted(store, scans):
    paths = write(scans / "case", 1)
    arrivals = []
    for path in paths:
        with path.open("rb") as file:
            from inference.volume.part10 import read_meta

            read_meta(file)
            data = file.read()
        uid = str(dcmread(path).SOPInstanceUID)
        kept = store.files.write_durably([encode_file_start(CT_IMAGE, uid, EXPLICIT_LE), data])
        header = IndexedHeader(patient_id="4711", modality="CT")
        arrivals.append(Arrival(uid, CT_IMAGE, "1.2.1.1", "1.2.1", EXPLICIT_LE, "CT", "NODE", "10.0.0.1", kept, header))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, time.time() - 100, 30.0)
        series.close_series(tx, 1, time.time(), series.Closing(None))
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    assert reasons(store) == [{"state": "DONE", "reason_code": None}]
    assert store.rows("SELECT COUNT(*) AS n FROM series") == [{"n": 1}]
    assert len(stored(store)) == 3


def test_the_same_folder_again_copies_nothing_if_its_images_are_kept_and_analyses_nothing(store, scans):
    write(scans / "case", 1)
    settings = settings_of(store, keep_images=True)
    for _ in range(2):
        created(store, f"folder {scans}", settings)
        work(store, feeder(store, settings))
    assert store.rows("SELECT COUNT(*) AS n FROM results") == [{"n": 1}]
    assert store.rows("SELECT state, done FROM batches") == [{"state": "DONE", "done": 1}] * 2
    assert len(stored(store)) == 3


@pytest.mark.parametrize("kind", ["cut", "garbage", "no preamble", "pipe", "link", "deflated", "loop"])
def test_a_hostile_file_harms_nothing_and_refuses_the_series_beside_it(store, scans, kind):
    bad, good = write(scans / "bad", 1), write(scans / "good", 2)
    target = bad[1]
    content = target.read_bytes()
    target.unlink()
    if kind == "cut":
        target.write_bytes(content[:-100])
    elif kind == "garbage":
        target.write_bytes(content[:150] + os.urandom(4000))
    elif kind == "no preamble":
        target.write_bytes(content[132:])
    elif kind == "pipe":
        os.mkfifo(target)
    elif kind == "link":
        target.symlink_to("/etc/passwd")
    elif kind == "loop":
        target.symlink_to(target)
        (scans / "bad" / "again").symlink_to(scans)
    else:
        target.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"[:20]))
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    first, second = reasons(store)
    assert second == {"state": "DONE", "reason_code": None}
    # A pipe is no file of a scan; the series is then short of a slice, which the analysis finds.
    assert first["reason_code"] == (None if kind == "pipe" else "CORRUPT_INSTANCE")
    assert good[0].exists() and stored(store) == []


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"PatientID": "another"}, "MIXED_PATIENTS"),
        ({"StudyInstanceUID": "1.2.99"}, "MIXED_SERIES"),
        ({"SOPInstanceUID": "1.2.1.1.0", "InstanceNumber": "7"}, "CONFLICTING_SLICES"),
    ],
)
def test_files_that_do_not_make_one_series_are_not_analysed(store, scans, attributes, code):
    paths = write(scans / "case", 1)
    one = dcmread(paths[2])
    for name, value in attributes.items():
        setattr(one, name, value)
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    one.save_as(paths[2])
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    assert reasons(store) == [{"state": "WITHOUT_RESULT", "reason_code": code}]


def test_a_folder_that_is_away_is_tried_again_and_one_that_is_empty_says_so(store, scans):
    write(scans / "case", 1)
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    scans.rename(scans.with_name("away"))
    feeder(store, settings).step()
    assert store.rows("SELECT state, tries FROM batch_cases") == [{"state": "WAITING", "tries": 1}]
    (scans / "case").mkdir(parents=True)
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE batch_cases SET due_at = 0"))
    feeder(store, settings).step()
    assert reasons(store) == [{"state": "WITHOUT_RESULT", "reason_code": "NO_LONGER_STORED"}]


def test_a_file_that_changes_while_it_is_copied_is_not_taken(store, scans, monkeypatch):
    write(scans / "case", 1)
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)

    def changes(one):
        found = local_files.digests(one)
        with one.path.open("ab") as file:
            file.write(b"\0\0")
        return found

    monkeypatch.setattr(importing, "digests", changes)
    feeder(store, settings).step()
    assert reasons(store) == [{"state": "WAITING", "reason_code": None}]
    assert stored(store) == []


def test_a_series_in_two_folders_is_one_case(store, scans):
    paths = write(scans / "case", 1)
    (scans / "case" / "more").mkdir()
    paths[0].rename(scans / "case" / "more" / "0.dcm")
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    assert reasons(store) == [{"state": "DONE", "reason_code": None}]
    assert store.rows("SELECT instance_count FROM series") == [{"instance_count": 3}]


def test_a_folder_whose_name_is_no_text_is_read_and_a_creation_goes_on_behind_it(store, scans, monkeypatch):
    monkeypatch.setattr(creating, "FOLDERS_AT_ONCE", 1)
    for number, name in enumerate((b"a\xff", b"b", b"c")):
        write(scans / os.fsdecode(name), number)
    settings = settings_of(store)
    add, calls = batches.add_cases, []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*arguments)

    monkeypatch.setattr(batches, "add_cases", dies)
    with pytest.raises(KeyboardInterrupt):
        created(store, f"folder {scans}", settings)
    with store.database.read() as tx:
        half = batches.get(tx, 1)
    assert (half.state, half.cases, half.cursor) == (BatchState.CREATING, 1, '"a\\udcff"')
    found = Creator(settings, store.database, CaseLabels()).fill(half, read_source(f"folder {scans}", settings))
    assert found.cases == 2
    with store.database.transaction() as tx:
        batches.bring_to(tx, 1, BatchState.RUNNING, time.time())
    work(store, feeder(store, settings))
    assert reasons(store) == [{"state": "DONE", "reason_code": None}] * 3


def test_if_the_index_is_lost_imported_copies_are_not_taken_for_received_ones(store, scans, tmp_path):
    write(scans / "case", 1)
    settings = settings_of(store, keep_images=True)
    created(store, f"folder {scans}", settings)
    work(store, feeder(store, settings))
    with Store(tmp_path / "new") as new:
        adopter = Adopter(new.database, store.files, OwnEquipment.of(settings.report), Pseudonyms(""), 30.0)
        done = adopter.run(time.time())
        assert (done.adopted, len(done.own), done.unreadable) == (0, 3, [])
        assert new.rows("SELECT id FROM series") == []


# A PACS


@pytest.fixture
def pacs(tmp_path):
    for number in range(4):
        write(tmp_path / "held" / str(number), number, StudyDate=f"2025010{number + 1}")
    with Pacs(tmp_path / "pacs") as running:
        running.load(tmp_path / "held")
        yield running


def test_the_series_of_a_pacs_are_found_day_by_day_and_fetched_and_analysed(store, pacs):
    settings = settings_of(store, pacs.port, ahead=1)
    batch_id = created(store, "pacs archive StudyDate=20250101-20250103", settings)
    feeding = feeder(store, settings)
    feeding.step()
    assert len(stored(store)) == 3
    work(store, feeding)
    with store.database.read() as tx:
        assert batches.get(tx, batch_id).done == 3
    assert store.rows("SELECT DISTINCT calling_ae, address FROM instances") == [
        {"calling_ae": "DEMO_PACS", "address": "127.0.0.1"}
    ]
    assert stored(store) == [] and list((store.folder / "batch").iterdir()) == []


def test_a_pacs_that_does_not_give_all_instances_makes_no_result(store, pacs, monkeypatch):
    settings = settings_of(store, pacs.port)
    created(store, "pacs archive StudyDate=20250102", settings)
    monkeypatch.setattr("dicom_node.batch.feeder.MOST_TRIES", 1)
    matches = pacs._matches
    monkeypatch.setattr(pacs, "_on_get", lambda event: _give(matches(event.identifier)[:-1]))
    pacs.stop()
    pacs.start()
    feeder(store, settings_of(store, pacs.port)).step()
    assert reasons(store) == [{"state": "WITHOUT_RESULT", "reason_code": "MISSING_SLICES"}]
    assert stored(store) == []


def _give(held):
    yield len(held)
    for one in held:
        yield 0xFF00, dcmread(one.path)


def test_a_pacs_that_is_away_costs_no_case(store, pacs):
    settings = settings_of(store, pacs.port)
    batch_id = created(store, "pacs archive StudyDate=20250101-20250102", settings)
    pacs.stop()
    feeding = feeder(store, settings)
    for _ in range(3):
        feeding.step()
    assert [row["state"] for row in store.rows("SELECT state FROM batch_cases")] == ["WAITING"] * 2
    assert sum(int(str(row["tries"])) for row in store.rows("SELECT tries FROM batch_cases")) == 1, "it is not hammered"
    with store.database.read() as tx:
        assert batches.get(tx, batch_id).state == BatchState.RUNNING


@pytest.mark.parametrize(
    "source",
    ["", "disk /", "folder", "folder /nowhere/at/all", "pacs", "pacs unknown", "store Nonsense=1", "store Modality"],
)
def test_a_source_that_cannot_be_is_refused(store, source):
    with pytest.raises(NodeError):
        read_source(source, settings_of(store))


@pytest.mark.parametrize("dates", ["20250101-", "20250230-20250301", "20250105-20250101"])
def test_a_range_of_days_that_is_not_one_is_refused(store, dates):
    with pytest.raises(NodeError, match="StudyDate"):
        read_source(f"pacs archive StudyDate={dates}", settings_of(store, free_port()))


# The command


def test_the_commands_create_follow_and_report_with_labels(tmp_path, scans):
    for number in range(4):
        write(scans / f"case{number}", number)
    (scans / "case3" / "1.dcm").write_bytes(b"")
    (scans / "case3" / "1.dcm").unlink()
    labels = tmp_path / "labels.csv"
    labels.write_text("case,label\ncase0,1\ncase1,0\n1.2.2.1,1\nelsewhere,0\n")
    data = tmp_path / "node"
    environment = {"DICOM_NODE_DATA_DIR": str(data), "DICOM_NODE_BATCH__ENABLED": "true"}

    def run(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["batch", *arguments], env=environment)
        assert done.exit_code == code or (code and done.exception), done.output
        return done.stdout

    made = json.loads(
        run("create", "--from", f"folder {scans}", "--model", "demonstration", "--labels", str(labels), "--json")
    )
    assert made == {"batch": 1, "cases": 3, "unlabelled": 1, "unreadable": 0}
    run("pause", "1")
    run("resume", "1")
    settings = Settings(data_dir=data, batch=BatchSettings(enabled=True))
    with Store(data, f"sqlite:///{data}/node.db") as store:
        digest = store.rows("SELECT model_digest FROM batches")[0]["model_digest"]
        feeding, chance = feeder(store, settings), iter((0.9, 0.2, 0.4))
        feeding.step()
        while True:
            with store.database.transaction() as tx:
                job = jobs.claim(tx, "w", time.time(), 60.0, 3, batches=True)
                if job is None:
                    break
                said = replace(analysed(next(chance)), model_name="demonstration", model_digest=str(digest))
                jobs.finish(tx, job.job_id, job.fence, time.time(), said, [], [])
        feeding.step()
    listed = json.loads(run("list", "--json"))
    assert [(one["id"], one["state"], one["done"]) for one in listed] == [(1, "DONE", 3)]
    assert "3 of 3 series" in run("status", "1")
    report = json.loads(run("report", "1", "--output", str(tmp_path / "report"), "--json"))
    assert report["outcomes"] == [{"outcome": "ANALYSED", "reason": None, "cases": 3}]
    assert (report["evaluation"]["cases"], report["evaluation"]["roc_auc"]) == (3, 1.0)
    assert (tmp_path / "report" / "evaluation.html").exists()
    table = (tmp_path / "report" / "stays-at-the-site" / "cases.csv").read_text()
    assert "1.2.0.1,ANALYSED,,,0.9" in table
    assert "line 5: not analysed, because the batch has no series of it" in run("report", "1")
    labels.write_text("case,label\ncase0,0\ncase1,1\n")
    run("report", "1", code=1)


def test_a_failed_job_of_a_batch_is_not_retried_alone(store, scans):
    write(scans / "case", 1)
    settings = settings_of(store)
    created(store, f"folder {scans}", settings)
    feeder(store, settings).step()
    with store.database.transaction() as tx:
        job = jobs.claim(tx, "w", time.time(), 60.0, 3, batches=True)
        jobs.fail(tx, job.job_id, job.fence, time.time(), "MemoryError", None)
    environment = {"DICOM_NODE_DATA_DIR": str(store.folder), "DICOM_NODE_STORAGE__DATABASE_URL": store.url}
    done = CliRunner().invoke(app, ["retry", "--job", "1"], env=environment)
    assert isinstance(done.exception, NodeError) and "create the batch again" in str(done.exception), done.output


def test_without_a_word_in_the_configuration_no_batch_is_created(tmp_path):
    environment = {"DICOM_NODE_DATA_DIR": str(tmp_path)}
    done = CliRunner().invoke(app, ["batch", "create", "--from", "store", "--model", "demonstration"], env=environment)
    assert isinstance(done.exception, NodeError) and "enabled = true in [batch]" in str(done.exception)
