"""retry, resend and reanalyse: what failed or waits goes on, a result is sent again, or made again."""

import time
from typing import Annotated

import typer
from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.cli.common import ConfigOption, JsonOption, database_of, note_operator, print_json, say, settings_from
from dicom_node.cli.series import SeriesArgument
from dicom_node.errors import NodeError
from storage import audit, deliveries, jobs, reopening, results
from storage import series as store
from storage.deliveries import DELIVERY, DeliveryState
from storage.jobs import ModelRef
from storage.lookup import find_result, find_series


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    for command in (retry, resend, reanalyse):
        app.command()(command)


def retry(
    series: Annotated[
        str | None, typer.Option(help="Series (number, UID or its beginning) whose failed analysis is queued again.")
    ] = None,
    delivery: Annotated[
        int | None,
        typer.Option(
            help="Number of a delivery: one that failed or waits is sent now, an unconfirmed one is asked about."
        ),
    ] = None,
    job: Annotated[int | None, typer.Option(help="Number of a failed analysis, such as a shadow model's.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Bring back what failed, with all its attempts; or send now what waits for its next attempt."""
    if sum(given is not None for given in (series, delivery, job)) != 1:
        raise typer.BadParameter("give one of --series, --job, --delivery; `dicom-node status` shows what has failed")
    with database_of(settings_from(config)).transaction() as tx:
        if delivery is not None:
            about = _retry_delivery(tx, delivery)
            done = {"delivery": delivery}
        else:
            job_id = job if job is not None else _job_of(tx, str(series))
            jobs.retry(tx, job_id, time.time())
            done, about = {"job": job_id}, audit.Subject(job_id=job_id)
        note_operator(tx, "retry", about, **done)
    if json:
        print_json(done)
    else:
        say(f"Delivery {delivery} goes on now." if delivery is not None else f"Job {done['job']} is queued again.")


def _retry_delivery(tx: Connection, delivery_id: int) -> audit.Subject:
    row = DELIVERY.row(tx, delivery_id)
    again = deliveries.retry if row["state"] == DeliveryState.FAILED else deliveries.hurry
    again(tx, delivery_id, time.time())
    return audit.Subject(row["series_uid"], row["study_uid"], None, row["patient_id"], row["job_id"], row["result_id"])


def _job_of(tx: Connection, wanted: str) -> int:
    job_id = store.get_series(tx, find_series(tx, wanted)).job_id
    if job_id is None:
        raise NodeError("this series has no job yet")
    return job_id


def resend(
    result: Annotated[
        str, typer.Argument(metavar="RESULT", help="Number of a result, or a series' UID for its latest result.")
    ],
    to: Annotated[list[str] | None, typer.Option(help="Name of a destination; may be repeated. Default: all.")] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Send the objects of a result again, byte for byte, to its destinations or to others.

    A destination that holds them already recognises them by their UIDs.
    """
    settings = settings_from(config)
    with database_of(settings).transaction() as tx:
        result_id = find_result(tx, result)
        source = results.input_of(tx, result_id)
        record = store.get_series(tx, source.series_pk)
        names = to or [row["destination"] for row in deliveries.of_result(tx, result_id)]
        names = names or [found.name for found in settings.destinations_of(record.calling_ae)]
        _refuse_wrong_destinations(settings, names)
        sent = deliveries.resend(tx, result_id, names, time.time())
        about = _subject(record, source.job_id, result_id)
        note_operator(tx, "resend", about, destinations=names)
    if json:
        print_json({"result": result_id, "deliveries": sent, "destinations": names})
    else:
        say(f"Result {result_id} is sent again to {', '.join(names)} (deliveries {', '.join(map(str, sent))}).")


def _refuse_wrong_destinations(settings: Settings, names: list[str]) -> None:
    if not names:
        raise NodeError("no destination takes results: name one in [[destinations]]")
    for name in names:
        found = settings.destination(name)
        if found is None or not found.send_results:
            known = ", ".join(one.name for one in settings.destinations if one.send_results) or "none is configured"
            raise NodeError(f"there is no destination {name!r} for results; destinations: {known}")


def reanalyse(
    series: SeriesArgument,
    model: Annotated[
        str | None, typer.Option(metavar="NAME[:VERSION]", help="Another model than the one of the settings.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Analyse a series again, with another model or after the report's settings changed.

    The new result replaces the former one as a late image's does: the report has new UIDs and names the one that it
    replaces. A series that is incomplete is refused again.
    """
    settings = settings_from(config)
    chosen, beside = _models(settings, model)
    with database_of(settings).transaction() as tx:
        record = store.get_series(tx, find_series(tx, series))
        source = settings.source(record.calling_ae)
        priority = source.priority if source else 0
        job_id = reopening.analyse_again(tx, record.series_pk, time.time(), chosen, priority, beside)
        about = _subject(record, job_id, record.result_id)
        note_operator(tx, "reanalyse", about, model=f"{chosen.name} {chosen.version}")
    if json:
        print_json({"series": record.series_pk, "job": job_id, "model": f"{chosen.name} {chosen.version}"})
    else:
        say(f"Series {record.series_pk} is analysed again with {chosen.name} {chosen.version} (job {job_id}).")


def _models(settings: Settings, wanted: str | None) -> tuple[ModelRef, tuple[ModelRef, ...]]:
    """NAME[:VERSION], or else the first model of the settings; and the others that report beside it.

    Raises ModelError when there is none of that name.
    """
    from dicom_node.analysis.current_model import model_named, reporting_models

    reporting = reporting_models(settings)
    if wanted is None:
        return reporting[0], reporting[1:]
    name, _, version = wanted.partition(":")
    chosen = model_named(settings, name, version)
    in_use = any(model.digest == chosen.digest for model in reporting)
    return chosen, tuple(m for m in (reporting if in_use else reporting[1:]) if m.digest != chosen.digest)


def _subject(record: store.SeriesRecord, job_id: int, result_id: int | None) -> audit.Subject:
    return audit.Subject(
        series_uid=record.series_instance_uid,
        study_uid=record.study_instance_uid,
        patient_id=record.patient_id,
        job_id=job_id,
        result_id=result_id,
    )
