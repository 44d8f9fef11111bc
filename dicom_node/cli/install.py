"""install: is this machine set up so that the node works, and does one take images here?"""

from pathlib import Path
from typing import Annotated

import typer

from dicom_node import logs
from dicom_node.cli.common import ConfigOption, JsonOption, print_json, print_rows, say, settings_from
from dicom_node.cli.configure import read_and_check
from dicom_node.errors import NodeError
from dicom_node.runtime.installation.check import check as check_all
from dicom_node.runtime.installation.found import Found, Level, exit_status
from dicom_node.runtime.liveness import look

group = typer.Typer(no_args_is_help=True, help="The installation on this machine.")


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.add_typer(group, name="install")


@group.command()
def check(
    config: ConfigOption = None,
    peers: Annotated[bool, typer.Option(help="Also connect to every PACS and other peer.")] = True,
    json: JsonOption = False,
) -> None:
    """Look at this machine and say what to do; the node may run. Status: 0 all good, 1 something to see to, 2 wrong."""
    settings, mistakes = read_and_check(config)
    if settings is not None:
        logs.configure(settings.logging)
    found = list(check_all(settings, mistakes, config, ask_peers=peers))
    if json:
        print_json({"status": exit_status(found), "checks": [vars(one) for one in found]})
    else:
        _print(found)
    raise typer.Exit(exit_status(found))


@group.command()
def alive(config: ConfigOption = None) -> None:
    """Status 0 if a node runs here and takes images, else 1 and why: for the health check of a container."""
    found = look(settings_from(config))
    say("takes images" if found.accepts else found.why_not)
    raise typer.Exit(0 if found.accepts else 1)


@group.command()
def phantom(
    folder: Annotated[Path, typer.Argument(help="A new folder for its slices.")],
    seed: Annotated[int, typer.Option(help="Another seed, another patient.")] = 11,
) -> None:
    """Write a synthetic chest CT with lesions, to send through a new installation."""
    from dicom_node.demo.journey import LESIONS, SIZE, SLICES
    from inference.phantom.chest import make_phantom
    from inference.phantom.series import write_series

    if folder.exists():
        raise NodeError(f"{folder} exists: choose another folder, or remove it")
    made = make_phantom(seed, slices=SLICES, size=SIZE, lesions="mixed", lesion_settings=LESIONS)
    say(f"{len(write_series(made, folder))} slices in {folder}; of nobody")


def _print(found: list[Found]) -> None:
    columns = ("part", "", "found", "what to do")
    print_rows("", columns, [(one.part, one.level, one.says, one.do) for one in found])
    wrong, seen = (sum(one.level is level for one in found) for level in (Level.WRONG, Level.LOOK))
    say(f"{wrong} wrong, {seen} to see to, {len(found) - wrong - seen} good.")
