"""How the command line ends: errors of the project become one clear line and an exit code."""

import sys
from contextlib import suppress

import typer

from config.errors import ConfigError
from dicom_node.errors import GpuLost, NodeError, PortTaken
from dicom_node.runtime.index import no_permission
from dicom_node.runtime.supervisor import DO_NOT_RESTART
from inference.errors import InferenceError
from storage.errors import StorageError

UNAVAILABLE = 69
"""Exit status (EX_UNAVAILABLE) of a worker without its GPU: it is no fault of the configuration that the node has."""


def run_app(app: typer.Typer) -> None:
    """Run the command that the arguments name; see `app` for the exit codes."""
    try:
        app()
    except (ConfigError, PortTaken) as error:
        say_why(error)
        sys.exit(DO_NOT_RESTART)
    except GpuLost as error:
        say_why(error)
        sys.exit(UNAVAILABLE)
    except (NodeError, StorageError, InferenceError) as error:
        say_why(error)
        sys.exit(1)
    except PermissionError as error:
        say_why(no_permission(error))
        sys.exit(1)


def say_why(error: object) -> None:
    """Print an error. Where that is not possible, such as on a full disk, the exit status still says what to do."""
    with suppress(OSError, ValueError):
        print(f"dicom-node: {error}", file=sys.stderr, flush=True)
