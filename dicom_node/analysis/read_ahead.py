"""Reading ahead: the next series is read and decoded while this one is computed, and while its slices still arrive.

Nothing is claimed for it, so leases, attempts and fencing numbers are not affected: what was decoded is used if the
worker gets that series, and dropped otherwise. A file that cannot be decoded is left to the job itself, which says so.

Decoders run in processes of their own, so a stream that kills one is only a file that cannot be decoded. If a series
kills the worker all the same, the job in hand must not lose its attempts to that: a job that was tried before is
computed alone, and a series whose job was tried before is never read ahead.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from dicom_node.analysis.ahead import AnalysesAhead
from dicom_node.report.person import Stated, stated
from dicom_node.waits import LONGEST_PAUSE_S, doubling_s
from inference.errors import InferenceError
from inference.volume.load import DecodedFile, decode
from storage import series
from storage.database import Database
from storage.errors import CorruptFile, StorageError
from storage.files import FileStore
from storage.series import StoredInstance

log = structlog.get_logger()

_BETWEEN_SLICES_S = 0.1
_DECODE_FOR_S = 0.1
_LISTED_FOR_S = 1.0
"""How long a list of instances is used if no other has come: to read it for each slice takes as long as decoding."""


@dataclass(frozen=True)
class ReadFile:
    """A file that was read ahead.  stated: whose scan it says that it is; None if that was not read."""

    decoded: DecodedFile
    stated: Stated | None = None

    @property
    def nbytes(self) -> int:
        """Memory of its slices."""
        return sum(plane.nbytes for plane in self.decoded.planes)


class ReadAhead:
    """Decoded slices of one series at a time, in bounded memory.

    max_bytes: of decoded slices, and of any one file.
    whose: also read whose scan each file says that it is.
    analyses: what goes on from there while the worker is idle; None: nothing does.
    job_waits: is set when a job of the series is seen that nobody has claimed.
    """

    def __init__(
        self,
        database: Database,
        files: FileStore,
        max_bytes: int,
        analyses: AnalysesAhead | None = None,
        job_waits: threading.Event | None = None,
        *,
        whose: bool = False,
    ) -> None:
        self._whose = whose
        self._analyses = analyses
        self._job_waits = job_waits or threading.Event()
        self._database = database
        self._files = files
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._in_hand: int | None = None
        self._alone = False
        self._series_pk: int | None = None
        self._read: dict[str, ReadFile] = {}
        self._useless: set[str] = set()
        # A series looks gone as soon as its job is claimed, and only then the job takes what was read for it.
        self._claiming = False
        self._listed: tuple[tuple[int, int], float, list[StoredInstance]] | None = None

    def run(self, stop: threading.Event, poll_s: float) -> None:
        """Read ahead until `stop` is set."""
        failures = 0
        while not stop.is_set():
            try:
                went_on, failures = self.step(), 0
            except StorageError as error:
                log.warning("read ahead failed", error=type(error).__name__)
                went_on, failures = False, failures + 1
            if not went_on:
                # Of a series that is being analysed ahead the next slice comes soon.
                idle_s = poll_s if self._analyses is None or self._series_pk is None else min(poll_s, _BETWEEN_SLICES_S)
                stop.wait(doubling_s(poll_s, failures, LONGEST_PAUSE_S) if failures else idle_s)
        if self._analyses is not None:
            self._analyses.leave()

    def claims(self) -> None:
        """The worker looks for a job: until it takes what was read for it, or has none, nothing is dropped."""
        self._claiming = True

    def take(self, series_pk: int, attempt: int) -> dict[str, ReadFile]:
        """The worker begins with this series. Returns what was read of it, by stored path, its SHA-256 checked.

        What was read of another series is kept if this one is still in hand, for a second model.
        """
        with self._lock:
            found = self._read if self._series_pk == series_pk else {}
            again = series_pk == self._in_hand and attempt == 1
            self._in_hand, self._alone, self._claiming = series_pk, attempt > 1, False
            if not again:
                self._forget(None)
        return dict(found)

    def done(self) -> None:
        """The worker has nothing in hand."""
        with self._lock:
            self._in_hand, self._alone, self._claiming = None, False, False

    def step(self) -> bool:
        """Decode the next files, then analyse some of what is there. Returns False if there is nothing to do."""
        if self._alone:
            return False
        stay = None if self._analyses is None else self._series_pk
        with self._database.read() as tx:
            series_pk = series.next_series(tx, self._in_hand, stay)
            held = self._instances(tx, series_pk) if series_pk is not None else []
            if stay is not None and series_pk == stay and self._in_hand is None and series.is_queued(tx, stay):
                self._job_waits.set()
        with self._lock:
            changed = series_pk != self._series_pk
            if changed and self._claiming and self._series_pk is not None:
                return False
            if changed:
                self._forget(series_pk)
            wanted = [item for item in held if self._is_wanted(item)]
            room = self._max_bytes - sum(file.nbytes for file in self._read.values())
        if changed and self._analyses is not None:
            self._analyses.leave()
        decoded = self._decode_some(wanted, room, lambda: self._series_pk == series_pk and not self._alone)
        return (series_pk is not None and self._analyse(series_pk, held)) or decoded

    def _instances(self, tx: Connection, series_pk: int) -> list[StoredInstance]:
        key, now = (series_pk, series.instance_count(tx, series_pk)), time.monotonic()
        if self._listed is None or self._listed[0] != key or now > self._listed[1] + _LISTED_FOR_S:
            self._listed = key, now, series.series_instances(tx, series_pk)
        return self._listed[2]

    def _analyse(self, series_pk: int, held: Sequence[StoredInstance]) -> bool:
        """Let more of the series be analysed ahead. Returns False if nothing was."""
        if self._analyses is None or self._in_hand is not None:
            return False
        with self._lock:
            read = self._read if self._series_pk == series_pk else {}
            decoded = {path: file.decoded for path, file in read.items()}
        return bool(decoded) and self._analyses.go_on(series_pk, held, decoded)

    def _is_wanted(self, item: StoredInstance) -> bool:
        return (
            item.gone is None
            and item.size <= self._max_bytes
            and item.path not in self._useless
            and item.path not in self._read
        )

    def _decode_some(self, wanted: Sequence[StoredInstance], room: int, still_wanted: Callable[[], bool]) -> bool:
        """Decode files for a moment. Returns False if all were tried and none was kept."""
        until, kept = time.monotonic() + _DECODE_FOR_S, 0
        for item in wanted:
            kept += self._decode(item, room - kept, still_wanted)
            if time.monotonic() > until or not still_wanted():
                return True
        return kept > 0

    def _decode(self, item: StoredInstance, room: int, still_wanted: Callable[[], bool]) -> int:
        """Decode one file and keep it. Returns its bytes, 0 if it was not kept."""
        try:
            with self._files.at_hand([item]) as (path,):
                read = ReadFile(decode(path, room), stated(path) if self._whose else None)
        except (InferenceError, CorruptFile):
            with self._lock:
                self._useless.add(item.path)
            return 0
        with self._lock:
            if not still_wanted():
                return 0
            self._read[item.path] = read
        return read.nbytes

    def _forget(self, series_pk: int | None) -> None:
        self._series_pk, self._read, self._useless = series_pk, {}, set()
