"""verdicts: what readers said about results, as labels for `evaluate`; and how often they agree with the model."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from config.settings import Settings
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    note_reading,
    out,
    plural,
    print_json,
    print_rows,
    say,
    settings_from,
)
from dicom_node.runtime.index import who
from dicom_node.spreadsheets import csv_text
from storage.lookup import find_result
from storage.verdicts import LabelledResult, Opinion, Verdict, labelled_results, record_verdict

if TYPE_CHECKING:
    from inference.evaluation.agreement import Agreement

COLUMNS = ("case", "label", "patient", "verdicts")
AGREES = {Verdict.AGREES: True, Verdict.DISAGREES: False, Verdict.CANNOT_SAY: None}
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


def report_agreement(settings: Settings, *, shadow: bool, json: bool) -> None:
    """Print how often readers agree with the results of the reporting models, or of the shadow model."""
    from inference.evaluation.agreement import Judged, agreements

    database = database_of(settings)
    with database.read() as tx:
        given = [one for one in labelled_results(tx) if one.shadow is shadow]
    note_reading(database, "evaluate", verdicts=len(given))
    judged = [
        Judged(
            case=one.series_instance_uid,
            reader=one.given.reader,
            model=one.model,
            agrees=AGREES[one.given.verdict],
            positive=one.positive,
        )
        for one in given
    ]
    found = agreements(judged)
    if json:
        print_json([_as_json(one) for one in found])
        return
    _print(found)


def _as_json(one: Agreement) -> dict[str, object]:
    return {**vars(one), "interval": None if one.interval is None else vars(one.interval)}


def _print(found: list[Agreement]) -> None:
    first = found[0]
    if not first.verdicts:
        out.print("No reader has given a verdict yet.")
        return
    if first.share is not None and first.interval is not None:
        span = f"95% {100 * first.interval.low:.1f} to {100 * first.interval.high:.1f}, Wilson"
        out.print(
            f"Readers agree with {100 * first.share:.1f}% of the results that they judge ({span}).",
            markup=False,
            soft_wrap=True,
        )
    out.print("They saw the result before they judged, so this is not the model's accuracy.")
    columns = ["", "verdicts", "cases", "agree", "disagree", "can't say", "agreement", "95% interval (Wilson)"]
    print_rows("Agreement of readers with the model", columns, (_cells(one) for one in found))


def _cells(one: Agreement) -> list[object]:
    share = "-" if one.share is None else f"{one.share:.3f}"
    span = "-" if one.interval is None else f"{one.interval.low:.3f} to {one.interval.high:.3f}"
    return [one.name, one.verdicts, one.cases, one.agree, one.disagree, one.cannot_say, share, span]
