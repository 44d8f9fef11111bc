"""series list and series show: what came, and what became of it."""

from collections.abc import Iterator
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
    plural,
    print_json,
    print_rows,
    say,
    settings_from,
    zone,
)
from dicom_node.completion.rule import PACS_LIST
from inference.numerals import percent
from storage import audit, deliveries, results, study_results
from storage import series as store
from storage.coded import Content
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.lookup import find_series
from storage.results import ResultOutcome
from storage.series_state import Selection, SeriesState
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
        print_rows("", columns, (_row(record) for record in records), wide=False)
    if len(records) == limit:
        say(f"The latest {limit}; more with --limit.")
    say("More about one: dicom-node series show NUMBER")


def _row(record: dict[str, Any]) -> list[object]:
    return [
        record["series_pk"],
        local_text(record["last_instance_at"])[:16],
        clipped(record["patient_id"], 14),
        record["instance_count"],
        clipped(answer(record), 31),
    ]


UNDER_WAY = {
    JobState.QUEUED: "waiting for analysis",
    JobState.RUNNING: "being analysed",
    JobState.FAILED: "analysis FAILED",
}


def answer(record: dict[str, Any]) -> str:
    """What became of a series, in a few words."""
    if record["state"] == SeriesState.OPEN:
        return "waiting for images"
    if record["job_state"] in UNDER_WAY:
        return UNDER_WAY[record["job_state"]]
    if record["probability"] is not None:
        return _sign(record)
    if record["outcome"] == ResultOutcome.ANALYSED:
        return "measured"
    code = record["reason_code"] or record["refusal_code"]
    if code:
        return f"not analysed: {code}"
    return "waiting for its study" if record["selection"] == Selection.WAITING else "not analysed"


@group.command()
def show(series: SeriesArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """What became of one series, why, and where its result went."""
    database = database_of(settings_from(config))
    with database.read() as tx:
        record = vars(store.get_series(tx, find_series(tx, series)))
        result_id = record["result_id"]
        record["objects"] = [vars(item) for item in results.objects_of(tx, result_id)] if result_id else []
        record["results"] = [_result(tx, one) for one in results.all_current_of(tx, record["series_pk"])]
        record["study_results"] = [_other(one) for one in study_results.others(tx, record["series_pk"])]
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
    say(f"Series {record['series_pk']}: {answer(record)}")
    for name, value in _facts(record):
        say(f"  {name:13} {value}")
    for line in (*_results(record), *_study(record), *_deliveries(record), *_objects(record)):
        say(line)


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
        "deliveries": deliveries.of_result(tx, result_id),
    }


def _results(record: dict[str, Any]) -> Iterator[str]:
    """The measurements of each model; its findings are said above, unless there are several models."""
    for found in record["results"]:
        if len(record["results"]) > 1:
            reason = f": {found['reason_code']}" if found["reason_code"] else ""
            yield f"Result {found['result_id']} of {found['model']}: {found['outcome']}{reason}"
            for one in found["findings"]:
                certainty = "" if one["certainty"] is None else f", {100 * one['certainty']:.4g} %"
                yield f"  {one['concept'][2]}: {one['interpretation'][2]}{certainty}"
        for one in found["measurements"]:
            yield f"  {one['name']}: {one['value']:.6g} {one['unit']}"


def _other(one: StandingResult) -> dict[str, Any]:
    names = ("series_pk", "series_instance_uid", "series_number", "description", "probability", "threshold", "positive")
    return {name: getattr(one, name) for name in names}


def _study(record: dict[str, Any]) -> Iterator[str]:
    """The other results of the study: a positive and a negative are never shown without each other."""
    others = record["study_results"]
    if others:
        differ = record["positive"] is not None and any(one["positive"] != record["positive"] for one in others)
        yield f"{'THEY DIFFER: the' if differ else 'The'} study was also reported on, to be read together:"
    for one in others:
        what = ", ".join(part for part in (one["series_number"], one["description"]) if part)
        yield f"  series {one['series_pk']}: {_sign(one)}{f' ({what})' if what else ''}"


def _sign(record: dict[str, Any]) -> str:
    sign = "positive" if record["positive"] else "negative"
    return f"{sign}, {percent(record['probability'], record['threshold'])} %"


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    reason = record["reason_text"] or record["refusal_text"]
    if reason:
        yield "because", reason
    if ReasonCode.REFUSED_INSTANCES in (record["reason_code"], record["refusal_code"]):
        yield "or decide", f"that it is whole without them: dicom-node series accept {record['series_pk']}"
    if record["failure_reason"]:
        yield "because", f"{record['failure_reason']}; try again: dicom-node retry --series {record['series_pk']}"
    yield "patient", " ".join(part for part in (record["patient_id"], record["patient_name"]) if part) or "not named"
    yield "study date", record["study_date"] or "not given"
    described = ", ".join(part for part in (record["modality"], record["body_part"], record["description"]) if part)
    yield "described as", described or "nothing"
    yield "images", f"{plural(record['instance_count'], 'image')} from {record['calling_ae']}{_completeness(record)}"
    yield "first, last", f"{local_text(record['first_instance_at'])}, {_moment(record['last_instance_at'])}"
    if record["closed_at"] is not None:
        yield "complete", f"{_moment(record['closed_at'])}{_revision(record)}"
    else:
        yield "complete", f"decided at {_moment(record['due_at'])}, unless more images come{_revision(record)}"
    if record["result_id"] is not None:
        yield "result", f"{record['result_id']}, of job {record['job_id']}"
    yield "Series UID", record["series_instance_uid"]
    yield "Study UID", record["study_instance_uid"]


def _completeness(record: dict[str, Any]) -> str:
    expected = record["expected_count"]
    if record["completeness"] == PACS_LIST:
        return f"; the PACS counts more, but lists {expected}, also when asked again"
    asked = "" if expected is None else f"; the PACS counts {expected}"
    return asked or ("; complete after a quiet time" if record["completeness"] == store.QUIET_TIME else "")


def _revision(record: dict[str, Any]) -> str:
    return "" if record["revision"] == 1 else f" (revision {record['revision']} of the series)"


def _moment(seconds: float) -> str:
    return f"{local_text(seconds)} {zone(seconds)}"


DELIVERY_WORDS = {
    DeliveryState.PENDING: "waits to be sent",
    DeliveryState.SENDING: "is being sent",
    DeliveryState.SENT: "sent",
    DeliveryState.COMMITTED: "sent, and the PACS confirms that it keeps it",
    DeliveryState.FAILED: "FAILED",
    DeliveryState.SUPERSEDED: "replaced by a later result",
}


def _deliveries(record: dict[str, Any]) -> Iterator[str]:
    if record["result_id"] is not None and not record["deliveries"]:
        yield "The result goes to no destination."
    for found in record["deliveries"]:
        words = DELIVERY_WORDS.get(found["state"], found["state"])
        since = (
            f" at {_moment(found['sent_at'])}" if found["sent_at"] and found["state"] != DeliveryState.PENDING else ""
        )
        yield f"Delivery {found['id']} to {found['destination']}: {words}{since}"
        if found["state"] == DeliveryState.PENDING and found["due_at"]:
            yield f"  next attempt {_moment(found['due_at'])}; now: dicom-node retry --delivery {found['id']}"
        if found["state"] == DeliveryState.FAILED:
            yield f"  try again: dicom-node retry --delivery {found['id']}"
        if found["error"]:
            yield f"  after {plural(found['attempts'], 'attempt')}: {found['error']}"


def _objects(record: dict[str, Any]) -> Iterator[str]:
    if record["objects"]:
        yield "Objects of the result (kind, size, SOP Instance UID):"
    for found in record["objects"]:
        yield f"  {found['kind']:22} {found['size'] / 1024:7.0f} KiB"
        yield f"    {found['sop_instance_uid']}"


def _cell(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value
