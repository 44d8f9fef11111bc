"""The node's side of a model that runs in a process of its own: `IsolatedModel`.

Every series gets a new process, so that nothing of one patient is left for the next. Whatever the process does, the
outcome is an output that was checked, or an `UnsuitableSeries` with a code of its own.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from config.reasons import ReasonCode
from inference.errors import ModelError, UnsuitableSeries
from inference.isolation import plugin_process as answers
from inference.isolation import sandbox
from inference.isolation.answer import TooMuch, decode_output, longest_message, require_declared
from inference.isolation.known_codes import UnknownCode
from inference.isolation.scratch import scratch_folder, used_bytes
from inference.isolation.wire import describe_volume
from inference.models.cards import Card, Limits, require_weights
from inference.plug import Code, DeviceChoice, Output
from inference.suitability.check import check
from inference.suitability.policy import Policy
from inference.volume.ct_volume import CTVolume

MOST_PRINTED_BYTES = 16 << 20
"""How much a model may print."""
_TAIL_BYTES = 4096
_LOOK_S, _START_S = 0.2, 60.0
_READ_BYTES = 1 << 20
_ROOT = Path(__file__).parents[2]
# Nothing else is passed on: a model has no use for the database's password.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONHOME", "CUDA_VISIBLE_DEVICES")


class _Crashed(UnsuitableSeries):
    """The process ended without an answer. That may have been the machine's fault, so it is worth a second try."""


@cache
def missing_locks() -> str:
    """What a third party's code could do on this machine that it should not, in words; empty: it can be shut in."""
    command = [sys.executable, "-P", "-m", sandbox.__name__]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=_START_S, check=False)
    return done.stdout.strip() if done.returncode == 0 else "the process that tries it does not start"


@dataclass(frozen=True)
class IsolatedModel:
    """A third party's model; satisfies `inference.plug.Model`.

    target: "module:object" of its entry point; this process never imports it.
    required: run it only if the kernel lets it be shut in, see `missing_locks`.
    versions: of its package, for what results say about how they were made.
    """

    target: str
    required: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)

    def load(self, folder: Path, card: Card, device: DeviceChoice) -> "IsolatedLoaded":
        """Ready for volumes; the model's own `load` runs in the process, once for every volume.

        Raises ModelError if a weight file is missing or altered, or if the kernel does not let it be shut in.
        """
        _require_unaltered(card, folder)
        if self.required and missing_locks():
            raise _not_shut_in(self.target, missing_locks())
        policy = Policy.from_table(card.suitability)
        return IsolatedLoaded(self, folder.resolve(), card.limits or Limits(), device, card.codes, policy)


@dataclass
class IsolatedLoaded:
    """A third party's model on a device; satisfies `inference.plug.LoadedModel`.

    codes: what the card says that it measures and finds.
    policy: what a volume must be like; None: anything is tried.
    printed: the end of what it printed last. For a person who tries a model out: it may hold anything that the model
        saw, so it goes into no log and no report.
    """

    model: IsolatedModel
    folder: Path
    limits: Limits
    device: DeviceChoice
    codes: Sequence[Code]
    policy: Policy | None = None
    printed: str = ""

    def analyse(self, volume: CTVolume) -> Output:
        """The model's checked output for a volume.

        Raises UnsuitableSeries, with the code of a rule of the card's [suitability] table, the model's own or one of
        `ReasonCode.MODEL_...`; ModelError if the model says that its files are wrong, or if the kernel does not let it
        be shut in.
        """
        checks = check(volume, self.policy) if self.policy else ()
        try:
            output = self._analyse(volume)
        except _Crashed:
            output = self._analyse(volume)
        run = dataclasses.replace(output.run, versions={**output.run.versions, **self.model.versions})
        return dataclasses.replace(output, checks=(*checks, *output.checks), run=run)

    def _analyse(self, volume: CTVolume) -> Output:
        with scratch_folder() as scratch, _in_memory(volume) as voxels:
            run = _Run(self._start(volume, voxels, scratch), self.limits, volume, scratch)
            try:
                kind, content = run.answer()
            finally:
                self.printed = run.end()
        return self._understood(kind, content, volume)

    def _start(self, volume: CTVolume, voxels: int, scratch: Path) -> "_Process":
        task = {
            "parent": os.getpid(),
            "required": self.model.required,
            "target": self.model.target,
            "folder": str(self.folder),
            "scratch": str(scratch),
            "read": [str(self.folder)],
            "memory_bytes": self.limits.memory_mb << 20,
            "scratch_bytes": self.limits.scratch_mb << 20,
            "device": dataclasses.asdict(self.device),
            "volume": describe_volume(volume),
        }
        process = _Process(voxels, scratch, self.device.threads)
        process.tell(json.dumps(task).encode() + b"\n")
        return process

    def _understood(self, kind: str, content: bytes | bytearray, volume: CTVolume) -> Output:
        if kind == answers.OUTPUT:
            return _checked_output(content, volume, self.limits, self.codes)
        text = " ".join(content[:1000].decode(errors="replace").split())
        if kind == answers.NOT_SHUT_IN:
            raise _not_shut_in(self.model.target, text)
        if kind == answers.MODEL_ERROR:
            raise ModelError(text)
        if kind == answers.UNSUITABLE:
            raise _unsuitable(content)
        if kind == answers.NO_MEMORY:
            raise _no_memory(self.limits)
        if kind == answers.WROTE_TOO_MUCH:
            raise _wrote_too_much(self.limits)
        if kind == answers.FAILED:
            raise _stopped(ReasonCode.MODEL_CRASHED, f"failed with {text}")
        raise _stopped(ReasonCode.MODEL_OUTPUT, f"gave an answer that is not one ({text})")


def _require_unaltered(card: Card, folder: Path) -> None:
    require_weights(card, folder)
    for weights in card.weight_files().values():
        with open(folder / weights.file, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != weights.sha256:
            raise ModelError(f"{folder / weights.file}: SHA-256 is {found}, its card says {weights.sha256}")


def _not_shut_in(target: str, why: str) -> ModelError:
    advice = 'It does not run unless [worker] unconfined_models = "allow"'
    return ModelError(f"the kernel does not let {target} be shut in: {why}. {advice}")


def _stopped(code: ReasonCode, what: str) -> UnsuitableSeries:
    said = "".join(letter if letter.isprintable() else "?" for letter in what)
    return UnsuitableSeries(code, f"The model's program {said}; it was stopped, and there is no result.")


def _no_memory(limits: Limits) -> UnsuitableSeries:
    return _stopped(ReasonCode.MODEL_MEMORY, f"wanted more memory than the {limits.memory_mb} MiB that its card allows")


def _wrote_too_much(limits: Limits) -> UnsuitableSeries:
    what = f"wrote more into its folder than the {limits.scratch_mb} MiB that its card allows"
    return _stopped(ReasonCode.MODEL_TOO_MUCH, what)


def _checked_output(content: bytes | bytearray, volume: CTVolume, limits: Limits, codes: Sequence[Code]) -> Output:
    try:
        output = decode_output(content, volume, limits.memory_mb << 20)
        require_declared(output, codes)
        return output
    except TooMuch as error:
        raise _stopped(ReasonCode.MODEL_TOO_MUCH, f"gave more than the node takes ({error})") from None
    except UnknownCode as error:
        raise _stopped(ReasonCode.MODEL_CODE, f"gave an unknown code ({error})") from None
    except (ValueError, OverflowError, RecursionError) as error:
        what = f"gave an answer that does not fit the images ({str(error)[:200]})"
        raise _stopped(ReasonCode.MODEL_OUTPUT, what) from None


def _unsuitable(content: bytes | bytearray) -> UnsuitableSeries:
    """The model's own refusal."""
    try:
        code, sentence = json.loads(content)
        if not isinstance(sentence, str) or not 0 < len(sentence) <= 500 or not sentence.isprintable():
            raise ValueError("expected a sentence")
        known = {str(reason): reason for reason in ReasonCode}
        return UnsuitableSeries(known[code], sentence)
    except (ValueError, TypeError, KeyError):
        return _stopped(ReasonCode.MODEL_OUTPUT, "refused the series without a reason that the node knows")


@contextlib.contextmanager
def _in_memory(volume: CTVolume) -> Iterator[int]:
    """A descriptor of the voxels as raw int16, C order, in a file in memory that nobody can write to any more."""
    descriptor = os.memfd_create("volume", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(np.ascontiguousarray(volume.hu).data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def _environment() -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    passed["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return passed | {"PYTHONDONTWRITEBYTECODE": "1", "USER": "model"}


class _Process:
    """The process, our end of its socket, and the pipe of what it prints."""

    def __init__(self, voxels: int, scratch: Path, threads: int) -> None:
        environment = _environment() | {"HOME": str(scratch), "TMPDIR": str(scratch)}
        if threads:
            environment |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self.channel, theirs = socket.socketpair()
        self.prints, writing = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", answers.__name__, str(theirs.fileno()), str(voxels)],
                pass_fds=[theirs.fileno(), voxels],
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C is for the node, which lets the job end
            )
        finally:
            theirs.close()
            os.close(writing)
        self.channel.settimeout(_START_S)
        self.pid = self._popen.pid

    def tell(self, message: bytes) -> None:
        """Send it a message; if it is gone already, its status says so later."""
        with contextlib.suppress(OSError):
            self.channel.sendall(message)

    def status(self, patience_s: float) -> int | None:
        """How it ended; None if it has not ended within this time."""
        try:
            return self._popen.wait(patience_s)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> bytes:
        """Kill it if it still runs. Returns what it had printed and nobody had read."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self.channel.close()
        os.set_blocking(self.prints, False)
        try:
            return os.read(self.prints, _READ_BYTES)
        except BlockingIOError:
            return b""
        finally:
            os.close(self.prints)

    def memory_bytes(self) -> int:
        """What it holds by itself; 0 once it has ended."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


class _Run:
    """One process from its start to its end, watched."""

    def __init__(self, process: _Process, limits: Limits, volume: CTVolume, scratch: Path) -> None:
        self._process = process
        self._limits = limits
        self._volume_bytes = volume.hu.nbytes
        self._longest = 1 + longest_message(volume, limits.memory_mb << 20)
        self._scratch = scratch
        self._deadline = time.monotonic() + limits.time_s
        self._answer = bytearray()
        self._printed = 0
        self._tail = b""

    def answer(self) -> tuple[str, bytearray]:
        """The kind of its answer and the content. Raises UnsuitableSeries if it gives none within its limits."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.channel, selectors.EVENT_READ, self._take_answer)
            waiting.register(self._process.prints, selectors.EVENT_READ, self._take_printed)
            looked = 0.0
            while self._process.channel in waiting.get_map():
                for key, _ in waiting.select(_LOOK_S):
                    if not key.data():
                        waiting.unregister(key.fileobj)
                if time.monotonic() - looked >= _LOOK_S:
                    self._look()
                    looked = time.monotonic()
        if not self._answer:
            raise self._ended()
        return chr(self._answer[0]), self._answer[1:]

    def _ended(self) -> UnsuitableSeries:
        while (status := self._process.status(_LOOK_S)) is None:
            self._look()
        how = f"with status {status}" if status >= 0 else f"with signal {signal.Signals(-status).name}"
        what = f"The model's program ended {how} and gave no answer; there is no result."
        return _Crashed(ReasonCode.MODEL_CRASHED, what)

    def end(self) -> str:
        """Kill the process if it still runs. Returns the end of what it printed."""
        return (self._tail + self._process.end())[-_TAIL_BYTES:].decode(errors="replace")

    def _take_answer(self) -> bool:
        """False at the end of its answer."""
        try:
            data = self._process.channel.recv(_READ_BYTES)
        except ConnectionResetError:
            return False
        self._answer += data
        if len(self._answer) > self._longest:
            raise _stopped(ReasonCode.MODEL_TOO_MUCH, f"answered with more than {self._longest >> 20} MiB")
        return bool(data)

    def _take_printed(self) -> bool:
        """False at the end of what it prints."""
        data = os.read(self._process.prints, _READ_BYTES)
        self._printed += len(data)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._printed > MOST_PRINTED_BYTES:
            raise _stopped(ReasonCode.MODEL_TOO_MUCH, f"printed more than {MOST_PRINTED_BYTES >> 20} MiB")
        return bool(data)

    def _look(self) -> None:
        limits = self._limits
        if time.monotonic() > self._deadline:
            what = f"took longer than the {limits.time_s:g} s that its card allows"
            raise _stopped(ReasonCode.MODEL_TIMEOUT, what)
        if self._process.memory_bytes() > (limits.memory_mb << 20) + self._volume_bytes:
            raise _no_memory(limits)
        if used_bytes(self._scratch) > limits.scratch_mb << 20:
            raise _wrote_too_much(limits)
