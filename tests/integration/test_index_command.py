"""index status, adopt and sweep, on what a real receiver stored."""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import Result
from pydicom import dcmread
from pydicom.uid import UID, EnhancedSRStorage, generate_uid
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.cli.app import app
from dicom_node.implementation import IMPLEMENTATION_CLASS_UID
from dicom_node.report.frame import to_part10
from dicom_node.runtime.node_lock import only_node
from dicom_node.runtime.startup import prepare
from storage import audit, canaries, refused
from storage.folder import FolderStore
from storage.orphans import empty_quarantine
from tests.fixtures import files_of, index_of
from tests.receiving import Node, ct_slice, store
from tests.storage_factory import Store


class Folder:
    """A data folder of a stopped node, with commands on it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.settings = Settings(data_dir=data, receiver={"port": 0}, storage={"low_disk_mb": 1})

    def run(self, *arguments: str, status: int = 0, **variables: str) -> Result:
        environment = {"DICOM_NODE_DATA_DIR": str(self.data), **variables}
        done = CliRunner().invoke(app, ["index", *arguments], env=environment)
        structlog.reset_defaults()  # the command's own stream is closed
        assert done.exit_code == status, (done.output, done.exception)
        return done

    def json(self, *arguments: str, status: int = 0, **variables: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json", status=status, **variables).stdout)
        return found

    def prepare(self) -> None:
        """What the node does at its start."""
        prepare(self.settings)

    def receive(self, *slices: Any) -> None:
        with Node(self.data) as node:
            assert store(node, *slices) == [(0, "")] * len(slices)

    def lose_index(self) -> None:
        for path in self.data.glob("node.db*"):
            path.unlink()

    def files(self) -> set[Path]:
        return {path.relative_to(self.data / "files") for path in (self.data / "files").rglob("*.dcm")}

    def rows(self, statement: str) -> list[dict[str, Any]]:
        with Store(self.data, f"sqlite:///{self.data}/node.db") as held:
            return held.rows(statement)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "node")
    made.prepare()
    return made


def test_status_tells_what_index_and_files_hold_and_that_they_belong_together(folder: Folder) -> None:
    folder.receive(ct_slice(1), ct_slice(2))
    found = folder.json("status")
    assert found["index"] == found["files"] and found["index"]["epoch"] == 1 and found["problem"] is None
    assert (found["instances"], found["stored_files"], found["unknown_files"]) == (2, 2, 0)
    assert found["last_sweep"] is None
    assert "belong together" in folder.run("status").stdout


def test_status_names_the_problem_and_ends_with_1(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    folder.lose_index()
    found = folder.json("status", status=1)
    assert "is missing or empty" in found["problem"] and (found["stored_files"], found["unknown_files"]) == (1, 1)
    assert not (folder.data / "node.db").exists(), "asking makes no index"
    assert "do not belong together" in folder.run("status", status=1).stdout


def test_status_of_a_folder_where_no_node_ran_says_so(tmp_path: Path) -> None:
    found = Folder(tmp_path / "new").json("status")
    assert found["index"] is None and found["stored_files"] == 0
    assert not (tmp_path / "new" / "node.db").exists()


def test_every_received_instance_is_recorded_again_as_it_was(folder: Folder) -> None:
    slices = [ct_slice(number, series_uid="1.2.3") for number in range(1, 5)]
    slices += [ct_slice(1, syntax="1.2.840.10008.1.2", series_uid="1.2.4")]
    folder.receive(*slices)
    columns = "sop_instance_uid, sop_class_uid, transfer_syntax_uid, instance_number, path, sha256, size, gone_at"
    question = f"SELECT {columns}, series_instance_uid FROM instances JOIN series ON series.id = series_pk ORDER BY 1"
    before, people = folder.rows(question), folder.rows("SELECT key, patient_id, name, birth_date, sex FROM patients")
    folder.lose_index()
    assert folder.json("adopt", "--dry-run")["adopted"] == 5
    assert not (folder.data / "node.db").exists(), "a dry run makes no index"
    assert folder.json("adopt")["adopted"] == 5
    assert folder.rows(question) == before
    assert folder.rows("SELECT key, patient_id, name, birth_date, sex FROM patients") == people
    assert len(folder.rows("SELECT * FROM audit WHERE event = 'instance.adopted' AND outcome = 'NEW'")) == 5
    folder.prepare()
    assert folder.json("status")["problem"] is None
    assert folder.json("adopt")["adopted"] == 0


def test_an_older_index_gets_the_instances_that_it_lacks(folder: Folder, tmp_path: Path) -> None:
    folder.receive(ct_slice(1, series_uid="1.2.3"))
    shutil.copytree(folder.data, tmp_path / "backup")
    folder.prepare()
    folder.receive(ct_slice(2, series_uid="1.2.3"), ct_slice(1))
    for path in folder.data.glob("node.db*"):
        path.unlink()
    for path in (tmp_path / "backup").glob("node.db*"):
        shutil.copy(path, folder.data)
    files = folder.files()
    with pytest.raises(Exception, match="is older than the files"):
        folder.prepare()
    assert folder.files() == files
    assert folder.json("adopt")["adopted"] == 2
    folder.prepare()
    assert folder.files() == files
    assert folder.rows("SELECT instance_count FROM series ORDER BY id") == [
        {"instance_count": 2},
        {"instance_count": 1},
    ]


def test_conflicts_stay_conflicts_and_come_in_their_order(folder: Folder) -> None:
    first = ct_slice(1)
    second = ct_slice(2, series_uid=first.SeriesInstanceUID)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    second.StudyInstanceUID = first.StudyInstanceUID
    folder.receive(first, second)
    (held,) = folder.rows("SELECT sha256 FROM instances")
    folder.lose_index()
    done = folder.json("adopt")
    assert (done["adopted"], done["conflicts"]) == (1, 1)
    assert folder.rows("SELECT sha256 FROM instances") == [held]


def test_images_of_canaries_are_set_aside_and_not_taken_for_a_patients(folder: Folder) -> None:
    known, by_header, other = (_with_uids(number, root) for number, root in ((1, None), (2, None), (3, "1.2.3.")))
    for one in (by_header, other):
        one.PatientID, one.PatientName = canaries.PATIENT_ID, canaries.PATIENT_NAME
    patient = _with_uids(4, None)
    folder.receive(known, by_header, other, patient)
    folder.lose_index()
    assert len(folder.json("adopt", "--dry-run")["canaries"]) == 1, "without an index"
    with Store(folder.data, f"sqlite:///{folder.data}/node.db") as held, held.database.transaction() as tx:
        canaries.ask(tx, str(known.StudyInstanceUID), str(known.SeriesInstanceUID), "a test", time.time(), 600.0)
    done = folder.json("adopt", "--merge")
    assert (done["adopted"], len(done["canaries"]), done["own"], done["unreadable"]) == (2, 2, [], [])
    assert sum(path.parts[0] == "quarantine" for path in folder.files()) == 2
    taken = {row["series_instance_uid"] for row in folder.rows("SELECT series_instance_uid FROM series")}
    assert taken == {other.SeriesInstanceUID, patient.SeriesInstanceUID}


def _with_uids(number: int, root: str | None) -> Any:
    """A slice whose UIDs have this root; None: 2.25, as those that the node makes up."""
    made = ct_slice(number)
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(made, name, generate_uid(prefix=root))
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    return made


def test_objects_of_own_results_are_set_aside_and_not_taken_for_images(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    own = _own_report()
    (folder.data / "files" / "2026").mkdir(parents=True, exist_ok=True)
    (folder.data / "files" / "2026" / "own.dcm").write_bytes(own)
    folder.lose_index()
    done = folder.json("adopt")
    assert (done["adopted"], done["own"]) == (1, ["2026/own.dcm"])
    assert any(path.parts[0] == "quarantine" and path.name == "own.dcm" for path in folder.files())
    assert folder.json("status")["unknown_files"] == 0


def _own_report() -> bytes:
    """What an analysis stores for a series that was not analysed."""

    report = ct_slice(1)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = EnhancedSRStorage
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    settings = Settings().report
    report.Manufacturer, report.ManufacturerModelName, report.Modality = (
        settings.manufacturer,
        settings.device_name,
        "SR",
    )
    report.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    return to_part10(report)


@pytest.mark.parametrize("damage", ["cut", "empty", "not DICOM"])
def test_a_file_that_cannot_be_read_is_named_and_never_deleted(folder: Folder, damage: str) -> None:
    folder.receive(ct_slice(1), ct_slice(2))
    path = sorted((folder.data / "files").rglob("*.dcm"))[0]
    content = {"cut": path.read_bytes()[:-100], "empty": b"", "not DICOM": b"x" * 5000}[damage]
    path.write_bytes(content)
    os.utime(path, (0, 0))
    folder.lose_index()
    done = folder.json("adopt")
    assert done["adopted"] == 1
    (kept,) = done["unreadable"]
    folder.prepare()
    files = FolderStore(folder.data / "files")
    with Store(folder.data, f"sqlite:///{folder.data}/node.db") as held:
        empty_quarantine(held.database, files, time.time() + 400 * 86_400)
    assert (folder.data / "files" / kept).read_bytes() == content
    assert folder.json("status")["unreadable_files"] == 1
    assert folder.json("adopt")["unreadable"] == [kept], "named again, and still there"


@pytest.mark.parametrize(
    "element", ["0200120055490c00312e322e3834302e393900", "0200100055490400312e3200", "04000000554c0400"]
)
def test_a_file_that_an_earlier_version_accepted_and_this_one_would_not_is_never_deleted(
    folder: Folder, element: str
) -> None:
    """0.1.0 took data sets that begin with group 0002; another implementation's name there made it no file of ours."""
    folder.receive(ct_slice(1), ct_slice(2))
    path = sorted((folder.data / "files").rglob("*.dcm"))[0]
    stored = path.read_bytes()
    data_set = 144 + int.from_bytes(stored[140:144], "little")
    path.write_bytes(stored[:data_set] + bytes.fromhex(element) + stored[data_set:])
    folder.lose_index()
    done = folder.json("adopt")
    assert (done["adopted"], done["own"], len(done["unreadable"])) == (1, [], 1)
    with Store(folder.data, f"sqlite:///{folder.data}/node.db") as held:
        empty_quarantine(held.database, FolderStore(folder.data / "files"), time.time() + 400 * 86_400)
        with held.database.read() as tx:
            (lacking,) = tx.exec_driver_sql("SELECT sop_instance_uid FROM refused_instances").all()
    assert (folder.data / "files" / done["unreadable"][0]).exists() and lacking[0]


def test_a_file_that_can_be_read_again_is_adopted_from_where_it_was_kept(folder: Folder) -> None:
    folder.receive(ct_slice(1), ct_slice(2))
    path = sorted((folder.data / "files").rglob("*.dcm"))[0]
    whole = path.read_bytes()
    path.write_bytes(b"")
    folder.lose_index()
    (kept,) = folder.json("adopt")["unreadable"]
    (folder.data / "files" / kept).write_bytes(whole)
    assert folder.json("adopt")["adopted"] == 1
    assert path.read_bytes() == whole and folder.json("status")["unreadable_files"] == 0


def test_a_series_lacks_the_slice_whose_file_is_cut_until_it_comes_again(folder: Folder) -> None:
    series = "1.2.826.0.1.3680043.8.498.77"
    slices = [ct_slice(1, series_uid=series), ct_slice(2, series_uid=series)]
    folder.receive(*slices)
    cut = sorted((folder.data / "files").rglob("*.dcm"))[0]
    cut.write_bytes(cut.read_bytes()[:-100])
    folder.lose_index()
    folder.json("adopt")

    def lacks() -> bool:
        with Store(folder.data, f"sqlite:///{folder.data}/node.db") as held, held.database.read() as tx:
            return refused.why_incomplete(tx, series) is not None

    assert lacks()
    folder.receive(*slices)
    assert not lacks()


def test_what_was_swept_by_mistake_comes_back(folder: Folder) -> None:
    folder.receive(ct_slice(1), ct_slice(2))
    files = FolderStore(folder.data / "files")
    names = {path.name for path in folder.files()}
    for path in [path.as_posix() for path in folder.files()]:
        files.set_aside(path, "quarantine/2026-11-23")
    folder.lose_index()
    assert folder.json("adopt")["adopted"] == 2
    assert {path.name for path in folder.files() if path.parts[0] != "quarantine"} == names


def test_a_file_that_was_thought_missing_and_is_back_is_an_instance_again(folder: Folder, tmp_path: Path) -> None:
    folder.receive(ct_slice(1))
    (path,) = (folder.data / "files").rglob("*.dcm")
    path.rename(tmp_path / "away")
    folder.prepare()
    assert folder.rows("SELECT gone_reason FROM instances") == [{"gone_reason": "missing"}]
    (tmp_path / "away").rename(path)
    assert folder.json("adopt")["adopted"] == 1
    assert folder.rows("SELECT gone_reason FROM instances") == [{"gone_reason": None}]


def test_a_second_file_with_the_same_bytes_is_set_aside(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    (path,) = (folder.data / "files").rglob("*.dcm")
    shutil.copy2(path, path.with_name("0" * 32 + ".dcm"))
    assert len(folder.json("adopt")["spare"]) == 1
    found = folder.json("status")
    assert (found["stored_files"], found["unknown_files"], found["quarantined_files"]) == (1, 0, 1)


def test_another_nodes_files_are_recorded_only_if_that_is_asked_for(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    other.prepare()
    other.receive(ct_slice(1))
    shutil.rmtree(folder.data / "files")
    shutil.copytree(other.data / "files", folder.data / "files")
    done = folder.run("adopt", status=1)
    assert "belong to different nodes" in str(done.exception)
    assert folder.json("adopt", "--merge")["adopted"] == 1
    folder.prepare()


def test_a_pseudonymised_index_is_made_of_pseudonyms_again(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    folder.lose_index()
    folder.json("adopt", DICOM_NODE_STORAGE__PSEUDONYM_KEY="x" * 16)
    ((person),) = folder.rows("SELECT patient_id, name, birth_date FROM patients")
    assert person["patient_id"].startswith("~") and (person["name"], person["birth_date"]) == ("", "")


def test_nothing_is_adopted_under_a_running_node(folder: Folder) -> None:
    with only_node(folder.data, threading.Event()):
        done = folder.run("adopt", status=1)
    assert "another node runs on this data folder" in str(done.exception)


def test_many_unknown_files_are_swept_only_by_command(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    for number in range(30):
        path = FolderStore(folder.data / "files").write_durably([str(number).encode()]).path
        os.utime(folder.data / "files" / path, (1, 1))
    folder.prepare()
    assert len(folder.files()) == 31
    shown = folder.run("sweep").stdout
    assert "30 files are in no row of the index" in shown and "--yes" in shown
    assert folder.json("status")["last_sweep"]["outcome"] == "TOO_MANY"
    assert len(folder.json("sweep", "--yes")["files"]) == 30
    found = folder.json("status")
    assert (found["stored_files"], found["quarantined_files"], found["last_sweep"]["outcome"]) == (1, 30, "SWEPT")
    assert "knows all stored files" in folder.run("sweep").stdout


def test_the_adopted_trail_is_whole_and_no_name_is_printed(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    folder.lose_index()
    printed = folder.run("adopt").output
    assert "PLANTED" not in printed and "Planted" not in printed
    with Store(folder.data, f"sqlite:///{folder.data}/node.db") as held, held.database.read() as tx:
        assert audit.verify(tx) is None
    assert dcmread(next((folder.data / "files").rglob("*.dcm"))).PatientID == "PLANTED-4711"


def audit_command(folder: Folder, *arguments: str) -> Result:
    done = CliRunner().invoke(app, ["audit", *arguments], env={"DICOM_NODE_DATA_DIR": str(folder.data)})
    structlog.reset_defaults()
    return done


def test_a_head_that_was_printed_is_found_again_and_an_invented_one_is_not(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    first = audit_command(folder, "--verify")
    assert first.exit_code == 0 and "the audit trail is whole" in first.stdout
    head = first.stdout.split()[-1]
    folder.receive(ct_slice(2))
    assert audit_command(folder, "--verify", "--expect", head).exit_code == 0
    found = audit_command(folder, "--verify", "--json", "--expect", f"{head.partition(':')[0]}:{'0' * 64}")
    assert found.exit_code == 1 and "was written anew" in json.loads(found.stdout)["problems"][0]
    assert audit_command(folder, "--expect", "12").exit_code == 2


def test_a_start_tells_by_a_digest_whether_the_configuration_changed(folder: Folder) -> None:
    folder.prepare()
    folder.settings = folder.settings.model_copy(update={"data_dir": folder.data.parent / "." / folder.data.name})
    folder.prepare()
    folder.settings = Settings(data_dir=folder.data, receiver={"port": 0, "ae_title": "OTHER"})
    folder.prepare()
    rows = folder.rows("SELECT detail FROM audit WHERE event = 'node.started' ORDER BY id")
    digests = [json.loads(row["detail"])["configuration"] for row in rows]
    assert len(digests) == 4 and len(set(digests[:3])) == 1 and digests[3] != digests[0]
    (changed,) = folder.rows("SELECT detail FROM audit WHERE event = 'node.configuration-changed'")
    change = json.loads(changed["detail"])
    assert (change["before"], change["configuration"]) == (digests[0], digests[3])


def test_an_index_of_an_earlier_version_is_not_looked_into_before_its_upgrade(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    index_of("0.1.0", tmp_path / "node.db")
    files_of("0.1.0", tmp_path)
    for command in (["status"], ["adopt", "--dry-run"]):
        assert "`dicom-node run` brings it up to date" in str(folder.run(*command, status=1).exception)
    folder.prepare()
    assert folder.json("status")["unknown_files"] == 0
    assert folder.json("adopt", "--dry-run")["adopted"] == 0


def test_a_database_without_tables_is_no_index(folder: Folder) -> None:
    folder.receive(ct_slice(1))
    folder.lose_index()
    (folder.data / "node.db").touch()
    assert folder.json("status", status=1)["unknown_files"] == 1
    assert folder.json("adopt", "--dry-run")["adopted"] == 1
    assert folder.json("adopt")["adopted"] == 1


def test_archived_rows_are_verified_with_the_others_wherever_they_were_moved(folder: Folder, tmp_path: Path) -> None:
    folder.receive(ct_slice(1))
    noted = audit_command(folder, "--verify").stdout.split()[-1]
    made = json.loads(audit_command(folder, "archive", "--before", "2100-01-01", "--json").stdout)
    assert made["rows"] >= 1
    assert audit_command(folder, "--verify", "--expect", noted).exit_code == 0
    os.rename(folder.data / "audit", tmp_path / "tape")
    found = audit_command(folder, "--verify")
    assert found.exit_code == 1
    assert made["file"] in found.stdout
    assert audit_command(folder, "--verify", "--archives", str(tmp_path / "tape")).exit_code == 0
    assert made["sha256"] in audit_command(folder, "--event", "audit", "--json").stdout
