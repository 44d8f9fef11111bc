"""audit: what happened to every image, and why every result is what it is."""

import csv
import json as json_module
import re
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    err,
    local_text,
    note_reading,
    out,
    plural,
    print_json,
    print_rows,
    say,
    seconds_of,
    settings_from,
    utc_text,
    zone,
)
from dicom_node.gateways.audit_messages.forwarder import ARCHIVES
from dicom_node.runtime.index import who
from dicom_node.spreadsheets import safe
from storage import audit as trail
from storage import audit_archive
from storage import series as store
from storage.audit_anchors import read_anchors
from storage.audit_check import VERIFIED, Check, check, parse_head
from storage.database import Database
from storage.errors import DatabaseBusy, DatabaseReadOnly, NotFound, StorageFull
from storage.lookup import find_series, find_study
from storage.pseudonyms import Pseudonyms

LATEST = 20
"""Rows of a table that nothing narrows down."""
LINES_OF_DETAIL = 2
DIGEST = re.compile("[0-9a-f]{40,}")
group = typer.Typer()
COLUMNS = ("at", "event", "outcome", "peer_ae", "address", "patient_id", "series_uid", "detail")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="audit")


@group.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    patient: Annotated[str | None, typer.Option(help="Patient ID.")] = None,
    study: Annotated[str | None, typer.Option(help="Study Instance UID, or its beginning.")] = None,
    series: Annotated[str | None, typer.Option(help="Number of a series, its UID, or its beginning.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO date or time; without a zone, that of this machine.")] = None,
    until: Annotated[str | None, typer.Option(help="ISO date or time; without a zone, that of this machine.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Such as REPORTED, REJECTED, NOT_ANALYSED.")] = None,
    event: Annotated[
        str | None, typer.Option(help='An event or its first word: "job", "association.rejected".')
    ] = None,
    without: Annotated[str | None, typer.Option(help="Leave out events that begin with this word.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The latest so many.")] = None,
    verify: Annotated[bool, typer.Option(help="Only check that no row was changed or removed.")] = False,
    expect: Annotated[str | None, typer.Option(help="With --verify: the head that an earlier check printed.")] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="With --verify: heads noted outside, or a log of audit messages.",
        ),
    ] = None,
    archives: Annotated[Path | None, typer.Option(help="With --verify: where archives were moved.")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="A table with all columns.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """What happened, oldest first: to every image, every result, every association.

    Without a filter, the latest rows; --json and --csv give all. Archived rows are in their files only.
    """
    if context.invoked_subcommand:
        return
    settings = settings_from(config)
    database = database_of(settings)
    if verify or expect or anchor:
        _verify(database, expect, anchor, json, archives or settings.data_dir / ARCHIVES)
        return
    filters = (patient, study, series, since, until, outcome, event, without)
    if limit is None and not (json or as_csv or any(filters)):
        limit = LATEST
    with database.read() as tx:
        series = _series_uid(tx, series) if series else None
        study = _study_uid(tx, study) if study else None
        rows = trail.search(
            tx,
            patient=Pseudonyms(settings.storage.pseudonym_key.get_secret_value()).of(patient) if patient else None,
            study=study,
            series=series,
            since=seconds_of(since),
            until=seconds_of(until),
            outcome=outcome,
            event=event,
            limit=None if without else limit,
        )
    if without:
        rows = [row for row in rows if not str(row["event"]).startswith(f"{without}.")][-(limit or 0) :]
    note_reading(database, "audit", trail.Subject(series_uid=series, study_uid=study), rows=len(rows))
    if json:
        print_json([row | {"time": utc_text(row["at"])} for row in rows])
    elif as_csv:
        _print_csv(rows)
    elif wide:
        print_rows("Audit trail (UTC)", COLUMNS, ([_cell(row, column) for column in COLUMNS] for row in rows))
    else:
        _print_lines(rows, limit)


@group.command()
def archive(
    before: Annotated[str, typer.Option(help="ISO date or time; without a zone, that of this machine.")],
    to: Annotated[Path | None, typer.Option(help="Folder for the file; by default audit/ in the data folder.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Move the rows before a date to a file with a digest of its own. The node may run meanwhile.

    The chain goes on: --verify walks through the archives first. Keep them together, and copy them elsewhere.
    """
    settings = settings_from(config)
    database = database_of(settings)
    folder = to or settings.data_dir / ARCHIVES
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("rows", total=None)

        def report(what: str, count: int) -> None:
            progress.update(task, description=f"{count} rows {what}")

        when = seconds_of(before) or 0.0
        made = audit_archive.archive(database, folder, when, time.time(), {"user": who()}, report)
    if json:
        print_json({**vars(made), "folder": str(folder)})
        return
    out.print(f"{made.rows} rows, to number {made.last_id}, are in {folder / made.file}", soft_wrap=True)
    out.print(f"SHA-256 {made.sha256}, also in the audit trail", soft_wrap=True)


def _study_uid(tx: Any, wanted: str) -> str:
    """The whole UID of a study; one that has no row is taken as it is."""
    try:
        return find_study(tx, wanted)
    except NotFound:
        return wanted


def _series_uid(tx: Any, wanted: str) -> str:
    """The whole UID of a series; one that has no row, such as of a refused image, is taken as it is."""
    try:
        return store.get_series(tx, find_series(tx, wanted)).series_instance_uid
    except NotFound:
        return wanted


def _print_lines(rows: Any, limit: int | None) -> None:
    """Each event in a few lines of 80 columns."""
    for row in rows:
        peer = " ".join(filter(None, (row["peer_ae"], row["address"])))
        say(f"{local_text(row['at'])}  {row['event']}  {row['outcome'] or ''}  {peer}".rstrip())
        for name in ("patient_id", "series_uid", "sop_uid"):
            if row[name]:
                say(f"    {name.removesuffix('_id').removesuffix('_uid'):8} {row[name]}")
        detail = ", ".join(f"{key} {_short(value)}" for key, value in row["detail"].items())
        lines = textwrap.wrap(detail, 76, max_lines=LINES_OF_DETAIL, placeholder=" …")
        for line in lines:
            say(f"    {line}")
    if not rows:
        say("No event is like that." if limit != LATEST else "Nothing has happened yet.")
        return
    if limit == len(rows):
        say(f"The latest {len(rows)}; more with --limit, --series, --since, --event.")
    say(f"Times: {zone()}. Whole digests and details: --wide.")


def _short(value: object) -> str:
    if isinstance(value, str):
        return f"{value[:12]}…" if DIGEST.fullmatch(value) else value
    return json_module.dumps(value, ensure_ascii=False)


def _verify(database: Database, expect: str | None, anchor: Path | None, json: bool, archives: Path) -> None:
    """Status 1 if anything is wrong."""
    try:
        expected = parse_head(expect) if expect else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--expect") from None
    anchors, contradictions = _noted(anchor) if anchor else ({}, [])
    with database.read() as tx:
        found = check(tx, expected, archives, anchors)
    found = replace(found, problems=(*contradictions, *found.problems))
    _note_check(database, found)
    head = f"{found.head[0]}:{found.head[1]}"
    if json:
        print_json({"rows": found.rows, "head": head, "anchors": len(anchors), "problems": found.problems})
    else:
        for problem in found.problems:
            out.print(problem, markup=False, soft_wrap=True)
        if not found.problems:
            out.print("the audit trail is whole: no row was changed or removed")
        if anchor:
            out.print(f"{plural(len(anchors), 'row')} compared with what was noted outside")
        out.print(f"{found.rows} rows; head, to be noted elsewhere for --expect:\n{head}", soft_wrap=True)
    raise typer.Exit(1 if found.problems else 0)


def _noted(file: Path) -> tuple[dict[int, str], list[str]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        anchors, contradictions = read_anchors(lines)
    if not anchors:
        raise typer.BadParameter(f"{file} holds no head (number, colon, 64 digits)", param_hint="--anchor")
    return anchors, contradictions


def _note_check(database: Database, found: Check) -> None:
    """An audit row about the check, which the pages show; none if the index cannot be written."""
    try:
        with database.transaction() as tx:
            outcome = "BROKEN" if found.problems else "WHOLE"
            detail = {"user": who(), "rows": found.rows, "head": f"{found.head[0]}:{found.head[1]}"}
            trail.append(tx, time.time(), VERIFIED, outcome=outcome, detail=detail)
    except (DatabaseReadOnly, DatabaseBusy, StorageFull) as error:
        err.print(f"this check is not in the audit trail: {error}", markup=False)


def _print_csv(rows: Any) -> None:
    writer = csv.writer(sys.stdout)
    columns = ("at", "event", "outcome", "peer_ae", "address", "patient_id", "study_uid", "series_uid", "sop_uid",
               "job_id", "result_id", "detail")  # fmt: skip
    writer.writerow(columns)
    for row in rows:
        writer.writerow([safe(_cell(row, column)) for column in columns])


def _cell(row: dict[str, Any], column: str) -> object:
    if column == "at":
        return utc_text(row["at"])
    if column == "detail":
        return json_module.dumps(row["detail"], ensure_ascii=False) if row["detail"] else ""
    return row[column]
