"""`dataset build` before any volume is read: who is one patient, and what is refused."""

from datetime import date
from functools import partial
from pathlib import Path

import pytest

from inference.models.cards import read_card, shipped_folder
from inference.training.build import BuildSettings, build_dataset
from inference.training.cached import LEFT_OUT, MANIFEST, UnusableDataset, open_dataset
from inference.training.dataset import LabelledCase, UnusableLabels, read_labels, split_by_date, split_by_seed
from inference.volume.scans import Scan, scans_in
from tests.unit.ct_series import noise, write_series

BY_DATE = partial(split_by_date, first_test_date=date(2020, 2, 1))
CARD = read_card(shipped_folder() / "zheng2020-paper")


def scan(name: str, patient: str, study: str = "") -> Scan:
    """A series of which nothing can be read: whoever tries, fails."""
    return Scan((Path("nowhere") / name,), frozenset({name}), patient, "", "", study)


def labels_of(tmp_path: Path, *lines: str, header: str = "case,label,date") -> list[LabelledCase]:
    path = tmp_path / "labels.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return read_labels(path)


def build(tmp_path: Path, scans: list[Scan], labels: list[LabelledCase], split=BY_DATE, **settings: object) -> object:
    return build_dataset(
        scans, labels, split, CARD, tmp_path / "data", BuildSettings(**settings), split_name="as the test says"
    )


def test_one_patient_id_before_and_after_the_date_is_refused_with_the_lines(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "a,1,2020-01-05", "b,0,2020-01-06", "c,0,2020-02-07")
    with pytest.raises(UnusableLabels, match=r"1 patients .* \(lines 2, 4 of the labels\)"):
        build(tmp_path, [scan("a", "P1"), scan("b", "P2"), scan("c", "P1")], labels)
    assert not (tmp_path / "data" / MANIFEST).exists()


@pytest.mark.parametrize(("patient", "study", "said"), [("P1", "", "PatientID"), ("P3", "1.2", "StudyInstanceUID")])
def test_headers_that_contradict_the_patients_of_the_labels_are_refused(
    tmp_path: Path, patient: str, study: str, said: str
) -> None:
    lines = ["a,1,2020-01-05,x", "b,0,2020-01-06,y", "c,0,2020-02-07,z"]
    labels = labels_of(tmp_path, *lines, header="case,label,date,patient")
    with pytest.raises(UnusableLabels, match=rf"lines 2 and 4 .* same {said}, one in training and one in test"):
        build(tmp_path, [scan("a", "P1", "1.2"), scan("b", "P2"), scan("c", patient, study)], labels)


def test_a_pseudonym_that_all_share_is_no_patient(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "a,1,2020-01-05", "b,0,2020-01-06", "c,0,2020-01-07")
    scans = [scan(name, "ANONYMOUS") for name in "abc"]
    with pytest.raises(UnusableLabels, match="every case has the same PatientID"):
        build(tmp_path, scans, labels, split_by_seed)
    with pytest.raises(UnusableDataset, match="no case is left"):  # it went on to read, and there is nothing
        build(tmp_path, scans, labels, split_by_seed, ignore_patient_id=True)


def test_every_case_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    write_series(tmp_path / "scans" / "small", noise())
    labels = labels_of(tmp_path, "small,1,2020-01-05", "absent,0,2020-01-06")
    with pytest.raises(UnusableDataset, match="no case is left"):
        build(tmp_path, scans_in(tmp_path / "scans"), labels)
    lines = (tmp_path / "data" / LEFT_OUT).read_text().splitlines()
    assert lines[0] == "line,case,code,reason"
    assert lines[1].startswith("2,small,TOO_FEW_SLICES,")
    assert lines[2].startswith("3,absent,NOT_FOUND,")


def test_two_labels_of_one_series_are_refused(tmp_path: Path) -> None:
    labels = labels_of(tmp_path, "a,1,2020-01-05", "P1,0,2020-01-06")
    with pytest.raises(UnusableLabels, match="line 3 of the labels names a series of line 2"):
        build(tmp_path, [Scan((Path("x"),), frozenset({"a", "P1"}), "P1", "", "")], labels)


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UnusableDataset, match="dataset build"):
        open_dataset(tmp_path)
