"""Run a frozen model on a folder of labelled scans: one probability for each case, or why there is none.

Only the evaluation leaves the site; the scans and the predictions by case stay.
"""

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config.reasons import ReasonCode
from inference.errors import CorruptInstance, UnsuitableSeries
from inference.evaluation.errors import EvaluationError, Problem, UnusablePredictions
from inference.evaluation.predictions import Labels, Predictions, read_labels, read_predictions
from inference.volume.ct_volume import CTVolume
from inference.volume.scans import AmbiguousLabel, Scan, header_columns, load_scan, scans_by_case, scans_in

CORRUPT = ReasonCode.CORRUPT_INSTANCE


@dataclass(frozen=True)
class FolderPredictions:
    """rows: one for each analysed case, values by column.  refused: labelled cases without a prediction, and why.

    unlabelled: series in the folder that no label names; they are not analysed.
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
        the name of a folder that holds the case's files. Its other columns are kept.
    probability_of: the model; raises UnsuitableSeries if it refuses.  done: told after each case of how many.
    If a case has several series, the one with the most files is taken, or the next one if that is refused.
    Raises UnusablePredictions for labels that cannot be used, EvaluationError if no case could be analysed.
    """
    truth = read_labels(labels)
    scans, unlabelled = _by_case(scans_in(folder), truth)
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
            rows.append(
                {**header_columns(scan, volume), **given, "patient": row.roles.get("patient", patient), **figures}
            )
        done(number, len(truth.rows))
    if not rows:
        raise EvaluationError(f"no case of {truth.file} could be analysed: {_counted(refused)}")
    return FolderPredictions(tuple(rows), tuple(refused), unlabelled)


def as_predictions(result: FolderPredictions, path: Path) -> Predictions:
    """Write the predictions to a CSV, which names cases and so stays at the site, and read it like any other."""
    columns = list(dict.fromkeys(name for row in result.rows for name in row))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(result.rows)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from error
    notes = [f"{result.unlabelled} series have no label and are in no figure"] if result.unlabelled else []
    predictions = read_predictions(path)
    return replace(predictions, left_out=result.refused, notes=(*predictions.notes, *notes))


class _Refused(Exception):
    """A case has no prediction; the message says why, without patient data."""


def _first_analysed(scans: Sequence[Scan], probability_of: Callable[[CTVolume], float]) -> tuple[Scan, CTVolume, float]:
    reason = "no series of the folder is called so"
    for scan in scans:
        try:
            volume = load_scan(scan)
            return scan, volume, probability_of(volume)
        except UnsuitableSeries as error:
            said = str(error)
        except CorruptInstance:
            said = f"{CORRUPT}: a file cannot be read or decoded"
        reason = said if scan is scans[0] else reason
    raise _Refused(reason)


def _by_case(scans: Sequence[Scan], truth: Labels) -> tuple[dict[str, list[Scan]], int]:
    try:
        return scans_by_case(scans, {case: row.line for case, row in truth.rows.items()})
    except AmbiguousLabel as error:
        said = f"names a series of line {error.first} too"
        raise UnusablePredictions([Problem(truth.file, error.second, truth.column, said)]) from None


def _counted(refused: Sequence[Problem]) -> str:
    reasons = Counter(problem.reason.split(":")[0] for problem in refused)
    return ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "it names none"
