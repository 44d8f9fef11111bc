"""The series of a folder by every name that a label file may give them, and which series a label means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from config.headers import quiet
from inference.errors import InferenceError
from inference.volume.ct_volume import CTVolume
from inference.volume.folder import Folder, UnreadableFile, read_folder, refuse_suspects
from inference.volume.load import load
from inference.volume.part10 import DEFLATED, UNREADABLE, read_header, read_meta

DAYS_PER_YEAR = 365.25
_NAMES = (
    "PatientID",
    "PatientSex",
    "PatientAge",
    "PatientBirthDate",
    "StudyDate",
    "StudyInstanceUID",
    "AccessionNumber",
)


class AmbiguousLabel(InferenceError):
    """Two lines of a label file name the same series.

    first, second: the lines, from 1.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"line {second} of the labels names a series of line {first} too")
        self.first, self.second = first, second


@dataclass(frozen=True)
class Scan:
    """One series.

    names: everything that a label may call it by.  patient, study: PatientID and StudyInstanceUID.
    suspects: unreadable files that may belong to it.
    """

    paths: tuple[Path, ...]
    names: frozenset[str]
    patient: str
    sex: str
    age: str
    study: str = ""
    suspects: tuple[UnreadableFile, ...] = ()


def scans_in(folder: Path) -> list[Scan]:
    """Every series at or below a folder, with the names of its folders among its names."""
    return scans_of(read_folder(folder), folder)


def scans_of(found: Folder, folder: Path) -> list[Scan]:
    """Like `scans_in`, for a folder that has already been read."""
    return [_scan_of(uid, paths, folder, found.suspects(uid)) for uid, paths in found.series.items()]


def _scan_of(uid: str, paths: Sequence[Path], folder: Path, suspects: tuple[UnreadableFile, ...]) -> Scan:
    values = _identity(paths[0])
    folders = {part for path in paths for part in path.relative_to(folder).parts[:-1]}
    names = {uid, values["StudyInstanceUID"], values["AccessionNumber"], values["PatientID"], *folders} - {""}
    age = values["PatientAge"] or age_at(values["PatientBirthDate"], values["StudyDate"])
    study = values["StudyInstanceUID"]
    return Scan(tuple(paths), frozenset(names), values["PatientID"], values["PatientSex"], age, study, suspects)


def _identity(path: Path) -> dict[str, str]:
    """The elements of `_NAMES` as text; all empty for a file that cannot be read this far, such as a deflated one."""
    try:
        with quiet(), path.open("rb") as file:
            syntax = read_meta(file).transfer_syntax_uid
            header = Dataset() if syntax in DEFLATED else read_header(file, syntax, [Tag(name) for name in _NAMES])
            return {name: str(header.get(name) or "").strip() for name in _NAMES}
    except UNREADABLE:
        return dict.fromkeys(_NAMES, "")


def load_scan(scan: Scan) -> CTVolume:
    """The volume of a scan.

    Raises UnsuitableSeries or CorruptInstance as `load` does, and CorruptInstance if any file that may belong to the
    series cannot be read.
    """
    refuse_suspects(scan.suspects)
    return load(scan.paths)


def scans_by_case(scans: Sequence[Scan], lines: Mapping[str, int]) -> tuple[dict[str, list[Scan]], int]:
    """The scans of each labelled case, those with the most files first, and the number of scans that no label names.

    lines: the line of each case in the labels.
    Raises AmbiguousLabel if two cases are names of one series.
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
    """Years between two DICOM dates, or nothing if one of them is not a date."""
    try:
        days = (date.fromisoformat(scanned) - date.fromisoformat(born)).days
    except ValueError:
        return ""
    return str(int(days / DAYS_PER_YEAR)) if days >= 0 else ""
