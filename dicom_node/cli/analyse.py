"""analyse: load, analyse and print one folder, without a node and without a PACS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dicom_node.cli.common import ConfigOption, JsonOption, err, out, print_json, settings_from
from dicom_node.errors import NodeError

# torch takes seconds to import: only this command pays for it.
if TYPE_CHECKING:
    from dicom_node.analysis.analyse import Analysis
    from inference.finding import ModelIdentity


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(analyse)


def analyse(
    path: Annotated[Path, typer.Argument(exists=True, help="A DICOM file, or a folder with one or more series.")],
    output: Annotated[Path | None, typer.Option(help="Folder to write the DICOM objects of the result to.")] = None,
    display: Annotated[bool, typer.Option("--display", help="Also write the display report, for OHIF.")] = False,
    key_objects: Annotated[bool, typer.Option("--key-objects", help="Also write the key objects.")] = False,
    trace: Annotated[bool, typer.Option(help="Add intermediate values to the result.")] = False,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0", ...')] = "auto",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Load, analyse and print every series below PATH. One JSON object a line with --json.

    A series beside which files cannot be read is refused as corrupt; such files that belong to no series make the
    command fail.
    """
    settings = settings_from(config)
    wanted = {"display": display or settings.report.display, "key_objects": key_objects or settings.report.key_objects}
    settings = settings.model_copy(update={"report": settings.report.model_copy(update=wanted)})
    from dicom_node.analysis.analyse import analyse_folder, open_pipeline
    from dicom_node.analysis.figures import figures_of
    from dicom_node.analysis.result_objects import write_objects
    from dicom_node.analysis.study_statement import Studies
    from inference.volume.folder import read_folder

    folder = read_folder(path)
    for file in folder.unreadable:
        err.print(f"cannot read {file.path}: {file.reason}", markup=False, soft_wrap=True)
    if not folder.series:
        raise NodeError(f"no DICOM images with a SeriesInstanceUID that can be read in {path}")
    pipeline, studies = open_pipeline(settings, device), Studies()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        for number, (uid, paths) in enumerate(folder.series.items(), start=1):
            task = progress.add_task(f"series {number} of {len(folder.series)}: {len(paths)} files", total=None)
            analysis = analyse_folder(folder, uid, pipeline, own=settings.report, trace=trace)
            points = figures_of(pipeline.card, settings.models_dir)
            written = []
            if output:
                study = studies.statement(uid, paths, analysis, pipeline.card)
                written = write_objects(analysis, paths, pipeline.identity, settings, output, points, study)
            progress.remove_task(task)
            unreadable = [{"file": str(file.path), "reason": file.reason} for file in folder.suspects(uid)]
            record = _record(uid, analysis, pipeline.identity) | ({"unreadable": unreadable} if unreadable else {})
            print_json(record | {"objects": written} if output else record) if json else _print(record, written)
    suspects = {file.path for uid in folder.series for file in folder.suspects(uid)}
    if any(file.path not in suspects for file in folder.unreadable):
        raise typer.Exit(1)  # no series answers for them


def _record(uid: str, analysis: Analysis, model: ModelIdentity) -> dict[str, object]:
    finding, reason = analysis.finding, analysis.refusal
    record: dict[str, object] = {
        "series_instance_uid": uid,
        "outcome": analysis.outcome,
        "reason": None if reason is None else {"code": reason.code, "sentence": reason.sentence},
        "probability": None if finding is None else finding.probability,
        "positive": None if finding is None else finding.positive,
        "lung_volume_ml": None if finding is None else round(finding.lung_volume_ml, 1),
        "model": f"{model.name} {model.version}",
        "model_digest": model.digest,
        "demonstration": model.demonstration,
        "timings_s": {stage: round(seconds, 3) for stage, seconds in analysis.timings_s.items()},
    }
    if finding is not None:
        record |= {"input_digest": finding.pixel_digest, "device": finding.device, "precision": finding.precision}
        if finding.localisation is not None and analysis.volume is not None:
            voxels = int(finding.localisation.sum())
            record["localised_ml"] = round(voxels * analysis.volume.voxel_ml, 1)
            record["localised_percent_of_lungs"] = round(100 * voxels / max(1, int(finding.lung_mask.sum())), 2)
        if finding.spread is not None:
            record["range"] = [finding.spread.low, finding.spread.high]
        record |= {"checks": [{"code": check.code, "sentence": check.sentence} for check in finding.checks]}
        if finding.trace:
            record["trace"] = finding.trace
    return record


def _print(record: dict[str, object], written: list[str]) -> None:
    out.print(f"series      {record['series_instance_uid']}", markup=False)
    out.print(f"outcome     {record['outcome']}", markup=False)
    reason = record["reason"]
    if isinstance(reason, dict):
        out.print(f"reason      {reason['code']}: {reason['sentence']}", markup=False)
    else:
        out.print(
            f"probability {record['probability']:.6f} ({'positive' if record['positive'] else 'negative'})",
            markup=False,
        )
        out.print(f"lung volume {record['lung_volume_ml']} mL", markup=False)
        if record["positive"]:
            share = f"{record['localised_percent_of_lungs']} % of the lungs; no lesion boundary"
            out.print(f"driven by   {record['localised_ml']} mL, {share}", markup=False)
    note = ", trained on synthetic phantoms only" if record["demonstration"] else ""
    out.print(f"model       {record['model']}{note}", markup=False)
    for file in written:
        out.print(f"wrote       {file}", markup=False)
    out.print("For research use; not for diagnosis.")
