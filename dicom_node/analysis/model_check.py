"""Is a model fit for use on this machine? Card, weights, licence, a run on a phantom, and the report of that run."""

import hashlib
import io
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from highdicom.sr import srread

from config.settings import Settings
from dicom_node.analysis.analyse import Analysis, analyse
from dicom_node.analysis.open_model import open_folder
from dicom_node.analysis.result_objects import ReportObject, report_objects
from inference.errors import InferenceError
from inference.isolation.host import IsolatedLoaded
from inference.models.cards import Card, read_card, require_weights
from inference.models.registry import find_model
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage.object_kinds import ObjectKind


@dataclass(frozen=True)
class Step:
    """One thing that was checked, and what was found."""

    what: str
    passed: bool
    found: str


def check_model(settings: Settings, name: str, version: str | None, device: str) -> list[Step]:
    """All steps up to the first that fails. Raises ModelError if there is no such model, or its card is wrong."""
    folder = find_model(settings.models_dir, name, version)
    card = read_card(folder)
    described = Step("card", True, f"{card.name} {card.version}, kind {card.kind}")
    steps = [described, _weights(card, folder), _licence(card)]
    if not all(step.passed for step in steps):
        return steps
    with TemporaryDirectory(prefix="dicom-node-") as scratch:
        paths = write_series(make_phantom(12, slices=60, size=256), Path(scratch))
        try:
            opened = open_folder(folder, settings, device)
            analysis = analyse(paths, opened, own=settings.report)
        except (InferenceError, ValueError) as error:
            return [*steps, Step("run on a phantom", False, str(error))]
        steps.append(_ran(analysis))
        if analysis.refusal is not None and isinstance(opened.loaded, IsolatedLoaded) and opened.loaded.printed:
            steps.append(Step("what it printed", False, opened.loaded.printed.strip()))
        if analysis.finding is not None:
            built = report_objects(analysis, paths, opened.identity, settings)
            steps.append(_report(next(one for one in built.objects if one.kind == ObjectKind.REPORT)))
    return steps


def _weights(card: Card, folder: Path) -> Step:
    try:
        require_weights(card, folder)
    except InferenceError as error:
        return Step("weights", False, str(error))
    if not card.weight_files():
        return Step("weights", True, "it needs none")
    for role, weights in card.weight_files().items():
        if hashlib.sha256((folder / weights.file).read_bytes()).hexdigest() != weights.sha256:
            return Step("weights", False, f"{role}: {weights.file} is not the file that the card names")
    pinned = "pinned by a card of this node" if card.verified else "NOT VERIFIED: no card of this node pins them"
    return Step("weights", True, f"{len(card.weight_files())} files, {pinned}")


def _licence(card: Card) -> Step:
    return Step("licence", True, f"NON-COMMERCIAL USE ONLY: {card.licence}" if card.non_commercial else card.licence)


def _ran(analysis: Analysis) -> Step:
    if analysis.refusal is not None:
        return Step("run on a phantom", False, f"{analysis.refusal.code}: {analysis.refusal.sentence}")
    output = analysis.output
    assert output is not None  # noqa: S101 - what is not refused is analysed
    said = f"{len(output.findings)} findings, {len(output.measurements)} measurements, {len(output.segments)} segments"
    return Step("run on a phantom", True, f"{said} in {analysis.timings_s['total']:.1f} s")


def _report(report: ReportObject) -> Step:
    """Read back by highdicom; checked by dciodvfy too if it is installed."""
    try:
        document = srread(io.BytesIO(report.part10))
        content = document.content
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        return Step("report", False, f"cannot be read back: {type(error).__name__}: {error}")
    size = f"series {document.SeriesNumber}, {len(report.part10) / 1024:.0f} KiB"
    read = f"{size}, {len(content)} part of TID 1500 read back"
    program = shutil.which("dciodvfy")
    if program is None:
        return Step("report", True, f"{read}; dciodvfy is not installed")
    with NamedTemporaryFile(suffix=".dcm") as file:
        file.write(report.part10)
        file.flush()
        done = subprocess.run([program, "-new", file.name], capture_output=True, text=True, timeout=60, check=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    return Step("report", not errors, errors[0] if errors else f"{read}; dciodvfy finds no error")
