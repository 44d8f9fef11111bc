"""audit: what happened to every image, and why every result is what it is."""

import csv
import json as json_module
import sys
from typing import Annotated, Any

import typer

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    out,
    print_json,
    print_rows,
    seconds_of,
    settings_from,
    utc_text,
)
from storage import audit as trail
from storage.pseudonyms import Pseudonyms

COLUMNS = ("at", "event", "outcome", "peer_ae", "address", "patient_id", "series_uid", "detail")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(audit)


def audit(
    patient: Annotated[str | None, typer.Option(help="Patient ID.")] = None,
    study: Annotated[str | None, typer.Option(help="Study Instance UID.")] = None,
    series: Annotated[str | None, typer.Option(help="Series Instance UID.")] = None,
    since: Annotated[str | None, typer.Option(help="ISO date or time; UTC without a zone.")] = None,
    until: Annotated[str | None, typer.Option(help="ISO date or time; UTC without a zone.")] = None,
    outcome: Annotated[str | None, typer.Option(help="Such as REPORTED, REJECTED, NOT_ANALYSED.")] = None,
    event: Annotated[
        str | None, typer.Option(help='An event or its first word: "job", "association.rejected".')
    ] = None,
    without: Annotated[str | None, typer.Option(help="Leave out events that begin with this word.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The latest so many.")] = None,
    verify: Annotated[bool, typer.Option(help="Only check that no row was changed or removed.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV instead of a table.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Filter and print the audit trail, oldest first."""
    settings = settings_from(config)
    database = database_of(settings)
    if verify:
        _verify(database.read)
        return
    with database.read() as tx:
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
    if json:
        print_json([row | {"time": utc_text(row["at"])} for row in rows])
    elif as_csv:
        _print_csv(rows)
    else:
        print_rows("Audit trail (UTC)", COLUMNS, ([_cell(row, column) for column in COLUMNS] for row in rows))


def _verify(read: Any) -> None:
    with read() as tx:
        broken = trail.verify(tx)
    if broken is not None:
        out.print(f"row {broken.audit_id}: {broken.reason}", markup=False)
        raise typer.Exit(1)
    out.print("the audit trail is whole: no row was changed or removed")


def _print_csv(rows: Any) -> None:
    writer = csv.writer(sys.stdout)
    columns = ("at", "event", "outcome", "peer_ae", "address", "patient_id", "study_uid", "series_uid", "sop_uid",
               "job_id", "result_id", "detail")  # fmt: skip
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_spreadsheet_safe(_cell(row, column)) for column in columns])


def _cell(row: dict[str, Any], column: str) -> object:
    if column == "at":
        return utc_text(row["at"])
    if column == "detail":
        return json_module.dumps(row["detail"], ensure_ascii=False) if row["detail"] else ""
    return row[column]


def _spreadsheet_safe(value: object) -> object:
    """A text from the network that a spreadsheet would take for a formula gets a quote in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
