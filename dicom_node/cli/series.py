"""status, series list, series show and retry."""

import time
from typing import Annotated

import typer

from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    out,
    print_json,
    print_rows,
    printable,
    settings_from,
    utc_text,
)
from dicom_node.errors import NodeError
from dicom_node.runtime.certificate_expiry import expiries
from storage import deliveries, jobs, results
from storage import series as store
from storage.status import status as read_status

group = typer.Typer(no_args_is_help=True, help="List and show series.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(status)
    app.add_typer(group, name="series")
    app.command()(retry)


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """How many series, jobs and deliveries are in which state, and what needs a person."""
    settings = settings_from(config)
    with database_of(settings).read() as tx:
        counts = read_status(tx, time.time())
    counts["certificates"] = [vars(found) for found in expiries(settings, time.time())]
    if json:
        print_json(counts)
        return
    states = {part: counts[part] for part in ("series", "jobs", "deliveries", "results")}
    rows = [(part, state, count) for part, found in states.items() for state, count in found.items() if count]
    print_rows("Status", ["what", "state", "count"], rows)
    for name, value in counts.items():
        if name not in states and not isinstance(value, dict | list):
            out.print(f"{name}: {'none' if value is None else value}", markup=False)
    for title in ("failed_jobs", "failed_deliveries"):
        if counts[title]:
            print_rows(title, list(counts[title][0]), (list(row.values()) for row in counts[title]))
    for found in counts["certificates"]:
        out.print(_expiry(found), markup=False, soft_wrap=True)
    for name, found in counts["destinations"].items():
        out.print(f"destination {name}: {found}", markup=False, soft_wrap=True)


def _expiry(found: dict[str, object]) -> str:
    left = found["days_left"]
    return f"certificate {found['use']}: {'cannot be read' if left is None else f'{left} days left'} ({found['file']})"


LIST_COLUMNS = {
    "Series Instance UID": "series_instance_uid",
    "patient": "patient_id",
    "date": "study_date",
    "from": "calling_ae",
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
    state: Annotated[str | None, typer.Option(help="Only series in this state: OPEN or CLOSED.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The latest so many.")] = 50,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List the series, the one with the latest image first."""
    with database_of(settings_from(config)).read() as tx:
        records = [vars(record) for record in store.list_series(tx, state=state, limit=limit)]
    if json:
        print_json(records)
    else:
        print_rows("Series", list(LIST_COLUMNS), ([_cell(r[key]) for key in LIST_COLUMNS.values()] for r in records))


@group.command()
def show(
    uid: Annotated[str, typer.Argument(help="Series Instance UID.")],
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show one series with its result, and where the result's objects were delivered."""
    with database_of(settings_from(config)).read() as tx:
        record = vars(store.get_series(tx, uid))
        result_id = record["result_id"]
        record["objects"] = [vars(item) for item in results.objects_of(tx, result_id)] if result_id else []
        record["deliveries"] = deliveries.of_result(tx, result_id) if result_id else []
    if json:
        print_json(record)
        return
    for key, value in record.items():
        if key not in ("objects", "deliveries"):
            out.print(f"{key:22} {utc_text(value) if key.endswith('_at') else printable(value)}", soft_wrap=True)
    for title in ("objects", "deliveries"):
        rows = record[title]
        if rows:
            print_rows(title, list(rows[0]), (list(row.values()) for row in rows))


def retry(
    series: Annotated[str | None, typer.Option(help="Series Instance UID whose failed job is queued again.")] = None,
    delivery: Annotated[int | None, typer.Option(help="Number of a failed delivery that is sent again.")] = None,
    job: Annotated[int | None, typer.Option(help="Number of a failed job, such as a shadow model's.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Bring a failed job, or a failed delivery, back with all its attempts."""
    if sum(given is not None for given in (series, delivery, job)) != 1:
        raise NodeError(
            "give one of --series UID, --job NUMBER, --delivery NUMBER; `status` and `series list` show what has failed"
        )
    with database_of(settings_from(config)).transaction() as tx:
        if delivery is not None:
            deliveries.retry(tx, delivery, time.time())
            done = {"delivery": delivery}
        else:
            job_id = job if job is not None else store.get_series(tx, str(series)).job_id
            if job_id is None:
                raise NodeError("this series has no job yet")
            jobs.retry(tx, job_id, time.time())
            done = {"job": job_id}
    if json:
        print_json(done)
    else:
        out.print(f"queued again: {done}", markup=False)


def _cell(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value
