"""dataset build and dataset masks: from labelled scans to what a network can learn from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

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
from dicom_node.cli.overrides import SetOption, SettingsFileOption, settings_of
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from inference.training.build import BuildSettings
    from inference.training.cached import Dataset
    from inference.training.cards import TrainingCard
    from inference.training.dataset import LabelledCase, Split
    from inference.volume.scans import Scan

group = typer.Typer(no_args_is_help=True, help="Make data sets to train on.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="dataset")


@group.command()
def build(
    source: Annotated[
        Path | None, typer.Argument(exists=True, help="Folder of DICOM files; without one, the node's own store.")
    ] = None,
    labels: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="CSV of case, label (1 or 0), date, and patient.")
    ] = Path("labels.csv"),
    output: Annotated[Path, typer.Option(file_okay=False, help="New folder for the data set.")] = Path("dataset"),
    first_test_date: Annotated[
        str | None, typer.Option(help="YYYY-MM-DD: cases from this day on are the test part. The paper's way.")
    ] = None,
    test_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Without a date: share of the patients, drawn by the seed.")
    ] = 0.2,
    validation_share: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of the patients that are not in the test part.")
    ] = 0.15,
    seed: Annotated[int, typer.Option(min=0, help="Of the drawing.")] = 0,
    card: Annotated[
        str, typer.Option(help="The preprocessing: name of a shipped card, or a folder with a card.toml.")
    ] = "zheng2020-paper",
    ignore_patient_id: Annotated[
        bool, typer.Option("--ignore-patient-id", help="PatientID is a pseudonym and does not tell patients apart.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: as many as there are cores.")] = 0,
    settings_file: SettingsFileOption = None,
    set_: SetOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Prepare labelled scans as the node does, make unsupervised lung masks, and split by patient.

    Settings (--set, or a TOML file): profile.intensity.window_hu, profile.unet.size, profile.decovnet.size,
    masks.below_hu, masks.airways, masks.checks.volume_ml, ...
    """
    from inference.training.build import build_dataset, file_sha256
    from inference.training.contact_sheet import draw_sheets
    from inference.training.dataset import read_labels

    cases = read_labels(labels)
    split, name = _split(first_test_date, test_share, validation_share, seed)
    prepared, table = _card(card, settings_of(settings_file, set_))
    settings = _settings(workers, {"ignore_patient_id": ignore_patient_id, **table})
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("cases", total=None)
        dataset = build_dataset(
            _scans(source, config),
            cases,
            split,
            prepared,
            output,
            settings,
            split_name=name,
            labels_sha256=file_sha256(labels),
            done=lambda number, total: progress.update(task, completed=number, total=total),
        )
    sheets = draw_sheets(dataset)
    _report(dataset, sheets, json)


@group.command()
def masks(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A data set.")],
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the sheets; default its own.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw the contact sheets of lung masks again, those that removed.txt names first and red."""
    from inference.training.cached import open_dataset
    from inference.training.contact_sheet import draw_sheets

    dataset = open_dataset(folder)
    if output:
        output.mkdir(parents=True, exist_ok=True)
    _report(dataset, draw_sheets(dataset, output), json)


def _scans(source: Path | None, config: Path | None) -> list[Scan]:
    if source is not None:
        from inference.volume.folder import read_folder
        from inference.volume.scans import scans_of

        folder = read_folder(source)
        for file in folder.unreadable:
            err.print(f"cannot read {file.path}: {file.reason}", markup=False, soft_wrap=True)
        return scans_of(folder, source)
    from dicom_node.cli.own_data import stored_scans

    settings = settings_from(config)
    database = database_of(settings)
    with database.read() as tx:
        found = stored_scans(tx, files_of(settings))
    note_reading(database, "dataset build", series=len(found))
    return found


def _split(
    first_test_date: str | None, test_share: float, validation_share: float, seed: int
) -> tuple[Callable[[Sequence[LabelledCase]], Split], str]:
    from inference.training.dataset import split_by_date, split_by_seed

    if first_test_date is None:
        return (
            lambda cases: split_by_seed(cases, test_share=test_share, validation_share=validation_share, seed=seed),
            f"by patient, seed {seed}, {test_share:.0%} test, {validation_share:.0%} of the rest validation",
        )
    try:
        day = date.fromisoformat(first_test_date)
    except ValueError:
        raise typer.BadParameter("is YYYY-MM-DD", param_hint="--first-test-date") from None
    return (
        lambda cases: split_by_date(cases, day, validation_share=validation_share, seed=seed),
        f"by date, test from {day} on, {validation_share:.0%} of the earlier patients validation, seed {seed}",
    )


def _card(name: str, table: dict[str, object]) -> tuple[TrainingCard, dict[str, object]]:
    """The card whose preprocessing is used, with the settings' changes to its profile, and the other settings."""
    from inference.models.cards import CARD_FILE, shipped_folder
    from inference.models.profile import Profile
    from inference.models.toml_fields import build as fields_of
    from inference.models.toml_fields import plain
    from inference.training.cards import read_training_card
    from inference.training.settings import merged

    folder = Path(name) if (Path(name) / CARD_FILE).is_file() else shipped_folder() / Path(name).name
    if not (folder / CARD_FILE).is_file():
        names = ", ".join(sorted(path.parent.name for path in shipped_folder().glob(f"*/{CARD_FILE}")))
        raise NodeError(f"--card {name}: neither a folder with a {CARD_FILE} nor one of: {names}")
    card = read_training_card(folder)
    changes = table.get("profile", {})
    profile = fields_of(Profile, merged(plain(card.profile), changes), "settings.profile")
    return replace(card, profile=profile), {key: value for key, value in table.items() if key != "profile"}


def _settings(workers: int, table: dict[str, object]) -> BuildSettings:
    from inference.models.toml_fields import build as fields_of
    from inference.training.build import BuildSettings

    return fields_of(BuildSettings, {"workers": workers or len(os.sched_getaffinity(0)), **table}, "settings")


def _report(dataset: Dataset, sheets: list[Path], json: bool) -> None:
    from inference.training.cached import summary

    figures = summary(dataset)
    if json:
        failed = {case.case: list(case.mask_failures) for case in dataset.cases if case.mask_failures}
        left_out = [vars(entry) for entry in dataset.left_out]
        print_json(
            {**figures, "unlabelled": dataset.unlabelled, "left_out": left_out, "masks_failed": failed,
             "sheets": [str(path) for path in sheets], "folder": str(dataset.folder)}
        )  # fmt: skip
        return
    rows = [(name, *_counts(figures[name])) for name in ("training", "validation", "test")]
    print_rows(f"Data set: {dataset.split}", ["part", "cases", "patients", "positive"], rows)
    if dataset.left_out:
        print_rows(
            "Left out", ["line", "case", "code", "reason"],
            ([entry.line, entry.case, entry.code, entry.sentence] for entry in dataset.left_out),
        )  # fmt: skip
    failed_count = sum(bool(case.mask_failures) for case in dataset.cases)
    out.print(f"{dataset.unlabelled} series have no label and were not read", markup=False)
    out.print(f"{failed_count} lung masks failed a check, {figures['masks_removed']} are removed", markup=False)
    out.print(f"look at {sheets[0]} and edit {dataset.folder / 'removed.txt'}", markup=False, soft_wrap=True)


def _counts(part: object) -> tuple[object, ...]:
    return tuple(part.values()) if isinstance(part, dict) else ()
