"""The series of a folder by every name that a file of labels may call them, and which series a label means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pydicom

from inference.errors import InferenceError
from inference.volume.ct_volume import CTVolume
from inference.volume.load import find_series

DAYS_PER_YEAR = 365.25
TAGS = ("PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "StudyInstanceUID", "AccessionNumber")


class AmbiguousLabel(InferenceError):
    """Two lines of a file of labels name the same series.

    first, second: the lines, from 1.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"line {second} of the labels names a series of line {first} too")
        self.first, self.second = first, second


@dataclass(frozen=True)
class Scan:
    """One series. names: everything that a label may call it by. patient, study: PatientID and StudyInstanceUID."""

    paths: tuple[Path, ...]
    names: frozenset[str]
    patient: str
    sex: str
    age: str
    study: str = ""


def scans_in(folder: Path) -> list[Scan]:
    """Every series at or below a folder, with the names of its folders among its names."""
    return [scan_of(uid, paths, folder) for uid, paths in find_series(folder).items()]


def scan_of(uid: str, paths: Sequence[Path], folder: Path | None = None) -> Scan:
    """A series from its files.

    folder: where names of folders below it are names of the series too; None where folders mean nothing.
    """
    header = pydicom.dcmread(paths[0], stop_before_pixels=True, specific_tags=list(TAGS))
    values = {name: str(header.get(name) or "").strip() for name in TAGS}
    folders = {part for path in paths for part in path.relative_to(folder).parts[:-1]} if folder else set()
    names = {uid, values["StudyInstanceUID"], values["AccessionNumber"], values["PatientID"], *folders} - {""}
    age = values["PatientAge"] or age_at(values["PatientBirthDate"], values["StudyDate"])
    return Scan(
        tuple(paths), frozenset(names), values["PatientID"], values["PatientSex"], age, values["StudyInstanceUID"]
    )


def scans_by_case(scans: Sequence[Scan], lines: Mapping[str, int]) -> tuple[dict[str, list[Scan]], int]:
    """The scans of each labelled case, those with the most files first, and the number of scans that no label names.

    lines: where each case stands in the labels.
    Raises AmbiguousLabel where two cases are names of one series.
    """
    found: dict[str, list[Scan]] = {}
    unlabelled = 0
    for scan in sorted(scans, key=lambda scan: -len(scan.paths)):
        cases = sorted(scan.names & lines.keys(), key=lambda case: lines[case])
        if len(cases) > 1:
            raise AmbiguousLabel(lines[cases[0]], lines[cases[1]])
        unlabelled += not cases
        for case in cases:
            found.setdefault(case, []).append(scan)
    return found, unlabelled


def header_columns(scan: Scan, volume: CTVolume) -> dict[str, str]:
    """The columns that a case can be split by, from its headers."""
    header = volume.header
    thickness = header.slice_thickness_mm
    return {
        "scanner": header.manufacturer_model,
        "manufacturer": header.manufacturer,
        "kernel": header.kernel,
        "slice_thickness_mm": "" if thickness is None else f"{thickness:g}",
        "sex": scan.sex,
        "age": scan.age,
    }


def age_at(born: str, scanned: str) -> str:
    """Years between two DICOM dates, or nothing where either is none."""
    try:
        days = (date.fromisoformat(scanned) - date.fromisoformat(born)).days
    except ValueError:
        return ""
    return str(int(days / DAYS_PER_YEAR)) if days >= 0 else ""
