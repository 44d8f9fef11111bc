"""`dicom-node replay`: a stored result comes out of its files and its model again, or the command says what differs."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import BatchSettings, ReportSettings, Settings
from dicom_node.analysis.replay import replay as recomputed
from dicom_node.analysis.worker import Worker
from dicom_node.batch.creating import Creator, read_source
from dicom_node.batch.feeder import Feeder
from dicom_node.batch.labels import CaseLabels
from inference.models.cards import read_card
from inference.models.registry import find_model
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import batches, recording
from storage.arrival import Arrival, IndexedHeader
from storage.batches import BatchState, NewBatch
from tests.fixtures import index_of
from tests.running import command
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, ModelRef, Store


def take_in(store: Store, paths: list[Path], now: float, report: ReportSettings | None = None) -> None:
    """The slices as the receiver leaves them, the series closed, and its job done by a worker."""
    arrivals = []
    for number, path in enumerate(paths):
        dataset, stored = dcmread(path, stop_before_pixels=True), store.files.write_durably([path.read_bytes()])
        uids = (dataset.SOPInstanceUID, CT_IMAGE, dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
        header = IndexedHeader(patient_id="P1", modality="CT", instance_number=str(number))
        arrivals.append(Arrival(*uids, EXPLICIT_LE, "CT", "NODE", "127.0.0.1", stored, header))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, 1.0)
    model = read_card(find_model(store.folder / "models")).identity()
    assert store.close_due(now + 2, ModelRef(model.name, model.version, model.digest))
    settings = Settings(data_dir=store.folder, report=report or ReportSettings())
    assert Worker(settings, store.database, store.files, "cpu").work_once(now + 3)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(make_phantom(12, slices=40, size=256, lesions="none"), tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def analysed(phantom: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a node that has analysed the phantom."""
    folder = tmp_path_factory.mktemp("analysed")
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        take_in(store, phantom, time.time() - 60)
    return folder


@pytest.fixture
def store(analysed: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of that node, to do harm to."""
    shutil.copytree(analysed, tmp_path / "node")
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as opened:
        yield opened


def replay(store: Store, wanted: str) -> tuple[int, dict[str, Any], str]:
    status, said, complained = command(store.folder, "replay", wanted, "--json")
    return status, json.loads(said) if said else {}, complained


def test_a_result_comes_out_again_bit_for_bit_and_that_is_audited(store: Store) -> None:
    (row,) = store.rows("SELECT result_id AS id, certainty AS probability FROM findings")
    status, record, _ = replay(store, str(row["id"]))
    assert (status, record["agrees"], record["differences"]) == (0, True, [])
    assert record["found"]["probability"] == record["recorded"]["probability"] == row["probability"]
    (replayed,) = store.rows("SELECT result_id, outcome FROM audit WHERE event = 'result.replayed'")
    assert replayed == {"result_id": row["id"], "outcome": "AGREES"}


def test_a_result_that_does_not_come_out_again_is_told_by_series(store: Store) -> None:
    with store.database.transaction() as tx:
        tx.exec_driver_sql("UPDATE findings SET certainty = 0.75")
    (row,) = store.rows("SELECT series_instance_uid FROM series")
    status, record, _ = replay(store, str(row["series_instance_uid"]))
    assert (status, record["agrees"]) == (1, False)
    assert "probability" in record["differences"] and record["recorded"]["probability"] == 0.75
    assert store.rows("SELECT outcome FROM audit WHERE event = 'result.replayed'") == [{"outcome": "DIFFERS"}]


def test_an_altered_file_is_named_and_no_result_is_shown(store: Store) -> None:
    (row,) = store.rows("SELECT path FROM instances ORDER BY id LIMIT 1")
    file = store.folder / "files" / str(row["path"])
    file.write_bytes(file.read_bytes()[:-2] + b"\1\2")
    status, record, said = replay(store, "1")
    assert (status, record) == (1, {}) and "SHA-256" in said
    assert store.rows("SELECT outcome FROM audit WHERE event = 'result.replayed'") == [{"outcome": "FAILED"}]


def test_a_slice_that_came_after_the_result_is_left_out(store: Store, phantom: list[Path]) -> None:
    late = store.arrival(
        99, series_uid=dcmread(phantom[0]).SeriesInstanceUID, study_uid=dcmread(phantom[0]).StudyInstanceUID
    )
    with store.database.transaction() as tx:
        recording.record_instances(tx, [late], time.time(), 1.0)
    status, record, _ = replay(store, "1")
    assert (status, record["agrees"]) == (0, True)


def test_a_refusal_is_replayed_too(phantom: list[Path], tmp_path: Path) -> None:
    with Store(tmp_path, f"sqlite:///{tmp_path}/node.db") as store:
        take_in(store, phantom[:15] + phantom[17:], time.time() - 60)
        status, record, _ = replay(store, "1")
        assert (status, record["found"]["reason_code"]) == (0, "MISSING_SLICES")
        assert replay(store, "2")[0] == 1


@pytest.mark.parametrize("result_id", [4])
def test_a_result_of_the_version_before_comes_out_again(result_id: int, tmp_path: Path) -> None:
    path = index_of("0.2.0", tmp_path / "node.db")
    with Store(tmp_path, f"sqlite:///{path}") as store:
        made = {}
        for seed, lesions in ((11, "mixed"), (12, "none")):
            volume = make_phantom(seed, slices=40, size=256, lesions=lesions)
            made |= {hashlib.sha256(p.read_bytes()).hexdigest(): p for p in write_series(volume, tmp_path / lesions)}
        for row in store.rows("SELECT path, sha256 FROM instances"):
            place = tmp_path / "files" / str(row["path"])
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made[row["sha256"]], place)
        status, record, said = replay(store, str(result_id))
        assert (status, record.get("agrees")) == (0, True), said
        assert record["found"]["Volume, Lung, Bilateral, Lungs"] == pytest.approx(
            record["recorded"]["Volume, Lung, Bilateral, Lungs"], rel=1e-3
        )


def test_a_result_of_a_batch_is_what_the_live_one_is_and_comes_out_again_too(store: Store, phantom: list[Path]) -> None:
    live = store.rows("SELECT pixel_digest FROM results")
    settings = Settings(data_dir=store.folder, batch=BatchSettings(enabled=True, keep_images=True))
    source = read_source(f"folder {phantom[0].parent}", settings)
    model = read_card(find_model(store.folder / "models")).identity()
    new = NewBatch(source.kind, source.query, ModelRef(model.name, model.version, model.digest))
    with store.database.transaction() as tx:
        batch = batches.get(tx, batches.create(tx, new, time.time(), "somebody"))
    Creator(settings, store.database, CaseLabels()).fill(batch, source)
    with store.database.transaction() as tx:
        batches.bring_to(tx, batch.id, BatchState.RUNNING, time.time())
    feeder = Feeder(settings, store.database, store.files, threading.Event())
    feeder.step()
    assert Worker(settings, store.database, store.files, "cpu").work_once(time.time())
    feeder.step()
    (made,) = store.rows("SELECT id, pixel_digest FROM results WHERE batch_id = 1")
    assert [{"pixel_digest": made["pixel_digest"]}] == live
    probabilities = store.rows("SELECT DISTINCT certainty FROM findings")
    assert len(probabilities) == 1 and len(store.rows("SELECT id FROM findings")) == 2
    assert recomputed(settings, store.database, store.files, str(made["id"])).agrees
    assert store.rows("SELECT result_id FROM result_objects WHERE result_id = 2") == []
