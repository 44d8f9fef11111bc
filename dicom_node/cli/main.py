"""Where the command line begins.

Only the modules are loaded that the first argument names: all of them together take seconds, and the node starts its
own processes this way. `app` has all commands, for everything else: help, and a word that is no command.
"""

import sys
from importlib import import_module
from importlib.metadata import version as version_of
from typing import Annotated

import typer

from dicom_node.cli.exits import run_app

MODULES = {
    **dict.fromkeys(("run", "work", "receive", "schedule", "deliver", "metrics", "forward-audit"), ("processes",)),
    "status": ("status",),
    "series": ("series", "accept"),
    **dict.fromkeys(("retry", "resend", "reanalyse"), ("again",)),
    **dict.fromkeys(("pause", "resume"), ("pause",)),
    "audit": ("audit",),
    "forget": ("forget",),
    "index": ("index", "index_move"),
    "backup": ("backup",),
    "install": ("install",),
    "models": ("models",),
    **dict.fromkeys(("echo", "send"), ("network",)),
    "gateway": ("gateway",),
    "worklist": ("worklist",),
    "notify": ("notify",),
    "canary": ("canary",),
    "analyse": ("analyse",),
    "explain": ("explain",),
    "replay": ("replay",),
    "dataset": ("dataset",),
    "train": ("train",),
    "evaluate": ("evaluate",),
    "verdicts": ("verdicts",),
    "watch": ("watch",),
    "batch": ("batch",),
    "cluster": ("cluster",),
    "config": ("configure",),
    "conformance": ("conformance",),
    "demo": ("demo",),
    "tls": ("tls",),
    "web": ("web",),
}
"""Each command or group, in the order of the help, and the modules of this package that register it."""


def main() -> None:
    """Run the command line; errors of the project become one clear line and an exit code (see `app`)."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in MODULES or word == "--version":
        run_app(with_commands(MODULES.get(word, ())))
        return
    from dicom_node.cli.app import app

    run_app(app)


def with_commands(modules: tuple[str, ...]) -> typer.Typer:
    """The command line with the commands of these modules of this package."""
    app = typer.Typer(
        name="dicom-node",
        help="A DICOM AI node: chest CT in, Structured Report out. For research use; not for diagnosis.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_root)
    for module in modules:
        import_module(f"dicom_node.cli.{module}").register(app)
    return app


def _print_version(given: bool) -> None:
    if given:
        print(f"dicom-node {version_of('dicom-node')}")
        raise typer.Exit


VersionOption = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Its version.")]


def _root(version: VersionOption = False) -> None:
    """Only the options that come before a command."""
