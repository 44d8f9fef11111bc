"""gateway: the destinations that are no DICOM peers, what they would be told, and whether they answer."""

from typing import Annotated

import typer

from config.settings import AnyDestination, Destination, Settings
from dicom_node.cli.common import (
    PEER_UNREACHABLE,
    ConfigOption,
    JsonOption,
    database_of,
    err,
    files_of,
    note_reading,
    out,
    print_json,
    print_rows,
    say,
    settings_from,
)
from dicom_node.errors import NodeError
from dicom_node.gateways.kinds import OBJECTS, gateway, message_gateway
from dicom_node.gateways.reading import NO_REPORT, read_reported
from storage import audit
from storage.messages import Message
from storage.results import get_result, objects_of

group = typer.Typer(help="Destinations that are no DICOM peers.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the destination in the settings.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="gateway")


@group.command("list")
def list_gateways(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show the destinations that are no DICOM peers."""
    found = [one for one in settings_from(config).destinations if not isinstance(one, Destination)]
    rows = [(one.name, one.kind, one.address, "yes" if one.send_results else "no") for one in found]
    if json:
        print_json([dict(zip(("name", "kind", "address", "gets_results"), row, strict=True)) for row in rows])
    else:
        print_rows("gateways", ("name", "kind", "address", "gets results"), rows)


@group.command()
def preview(
    name: NameArgument,
    result: Annotated[int, typer.Argument(metavar="RESULT", help="Number of a result, see `dicom-node series show`.")],
    config: ConfigOption = None,
) -> None:
    """Print what a destination would be told of a result. Nothing is sent, and nothing is kept."""
    settings = settings_from(config)
    destination = _found(settings, name)
    database = database_of(settings)
    note_reading(database, "gateway preview", audit.Subject(result_id=result), destination=name)
    if destination.kind in OBJECTS:
        with database.read() as tx:
            get_result(tx, result)
            objects = [one for one in objects_of(tx, result) if one.kind.is_sent]
        if not objects:
            raise NodeError(f"result {result} has no objects: {NO_REPORT}")
        rows = [(one.kind, one.sop_class_uid, one.sop_instance_uid, str(one.size)) for one in objects]
        print_rows(f"objects of result {result}", ("kind", "SOP class", "SOP instance", "bytes"), rows)
        say("Of the reports it gets one: the first of these that it takes.")
        return
    message = message_gateway(destination, settings).compose(read_reported(database, files_of(settings), result))
    say(_readable(message))


@group.command()
def test(name: NameArgument, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Ask a destination whether it answers. It gets no result."""
    settings = settings_from(config)
    answer = gateway(_found(settings, name), settings).test()
    if json:
        print_json({"destination": name, "reachable": answer.ok, "detail": answer.detail})
    else:
        (out if answer.ok else err).print(f"{name}: {answer.detail}", markup=False)
    if not answer.ok:
        raise typer.Exit(PEER_UNREACHABLE)


def _readable(message: Message) -> str:
    """A message as text, whatever its character set."""
    charset = message.content_type.partition("charset=")[2] or "utf-8"
    if not message.content:
        return "nothing: the settings of the destination leave this result out"
    # \r ends a segment of HL7: a terminal would write each over the one before.
    return message.content.decode(charset, "replace").replace("\r", "\n")


def _found(settings: Settings, name: str) -> AnyDestination:
    found = settings.destination(name)
    if found is None:
        names = ", ".join(d.name for d in settings.destinations) or "none is configured"
        raise NodeError(f"there is no destination {name!r}; destinations: {names}")
    if isinstance(found, Destination):
        raise NodeError(f"destination {name!r} is a DICOM peer: ask it by `dicom-node echo {name}`")
    return found
