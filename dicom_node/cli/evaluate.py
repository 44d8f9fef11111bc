"""evaluate: how good a model's predictions are, from a file of them, from scans or from the node, with the truth."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import Progress

from dicom_node.cli.agreement import report_agreement
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    note_reading,
    out,
    print_json,
    print_rows,
    settings_from,
)
from dicom_node.cli.own_evaluation import adopt_evaluation
from dicom_node.errors import NodeError

# scikit-learn and matplotlib take seconds to import and are an extra, torch too: only this command pays for them.
if TYPE_CHECKING:
    from inference.evaluation.assessment import Assessment
    from inference.evaluation.folder import FolderPredictions
    from inference.evaluation.metrics import ThresholdRow
    from inference.evaluation.predictions import Predictions
    from inference.evaluation.tables import ColumnNames
    from inference.finding import ModelIdentity
    from inference.training.predicting import Pipeline

DEFAULT_THRESHOLD = 0.5
SITE_ONLY = Path("stays-at-the-site") / "predictions.csv"
SITE_ONLY_SHADOW = SITE_ONLY.with_name("shadow.csv")
NODE = Path("node")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(evaluate)


Input = Annotated[
    Path,
    typer.Argument(
        help='CSV, the published text form, a data set, a folder of scans (with --labels), or "node": its results.'
    ),
]
Output = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for page, plots and tables.")]
LabelFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="CSV of case and label, if kept apart.")
]
Shadow = Annotated[
    Path | None,
    typer.Option(help="A second model's predictions of the same cases; or \"node\": its shadow model's results."),
]
Threshold = Annotated[
    float | None, typer.Option(min=0, max=1, help="The one in use; default the model's, 0.5 for a file.")
]
Thresholds = Annotated[str, typer.Option(help="The table's, with commas between; default 0.1 to 0.9.")]
Prevalence = Annotated[float | None, typer.Option(min=0, max=1, help="The site's, for its PPV and NPV; 0.05 is 5%.")]
IntervalMethod = Annotated[
    Literal["auto", "delong", "bootstrap"],
    typer.Option(help="Of the ROC AUC; auto: DeLong's, or the bootstrap of patients if they repeat."),
]
Resamples = Annotated[int, typer.Option(min=100, max=100_000, help="Bootstrap resamples.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the bootstrap.")]
Subgroup = Annotated[list[str] | None, typer.Option(help="A further column to split by; may be given several times.")]
CaseColumn = Annotated[str | None, typer.Option(help="Name of the case's column, if not found.")]
PatientColumn = Annotated[str | None, typer.Option(help="Name of the patient's column, if not found.")]
ProbabilityColumn = Annotated[str | None, typer.Option(help="Name of the probability's column, if not found.")]
LabelColumn = Annotated[str | None, typer.Option(help="Name of the label's column, if not found.")]
SkipUnusable = Annotated[bool, typer.Option("--skip-unusable", help="Go on without unusable lines, and list them.")]
Model = Annotated[str | None, typer.Option(help="For scans: name of the model; default the node's.")]
ModelFolder = Annotated[
    Path | None, typer.Option(exists=True, file_okay=False, help="For scans: a run of train decovnet, unpublished.")
]
PartOption = Annotated[
    Literal["training", "validation", "test"], typer.Option(help="For a data set: the part to evaluate on.")
]
ModelVersion = Annotated[str | None, typer.Option(help="For scans: its version.")]
Verdicts = Annotated[
    bool, typer.Option("--verdicts", help="For node: how often readers agree with its results; with --shadow node too.")
]
Adopt = Annotated[
    bool, typer.Option("--adopt", help="Reports print these figures from now on, not the published ones of the model.")
]
Site = Annotated[str, typer.Option(help=r"With --adopt: whose figures they are; default \[report] institution.")]
Device = Annotated[str, typer.Option(help='For scans: "auto", "cpu", "cuda", "cuda:0", ...')]


def evaluate(
    predictions: Input,
    output: Output = None,
    labels: LabelFile = None,
    shadow: Shadow = None,
    threshold: Threshold = None,
    thresholds: Thresholds = "",
    prevalence: Prevalence = None,
    interval: IntervalMethod = "auto",
    resamples: Resamples = 2000,
    seed: Seed = 0,
    subgroup: Subgroup = None,
    case_column: CaseColumn = None,
    patient_column: PatientColumn = None,
    probability_column: ProbabilityColumn = None,
    label_column: LabelColumn = None,
    skip_unusable: SkipUnusable = False,
    model: Model = None,
    model_version: ModelVersion = None,
    model_folder: ModelFolder = None,
    part: PartOption = "test",
    device: Device = "auto",
    adopt: Adopt = False,
    verdicts: Verdicts = False,
    site: Site = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """ROC and PR curves, operating points, thresholds, calibration and subgroups of predictions with known labels."""
    if verdicts:
        if predictions != NODE or predictions.exists():
            raise typer.BadParameter("readers judge the node's own results: evaluate node", param_hint="--verdicts")
        report_agreement(settings_from(config), shadow=shadow is not None, labels=labels, json=json)
        return
    from inference.evaluation.assessment import Options, assess
    from inference.evaluation.comparison import compare
    from inference.evaluation.extra import require_all
    from inference.evaluation.tables import ColumnNames

    table = _thresholds(thresholds)
    names = ColumnNames(case_column, patient_column, probability_column, label_column)
    reader = _Reader(labels, output, names, skip_unusable, config)
    identity: ModelIdentity | None
    if predictions.is_dir():
        require_all()
        pipeline = reader.pipeline(model, model_version, model_folder, device)
        cases, identity = reader.predict(predictions, part, pipeline), pipeline.identity
    else:
        cases = reader.read(predictions, SITE_ONLY, shadow=False)
        identity = reader.node_model(predictions)
    of_card = identity.threshold if identity else None
    in_use = next(value for value in (threshold, of_card, DEFAULT_THRESHOLD) if value is not None)
    options = Options(threshold=in_use, prevalence=prevalence, interval=interval, resamples=resamples, seed=seed,
                      subgroups=tuple(subgroup or ()), **table)  # fmt: skip
    second = reader.read(shadow, SITE_ONLY_SHADOW, shadow=True) if shadow else None
    assessment = assess(cases, options, compare(cases, second, in_use) if second else None, identity)
    written = write_assessment(cases, assessment, output)
    if adopt:
        written.append(adopt_evaluation(settings_from(config), assessment, site))
        err.print("reports print these figures from now on", markup=False)
    if json:
        print_json({**assessment.as_json(), "files": [str(path) for path in written]})
    else:
        print_assessment(assessment)


def write_assessment(cases: Predictions, assessment: Assessment, output: Path | None) -> list[Path]:
    """Write page, plots and tables to a folder. Returns the files; none without a folder."""
    if output is None:
        return []
    from inference.evaluation.output import PAGE, write

    files = write(cases, assessment, output)
    err.print(f"wrote {output / PAGE} and {len(files) - 1} other files", markup=False, soft_wrap=True)
    return files


class _Reader:
    """Where predictions come from, and what all of these ways need."""

    def __init__(
        self, labels: Path | None, output: Path | None, names: ColumnNames, skip_unusable: bool, config: Path | None
    ) -> None:
        self._labels, self._output, self._names = labels, output, names
        self._skip_unusable, self._config = skip_unusable, config

    def read(self, path: Path, site_only: Path, *, shadow: bool) -> Predictions:
        """The predictions of a file, or the node's own."""
        from inference.evaluation.predictions import read_predictions

        if path == NODE and not path.exists():
            return self._of_node(site_only, shadow=shadow)
        if not path.is_file():
            raise NodeError(f"{path}: there is no such file")
        return read_predictions(path, names=self._names, labels=self._labels, skip_unusable=self._skip_unusable)

    def node_model(self, path: Path) -> ModelIdentity | None:
        """The model that the node's own results are of; None for a file, which does not say."""
        from inference.models.cards import read_card
        from inference.models.registry import find_model

        if path != NODE or path.exists():
            return None
        settings = settings_from(self._config)
        name, version = settings.model.name or None, settings.model.version or None
        return read_card(find_model(settings.models_dir, name, version)).identity()

    def pipeline(self, model: str | None, version: str | None, folder: Path | None, device: str) -> Pipeline:
        """The model to run: of a folder, of a name, or the node's."""
        from inference.models.registry import find_model
        from inference.training.predicting import load_pipeline

        settings = settings_from(self._config)
        found = folder or find_model(
            settings.models_dir, model or settings.model.name or None, version or settings.model.version or None
        )
        return load_pipeline(found, device, precision=settings.worker.precision, threads=settings.worker.threads)

    def predict(self, folder: Path, part: str, pipeline: Pipeline) -> Predictions:
        """Run a model over a data set or a folder of scans; its predictions by case are kept beside the evaluation."""
        from inference.evaluation.folder import predict_folder
        from inference.training.cached import is_dataset, open_dataset
        from inference.training.predicting import predict_dataset

        of_dataset = is_dataset(folder)
        if self._output is None or (self._labels is None and not of_dataset):
            raise NodeError(
                "a folder of scans needs --labels, a CSV of case and label, and --output, a folder to write to; a data "
                "set needs --output"
            )
        with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
            task = progress.add_task("cases", total=None)

            def done(number: int, total: int) -> None:
                progress.update(task, completed=number, total=total)

            if of_dataset or self._labels is None:
                result = predict_dataset(open_dataset(folder), pipeline, part, done=done)
            else:
                result = predict_folder(
                    folder, self._labels, lambda volume: pipeline.run(volume, localise=False).probability, done=done
                )
        return self._kept(result, SITE_ONLY)

    def _of_node(self, site_only: Path, *, shadow: bool) -> Predictions:
        """The current results of the reporting or of the shadow model, for the cases that have a label."""
        from dicom_node.cli.own_data import node_predictions

        if self._labels is None:
            raise NodeError("the node's results need --labels, a CSV of case and label")
        settings = settings_from(self._config)
        database = database_of(settings)
        with database.read() as tx:
            result = node_predictions(tx, settings, self._labels, shadow=shadow)
        note_reading(database, "evaluate", results=len(result.rows))
        return self._kept(result, site_only)

    def _kept(self, result: FolderPredictions, site_only: Path) -> Predictions:
        from inference.evaluation.folder import as_predictions

        if self._output is not None:
            return as_predictions(result, self._output / site_only)
        with TemporaryDirectory(prefix="dicom-node-") as folder:
            return as_predictions(result, Path(folder) / site_only.name)


def _thresholds(text: str) -> dict[str, tuple[float, ...]]:
    if not text:
        return {}
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter("must be numbers with commas between", param_hint="--thresholds") from error
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
        raise typer.BadParameter("must be between 0 and 1", param_hint="--thresholds")
    return {"thresholds": values}


def print_assessment(assessment: Assessment) -> None:
    """The figures as tables on standard output."""
    out.print(f"{assessment.source}: {assessment.cases} cases, {assessment.positives} positive", markup=False)
    areas = (
        ("ROC AUC", assessment.roc_auc, assessment.roc_auc_interval),
        ("PR AUC", assessment.pr_auc, assessment.pr_auc_interval),
        ("Brier score", assessment.brier, assessment.brier_interval),
    )
    for name, value, interval in areas:
        span = f"  95% {interval.low:.4f} to {interval.high:.4f} ({interval.method})" if interval else ""
        out.print(f"{name:12} {'not defined' if value is None else f'{value:.4f}'}{span}", markup=False)
    for note in assessment.notes:
        out.print(f"note: {note}", markup=False)
    columns = ["", "threshold", "accuracy", "sensitivity", "specificity", "PPV", "NPV"]
    points = [(name.replace("_", " "), row) for name, row in assessment.operating_points.items()]
    if points:
        print_rows("Operating points", columns, (_cells(name, row) for name, row in points))
    print_rows("Thresholds", columns[1:], (_cells("", row)[1:] for row in assessment.thresholds))
    for title, rows in assessment.subgroups.items():
        cells = (
            [row.value, row.cases, row.positives, _text(row.roc_auc), _text(row.sensitivity), _text(row.specificity)]
            for row in rows
        )
        print_rows(f"By {title}", [title, "cases", "positive", "ROC AUC", "sensitivity", "specificity"], cells)
    if assessment.comparison:
        shown = {
            name: _text(value) if isinstance(value, float) else value
            for name, value in vars(assessment.comparison).items()
            if name != "difference_interval"
        }
        print_rows("Second model", ["", ""], ((name.replace("_", " "), value) for name, value in shown.items()))


def _cells(name: str, row: ThresholdRow) -> list[str]:
    values = (row.accuracy, row.sensitivity, row.specificity, row.ppv, row.npv)
    return [name, f"{row.threshold:.4g}", *(_text(value) for value in values)]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
