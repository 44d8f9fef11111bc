"""verdicts: what readers said about results, as labels for `evaluate`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    note_reading,
    plural,
    print_json,
    say,
    settings_from,
)
from dicom_node.runtime.index import who
from dicom_node.spreadsheets import csv_text
from storage.lookup import find_result
from storage.verdicts import LabelledResult, Opinion, Verdict, labelled_results, record_verdict

COLUMNS = ("case", "label", "patient", "verdicts")
group = typer.Typer(no_args_is_help=True, help="What readers said about results.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="verdicts")


@group.command()
def export(
    output: Annotated[Path | None, typer.Option(dir_okay=False, help="File to write; without one, the output.")] = None,
    reader: Annotated[str | None, typer.Option(help="Only the verdicts of this reader.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Labels for `evaluate`, from the readers' verdicts: CSV of case (Series Instance UID) and label.

    A label is the reader's own opinion, or else follows from agreeing or not. Series without one, and series whose
    readers differ, are left out. Patients are numbers, and what readers wrote is not in the file.
    """
    settings = settings_from(config)
    database = database_of(settings)
    with database.read() as tx:
        given = labelled_results(tx, reader=reader)
    rows, differ, without = labels(given)
    note_reading(database, "verdicts export", rows=len(rows), reader=reader)
    if json:
        print_json([dict(zip(COLUMNS, row, strict=True)) for row in rows])
    elif output is None:
        sys.stdout.write(csv_text(COLUMNS, rows))
    else:
        _write(output, csv_text(COLUMNS, rows))
    for count, why in ((differ, "their readers differ"), (without, "no reader says what they are")):
        if count:
            err.print(f"{plural(count, 'series', 'series')} left out: {why}", markup=False)


@group.command()
def give(
    result: Annotated[
        str, typer.Argument(metavar="RESULT", help="Number of a result, or a series' UID for its latest result.")
    ],
    verdict: Annotated[Verdict, typer.Option(case_sensitive=False, help="Does the result fit the images?")],
    opinion: Annotated[Opinion | None, typer.Option(case_sensitive=False, help="Of the scan, by yourself.")] = None,
    text: Annotated[str, typer.Option(help="Remarks; they must name no patient.")] = "",
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Keep your verdict on a result, under your user name; it replaces your former one and changes no report."""
    with database_of(settings_from(config)).transaction() as tx:
        result_id = find_result(tx, result)
        verdict_id = record_verdict(tx, result_id, who(), verdict, opinion, text, time.time())
    if json:
        print_json({"result": result_id, "verdict": verdict_id})
    else:
        say(f"Your verdict on result {result_id} is kept: {verdict.lower().replace('_', ' ')}.")


def _write(path: Path, text: str) -> None:
    """For the node's own user alone: who had a scan, and what it showed."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)


def labels(given: list[LabelledResult]) -> tuple[list[tuple[str, int, int, int]], int, int]:
    """Rows of COLUMNS, one for each series with a label; how many series' readers differ; how many have no label.

    A series' verdicts on all its results count: they are all about the same scan.
    """
    of_series: dict[str, list[LabelledResult]] = {}
    for one in given:
        of_series.setdefault(one.series_instance_uid, []).append(one)
    patients = {pk: number for number, pk in enumerate(sorted({one.patient_pk for one in given}), start=1)}
    rows, differ, without = [], 0, 0
    for uid, verdicts in of_series.items():
        said = {one.label for one in verdicts} - {None}
        if len(said) == 1:
            rows.append((uid, int(bool(said.pop())), patients[verdicts[0].patient_pk], len(verdicts)))
        elif said:
            differ += 1
        else:
            without += 1
    return rows, differ, without
