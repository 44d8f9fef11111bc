"""A process that starts nodes by fork: everything is imported once, and a node is up in a fraction of a second.

It forks the node's own processes: `dicom-node run` and the children that its supervisor starts. Each is a process with
its own files and sockets, and dies alone. Only the way it is started differs: fork instead of fork and exec.

One JSON line in, one out: {"start": {variables}, "log": path} gives a pid; {"poll": pid} its status, or null.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any


class Forked:
    """The part of subprocess.Popen that the supervisor uses, for a forked child."""

    def __init__(self, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...] = ()) -> None:
        self.returncode: int | None = None
        self.pid = fork(command[3:], env)  # after the interpreter, -m and dicom_node

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 1e9)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout or 0)
            time.sleep(0.02)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def fork(arguments: list[str], env: dict[str, str], log: str = "") -> int:
    """Fork a process of a node. log: the output file of a new node, which gets its own process group."""
    # A signal between fork and the child's own handlers would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        os._exit(_live(arguments, env, log))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    return pid


def _live(arguments: list[str], env: dict[str, str], log: str) -> int:
    """The life of a forked process, from its command line to its exit status."""
    from dicom_node.cli.app import main
    from tests.network_hosts import AHEAD, live_on_host

    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["dicom-node", *arguments]
    live_on_host()
    _set_clock(float(env.get(AHEAD, "0")))
    if log:
        os.setsid()
        nothing, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - it would go on as its parent
        print(f"died of {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _set_clock(ahead_s: float) -> None:
    """This process's clock is wrong, and so are its children's."""
    if ahead_s:
        real = time.time
        time.time = lambda: real() + ahead_s


def _prepare_in_a_child() -> None:
    """Open the index in a child, not here: a child that inherits an open SQLite file drops its locks."""
    from dicom_node.runtime import startup

    prepare = startup.prepare

    def prepared(settings: Any, *arguments: Any) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                prepare(settings, *arguments)
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - it would go on as its parent
                print(f"start-up failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status < 0:
            os.kill(os.getpid(), -status)
        if status:
            sys.exit(status)

    startup.prepare = prepared


def _preload() -> None:
    from tests.faults import bugs

    bugs.apply()
    from tests.faults import injection

    injection.install()
    from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

    import dicom_node.analysis.worker
    import dicom_node.completion.closing
    import dicom_node.delivery.commitment_listener
    import dicom_node.delivery.sender
    import dicom_node.receiver
    import dicom_node.report
    import dicom_node.runtime.scheduler
    import dicom_node.runtime.startup
    import dicom_node.runtime.supervisor
    import tests.factories
    import tests.network_hosts  # noqa: F401

    # highdicom reads this once and keeps it: three megabytes of JSON, half a second in every worker.
    get_sop_class_iod_map()
    get_iod_module_map()
    get_module_attribute_map()

    dicom_node.runtime.supervisor.subprocess = types.SimpleNamespace(  # type: ignore[attr-defined]
        Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired
    )
    _prepare_in_a_child()
    # Everything present now stays: a collection in a node would walk over all of it and copy its pages.
    gc.collect()
    gc.freeze()


def serve() -> None:
    """Answer requests until the end of standard input."""
    _preload()
    ended: dict[int, int] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
        request = json.loads(line)
        if "poll" in request:
            print(json.dumps(ended.get(request["poll"])), flush=True)
        else:
            started = fork(request["arguments"], request["start"], request["log"])
            ended.pop(started, None)  # process ids are reused
            print(json.dumps(started), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    serve()
