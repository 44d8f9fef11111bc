"""series accept: a person decides that a series is whole without the instances that the node refused."""

import time

import typer

from dicom_node.cli import series as series_commands
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    database_of,
    note_operator,
    plural,
    print_json,
    say,
    settings_from,
)
from dicom_node.cli.series import SeriesArgument
from storage import audit, refused
from storage.lookup import find_series
from storage.series import get_series


def register(app: typer.Typer) -> None:
    """Add the command to the group `series`."""
    series_commands.group.command()(accept)


def accept(series: SeriesArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Decide that a series is whole without the instances that the node refused, so that it is analysed."""
    with database_of(settings_from(config)).transaction() as tx:
        record = get_series(tx, find_series(tx, series))
        without = refused.accept(tx, record.series_instance_uid, time.time())
        about = audit.Subject(record.series_instance_uid, record.study_instance_uid, None, record.patient_id)
        note_operator(tx, "accept", about, without=without)
    if json:
        print_json({"series": record.series_pk, "without": without})
    else:
        say(f"Series {record.series_pk} is whole without {plural(without, 'instance')}; it is analysed next.")
