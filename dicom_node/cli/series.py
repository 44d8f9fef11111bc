"""series list and series show: what came, and what became of it."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from config.reasons import ReasonCode
from dicom_node.cli.coded import finding_record, measurement_record
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    clipped,
    database_of,
    local_text,
    note_reading,
    print_json,
    print_rows,
    say,
    settings_from,
    zone,
)
from dicom_node.cli.series_words import answers, lines_about
from storage import audit, deliveries, examinations, model_outcomes, results, study_results, withdrawals
from storage import series as store
from storage.coded import Content, content_of
from storage.lookup import find_series
from storage.series_state import SeriesState
from storage.study_results import StandingResult

group = typer.Typer(no_args_is_help=True, help="List and show series.")

SeriesArgument = Annotated[
    str,
    typer.Argument(metavar="SERIES", help="Number of a series, its Series Instance UID, or a unique beginning of it."),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="series")


WIDE_COLUMNS = {
    "no.": "series_pk",
    "Series Instance UID": "series_instance_uid",
    "patient": "patient_id",
    "date": "study_date",
    "from": "calling_ae",
    "canary": "canary",
    "state": "state",
    "images": "instance_count",
    "complete by": "completeness",
    "job": "job_state",
    "result": "result_id",
    "outcome": "outcome",
    "reason": "reason_code",
    "probability": "probability",
}


@group.command("list")
def list_(
    state: Annotated[SeriesState | None, typer.Option(case_sensitive=False, help="Only series in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 50,
    wide: Annotated[bool, typer.Option("--wide", help="All columns, for a wide terminal or a file.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """What came, and what became of it: the series with the latest image first."""
    database = database_of(settings_from(config))
    with database.read() as tx:
        records = [vars(record) for record in store.list_series(tx, state=state, limit=limit)]
        outcomes = model_outcomes.of_series(tx, [record["series_pk"] for record in records])
        for record in records:
            record["models"] = [vars(one) for one in outcomes[record["series_pk"]]]
    note_reading(database, "series list", rows=len(records))
    if json:
        print_json(records)
        return
    if not records:
        say(f"No series is {state.lower()}." if state else "No series has come yet.")
        return
    if wide:
        rows = ([_cell(record[key]) for key in WIDE_COLUMNS.values()] for record in records)
        print_rows("Series", list(WIDE_COLUMNS), rows)
    else:
        columns = ("no.", f"last image ({zone()})", "patient", "images", "what became of it")
        print_rows("", columns, (row for record in records for row in _rows(record)), wide=False)
    if len(records) == limit:
        say(f"The latest {limit}; more with --limit.")
    say("More about one: dicom-node series show NUMBER")


ROOM = 33
"""Characters for what became of a series."""


def _rows(record: dict[str, Any]) -> Iterator[Sequence[object]]:
    """Rows for the series, and further ones for each further model that reports on it."""
    lines = [line for model, said in answers(record) for line in _fitted(model, said)]
    yield [
        record["series_pk"],
        local_text(record["last_instance_at"])[:16],
        "(canary)" if record["canary"] else clipped(record["patient_id"], 14),
        record["instance_count"],
        lines[0],
    ]
    yield from (["", "", "", "", line] for line in lines[1:])


def _fitted(model: str, said: str) -> list[str]:
    """The model's name gives way to what it says; a reason code that does not fit stands on a line of its own."""
    what, _, code = said.rpartition(": ")
    if code in list(ReasonCode) and len(said) + (8 if model else 0) > ROOM:
        return [*_fitted(model, f"{what}:"), f"  {code}"]
    return [clipped(f"{clipped(model, max(6, ROOM - 2 - len(said)))}: {said}" if model else said, ROOM)]


@group.command()
def show(series: SeriesArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """What became of one series, why, and where its result went."""
    database = database_of(settings_from(config))
    with database.read() as tx:
        record = vars(store.get_series(tx, find_series(tx, series)))
        result_id, series_pk = record["result_id"], record["series_pk"]
        record["models"] = [vars(one) for one in model_outcomes.of_series(tx, [series_pk])[series_pk]]
        record["objects"] = _objects_of(tx, result_id) if result_id else []
        withdrawal = withdrawals.of_series(tx, [series_pk]).get(series_pk)
        record["withdrawal"] = None if withdrawal is None else vars(withdrawal) | {"said": withdrawal.sentence}
        current = results.all_current_of(tx, series_pk)
        record["results"] = [_result(tx, one) for one in current]
        findings = [finding for one in current for finding in content_of(tx, one).findings]
        others = study_results.on_the_same(findings, study_results.others(tx, series_pk))
        record["study_results"] = [_other(one) for one in others]
        record["study_differs"] = study_results.differ(findings, others)
        record["deliveries"] = deliveries.of_result(tx, result_id) if result_id else []
    about = audit.Subject(
        series_uid=record["series_instance_uid"],
        study_uid=record["study_instance_uid"],
        patient_id=record["patient_id"],
        result_id=result_id,
    )
    note_reading(database, "series show", about)
    if json:
        print_json(record)
        return
    for line in lines_about(record):
        say(line)


def _objects_of(tx: Connection, result_id: int) -> list[dict[str, Any]]:
    return [vars(item) for item in results.objects_of(tx, result_id)]


def _result(tx: Connection, result_id: int) -> dict[str, Any]:
    """What one model says: its findings and measurements by code, and where the result went."""
    row = results.get_result(tx, result_id)
    content = row["content"]
    assert isinstance(content, Content)  # noqa: S101 - as `get_result` says
    return {
        "result_id": result_id,
        "model": f"{row['model_name']} {row['model_version']}",
        "outcome": row["outcome"],
        "reason_code": row["reason_code"],
        "findings": [finding_record(one) for one in content.findings],
        "measurements": [measurement_record(one) for one in content.measurements],
        "change": _change(tx, result_id),
        "objects": _objects_of(tx, result_id),
        "deliveries": deliveries.of_result(tx, result_id),
    }


def _change(tx: Connection, result_id: int) -> dict[str, Any] | None:
    """What its report says of the change since an earlier result; None if it was not compared with one."""
    change = examinations.change_of(tx, result_id)
    if change is None:
        return None
    return {"earlier_result_id": change.earlier_id, "earlier_was_replaced": change.replaced, "said": list(change.said)}


def _other(one: StandingResult) -> dict[str, Any]:
    names = ("series_pk", "series_instance_uid", "series_number", "description", "probability", "threshold", "positive")
    return {name: getattr(one, name) for name in names} | {"model": f"{one.model_name} {one.model_version}"}


def _cell(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value
