"""Decoding processes that are kept and reused: a stream that kills its decoder costs one frame, not this process.

Words travel over a socket unchanged; nothing is unpickled. See `decoding_process` for the limits.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.volume.decoding_process import DECODED, READY, REQUEST, Words, cpu_limit_s, receive

# A process that does not begin or end within this is stuck.
_START_S, _END_S = 60.0, 5.0
# The decoding process limits a frame's processor time; this limit only covers waiting for a busy processor.
_WAIT_S, _WAIT_FOR_CPU = 60.0, 20.0
_ROOT = Path(__file__).parents[2]
# Nothing else is passed on: a decoder has no use for the database's password.
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONHOME", "TMPDIR")


class DecoderFailed(Exception):
    """A stream gave no words. died: the decoder crashed, or reached its memory or time limit."""

    def __init__(self, *, died: bool) -> None:
        super().__init__("the decoder died" if died else "the decoder refused the stream")
        self.died = died


class _Died(Exception):
    """The process is gone, or was stopped because it hung. for_certain: a new one would end in the same way."""

    def __init__(self, *, for_certain: bool) -> None:
        super().__init__()
        self.for_certain = for_certain


class _Decoder:
    """One decoding process, for one thread at a time."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            # One thread: a frame is small, and a library's idle threads take up address space.
            environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "inference.volume.decoding_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        try:
            self._channel.settimeout(_START_S)
            receive(self._channel, len(READY))
        except (OSError, EOFError):
            status = self._kill()
            raise RuntimeError(f"the decoding process does not start (status {status})") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, codec: int, parts: Sequence[bytes], rows: int, columns: int, longest_s: float | None) -> Words | None:
        """The words of a frame, None if it cannot be decoded. Raises _Died."""
        try:
            self._channel.settimeout(longest_s or _WAIT_S + _WAIT_FOR_CPU * cpu_limit_s(rows * columns))
            self._channel.sendall(REQUEST.pack(codec, rows, columns, sum(map(len, parts))))
            for part in parts:
                self._channel.sendall(part)
            if receive(self._channel, 1)[0] != DECODED:
                return None
            return np.frombuffer(receive(self._channel, rows * columns * 2), "<u2").reshape(rows, columns)
        except (OSError, EOFError) as error:
            status = self._kill()
            too_long = longest_s is not None and isinstance(error, TimeoutError)
            raise _Died(for_certain=too_long or status == -signal.SIGXCPU) from None

    def end(self) -> None:
        """Let the process end, and wait for it."""
        self._channel.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._kill()

    def forget(self) -> None:
        """Let go of the process after a fork: it belongs to the parent."""
        self._channel.close()
        self._process.returncode = 0  # nothing to wait for

    def _kill(self) -> int:
        self._process.kill()
        self._channel.close()
        return self._process.wait()


class DecoderPool:
    """One decoding process for each thread that asks at the same time; up to one idle process per processor is kept."""

    def __init__(self) -> None:
        self.longest_s: float | None = None
        """A process in which people wait for pictures sets this: a frame that takes longer is given up for good."""
        self._lock = threading.Lock()
        self._idle: list[_Decoder] = []

    def decode(self, codec: int, parts: Sequence[bytes], rows: int, columns: int) -> Words:
        """Words of a frame as stored, uint16 (Y, X).

        parts: the encoded frame in the form that the codec takes.
        Raises DecoderFailed; RuntimeError or OSError if no process can be started, which says nothing about the stream.
        """
        # Twice: another cause, such as a machine short of memory, is unlikely to kill a new process straight away too.
        for _ in range(2):
            decoder = self._take()
            try:
                words = decoder.ask(codec, parts, rows, columns, self.longest_s)
            except _Died as death:
                if death.for_certain:
                    break
                continue
            self._put_back(decoder)
            if words is None:
                raise DecoderFailed(died=False)
            return words
        raise DecoderFailed(died=True)

    def pids(self) -> list[int]:
        """The idle processes."""
        with self._lock:
            return [decoder.pid for decoder in self._idle]

    def end(self) -> None:
        """End the idle processes. New ones may be started afterwards."""
        with self._lock:
            idle, self._idle = self._idle, []
        for decoder in idle:
            decoder.end()

    def forget(self) -> None:
        """In a forked child, let go of the parent's processes."""
        idle = self._idle
        self.__init__()  # type: ignore[misc]  # a new lock too: another thread may have held it
        for decoder in idle:
            decoder.forget()

    def _take(self) -> _Decoder:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Decoder()

    def _put_back(self, decoder: _Decoder) -> None:
        with self._lock:
            if len(self._idle) < (os.cpu_count() or 1):
                self._idle.append(decoder)
                return
        decoder.end()


POOL = DecoderPool()
"""This process's pool."""
atexit.register(POOL.end)
os.register_at_fork(after_in_child=POOL.forget)
