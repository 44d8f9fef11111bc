"""pause and resume: a source that is refused, or a destination that gets nothing, for a while."""

import time
from typing import Annotated

import typer

from dicom_node.cli.common import ConfigOption, JsonOption, database_of, print_json, say, settings_from
from dicom_node.runtime.index import who
from dicom_node.runtime.pausing import set_paused
from storage.pauses import Pausable

SourceOption = Annotated[str | None, typer.Option(help="AE title of a source in the settings.")]
DestinationOption = Annotated[str | None, typer.Option(help="Name of a destination in the settings.")]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command()(pause)
    app.command()(resume)


def pause(
    source: SourceOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Refuse a source's images for a while (it keeps them), or send nothing to a destination (results wait).

    It holds until `resume`, also when the node is started again.
    """
    _set(source, destination, config, json, paused=True)


def resume(
    source: SourceOption = None,
    destination: DestinationOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Let a paused source send again, or send to a paused destination what has waited for it."""
    _set(source, destination, config, json, paused=False)


def _set(source: str | None, destination: str | None, config: ConfigOption, json: bool, *, paused: bool) -> None:
    if (source is None) is (destination is None):
        raise typer.BadParameter("give --source or --destination; `dicom-node status` shows what is paused")
    settings = settings_from(config)
    peer = (Pausable.SOURCE, source) if source is not None else (Pausable.DESTINATION, str(destination))
    with database_of(settings).transaction() as tx:
        sentence = set_paused(tx, settings, peer, who(), time.time(), paused=paused)
    if json:
        print_json({"kind": peer[0], "name": peer[1], "paused": paused})
    else:
        say(sentence)
