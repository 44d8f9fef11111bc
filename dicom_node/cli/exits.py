"""How the command line ends: errors of the project become one clear line and an exit code."""

import sys

import typer

from config.errors import ConfigError
from dicom_node.errors import NodeError, PortTaken
from dicom_node.runtime.index import no_permission
from dicom_node.runtime.supervisor import DO_NOT_RESTART
from inference.errors import InferenceError
from storage.errors import StorageError


def run_app(app: typer.Typer) -> None:
    """Run the command that the arguments name; see `app` for the exit codes."""
    try:
        app()
    except (ConfigError, PortTaken) as error:
        _say(error)
        sys.exit(DO_NOT_RESTART)
    except (NodeError, StorageError, InferenceError) as error:
        _say(error)
        sys.exit(1)
    except PermissionError as error:
        _say(no_permission(error))
        sys.exit(1)


def _say(error: object) -> None:
    print(f"dicom-node: {error}", file=sys.stderr)
