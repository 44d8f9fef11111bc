"""demo: the main job once, end to end."""

import typer

from dicom_node.cli.common import out


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(demo)


def demo() -> None:
    """Send a positive and a negative phantom through a node on this machine and print both reports."""
    from config.settings import LoggingSettings
    from dicom_node import logs
    from dicom_node.demo.journey import run_demo

    logs.configure(LoggingSettings(level="warning"))
    if not run_demo(out):
        raise typer.Exit(1)
