"""The whole training by the command line, on small phantoms: from DICOM folders to a model that the node uses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from safetensors.numpy import load_file
from typer.testing import CliRunner

from config.settings import ModelSettings, Settings
from dicom_node import logs
from dicom_node.analysis.current_model import current_model, shadow_model
from dicom_node.analysis.worker import Worker
from dicom_node.cli.app import app
from inference.errors import ModelError
from inference.evaluation.errors import EvaluationError
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.training.cached import UnusableDataset, open_dataset
from inference.training.runs import Listener, Stopped, train_unet
from inference.training.settings import unet_settings
from storage import quiet_time, recording, series
from storage.arrival import Arrival, IndexedHeader
from tests.storage_factory import Store

SLICES = 40
SMALL = ["--set", "profile.unet.size=[64, 64]", "--set", "profile.decovnet.size=[32, 48]"]
LABELS = [
    *(f"case{number},{number % 2},2020-01-{10 + number:02d}" for number in range(6)),
    "case6,0,2020-02-01",
    "case7,1,2020-02-02",
    "gap,0,2020-01-20",
    "copy,0,2020-01-21",
    "absent,1,2020-01-22",
]


def run(*arguments: object) -> Any:
    """What a command prints with --json; its error if it fails."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight patients, one series without its middle slice, and one that is another's in a second folder."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(8):
        phantom = make_phantom(200 + number, slices=SLICES, size=128, lesions="mixed" if number % 2 else "none")
        z, y, x = phantom.spacing_mm
        hu = np.repeat(np.repeat(phantom.hu, 2, axis=1), 2, axis=2)
        rng = np.random.default_rng(number)
        hu = (hu + rng.normal(0, 12, hu.shape)).astype(np.int16)
        write_series(
            replace(phantom, hu=hu, spacing_mm=(z, y / 2, x / 2)), root / f"case{number}", patient_id=f"P{number}"
        )
    shutil.copytree(root / "case0", root / "gap")
    for path in (root / "gap").iterdir():
        header = dcmread(path)
        header.SeriesInstanceUID, header.PatientID, header.StudyInstanceUID = "2.25.77", "P77", "2.25.78"
        header.SOPInstanceUID = f"2.25.77{header.InstanceNumber}"
        header.save_as(path)
    (root / "gap" / f"{SLICES // 2:04d}.dcm").unlink()
    shutil.copytree(root / "case1", root / "copy")
    for path in (root / "copy").iterdir():
        header = dcmread(path)
        header.SeriesInstanceUID, header.PatientID, header.StudyInstanceUID = "2.25.79", "P79", "2.25.80"
        header.save_as(path)
    (root / "labels.csv").write_text("\n".join(["case,label,date", *LABELS]) + "\n")
    return root


@pytest.fixture(scope="module")
def built(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The data set's folder, and what the command said."""
    folder = tmp_path_factory.mktemp("built") / "data"
    split = ["--first-test-date", "2020-02-01", "--validation-share", "0.34", "--workers", "2"]
    return folder, run("dataset", "build", scans, "--labels", scans / "labels.csv", "--output", folder, *split, *SMALL)


@pytest.fixture(scope="module")
def trained(built: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both runs' folders, an evaluation's, and a data folder in which the model is published as ours 1."""
    root, data = tmp_path_factory.mktemp("trained"), built[0]
    small = ["--set", "slices_per_step=4", "--set", "statistics=batch"]
    run("train", "unet", data, "--output", root / "unet", "--epochs", "2", "--learning-rate", "3e-3", *small)
    run("train", "decovnet", data, "--unet", root / "unet", "--output", root / "decovnet", "--epochs", "1")
    run("evaluate", data, "--model-folder", root / "decovnet", "--output", root / "evaluation")
    return {name: root / name for name in ("unet", "decovnet", "evaluation", "node")} | {"data": data}


@pytest.fixture
def node(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's data folder that holds the model, published as ours 1."""
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(trained["node"]))
    if not (trained["node"] / "models").exists():
        evaluation = ["--evaluation", trained["evaluation"] / "evaluation.json"]
        run("models", "publish", trained["decovnet"], "--name", "ours", "--version", "1", *evaluation)
    return trained["node"]


def test_the_sheets_of_its_lung_masks_are_drawn_again(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run("dataset", "masks", built[0], "--output", tmp_path / "sheets")
    drawn = [path.read_bytes()[:4] for path in (tmp_path / "sheets").glob("*.png")]
    assert drawn and set(drawn) == {b"\x89PNG"}


def test_a_data_set_says_what_is_in_it_and_what_was_left_out(built: tuple[Path, dict[str, Any]]) -> None:
    folder, said = built
    left_out = {entry["case"]: entry["code"] for entry in said["left_out"]}
    assert left_out == {
        "gap": "MISSING_SLICES",
        "copy": "CONTRADICTING_LABEL",
        "case1": "CONTRADICTING_LABEL",
        "absent": "NOT_FOUND",
    }
    dataset = open_dataset(folder)
    parts = {name: {case.case for case in dataset.part(name)} for name in ("training", "validation", "test")}
    assert parts["test"] == {"case6", "case7"}
    assert parts["training"] | parts["validation"] == {"case0", "case2", "case3", "case4", "case5"}
    assert parts["validation"] and not parts["training"] & parts["validation"]
    assert (folder / "masks-001.png").read_bytes()[:4] == b"\x89PNG"
    grey, lungs = dataset.volume(dataset.part("test")[0])
    assert grey.shape == lungs.shape == (SLICES, 256, 256)
    assert 0.05 < lungs.mean() < 0.5
    assert grey[lungs].mean() < grey[:, 100:156, 100:156][~lungs[:, 100:156, 100:156]].mean()


def test_an_altered_volume_is_refused(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(built[0], tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    path = tmp_path / "data" / "volumes" / dataset.cases[0].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UnusableDataset, match="altered"):
        dataset.volume(dataset.cases[0])


def test_removed_masks_are_not_learned_from(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(built[0], tmp_path / "data")
    dataset = open_dataset(tmp_path / "data")
    learnable = [case for case in dataset.part("training") if case.case not in dataset.removed()]
    (tmp_path / "data" / "removed.txt").write_text(f"# by hand\n{learnable[0].case}  # cut off\n")
    others = [case for case in dataset.part("training") if case.case != learnable[0].case]
    said = run("train", "unet", tmp_path / "data", "--output", tmp_path / "unet", "--epochs", "1", "--set",
               "slices_per_volume=2", "--set", "slices_per_step=2")  # fmt: skip
    assert said["cases_learned_from"] == len(others)
    (tmp_path / "data" / "removed.txt").write_text("nobody\n")
    with pytest.raises(UnusableDataset, match=r"removed.txt, line 1"):
        dataset.removed()


def test_a_run_leaves_its_settings_curves_and_history(trained: dict[str, Path]) -> None:
    for folder, epochs in ((trained["unet"], 2), (trained["decovnet"], 1)):
        lines = (folder / "history.csv").read_text().splitlines()
        assert len(lines) == 1 + epochs and lines[0].startswith("epoch,training_loss,validation_loss,metric,best")
        assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
        assert list((folder / "tensorboard").iterdir())
        figures = json.loads((folder / "training.json").read_text())
        assert 0 <= figures["waiting_share"] < 1
        assert figures["data"]["digest"] == open_dataset(trained["data"]).digest()
        assert figures["settings"]["training"]["augmentation"]["shear_degrees"] == 10


def test_a_stopped_run_goes_on_to_the_same_weights(trained: dict[str, Path], tmp_path: Path) -> None:
    training = {"epochs": 2, "learning_rate": 3e-3}
    settings = unet_settings({"training": training, "slices_per_step": 4, "statistics": "batch"})
    asked = iter(range(1000))
    with pytest.raises(Stopped, match="epoch 2 of 2"):
        dataset = open_dataset(trained["data"])
        steps = SLICES // 4 * len([case for case in dataset.part("training") if case.case not in dataset.removed()])
        train_unet(dataset, tmp_path, settings, listener=Listener(stop=lambda: next(asked) >= steps))
    train_unet(dataset, tmp_path, settings)
    resumed, whole = load_file(tmp_path / "unet.safetensors"), load_file(trained["unet"] / "unet.safetensors")
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_a_training_that_starts_from_opacities_learns_its_features_first(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    few = ["--set", "start=opacities", "--set", "finder.epochs=1", "--set", "statistics=batch", "--epochs", "1"]
    command = ["train", "decovnet", trained["data"], "--unet", trained["unet"], *few]
    figures = [run(*command, "--output", tmp_path / name) for name in ("first", "again")]
    assert figures[0]["decovnet_sha256"] == figures[1]["decovnet_sha256"]
    assert figures[0]["settings"]["start"] == "opacities"
    assert (tmp_path / "first" / "finder" / "checkpoint.pt").is_file()
    run("evaluate", trained["data"], "--model-folder", tmp_path / "first", "--output", tmp_path / "evaluation")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.epoch=3", r"settings\.training\.epoch: unknown key"),
        ("training.epochs='many'", r"settings\.training\.epochs: expected int"),
        ("training.validation_share=0.2", "the data set settles it"),
        ("nonsense", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_setting_is_named(trained: dict[str, Path], tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        run("train", "unet", trained["data"], "--output", tmp_path, "--set", change)


def test_the_card_holds_data_figures_and_digests_and_the_node_uses_the_model(
    node: Path, trained: dict[str, Path], scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [listed] = [model for model in run("models", "list") if model["name"] == "ours"]
    assert listed["verified"] and not listed["active"], "publishing must not change what the node reports"
    monkeypatch.setenv("DICOM_NODE_MODEL__NAME", "ours")
    monkeypatch.setenv("DICOM_NODE_MODEL__VERSION", "1")
    assert [model["name"] for model in run("models", "list") if model["active"]] == ["ours"]
    card = (next((node / "models").glob("ours-*")) / "card.toml").read_text()
    assert "[training.data.training]" in card and "roc_auc = " in card and "[evaluation.at_threshold]" in card
    analysed = run("analyse", scans / "case7")
    predictions = (trained["evaluation"] / "stays-at-the-site" / "predictions.csv").read_text().splitlines()
    columns = predictions[0].split(",")
    [row] = [line.split(",") for line in predictions[1:] if "case7" in line.split(",")]
    assert analysed["outcome"] == "ANALYSED", analysed["reason"]
    assert analysed["probability"] == float(row[columns.index("probability")])


def test_a_name_and_version_stand_for_one_model(node: Path, trained: dict[str, Path]) -> None:
    publish = ["models", "publish", trained["decovnet"], "--name", "ours", "--version"]
    with pytest.raises(ModelError, match="another model is called ours 1"):
        run(*publish, "1", "--threshold", "0.4")
    other = trained["evaluation"].parent / "other.json"
    figures = json.loads((trained["evaluation"] / "evaluation.json").read_text())
    figures["model"]["unet_sha256"] = "0" * 64
    other.write_text(json.dumps(figures))
    with pytest.raises(ModelError, match="not of this run's model"):
        run(*publish, "2", "--evaluation", other)


def test_a_shadow_model_is_computed_by_the_worker_and_compared_by_evaluate(
    node: Path, trained: dict[str, Path], scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=node, model=ModelSettings(shadow="ours"))
    monkeypatch.setenv("DICOM_NODE_MODEL__SHADOW", "ours")
    with Store(node, settings.database_url) as store:
        now = 0.0
        receive(store, scans / "case7", now)
        with store.database.transaction() as tx:
            for due in quiet_time.due_series(tx, now + 60):
                series.close_series(
                    tx, due.series_pk, now + 60, series.Closing(current_model(settings), shadow=shadow_model(settings))
                )
        logs.configure(settings.logging)  # the command before it logged to a stream that is now closed
        worker = Worker(settings, store.database, store.files, "cpu")
        while worker.work_once(now + 61):
            pass
        rows = store.rows("SELECT model_name, standing, outcome, probability FROM model_results ORDER BY result_id")
        assert [(row["model_name"], row["standing"], row["outcome"]) for row in rows] == [
            ("demonstration", "current", "ANALYSED"),
            ("ours", "shadow", "ANALYSED"),
        ]
        assert store.rows("SELECT 1 FROM deliveries") == []
        shadow = store.rows("SELECT 1 FROM result_objects JOIN results ON results.id = result_id WHERE results.shadow")
        assert shadow == []
    labels = tmp_path / "labels.csv"
    labels.write_text("case,label\nP7,1\n")
    evaluate = ["evaluate", "node", "--labels", labels, "--shadow", "node"]
    figures = run(*evaluate)
    assert (figures["cases"], figures["comparison"]["cases"]) == (1, 1)
    difference = rows[1]["probability"] - rows[0]["probability"]
    assert figures["comparison"]["mean_difference"] == pytest.approx(difference)
    labels.write_text("case,label,date\nP7,1,2020-02-02\n")
    split = ["--first-test-date", "2020-02-01", "--labels", labels]
    said = run("dataset", "build", "--output", tmp_path / "data", *split, *SMALL)
    assert (said["test"]["cases"], said["left_out"]) == (1, [])
    own, [case] = open_dataset(tmp_path / "data"), open_dataset(tmp_path / "data").cases
    [same] = [case for case in open_dataset(trained["data"]).cases if case.case == "case7"]
    assert case.volume_digest == same.volume_digest
    assert np.array_equal(own.volume(case)[0], open_dataset(trained["data"]).volume(same)[0])
    labels.write_text("case,label\nnobody,0\n")
    with pytest.raises(EvaluationError, match="no result of its reporting model"):
        run(*evaluate)


def receive(store: Store, folder: Path, now: float) -> None:
    """Store a folder's slices as the receiver would."""
    arrivals = []
    for path in sorted(folder.iterdir()):
        header = dcmread(path, stop_before_pixels=True)
        indexed = IndexedHeader(patient_id=header.PatientID, modality="CT", study_date=header.StudyDate)
        file = store.files.write_durably([path.read_bytes()])
        uids = (header.SOPInstanceUID, header.SOPClassUID, header.SeriesInstanceUID, header.StudyInstanceUID)
        instance, sop_class, series, study = map(str, uids)
        syntax = str(header.file_meta.TransferSyntaxUID)
        arrivals.append(Arrival(instance, sop_class, series, study, syntax, "CT", "NODE", "127.0.0.1", file, indexed))
    with store.database.transaction() as tx:
        recording.record_instances(tx, arrivals, now, 30.0)
