"""models calibrate: what a model's output means at this site, fitted on local labelled scans."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    note_reading,
    out,
    print_json,
    say,
    settings_from,
)
from dicom_node.cli.evaluate import NODE
from dicom_node.errors import NodeError
from inference.models.calibration import Calibration, Method
from storage import audit

if TYPE_CHECKING:
    from inference.evaluation.predictions import Predictions
    from inference.evaluation.recalibration import Quality, Recalibration, Wish
    from inference.models.cards import Card, OperatingPoint

METHODS: dict[str, Method | None] = {"auto": None, "threshold": "threshold", "platt": "platt", "isotonic": "isotonic"}
ShareOption = typer.Option(min=0.01, max=0.999)


def calibrate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")],
    labels: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV of case and label, perhaps patient.")],
    outputs: Annotated[
        Path,
        typer.Option("--from", help='"node": what it gave for the labelled scans; or a CSV of case and probability.'),
    ] = NODE,
    sensitivity: Annotated[float | None, ShareOption] = None,
    specificity: Annotated[float | None, ShareOption] = None,
    method: Annotated[str, typer.Option(help='"auto", "threshold" (only that), "platt" or "isotonic".')] = "auto",
    version: Annotated[str | None, typer.Option(help="Its version, if several models have that name.")] = None,
    new_version: Annotated[
        str, typer.Option("--as", help="Version of the calibrated model; default: the old one and the day.")
    ] = "",
    site: Annotated[str, typer.Option(help=r"Whose scans they are; default: \[report] institution.")] = "",
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the figures and both plots (extra: evaluate).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and show; write no card.")] = False,
    activate: Annotated[
        bool, typer.Option("--activate", help="Also use it if the settings name no model. Reports change at once.")
    ] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Fit a site's threshold and calibration of a model on labelled scans, and write it as a new version of the model.

    --sensitivity or --specificity: what the operating point is to reach; else decisions stay where they were.
    """
    from inference.evaluation.recalibration import recalibrate
    from inference.models.calibrated import base_of, calibrated_card, install_calibrated
    from inference.models.cards import read_card
    from inference.models.registry import find_model

    settings = settings_from(config)
    wish, whose = _wish(sensitivity, specificity), site or settings.report.institution
    if method not in METHODS:
        raise typer.BadParameter(f"expected one of {', '.join(METHODS)}", param_hint="--method")
    if not whose and not dry_run:
        raise NodeError("give --site, or set [report] institution: reports say whose calibration it is")
    folder = find_model(settings.models_dir, name, version)
    folder, base = base_of(folder, settings.models_dir, read_card(folder))
    fit = recalibrate(
        _predictions(settings, labels, outputs, base), base.threshold or 0.5, method=METHODS[method], wish=wish
    )
    calibration = _calibration(fit, base, whose or "-")
    stamp = f"{base.version}+{calibration.date.replace('-', '')}"
    card = calibrated_card(base, new_version or stamp, calibration, _operating_point(fit, calibration))
    written = _written(fit, output)
    if not dry_run:
        install_calibrated(card, folder, settings.models_dir, activate=activate)
        _note(settings, base, card, fit, activate=activate)
    if json:
        print_json(_record(fit, card, dry_run=dry_run, activate=activate) | {"files": [str(path) for path in written]})
        return
    _print(fit, base)
    if not dry_run:
        out.print(f"wrote {card.name} {card.version}, digest {card.digest()[:16]}", markup=False)
        if not activate:
            say(f'use it with [model] name = "{card.name}", version = "{card.version}"; or shadow it first')


def _wish(sensitivity: float | None, specificity: float | None) -> Wish | None:
    from inference.evaluation.recalibration import Wish

    if sensitivity is not None and specificity is not None:
        raise typer.BadParameter("give one of --sensitivity and --specificity: a threshold cannot promise both")
    if sensitivity is not None:
        return Wish("sensitivity", sensitivity)
    return None if specificity is None else Wish("specificity", specificity)


def _predictions(settings: Settings, labels: Path, outputs: Path, base: Card) -> Predictions:
    """The labelled outputs of the base model, from the node's results or from a file."""
    from tempfile import TemporaryDirectory

    from dicom_node.cli.own_data import outputs_of
    from inference.evaluation.folder import as_predictions
    from inference.evaluation.predictions import read_predictions
    from inference.models.registry import list_models

    if outputs != NODE or outputs.exists():
        if not outputs.is_file():
            raise NodeError(f"{outputs}: there is no such file")
        return read_predictions(outputs, labels=labels)
    digest = base.digest()
    cards = [card for card in list_models(settings.models_dir) if card.calibration is not None]
    calibrated = {card.digest() for card in cards if card.calibration and card.calibration.base_digest == digest}
    database = database_of(settings)
    with database.read() as tx:
        found = outputs_of(tx, labels, digest, calibrated)
    note_reading(database, "models calibrate", results=len(found.rows))
    with TemporaryDirectory(prefix="dicom-node-") as folder:
        return as_predictions(found, Path(folder) / "outputs.csv")


def _calibration(fit: Recalibration, base: Card, site: str) -> Calibration:
    return Calibration(
        method=fit.method,
        site=site,
        date=date.today().isoformat(),
        base_digest=base.digest(),
        cases=fit.cases,
        positives=fit.positives,
        data_sha256=fit.data_sha256,
        slope=fit.slope,
        intercept=fit.intercept,
        outputs=fit.outputs,
        probabilities=fit.probabilities,
    )


def _operating_point(fit: Recalibration, calibration: Calibration) -> OperatingPoint:
    from inference.models.calibrated import POINT
    from inference.models.cards import OperatingPoint

    point = fit.point
    low, high = point.sensitivity_interval, point.specificity_interval
    source = (
        f"{calibration.sentence()}; on cases not fitted on; 95 % intervals "
        f"{low.low:.2f} to {low.high:.2f} and {high.low:.2f} to {high.high:.2f}"
    )
    return OperatingPoint(POINT, point.threshold, point.sensitivity, point.specificity, source)


def _written(fit: Recalibration, output: Path | None) -> list[Path]:
    if output is None:
        return []
    from inference.evaluation.recalibration_output import write_recalibration

    return write_recalibration(fit, output)


def _note(settings: Settings, base: Card, card: Card, fit: Recalibration, *, activate: bool) -> None:
    detail = {
        "base": f"{base.name} {base.version}",
        "base_digest": base.digest(),
        "version": card.version,
        "digest": card.digest(),
        "method": fit.method,
        "threshold": fit.point.threshold,
        "cases": fit.cases,
        "data_sha256": fit.data_sha256,
        "activated": activate,
    }
    with database_of(settings, create=True).transaction() as tx:
        audit.append(tx, time.time(), "model.calibrated", outcome="CALIBRATED", detail=detail)


def _record(fit: Recalibration, card: Card, *, dry_run: bool, activate: bool) -> dict[str, object]:
    from dataclasses import asdict

    identity = {"name": card.name, "version": card.version, "digest": card.digest()}
    return {"written": None if dry_run else identity, "activated": activate, **asdict(fit)}


def _print(fit: Recalibration, base: Card) -> None:
    say(f"{fit.cases} cases, {fit.positives} positive; method: {fit.method}")
    for words, found in (("as the model gives it", fit.before), ("calibrated, on unseen cases", fit.after)):
        say(f"  {words}:")
        for line in _lines(found):
            say(f"    {line}")
    point = fit.point
    say(f"  Threshold {point.threshold:.4g} (the model's own: {base.threshold:g}); on cases not fitted on:")
    for what, value, interval in (
        ("sensitivity", point.sensitivity, point.sensitivity_interval),
        ("specificity", point.specificity, point.specificity_interval),
    ):
        say(f"    {what} {value:.3f} (95 % {interval.low:.3f} to {interval.high:.3f})")
    for note in fit.notes:
        say(f"  note: {note}")


def _lines(found: Quality) -> list[str]:
    rows = (
        ("expected calibration error", found.error, found.error_interval),
        ("intercept (0 is perfect)", found.intercept, found.intercept_interval),
        ("slope (1 is perfect)", found.slope, found.slope_interval),
    )
    shown = [f"{name} {value:.3f} (95 % {span.low:.3f} to {span.high:.3f})" for name, value, span in rows]
    return [*shown, f"Brier score {found.brier:.4f}, log loss {found.log_loss:.4f}"]
