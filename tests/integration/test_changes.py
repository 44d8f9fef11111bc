"""The change since an earlier scan of the same patient: from the worker to the report, the page, the index and back."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from typer.testing import CliRunner

from config.settings import ReportSettings, Settings
from dicom_node.analysis import worker as module
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.replay import replay
from dicom_node.analysis.worker import Worker
from dicom_node.cli.app import app
from inference.phantom.chest import Scanner, make_phantom
from inference.phantom.emphysema import EmphysemaSettings
from inference.phantom.series import write_series
from storage import quiet_time, recording, results, series
from storage.arrival import Arrival, IndexedHeader
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, Store
from tests.validators import evidence

DAYS = {0.05: "20230105", 0.2: "20240610"}
MODELS = [{"name": "densitometry"}]
FIRST, SECOND = 1, 2


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Two scans of one patient, with more emphysema in the second, and with another kernel."""
    found = []
    for share, day in DAYS.items():
        scanner = Scanner(noise_hu=10.0, kernel="B30f" if share < 0.1 else "B20f")
        made = make_phantom(12, slices=40, size=256, scanner=scanner, emphysema=EmphysemaSettings(share))
        folder = tmp_path_factory.mktemp(day)
        found.append(write_series(made, folder, patient_name="Doe^Jane", patient_id="4711", study_date=day))
    return found


@pytest.fixture(scope="module")
def once_scanned(scans: list[list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a node that has analysed the first scan."""
    folder = tmp_path_factory.mktemp("node")
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        assert analyse(store, scans[0], 0.0, settings_of(store, segmentation=False, summary=False)) == FIRST
    return folder


@pytest.fixture
def store(once_scanned: Path, tmp_path: Path) -> Iterator[Store]:
    """A copy of that node."""
    shutil.copytree(once_scanned, tmp_path / "node")
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as opened:
        yield opened


def settings_of(store: Store, **report: object) -> Settings:
    return Settings(data_dir=store.folder, models=MODELS, sources=[{"ae_title": "CT"}], report=ReportSettings(**report))


def analyse(store: Store, paths: list[Path], now: float, settings: Settings, **changed: str) -> int:
    """A series as the receiver leaves it, closed and analysed. Returns its result's id. changed: of its headers."""
    arrivals = []
    for number, path in enumerate(paths):
        dataset = dcmread(path)
        for keyword, value in changed.items():
            setattr(dataset, keyword, value)
        content = io.BytesIO()
        dataset.save_as(content)
        stored = store.files.write_durably([content.getvalue()])
        uids = (dataset.SOPInstanceUID, CT_IMAGE, dataset.SeriesInstanceUID, dataset.StudyInstanceUID)
        header = IndexedHeader(patient_id=str(dataset.PatientID), modality="CT", instance_number=str(number))
        arrivals.append(Arrival(*uids, EXPLICIT_LE, "CT", "NODE", "127.0.0.1", stored, header))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, 1.0)
        models = current_models(settings)
        for due in quiet_time.due_series(tx, now + 2):
            series.close_series(tx, due.series_pk, now + 2, series.Closing(models.reporting))
    assert Worker(settings, store.database, store.files, "cpu").work_once(now + 3)
    return int(str(store.rows("SELECT MAX(id) AS id FROM results")[0]["id"]))


def report_of(store: Store, result_id: int, kind: str = "report") -> Dataset:
    [row] = store.rows(
        "SELECT path FROM result_objects WHERE result_id = :id AND kind = :kind", id=result_id, kind=kind
    )
    return dcmread(store.folder / "files" / str(row["path"]))


def texts_of(report: Dataset) -> list[str]:
    return [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]


def share_of(store: Store, result_id: int) -> float:
    [row] = store.rows(
        "SELECT value FROM result_measurements WHERE result_id = :id AND concept_code = 'LAA_SHARE'"
        " AND laterality = 'Bilateral' AND topography IS NULL",
        id=result_id,
    )
    return float(str(row["value"]))


def test_the_change_is_stated_recorded_shown_and_replayed(store: Store, scans: list[list[Path]]) -> None:
    settings = settings_of(store)
    first, second = FIRST, analyse(store, scans[1], 100.0, settings)
    before, now = share_of(store, first), share_of(store, second)
    assert now > before + 5

    said = [text for text in texts_of(report_of(store, second)) if "Since" in text or "differ in" in text]
    assert said[0].startswith("Since 2023-01-05 (522 days): ")
    assert f"low attenuation {before:.1f} to {now:.1f} ({now - before:+.1f} percentage points)" in said[0]
    assert "The scans differ in kernel: a change of the numbers may come from that alone." in said
    assert not [text for text in texts_of(report_of(store, first)) if "Since" in text]

    for kind in ("report", "report-comprehensive"):
        assert report_of(store, first, kind).SOPInstanceUID in evidence(report_of(store, second, kind))

    [row] = store.rows("SELECT earlier_id, said, person FROM examinations WHERE result_id = :id", id=second)
    assert row["earlier_id"] == first and set(json.loads(str(row["said"]))) == set(said)
    assert "4711" not in str(row["person"]) and "Doe" not in str(row["person"])
    [event] = store.rows("SELECT detail FROM audit WHERE event = 'result.compared' AND result_id = :id", id=second)
    assert json.loads(str(event["detail"]))["earlier_result"] == first

    replayed = replay(settings, store.database, store.files, str(second))
    assert replayed.agrees and replayed.recorded[f"change since result {first}"] == tuple(json.loads(str(row["said"])))
    with store.database.transaction() as tx:
        tx.exec_driver_sql(f"UPDATE measurements SET value = value + 1 WHERE result_id = {first}")
    assert not replay(settings, store.database, store.files, str(second)).agrees

    (store.folder / "node.toml").write_text(f'data_dir = "{store.folder}"\n[[models]]\nname = "densitometry"\n')
    shown = CliRunner().invoke(app, ["series", "show", "2", "--config", str(store.folder / "node.toml")]).output
    assert f"Compared with result {first}:" in shown and " ".join(said[0].split()) in " ".join(shown.split())


@pytest.mark.parametrize(("changed", "report"), [({"PatientBirthDate": "19700102"}, {}), ({}, {"changes": False})])
def test_nothing_is_said_of_somebody_else_s_scan_or_if_the_site_does_not_want_it(
    store: Store, scans: list[list[Path]], changed: dict[str, str], report: dict[str, object]
) -> None:
    settings = settings_of(store, segmentation=False, summary=False, **report)
    assert analyse(store, scans[1], 100.0, settings, **changed) == SECOND
    assert not [text for text in texts_of(report_of(store, SECOND)) if "Since" in text]
    assert not store.rows("SELECT * FROM examinations WHERE earlier_id IS NOT NULL")


def test_a_result_that_is_replaced_while_its_change_is_computed_is_not_used(
    store: Store, scans: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(store, segmentation=False, summary=False)
    built, tries = module.Worker._built, []

    def built_meanwhile(self: Worker, *of: object) -> object:
        made = built(self, *of)  # type: ignore[arg-type]
        if not tries:
            with store.database.transaction() as tx:
                results.supersede(tx, 1, 150.0)
        tries.append(made)
        return made

    monkeypatch.setattr(module.Worker, "_built", built_meanwhile)
    assert analyse(store, scans[1], 100.0, settings) == SECOND and len(tries) == 2
    assert not [text for text in texts_of(report_of(store, SECOND)) if "Since" in text]
    assert store.rows("SELECT earlier_id FROM examinations WHERE result_id = :id", id=SECOND) == [{"earlier_id": None}]
