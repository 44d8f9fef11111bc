"""demo: the main job once, end to end."""

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.cli.common import out


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(demo)


def demo(
    output: Annotated[
        Path, typer.Option(file_okay=False, help="Folder of what it makes; that of the last demonstration is emptied.")
    ] = Path("var/demo"),
    keep: Annotated[
        bool, typer.Option("--keep", help="Let the node go on, with its pages in a browser, until Ctrl-C.")
    ] = False,
) -> None:
    """Send a positive and a negative phantom through a node with two models; show their reports beside the truth."""
    from config.settings import LoggingSettings
    from dicom_node import logs
    from dicom_node.demo.journey import run_demo

    logs.configure(LoggingSettings(level="warning"))
    if not run_demo(out, output, keep):
        raise typer.Exit(1)
