"""The command line, `dicom-node`: one module for each group of commands.

Exit codes: 0 done (a series that was refused with a reason is done), 1 it failed, 2 wrong usage,
3 a peer could not be reached, 78 the configuration is wrong.
"""

import sys

import typer

from config.errors import ConfigError
from dicom_node.cli import (
    analyse,
    audit,
    configure,
    dataset,
    demo,
    evaluate,
    explain,
    models,
    network,
    processes,
    replay,
    series,
    tls,
    train,
)
from dicom_node.errors import NodeError, PortTaken
from dicom_node.runtime.supervisor import DO_NOT_RESTART
from inference.errors import InferenceError
from storage.errors import StorageError

app = typer.Typer(
    name="dicom-node",
    help="A DICOM AI node: chest CT in, Structured Report out. For research use; not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for module in (
    processes,
    series,
    audit,
    models,
    network,
    analyse,
    explain,
    replay,
    dataset,
    train,
    evaluate,
    configure,
    demo,
    tls,
):
    module.register(app)


def main() -> None:
    """Run the command line; errors of the project become one clear line and an exit code."""
    try:
        app()
    except (ConfigError, PortTaken) as error:
        _say(error)
        sys.exit(DO_NOT_RESTART)
    except (NodeError, StorageError, InferenceError) as error:
        _say(error)
        sys.exit(1)


def _say(error: Exception) -> None:
    print(f"dicom-node: {error}", file=sys.stderr)
