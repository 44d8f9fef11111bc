"""explain: what becomes of a model's output when parts of the lungs are taken away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    note_reading,
    out,
    print_json,
    print_rows,
    settings_from,
)
from dicom_node.errors import NodeError
from storage import audit
from storage import series as store
from storage.lookup import find_series

# torch takes seconds to import: only this command pays for it.
if TYPE_CHECKING:
    from inference.models.cards import Card
    from inference.plug import Explanation


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(explain)


def explain(
    series: Annotated[
        str, typer.Argument(help="A series that the node holds (number, UID or its beginning); or a folder, or a file.")
    ],
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0", ...')] = "auto",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Analyse one series again without each part of its lungs: does the output rest on what is marked?"""
    settings = settings_from(config)
    from dicom_node.analysis.open_model import open_current
    from inference.plug import Explains
    from inference.volume.load import load

    with _at_hand(series, settings) as paths:
        opened = open_current(settings, device)
        if not isinstance(opened.loaded, Explains):
            raise NodeError(f"model {opened.card.name} cannot show what its output rests on")
        volume = load(paths)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("whole", total=None)
        found = opened.loaded.explain(volume, lambda what: progress.update(task, description=f"without {what}"))
    print_json(_record(found, opened.card)) if json else _print(found)


@contextmanager
def _at_hand(series: str, settings: Settings) -> Iterator[list[Path]]:
    """The files of a series.

    Raises NodeError if a folder holds none or several, CorruptInstance if files of it cannot be read, NotFound.
    """
    if not Path(series).exists():
        files, database = files_of(settings), database_of(settings)
        with database.read() as tx:
            record = store.get_series(tx, find_series(tx, series))
            held = store.series_instances(tx, record.series_pk)
        about = audit.Subject(
            series_uid=record.series_instance_uid, study_uid=record.study_instance_uid, patient_id=record.patient_id
        )
        note_reading(database, "explain", about)
        with files.at_hand(held, {instance.path for instance in held}) as paths:
            yield paths
        return
    from inference.volume.folder import read_folder

    folder = read_folder(Path(series))
    for file in folder.unreadable:
        err.print(f"cannot read {file.path}: {file.reason}", markup=False, soft_wrap=True)
    if len(folder.series) != 1:
        raise NodeError(f"{series} holds {len(folder.series)} series; give a folder with one")
    yield folder.whole(next(iter(folder.series)))


def _record(found: Explanation, card: Card) -> dict[str, object]:
    return {
        "probability": found.probability,
        "log_odds": found.log_odds,
        "threshold": found.threshold,
        "positive": found.positive,
        "model": f"{card.name} {card.version}",
        "without": [vars(occlusion) for occlusion in found.occlusions],
    }


def _print(found: Explanation) -> None:
    threshold = found.threshold
    whole = f"{found.probability:.4f}", f"{found.log_odds:+.2f}"
    rows = [("nothing", "", *whole, "", _side(found.probability, threshold))]
    for part in found.occlusions:
        output = f"{part.probability:.4f}", f"{part.log_odds:+.2f}"
        change = f"{part.log_odds - found.log_odds:+.2f}"
        rows.append((part.what, f"{part.percent_of_lungs:.1f}", *output, change, _side(part.probability, threshold)))
    print_rows(
        "Output without parts of the lungs",
        ("taken away", "% of lungs", "output", "log-odds", "change", "result"),
        rows,
    )
    for sentence in (
        "A part is taken away by giving it the grey of normal lung. The output should fall without the region that",
        "drove the model, and hardly move without as much lung elsewhere. For research use; not for diagnosis.",
    ):
        out.print(sentence, markup=False, soft_wrap=True)


def _side(probability: float, threshold: float) -> str:
    return "positive" if probability >= threshold else "negative"
