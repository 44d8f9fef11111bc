"""The command line, `dicom-node`: one module for each group of commands.

Exit codes: 0 done (a series that was refused with a reason is done), 1 it failed, 2 wrong usage,
3 a peer could not be reached, 78 the configuration is wrong.
"""

from importlib.metadata import version as version_of
from typing import Annotated

import typer

from dicom_node.cli import (
    accept,
    again,
    analyse,
    audit,
    backup,
    batch,
    canary,
    cluster,
    configure,
    conformance,
    dataset,
    demo,
    evaluate,
    explain,
    forget,
    gateway,
    index,
    index_move,
    install,
    models,
    network,
    notify,
    pause,
    processes,
    replay,
    series,
    status,
    tls,
    train,
    verdicts,
    watch,
    web,
    worklist,
)
from dicom_node.cli.exits import run_app

app = typer.Typer(
    name="dicom-node",
    help="A DICOM AI node: chest CT in, Structured Report out. For research use; not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(given: bool) -> None:
    if given:
        print(f"dicom-node {version_of('dicom-node')}")
        raise typer.Exit


VersionOption = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Its version.")]


@app.callback()
def _root(version: VersionOption = False) -> None:
    """Only the options that come before a command."""


for module in (
    processes,
    status,
    series,
    accept,
    again,
    pause,
    audit,
    forget,
    index,
    index_move,
    backup,
    install,
    models,
    network,
    gateway,
    worklist,
    notify,
    canary,
    analyse,
    explain,
    replay,
    dataset,
    train,
    evaluate,
    verdicts,
    watch,
    batch,
    cluster,
    configure,
    conformance,
    demo,
    tls,
    web,
):
    module.register(app)


def main() -> None:
    """Run the command line; errors of the project become one clear line and an exit code."""
    run_app(app)
