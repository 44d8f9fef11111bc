"""A process that runs one model on one volume and ends: `python -m inference.isolation.plugin_process CHANNEL VOLUME`.

CHANNEL, VOLUME: descriptors of a socket and of a file in memory. The process reads its task from the socket, shuts
itself in, imports the model's code, and answers with one message; see `host` for the other side.
"""

import errno
import json
import mmap
import os
import resource
import signal
import socket
import sys
from typing import Any

from inference.isolation.sandbox import shut_in

NOT_SHUT_IN, OUTPUT, UNSUITABLE, MODEL_ERROR, MALFORMED, NO_MEMORY, WROTE_TOO_MUCH, FAILED = "NOUMXYWF"
"""What an answer begins with."""
# Written by a model into one file, or opened at once.
_MOST_FILES = 1024


def main() -> None:
    """Read the task, answer, end."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        with channel.makefile("rb") as file:
            task = json.loads(file.readline())
        if os.getppid() != task["parent"]:
            return
        # Stopping the node stops the parent, and this process ends with it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        locks = shut_in(task["read"], [task["scratch"]], _limits(task))
        os.chdir(task["scratch"])
        kind, parts = (NOT_SHUT_IN, [locks.missing.encode()]) if locks.missing and task["required"] else _ran(task)
        channel.sendall(kind.encode())
        for part in parts:
            channel.sendall(part)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that the model left


def _limits(task: dict[str, Any]) -> dict[int, int]:
    return {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: task["memory_bytes"],
        resource.RLIMIT_FSIZE: task["scratch_bytes"],
        resource.RLIMIT_NOFILE: _MOST_FILES,
    }


def _ran(task: dict[str, Any]) -> tuple[str, list[bytes]]:
    """Run the model. Returns the kind of the answer and its parts."""
    # Not before: numpy starts threads.
    from inference.errors import ModelError, UnsuitableSeries

    try:
        return _analysed(task)
    except UnsuitableSeries as error:
        return UNSUITABLE, [json.dumps([error.code, error.sentence]).encode()]
    except ModelError as error:
        return MODEL_ERROR, [str(error).encode()]
    except Exception as error:  # noqa: BLE001 - whatever a third party's code raises ends here
        return _explained(error)


def _analysed(task: dict[str, Any]) -> tuple[str, list[bytes]]:
    from importlib.metadata import EntryPoint
    from pathlib import Path

    import numpy as np

    from inference.isolation.wire import device_from, encode_output, volume_from
    from inference.models.cards import read_card
    from inference.plug import Model, Output

    shape = task["volume"]["shape"]
    voxels = mmap.mmap(int(sys.argv[2]), 0, access=mmap.ACCESS_READ)
    volume = volume_from(task["volume"], np.frombuffer(voxels, np.int16).reshape(shape))
    folder = Path(task["folder"])
    model: Model = EntryPoint("model", task["target"], "").load()
    output = model.load(folder, read_card(folder), device_from(task["device"])).analyse(volume)
    if not isinstance(output, Output):
        return MALFORMED, [f"expected an Output, found {type(output).__name__}".encode()]
    try:
        return OUTPUT, encode_output(output)
    except (TypeError, ValueError) as error:
        return MALFORMED, [str(error).encode()]


def _explained(error: Exception) -> tuple[str, list[bytes]]:
    """The answer for an exception. Its text and its traceback go where the model's own output goes."""
    import traceback

    traceback.print_exception(error)
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "allocate memory" in str(error):
        return NO_MEMORY, []
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return WROTE_TOO_MUCH, []
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    if isinstance(error, ValueError) and os.path.basename(innermost) in ("plug.py", "coding.py"):
        return MALFORMED, [str(error).encode()]
    return FAILED, [name.encode()]


if __name__ == "__main__":
    main()
