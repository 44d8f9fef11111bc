"""A process that starts nodes by fork: everything is imported once, and a node is up in a fraction of a second.

It forks the node's own processes: `dicom-node run` and the children that its supervisor starts. Each is a process with
its own files and sockets, and dies alone. Only the way it is started differs: fork instead of fork and exec.

One JSON line in, one out: {"start": {variables}, "arguments": [...], "output": path, "errors": path} gives a pid;
{"poll": pid} its status, or null.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.programs import wait_for

ROOT = Path(__file__).resolve().parents[1]
FAULTS = "--faults"


class Zygote:
    """The process from which nodes and commands are forked. faults: with the stand-ins of `faults/injection.py`."""

    def __init__(self, *, faults: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", *([FAULTS] if faults else [])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lock = threading.Lock()
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, variables: Mapping[str, str], log: Path | None, *arguments: str) -> int:
        """Start `dicom-node run` with these environment variables and arguments. Returns its pid.

        log: the file of its output; None: this process's standard error.
        """
        return self._fork(variables, ["run", *arguments], log, log)

    def _fork(
        self, variables: Mapping[str, str], arguments: list[str], output: Path | None, errors: Path | None
    ) -> int:
        paths = {"output": str(output or ""), "errors": str(errors or "")}
        return int(self._ask({"start": dict(variables), "arguments": arguments, **paths}))

    def status(self, pid: int) -> int | None:
        """Exit status of a node; None while it runs."""
        status: int | None = self._ask({"poll": pid})
        return status

    def run(self, variables: Mapping[str, str], *arguments: str, timeout_s: float = 250) -> tuple[int, str, str]:
        """A command's exit status, and what it said on standard output and error. AssertionError if it takes longer."""
        with tempfile.TemporaryDirectory(prefix="command-") as folder:
            output, errors = Path(folder, "output"), Path(folder, "errors")
            pid = self._fork(variables, list(arguments), output, errors)
            try:
                status = ForkedNode(self, pid).wait(timeout_s)
            except AssertionError:
                os.killpg(pid, signal.SIGKILL)
                raise
            return status, output.read_text(), errors.read_text()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@dataclass(frozen=True)
class ForkedNode:
    """The part of subprocess.Popen that tests use, for a node that a zygote started."""

    zygote: Zygote
    pid: int

    def poll(self) -> int | None:
        return self.zygote.status(self.pid)

    def wait(self, timeout: float = 60) -> int:
        wait_for(lambda: self.poll() is not None, timeout, "the forked process ends")
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


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


def fork(arguments: list[str], env: dict[str, str], output: tuple[str, str] | None = None) -> int:
    """Fork a process of a node.

    output: of a new node or command, which gets its own process group: the files of its standard output and errors;
        "" is this process's standard error.
    """
    # A signal between fork and the child's own handlers would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        os._exit(_live(arguments, env, output))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    return pid


def _live(arguments: list[str], env: dict[str, str], output: tuple[str, str] | None) -> int:
    """The life of a forked process, from its command line to its exit status."""
    from dicom_node.cli.app import main
    from tests.network_hosts import AHEAD, live_on_host

    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["dicom-node", *arguments]
    live_on_host()
    _set_clock(float(env.get(AHEAD, "0")))
    if output is not None:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(output, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if path else 2, descriptor)
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr, flush=True)
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - it would go on as its parent
        print(f"died of {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        sys.stdout.flush()
        for thread in threading.enumerate():  # as an interpreter does that ends
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
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


def _preload(*, faults: bool) -> None:
    if faults:
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


def serve(*, faults: bool) -> None:
    """Answer requests until the end of standard input."""
    _preload(faults=faults)
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
            started = fork(request["arguments"], request["start"], (request["output"], request["errors"]))
            ended.pop(started, None)  # process ids are reused
            print(json.dumps(started), flush=True)


if __name__ == "__main__":
    serve(faults=FAULTS in sys.argv)
