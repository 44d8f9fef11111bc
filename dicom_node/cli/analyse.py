"""analyse: load, analyse and print one folder, without a node and without a PACS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.coding import BILATERAL, VOLUME, unit_text
from dicom_node.cli.coded import finding_record, measurement_record
from dicom_node.cli.common import ConfigOption, JsonOption, err, out, print_json, settings_from
from dicom_node.errors import NodeError
from storage.coded import Content

# torch takes seconds to import: only this command pays for it.
if TYPE_CHECKING:
    from dicom_node.analysis.analyse import Analysis
    from inference.finding import ModelIdentity
    from inference.plug import Output
    from inference.volume.ct_volume import CTVolume


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
    from dicom_node.analysis.analyse import analyse_folder
    from dicom_node.analysis.figures import figures_of
    from dicom_node.analysis.open_model import open_current
    from dicom_node.analysis.result_objects import write_objects
    from dicom_node.analysis.study_statement import Studies
    from inference.volume.folder import read_folder

    folder = read_folder(path)
    for file in folder.unreadable:
        err.print(f"cannot read {file.path}: {file.reason}", markup=False, soft_wrap=True)
    if not folder.series:
        raise NodeError(f"no DICOM images with a SeriesInstanceUID that can be read in {path}")
    model, studies = open_current(settings, device, trace=trace), Studies()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        for number, (uid, paths) in enumerate(folder.series.items(), start=1):
            task = progress.add_task(f"series {number} of {len(folder.series)}: {len(paths)} files", total=None)
            analysis = analyse_folder(folder, uid, model, own=settings.report)
            points = figures_of(model.card, settings.models_dir)
            written = []
            if output:
                study = studies.statement(uid, paths, analysis, model.card)
                written = write_objects(analysis, paths, model.identity, settings, output, points, study)
            progress.remove_task(task)
            unreadable = [{"file": str(file.path), "reason": file.reason} for file in folder.suspects(uid)]
            record = _record(uid, analysis, model.identity) | ({"unreadable": unreadable} if unreadable else {})
            print_json(record | {"objects": written} if output else record) if json else _print(record, written)
    suspects = {file.path for uid in folder.series for file in folder.suspects(uid)}
    if any(file.path not in suspects for file in folder.unreadable):
        raise typer.Exit(1)  # no series answers for them


def _record(uid: str, analysis: Analysis, model: ModelIdentity) -> dict[str, object]:
    from dicom_node.analysis.content import content_of

    output, reason = analysis.output, analysis.refusal
    content = content_of(output) if output else Content()
    finding = content.findings[0] if content.findings else None
    lungs = content.value_of(VOLUME, BILATERAL)
    record: dict[str, object] = {
        "series_instance_uid": uid,
        "outcome": analysis.outcome,
        "reason": None if reason is None else {"code": reason.code, "sentence": reason.sentence},
        "probability": None if finding is None else finding.certainty,
        "positive": None if finding is None else finding.positive,
        "lung_volume_ml": None if lungs is None else round(lungs, 1),
        "model": f"{model.name} {model.version}",
        "model_digest": model.digest,
        "demonstration": model.demonstration,
        "timings_s": {stage: round(seconds, 3) for stage, seconds in analysis.timings_s.items()},
    }
    if output is not None and analysis.finding is not None and analysis.volume is not None:
        record |= {"input_digest": analysis.finding.pixel_digest}
        record |= {"device": output.run.device, "precision": output.run.precision}
        record |= _localised(output, analysis.volume)
        spread = next((one.spread for one in output.findings if one.spread is not None), None)
        if spread is not None:
            record["range"] = [spread.low, spread.high]
        record |= {"checks": [{"code": check.code, "sentence": check.sentence} for check in output.checks]}
        record |= {"findings": [finding_record(one) for one in content.findings]}
        record |= {"measurements": [measurement_record(one) for one in content.measurements]}
        if output.trace:
            record["trace"] = output.trace
    return record


def _localised(output: Output, volume: CTVolume) -> dict[str, object]:
    """How much of the volume the segments of findings cover, together, and how much of the organs that were found."""
    found = [segment.mask for segment in output.segments if segment.purpose == "finding"]
    organs = [segment.mask for segment in output.segments if segment.purpose == "anatomy"]
    if not found or not organs:
        return {}
    voxels, inside = (int(sum(int(mask.sum()) for mask in masks)) for masks in (found, organs))
    return {
        "localised_ml": round(voxels * volume.voxel_ml, 1),
        "localised_percent_of_lungs": round(100 * voxels / max(1, inside), 2),
    }


def _print(record: dict[str, object], written: list[str]) -> None:
    out.print(f"series      {record['series_instance_uid']}", markup=False)
    out.print(f"outcome     {record['outcome']}", markup=False)
    reason = record["reason"]
    if isinstance(reason, dict):
        out.print(f"reason      {reason['code']}: {reason['sentence']}", markup=False)
    else:
        _print_findings(record)
        if record["positive"] and "localised_ml" in record:
            share = f"{record['localised_percent_of_lungs']} % of the lungs; no lesion boundary"
            out.print(f"driven by   {record['localised_ml']} mL, {share}", markup=False)
    note = ", trained on synthetic phantoms only" if record["demonstration"] else ""
    out.print(f"model       {record['model']}{note}", markup=False)
    for file in written:
        out.print(f"wrote       {file}", markup=False)
    out.print("For research use; not for diagnosis.")


def _print_findings(record: dict[str, object]) -> None:
    """The first finding and the lungs' volume as ever; every measurement of a model that gives neither."""
    if record["probability"] is not None:
        side = "positive" if record["positive"] else "negative"
        out.print(f"probability {record['probability']:.6f} ({side})", markup=False)
    if record["lung_volume_ml"] is not None:
        out.print(f"lung volume {record['lung_volume_ml']} mL", markup=False)
    measured = record.get("measurements")
    if record["probability"] is None and isinstance(measured, list):
        for one in measured:
            out.print(f"measured    {one['name']}: {one['value']:.6g} {unit_text(one['unit'])}", markup=False)
