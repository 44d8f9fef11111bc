"""A model over a folder of labelled scans: real DICOM files, with a mean of the voxels for a model."""

import csv
import shutil

import pydicom
import pytest

from inference.errors import UnsuitableSeries
from inference.evaluation.assessment import Options, assess
from inference.evaluation.errors import EvaluationError, UnusablePredictions
from inference.evaluation.folder import as_predictions, predict_folder
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Four series of 12 to 15 slices, at 32 x 32, in folders a to d; a and d are one patient."""
    root = tmp_path_factory.mktemp("scans")
    for number, name in enumerate("abcd"):
        phantom = make_phantom(number, slices=12 + number, size=32)
        patient = "DOE-0" if name == "d" else f"DOE-{number}"
        write_series(phantom, root / name, patient_id=patient, study_date=f"2020010{number + 1}")
    return root


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "labels.csv"
        path.write_text(text)
        return path

    return write


def slices(volume):
    """Stands for a model: the probability is the number of slices in hundredths."""
    return len(volume.hu) / 100


def change(path, **values):
    for file in path.iterdir():
        dataset = pydicom.dcmread(file)
        for name, value in values.items():
            setattr(dataset, name, value)
        dataset.save_as(file)


def test_each_labelled_case_gets_its_own_scans_probability(scans, write):
    first = pydicom.dcmread(scans / "c" / "0001.dcm")
    labels = write(f"case,label,site\nb,1,north\n{first.SeriesInstanceUID},0,\nDOE-0,1,south\n")
    result = predict_folder(scans, labels, slices)
    assert [(row["case"], row["probability"], row["label"]) for row in result.rows] == [
        ("b", "0.13", "1"),
        (first.SeriesInstanceUID, "0.14", "0"),
        ("DOE-0", "0.15", "1"),  # of two series the one with more files
    ]
    assert result.refused == ()
    assert result.unlabelled == 0


def test_subgroups_come_from_the_headers_and_the_labels(scans, write, tmp_path):
    root = tmp_path / "scans"
    shutil.copytree(scans, root)
    change(root / "b", PatientSex="F", PatientAge="", PatientBirthDate="19800601", ConvolutionKernel="B40f")
    result = predict_folder(root, write("case,label,site\na,0,north\nb,1,south\nd,1,north\n"), slices)
    a, b, d = result.rows
    assert (b["sex"], b["age"], b["kernel"], b["site"]) == ("F", "39", "B40f", "south")
    assert (a["sex"], a["age"], a["scanner"]) == ("O", "050Y", "Synthetic chest")
    assert float(a["slice_thickness_mm"]) > 0
    assert (a["patient"], b["patient"], d["patient"]) == ("1", "2", "1")
    assert result.unlabelled == 1


def test_the_predictions_are_evaluated_as_any_others_and_hold_no_patient_id(scans, write, tmp_path):
    result = predict_folder(scans, write("case,label\na,0\nb,1\nc,0\nd,1\n"), slices)
    path = tmp_path / "kept" / "predictions.csv"
    predictions = as_predictions(result, path)
    assessment = assess(predictions, Options(threshold=0.13))
    assert (assessment.cases, assessment.patients, assessment.roc_auc) == (4, 3, 0.75)
    assert list(assessment.subgroups) == ["scanner", "manufacturer", "kernel", "slice thickness", "sex", "age"]
    assert "DOE" not in path.read_text()
    assert [row["case"] for row in csv.DictReader(path.open())] == ["a", "b", "c", "d"]


def test_a_refused_case_is_left_out_with_its_reason_and_line(scans, write, tmp_path):
    def model(volume):
        if len(volume.hu) == 13:
            raise UnsuitableSeries("TOO_FEW", "13 slices were seen.")
        return 0.5

    root = tmp_path / "scans"
    shutil.copytree(scans, root)
    for file in sorted((root / "c").iterdir()):
        file.write_bytes(file.read_bytes()[:-700])
    result = predict_folder(root, write("case,label\na,0\nb,1\nc,0\nabsent,1\n"), model)
    assert [row["case"] for row in result.rows] == ["a"]
    assert [str(problem) for problem in result.refused] == [
        "labels.csv, line 3, column case: TOO_FEW: 13 slices were seen.",
        "labels.csv, line 4, column case: CORRUPT_INSTANCE: a file cannot be read or decoded",
        "labels.csv, line 5, column case: no series of the folder is called so",
    ]
    assessment = assess(as_predictions(result, tmp_path / "predictions.csv"), Options())
    assert len(assessment.left_out) == 3
    assert any("3 lines or cases" in note for note in assessment.notes)


def test_the_next_series_stands_in_for_a_refused_one(scans, write):
    def model(volume):
        if len(volume.hu) == 15:
            raise UnsuitableSeries("TOO_MANY", "15 slices were seen.")
        return slices(volume)

    result = predict_folder(scans, write("case,label\nDOE-0,1\n"), model)
    assert [row["probability"] for row in result.rows] == ["0.12"]


def test_when_every_case_is_refused_the_reasons_are_counted(scans, write):
    def model(volume):
        raise UnsuitableSeries("TOO_FEW", "few")

    with pytest.raises(EvaluationError, match=r"no case of labels\.csv could be analysed: 2 x TOO_FEW"):
        predict_folder(scans, write("case,label\na,1\nb,0\n"), model)


def test_a_series_with_two_labels_is_refused(scans, write):
    with pytest.raises(UnusablePredictions, match=r"labels\.csv, line 3, column case: names a series of line 2 too"):
        predict_folder(scans, write("case,label\na,1\nDOE-0,0\n"), slices)


def test_bad_labels_stop_before_any_scan_is_analysed(scans, write):
    def model(volume):
        raise AssertionError("analysed")

    with pytest.raises(UnusablePredictions, match=r"labels\.csv, line 3, column label"):
        predict_folder(scans, write("case,label\na,1\nb,maybe\n"), model)


def test_progress_is_told_after_each_case(scans, write):
    told = []
    predict_folder(scans, write("case,label\na,1\nb,0\nx,0\n"), slices, done=lambda *pair: told.append(pair))
    assert told == [(1, 3), (2, 3), (3, 3)]
