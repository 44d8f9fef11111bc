"""Whose scan it is: the same digest for one patient however it was typed, and none in any doubt."""

from datetime import date
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from dicom_node.report.person import Examined, examined
from storage.pseudonyms import Pseudonyms
from tests.factories import Grid, write_series

GRID = Grid(shape=(3, 8, 8))
NO_KEY = Pseudonyms("")
JANE = {
    "PatientID": "4711",
    "IssuerOfPatientID": "CITY",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "19600229",
    "PatientSex": "F",
    "AcquisitionDate": "20250601",
    "StudyDate": "20250531",
}


def written(folder: Path, **changed: object) -> list[Path]:
    """A small series of Jane's, each in a folder of its own."""
    own = folder / str(len(list(folder.iterdir())))
    write_series(own, GRID, **{**JANE, **changed})
    return sorted(own.iterdir())


def of(folder: Path, pseudonyms: Pseudonyms = NO_KEY, **changed: object) -> Examined | None:
    return examined(written(folder, **changed), pseudonyms)


def test_one_patient_has_one_digest_however_the_name_was_typed(tmp_path: Path) -> None:
    first = of(tmp_path)
    assert first is not None and first.day == date(2025, 6, 1)
    for name in ("DOE^JANE", "Doe^Jane^^^", "D\u00f6e^J\u00e1ne"):
        other = of(tmp_path, PatientName=name, SpecificCharacterSet="ISO_IR 192")
        assert other is not None and other.person == first.person
    assert "4711" not in first.person and "Doe" not in first.person


@pytest.mark.parametrize(
    "changed",
    [
        {"PatientID": "4712"},
        {"IssuerOfPatientID": "COUNTY"},
        {"IssuerOfPatientID": None},
        {"PatientName": "Doe^John"},
        {"PatientName": "Jane^Doe"},
        {"PatientBirthDate": "19600228"},
        {"PatientSex": "M"},
        {"PatientSex": ""},
    ],
)
def test_whoever_differs_in_anything_is_somebody_else(tmp_path: Path, changed: dict[str, object]) -> None:
    first, other = of(tmp_path), of(tmp_path, **changed)
    assert first is not None and other is not None and first.person != other.person


def test_the_same_number_of_another_issuer_is_somebody_else_by_its_qualifiers_too(tmp_path: Path) -> None:
    found = []
    for entity in ("1.2.3", "1.2.4"):
        item = Dataset()
        item.UniversalEntityID, item.UniversalEntityIDType = entity, "ISO"
        found.append(of(tmp_path, IssuerOfPatientIDQualifiersSequence=[item]))
    assert None not in found and found[0] != found[1]


@pytest.mark.parametrize(
    "changed",
    [
        {"PatientID": ""},
        {"PatientID": None},
        {"PatientName": "^^"},
        {"PatientName": ""},
        {"PatientBirthDate": ""},
        {"PatientBirthDate": "19000101"},
        {"PatientBirthDate": "20990101"},
        {"PatientSex": "X"},
        {"PatientIdentityRemoved": "YES"},
        {"PatientID": ["4711", "4712"]},
        {"AcquisitionDate": "", "StudyDate": ""},
    ],
)
def test_in_doubt_it_is_nobody_s(tmp_path: Path, changed: dict[str, object]) -> None:
    assert of(tmp_path, **changed) is None


@pytest.mark.parametrize("changed", [{"PatientName": "Roe^Jane"}, {"PatientBirthDate": "19610101"}])
def test_images_that_name_two_people_are_nobody_s(tmp_path: Path, changed: dict[str, str]) -> None:
    paths = written(tmp_path)
    dataset = dcmread(paths[1])
    for keyword, value in changed.items():
        setattr(dataset, keyword, value)
    dataset.save_as(paths[1])
    assert examined(paths, NO_KEY) is None
    assert examined(paths[:1], NO_KEY) is not None


def test_an_image_that_cannot_be_read_leaves_it_open(tmp_path: Path) -> None:
    paths = written(tmp_path)
    paths[2].write_bytes(b"not DICOM")
    assert examined(paths, NO_KEY) is None
    assert examined([*paths[:2], tmp_path / "gone"], NO_KEY) is None


def test_the_digest_is_keyed_if_the_index_must_not_identify_patients(tmp_path: Path) -> None:
    plain, keyed, other = (of(tmp_path, Pseudonyms(key)) for key in ("", "k" * 16, "l" * 16))
    assert plain is not None and keyed is not None and other is not None
    assert keyed.person.startswith("~") and len({plain.person, keyed.person, other.person}) == 3
