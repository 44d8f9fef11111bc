"""A frozen model over a folder of labelled scans: one probability for each case, and why some cases have none.

What leaves the site is the evaluation; the scans, and the predictions by case, stay.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import pydicom

from inference.ct import CTVolume
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.evaluation.errors import EvaluationError, Problem, UnusablePredictions
from inference.evaluation.predictions import Labels, Predictions, read_labels, read_predictions
from inference.volume import find_series, load

CORRUPT = "CORRUPT_INSTANCE"
DAYS_PER_YEAR = 365.25
TAGS = ("PatientID", "PatientSex", "PatientAge", "PatientBirthDate", "StudyDate", "StudyInstanceUID", "AccessionNumber")


@dataclass(frozen=True)
class Scan:
    """One series of the folder. names: everything that a label may call it by. patient: its PatientID."""

    paths: tuple[Path, ...]
    names: frozenset[str]
    patient: str
    sex: str
    age: str


@dataclass(frozen=True)
class FolderPredictions:
    """rows: one for each analysed case, by column.  refused: labelled cases without a prediction, and why.

    unlabelled: series of the folder that no label names; they are not analysed.
    """

    rows: tuple[Mapping[str, str], ...]
    refused: tuple[Problem, ...]
    unlabelled: int


def predict_folder(
    folder: Path,
    labels: Path,
    probability_of: Callable[[CTVolume], float],
    *,
    done: Callable[[int, int], None] = lambda number, total: None,
) -> FolderPredictions:
    """Run a model on every labelled case of a folder, with the node's own loading and checks.

    labels: CSV of case and label; a case is a SeriesInstanceUID, StudyInstanceUID, AccessionNumber, PatientID, or
        the name of a folder that holds the case's files. Its other columns come along.
    probability_of: the model; raises UnsuitableSeries where it refuses.  done: told after each case of how many.
    Of a case's several series the one with the most files is taken, or the next where that one is refused.
    Raises UnusablePredictions for labels that cannot be used, EvaluationError where no case could be analysed.
    """
    truth = read_labels(labels)
    scans, unlabelled = _by_case([_scan(folder, uid, paths) for uid, paths in find_series(folder).items()], truth)
    rows: list[Mapping[str, str]] = []
    refused = []
    patients: dict[str, str] = {}
    for number, (case, row) in enumerate(truth.rows.items(), 1):
        try:
            scan, volume, probability = _first_analysed(scans.get(case, ()), probability_of)
        except _Refused as reason:
            refused.append(Problem(truth.file, row.line, truth.column, str(reason)))
        else:
            # A number in place of the PatientID: enough to know which cases belong together.
            patient = patients.setdefault(scan.patient or f"case {case}", str(len(patients) + 1))
            given = {name: value for name, value in row.others.items() if value}
            figures = {"case": case, "probability": repr(probability), "label": row.roles["label"]}
            rows.append({**_headers(scan, volume), **given, "patient": row.roles.get("patient", patient), **figures})
        done(number, len(truth.rows))
    if not rows:
        raise EvaluationError(f"no case of {truth.file} could be analysed: {_counted(refused)}")
    return FolderPredictions(tuple(rows), tuple(refused), unlabelled)


def as_predictions(result: FolderPredictions, path: Path) -> Predictions:
    """Write the predictions to a CSV, which names cases and so stays at the site, and read them as any others."""
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(result.rows)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error
    notes = [f"{result.unlabelled} series have no label and were not analysed"] if result.unlabelled else []
    predictions = read_predictions(path)
    return replace(predictions, left_out=result.refused, notes=(*predictions.notes, *notes))


class _Refused(Exception):
    """A case has no prediction; the message says why, without patient data."""


def _first_analysed(scans: Sequence[Scan], probability_of: Callable[[CTVolume], float]) -> tuple[Scan, CTVolume, float]:
    reason = "no series of the folder is called so"
    for scan in scans:
        try:
            volume = load(scan.paths)
            return scan, volume, probability_of(volume)
        except UnsuitableSeries as error:
            said = str(error)
        except CorruptInstance:
            said = f"{CORRUPT}: a file cannot be read or decoded"
        reason = said if scan is scans[0] else reason
    raise _Refused(reason)


def _by_case(scans: Sequence[Scan], truth: Labels) -> tuple[dict[str, list[Scan]], int]:
    """The scans of each case, those with the most files first, and the number of scans that no label names."""
    found: dict[str, list[Scan]] = {}
    unlabelled = 0
    for scan in sorted(scans, key=lambda scan: -len(scan.paths)):
        cases = sorted(scan.names & truth.rows.keys(), key=lambda case: truth.rows[case].line)
        if len(cases) > 1:
            first, second = (truth.rows[case].line for case in cases[:2])
            raise UnusablePredictions(
                [Problem(truth.file, second, truth.column, f"names a series of line {first} too")]
            )
        unlabelled += not cases
        for case in cases:
            found.setdefault(case, []).append(scan)
    return found, unlabelled


def _scan(folder: Path, uid: str, paths: Sequence[Path]) -> Scan:
    header = pydicom.dcmread(paths[0], stop_before_pixels=True, specific_tags=list(TAGS))
    values = {name: str(header.get(name) or "").strip() for name in TAGS}
    folders = {part for path in paths for part in path.relative_to(folder).parts[:-1]}
    names = {uid, values["StudyInstanceUID"], values["AccessionNumber"], values["PatientID"], *folders} - {""}
    age = values["PatientAge"] or _age(values["PatientBirthDate"], values["StudyDate"])
    return Scan(tuple(paths), frozenset(names), values["PatientID"], values["PatientSex"], age)


def _age(born: str, scanned: str) -> str:
    """Years between two DICOM dates, or nothing where either is none."""
    try:
        days = (date.fromisoformat(scanned) - date.fromisoformat(born)).days
    except ValueError:
        return ""
    return str(int(days / DAYS_PER_YEAR)) if days >= 0 else ""


def _headers(scan: Scan, volume: CTVolume) -> dict[str, str]:
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


def _counted(refused: Sequence[Problem]) -> str:
    reasons = Counter(problem.reason.split(":")[0] for problem in refused)
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "it names none"
