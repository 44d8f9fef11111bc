"""Several models on one series: each has a job, a result and objects of its own, and stops no other."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from config.settings import Settings
from dicom_node.analysis import worker as module
from dicom_node.analysis.analyse import load_series
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.open_model import open_model
from dicom_node.analysis.worker import Worker
from dicom_node.errors import NodeError
from dicom_node.runtime import acts
from inference.errors import ModelError
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import deliveries, quiet_time, recording, reopening, series
from storage.arrival import Arrival, IndexedHeader
from storage.folder import FolderStore
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, Store

PACS = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 4242}
BOTH = [{"name": "demonstration"}, {"name": "densitometry"}]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(make_phantom(12, slices=40, size=256, lesions="none"), tmp_path_factory.mktemp("phantom"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, f"sqlite:///{tmp_path}/node.db") as opened:
        yield opened


def settings_of(store: Store, models: list[dict[str, object]]) -> Settings:
    return Settings(data_dir=store.folder, models=models, destinations=[PACS], sources=[{"ae_title": "CT"}])


def take_in(store: Store, paths: list[Path], settings: Settings, now: float) -> None:
    """The slices as the receiver leaves them, and the series closed as the scheduler does."""
    arrivals = []
    for number, path in enumerate(paths):
        header, stored = dcmread(path, stop_before_pixels=True), store.files.write_durably([path.read_bytes()])
        uids = (header.SOPInstanceUID, CT_IMAGE, header.SeriesInstanceUID, header.StudyInstanceUID)
        indexed = IndexedHeader(patient_id="P1", modality="CT", instance_number=str(number))
        arrivals.append(Arrival(*uids, EXPLICIT_LE, "CT", "NODE", "127.0.0.1", stored, indexed))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, 1.0)
        models = current_models(settings).of("CT")
        assert models is not None
        for due in quiet_time.due_series(tx, now + 2):
            closing = series.Closing(models.reporting, shadow=models.shadow, beside=models.beside)
            series.close_series(tx, due.series_pk, now + 2, closing)


def work(store: Store, settings: Settings, now: float, times: int) -> Worker:
    worker = Worker(settings, store.database, store.files, "cpu")
    assert [worker.work_once(now + number) for number in range(times)] == [True] * times
    return worker


def objects_of(store: Store, result_id: int) -> list[Dataset]:
    rows = store.rows("SELECT path FROM result_objects WHERE result_id = :id ORDER BY id", id=result_id)
    return [dcmread(store.folder / "files" / str(row["path"])) for row in rows]


CURRENT = "SELECT id, model_name, outcome, revision FROM results WHERE superseded_at IS NULL ORDER BY id"


def test_each_model_reports_where_the_store_gives_each_job_copies_of_its_own(
    store: Store, phantom: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in a bucket does: the first job's are gone when the second begins."""
    at_hand = FolderStore.at_hand

    @contextmanager
    def copies(self: FolderStore, *arguments: Any) -> Iterator[list[Path]]:
        with TemporaryDirectory() as folder, at_hand(self, *arguments) as paths:
            yield [Path(shutil.copy(path, folder)) for path in paths]

    monkeypatch.setattr(FolderStore, "at_hand", copies)
    settings = settings_of(store, BOTH)
    take_in(store, phantom, settings, 0.0)
    work(store, settings, 10.0, 2)
    assert [row["outcome"] for row in store.rows(CURRENT)] == ["ANALYSED", "ANALYSED"]


def test_each_model_reports_and_an_analysis_again_replaces_each_by_its_own(
    store: Store, phantom: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(store, BOTH)
    take_in(store, phantom, settings, 0.0)
    loads = []
    monkeypatch.setattr(module, "load_series", lambda *of: loads.append(of) or load_series(*of))
    worker = work(store, settings, 10.0, 2)
    assert len(loads) == 1, "the volume is loaded once for both"
    assert not worker.work_once(12.0) and worker._held is None, "and not kept when nothing waits"
    found = [(row["model_name"], row["outcome"]) for row in store.rows(CURRENT)]
    assert found == [("demonstration", "ANALYSED"), ("densitometry", "ANALYSED")]
    assert store.states("deliveries") == ["PENDING", "PENDING"]
    first, second = (objects_of(store, int(str(row["id"]))) for row in store.rows(CURRENT))
    uids = [uid for one in (*first, *second) for uid in {one.SOPInstanceUID}]
    assert len(set(uids)) == len(uids) and not {o.SeriesInstanceUID for o in first} & {
        o.SeriesInstanceUID for o in second
    }
    assert {int(one.SeriesNumber) // 10 for one in first} == {900}
    assert {int(one.SeriesNumber) // 10 for one in second} == {901}
    assert "Lung density" in second[0].SeriesDescription and "COVID-19" not in str(second[0])
    measured = store.rows("SELECT * FROM result_measurements WHERE model_name = 'densitometry'")
    assert {row["concept_scheme"] for row in measured} >= {"SCT", "99DICOMNODE"} and len(measured) > 10

    with store.database.transaction() as tx:
        for _ in range(2):  # the destination holds both
            (sent,) = deliveries.claim(tx, "pacs", 15.0, 60.0)
            assert not deliveries.claim(tx, "pacs", 15.0, 60.0), "results of one series go one after the other"
            deliveries.mark_sent(tx, sent.delivery_id, sent.fence, 16.0)
    with store.database.transaction() as tx:
        models = current_models(settings)
        reopening.analyse_again(tx, 1, 20.0, models.reporting, beside=models.beside)
    work(store, settings, 30.0, 2)
    again = [objects_of(store, int(str(row["id"])))[0] for row in store.rows(CURRENT)]
    named = [
        one.PredecessorDocumentsSequence[0]
        .ReferencedSeriesSequence[0]
        .ReferencedSOPSequence[0]
        .ReferencedSOPInstanceUID
        for one in again
    ]
    assert named == [first[0].SOPInstanceUID, second[0].SOPInstanceUID]


def test_a_model_that_fails_stops_no_other(store: Store, phantom: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(store, BOTH)
    take_in(store, phantom, settings, 0.0)

    def broken(of: Settings, model: object, device: str) -> object:
        if model.name == "demonstration":  # type: ignore[attr-defined]
            raise ModelError("its weights are gone")
        return open_model(of, model, device)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_model", broken)
    work(store, settings, 10.0, 2)
    assert [row["model_name"] for row in store.rows(CURRENT)] == ["densitometry"]
    assert store.states("jobs") == ["QUEUED", "REPORTED"]
    (said,) = {row["failure_reason"] for row in store.rows("SELECT * FROM jobs WHERE state = 'QUEUED'")}
    assert said == "its model cannot be opened: its weights are gone"


def test_a_model_analyses_the_sources_that_it_is_for(store: Store) -> None:
    settings = settings_of(store, [{"name": "demonstration", "sources": ["CT"]}, {"name": "densitometry"}])
    models = current_models(settings)
    assert [model.name for model in models.of("CT").all] == ["demonstration", "densitometry"]
    assert [model.name for model in models.of("OTHER").all] == ["densitometry"]
    alone = settings_of(store, [{"name": "demonstration", "sources": ["CT"]}])
    assert current_models(alone).of("OTHER") is None
    again, beside = acts._models(settings, None, "OTHER")
    assert (again.name, beside) == ("densitometry", ()), "the same when a person has it analysed again"
    with pytest.raises(NodeError, match="--model"):
        acts._models(alone, None, "OTHER")
