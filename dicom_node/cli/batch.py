"""batch: one model on many series, while no live series waits; its results stay apart from all others."""

from __future__ import annotations

import json as json_module
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    duration_text,
    err,
    local_text,
    out,
    print_json,
    print_rows,
    settings_from,
)
from dicom_node.errors import NodeError
from dicom_node.runtime.index import who
from storage import audit, batch_cases, batches
from storage.batches import Batch, BatchState, NewBatch
from storage.database import Database

# These take seconds to import, or need an extra.
if TYPE_CHECKING:
    from dicom_node.batch.creating import Created, Source
    from dicom_node.batch.report import CaseOutcome
    from inference.evaluation.folder import FolderPredictions
    from inference.finding import ModelIdentity

app = typer.Typer(no_args_is_help=True, help="One model on many series, apart from live work.")
STAYS = Path("stays-at-the-site")
LOOK_EVERY_S = 1.0
BatchNumber = Annotated[int, typer.Argument(help="Number of the batch.")]


def register(parent: typer.Typer) -> None:
    """Add this group's commands."""
    parent.add_typer(app, name="batch")


@app.command()
def create(
    source: Annotated[
        str,
        typer.Option("--from", help='"store [KEY=VALUE ...]", "folder PATH" or "pacs DESTINATION [KEY=VALUE ...]".'),
    ],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    model_version: Annotated[str, typer.Option(help="Its version, if several models have that name.")] = "",
    labels: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV of case and label: only these series are analysed."),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Find the series and let the workers begin. If a creation was interrupted, the same command goes on with it."""
    from dicom_node.analysis.current_model import model_named
    from dicom_node.batch.creating import Creator, read_source
    from dicom_node.batch.labels import CaseLabels, digest_of, read_case_labels
    from storage.pseudonyms import Pseudonyms

    settings = settings_from(config)
    if not settings.batch.enabled:
        raise NodeError("no worker takes batches up here: set enabled = true in [batch], and start the node again")
    wanted, key = read_source(source, settings), settings.storage.pseudonym_key.get_secret_value()
    path = labels.resolve() if labels else None
    known = read_case_labels(path, Pseudonyms(key)) if path else CaseLabels()
    ref = model_named(settings, model, model_version)
    new = NewBatch(wanted.kind, wanted.query, ref, str(path) if path else None, digest_of(path) if path else None)
    database = database_of(settings, create=wanted.kind != "store")
    batch = _begun(database, new)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as progress:
        task = progress.add_task("looking for series")

        def done(so_far: Created) -> None:
            progress.update(task, description=f"{so_far.cases} series")

        found = Creator(settings, database, known, done).fill(batch, wanted)
    _start(database, batch.id, wanted)
    if json:
        print_json({"batch": batch.id, **asdict(found)})
        return
    out.print(f"batch {batch.id}: {found.cases} series to be analysed", markup=False)
    if found.unlabelled:
        out.print(f"{found.unlabelled} series that no label names are left out", markup=False)
    if found.unreadable:
        out.print(f"{found.unreadable} files that look like DICOM cannot be read; what lies beside them is refused")


def _begun(database: Database, new: NewBatch) -> Batch:
    """The batch that is to be filled: one whose creation was interrupted, or a new one."""
    with database.transaction() as tx:
        half = batches.half_created(tx, new)
        return half if half is not None else batches.get(tx, batches.create(tx, new, time.time(), who()))


def _start(database: Database, batch_id: int, source: Source) -> None:
    with database.transaction() as tx:
        none = batches.get(tx, batch_id).cases == 0
        batches.bring_to(tx, batch_id, BatchState.CANCELLED if none else BatchState.RUNNING, time.time(), who())
    if none:
        raise NodeError(f"no series of the {source.kind} is wanted: look at what --from and --labels name")


@app.command("list")
def list_(config: ConfigOption = None, json: JsonOption = False) -> None:
    """All batches, the latest first."""
    with database_of(settings_from(config)).read() as tx:
        found = batches.listed(tx)
    if json:
        print_json([_record(one) for one in found])
        return
    columns = ["batch", "state", "from", "model", "series", "done", "without result", "created"]
    print_rows("", columns, ([*_row(one), local_text(one.created_at)] for one in found))


def _row(one: Batch) -> list[object]:
    return [one.id, one.state, _source(one), one.model.name, one.cases, one.done, one.without_result]


def _source(one: Batch) -> str:
    query = json_module.loads(one.query)
    return " ".join([one.source, *filter(None, [query["where"]]), *(f"{k}={v}" for k, v in query["keys"].items())])


def _record(one: Batch) -> dict[str, Any]:
    return {**asdict(one), "waiting": one.waiting, "query": json_module.loads(one.query)}


@app.command()
def status(
    batch: BatchNumber,
    watch: Annotated[bool, typer.Option("--watch", help="Show the progress until it ends.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """How far a batch is, what became of its series, and how long it will take at the rate of its last ones."""
    settings = settings_from(config)
    database = database_of(settings)
    if watch:
        _watch(database, batch)
    with database.read() as tx:
        found, counted = batches.get(tx, batch), batch_cases.outcomes(tx, batch)
        rate = batches.rate_per_s(tx, batch, time.time())
    left_s = _left_s(found, rate)
    if json:
        print_json({**_record(found), "outcomes": counted, "rate_per_s": rate, "left_s": left_s})
        return
    out.print(f"batch {found.id}, {found.state}: {_source(found)}, model {found.model.name}", markup=False)
    out.print(f"{found.ended} of {found.cases} series, {found.queued} in hand{_left(left_s)}", markup=False)
    if found.state == BatchState.RUNNING and not settings.batch.may_begin(time.time()):
        out.print("nothing of it begins now: see enabled and live_hours in [batch]", markup=False)
    print_rows("", ["outcome", "reason", "series"], ((one["outcome"], one["reason"], one["cases"]) for one in counted))


def _left_s(found: Batch, rate: float | None) -> float | None:
    running = found.state == BatchState.RUNNING and rate
    return (found.cases - found.ended) / rate if running and rate else None


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {duration_text(seconds)} left"


def _watch(database: Database, batch_id: int) -> None:
    """A bar on the terminal until the batch no longer runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(f"batch {batch_id}", total=None, left="")
        while True:
            with database.read() as tx:
                found, rate = batches.get(tx, batch_id), batches.rate_per_s(tx, batch_id, time.time())
            progress.update(task, completed=found.ended, total=found.cases, left=_left(_left_s(found, rate)))
            if found.state != BatchState.RUNNING:
                return
            time.sleep(LOOK_EVERY_S)


@app.command()
def pause(batch: BatchNumber, config: ConfigOption = None) -> None:
    """Begin nothing more of a batch; what is in hand is finished."""
    _bring(config, batch, BatchState.PAUSED)
    out.print(f"batch {batch} is paused: `dicom-node batch resume {batch}` goes on", markup=False)


@app.command()
def resume(batch: BatchNumber, config: ConfigOption = None) -> None:
    """Go on with a paused batch."""
    _bring(config, batch, BatchState.RUNNING)
    out.print(f"batch {batch} goes on", markup=False)


@app.command()
def cancel(batch: BatchNumber, config: ConfigOption = None) -> None:
    """End a batch for good. What has been analysed stays, and is reported."""
    database = database_of(settings_from(config))
    with database.transaction() as tx:
        batches.bring_to(tx, batch, BatchState.CANCELLED, time.time(), who())
        while batch_cases.withdraw(tx, batch, time.time()):
            pass
    out.print(f"batch {batch} is cancelled", markup=False)


def _bring(config: Path | None, batch: int, state: BatchState) -> None:
    with database_of(settings_from(config)).transaction() as tx:
        if batches.get(tx, batch).state == BatchState.CREATING:
            raise NodeError(f"batch {batch} is not complete: give the command that creates it again, or cancel it")
        batches.bring_to(tx, batch, state, time.time(), who())


@app.command()
def report(
    batch: BatchNumber,
    output: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for page, plots and tables.")] = None,
    labels: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The labels, if they are elsewhere now.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """What became of every series, and with labels how good the model is, as `evaluate` says it."""
    from dicom_node.batch.report import labelled, outcomes, write_cases

    settings = settings_from(config)
    database = database_of(settings)
    with database.read() as tx:
        found, counted = batches.get(tx, batch), batch_cases.outcomes(tx, batch)
        cases = list(outcomes(tx, batch))
    truth = labels or (Path(found.labels) if found.labels else None)
    predictions = labelled(found, truth, cases) if truth else None
    if output:
        write_cases(output / STAYS / "cases.csv", cases)
        err.print(f"wrote {output / STAYS / 'cases.csv'}: it names series and stays at the site", markup=False)
    _note(database, found, len(cases))
    record: dict[str, Any] = {**_record(found), "outcomes": counted}
    if not json:
        out.print(f"batch {found.id}, {found.state}: {found.ended} of {found.cases} series", markup=False)
        rows = ((one["outcome"], one["reason"], one["cases"]) for one in counted)
        print_rows("", ["outcome", "reason", "series"], rows)
    if predictions is not None:
        record |= _evaluated(settings, found, predictions, output, show=not json)
    if json:
        print_json({**record, "series": [_case(one) for one in cases]})


def _case(one: CaseOutcome) -> dict[str, Any]:
    hidden = ("patient_pk", "patient_id")
    return {name: value for name, value in asdict(one).items() if name not in hidden}


def _note(database: Database, found: Batch, cases: int) -> None:
    with database.transaction() as tx:
        detail = {"batch": found.id, "user": who(), "cases": cases}
        audit.append(tx, time.time(), "batch.reported", outcome=found.state, detail=detail)


def _evaluated(
    settings: Settings, found: Batch, predictions: FolderPredictions, output: Path | None, *, show: bool
) -> dict[str, Any]:
    """The evaluation of the labelled cases, printed, and written to a folder if there is one."""
    from dicom_node.cli.evaluate import DEFAULT_THRESHOLD, print_assessment, write_assessment
    from inference.evaluation.assessment import Options, assess
    from inference.evaluation.folder import as_predictions

    for problem in predictions.refused if show else ():
        out.print(f"labels, line {problem.line}: not analysed, because {problem.reason}", markup=False)
    if not predictions.rows:
        out.print("no labelled series has a probability: there is nothing to evaluate", markup=False)
        return {"evaluation": None}
    identity = _identity(settings, found)
    threshold = identity.threshold if identity and identity.threshold is not None else DEFAULT_THRESHOLD
    with TemporaryDirectory(prefix="dicom-node-") as folder:
        cases = as_predictions(predictions, (output or Path(folder)) / STAYS / "predictions.csv")
    assessment = assess(cases, Options(threshold=threshold), None, identity)
    write_assessment(cases, assessment, output)
    if show:
        print_assessment(assessment)
    return {"evaluation": assessment.as_json()}


def _identity(settings: Settings, found: Batch) -> ModelIdentity | None:
    """The model of a batch, if it is still here as it was."""
    from inference.errors import ModelError
    from inference.models.cards import read_card
    from inference.models.registry import find_model

    try:
        identity = read_card(find_model(settings.models_dir, found.model.name, found.model.version)).identity()
    except ModelError:
        return None
    return identity if identity.digest == found.model.digest else None
