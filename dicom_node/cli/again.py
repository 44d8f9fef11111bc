"""retry, resend and reanalyse: what failed or waits goes on, a result is sent again, or made again."""

import time
from typing import Annotated

import typer

from dicom_node.cli.common import ConfigOption, JsonOption, database_of, note_operator, print_json, say, settings_from
from dicom_node.cli.series import SeriesArgument
from dicom_node.runtime import acts
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
            done = acts.retry_delivery(tx, delivery, time.time())
        elif job is not None:
            done = acts.retry_job(tx, job, time.time())
        else:
            done = acts.retry_series(tx, find_series(tx, str(series)), time.time())
        note_operator(tx, "retry", done.about, **done.detail)
    _tell(done, json)


def _tell(done: acts.Done, json: bool) -> None:
    if json:
        print_json(done.detail)
    else:
        say(done.sentence)


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
        done = acts.resend(tx, settings, find_result(tx, result), to or (), time.time())
        note_operator(tx, "resend", done.about, destinations=done.detail["destinations"])
    _tell(done, json)


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
    with database_of(settings).transaction() as tx:
        done = acts.reanalyse(tx, settings, find_series(tx, series), model, time.time())
        note_operator(tx, "reanalyse", done.about, model=done.detail["model"])
    _tell(done, json)
