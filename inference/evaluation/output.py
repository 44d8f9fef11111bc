"""The files of an evaluation in a folder."""

import csv
import io
import json
from pathlib import Path

from inference.evaluation.assessment import Assessment
from inference.evaluation.errors import EvaluationError
from inference.evaluation.page import page
from inference.evaluation.plots import draw
from inference.evaluation.predictions import Predictions

PAGE, FIGURES, TABLE = "evaluation.html", "evaluation.json", "thresholds.csv"


def write(predictions: Predictions, assessment: Assessment, folder: Path) -> list[Path]:
    """Write the page, the figures as JSON, the threshold table as CSV and each plot as PNG and SVG.

    Creates the folder and replaces files with the same names. None of the files names a case or a patient.
    Raises EvaluationError if the folder cannot be written to, MissingExtra without matplotlib.
    """
    plots = draw(predictions, assessment)
    files = {f"{name}.{form}": data for name, forms in plots.items() for form, data in forms.items()}
    figures = json.dumps(assessment.as_json(), indent=2, ensure_ascii=False, allow_nan=False)
    files[FIGURES] = figures.encode() + b"\n"
    files[TABLE] = _threshold_csv(assessment).encode()
    files[PAGE] = page(assessment, {name: forms["svg"] for name, forms in plots.items()}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise EvaluationError(f"cannot write to {folder}: {error.strerror}") from error
    return [folder / name for name in files]


def _threshold_csv(assessment: Assessment) -> str:
    names = ("threshold", "accuracy", "sensitivity", "specificity", "ppv", "npv",
             "true_positive", "false_positive", "true_negative", "false_negative")  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    for row in assessment.thresholds:
        values = (getattr(row, name) for name in names)
        writer.writerow("" if value is None else f"{value:.6g}" for value in values)
    return text.getvalue()
