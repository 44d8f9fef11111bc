"""Analysing ahead: an idle worker does what the slices that are there allow, while others of their series still arrive.

What is found is used only for exactly the input that it was made from: masks by the very slice (see the model's own
`inference.ahead`), a whole analysis by the series' instances and the model. So a series that goes another way than was
guessed costs time, and never a wrong word. Nothing is claimed, and nothing is written but a note of the series in hand.

A job goes before: once one is claimed, what was begun is left at its next checkpoint.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from config.settings import Settings
from dicom_node.analysis.ahead_notes import AheadNotes
from dicom_node.analysis.analyse import Analysis, Loaded, analyse_loaded, load_series
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.expected import ExpectedCount
from dicom_node.analysis.figures import figures_of
from dicom_node.analysis.open_model import OpenModel
from dicom_node.analysis.result_objects import ResultObjects, report_objects
from inference.ahead import Ahead, WorksAhead
from inference.errors import CorruptInstance, DeviceLost
from inference.interrupt import Interrupted, checkpoint, interruptible
from inference.volume.arriving import Arrived, arrived
from inference.volume.load import DecodedFile
from storage import series
from storage.database import Database
from storage.files import FileStore
from storage.jobs import ClaimedJob, ModelRef
from storage.series import StoredInstance, instances_digest

log = structlog.get_logger()

SETTLED_S = 0.2
"""After this long without a new slice, those that are there may be all. Each time that they were not, it doubles."""
_OVERDUE_S = 5.0
"""The same if a PACS has more."""
_LAST_STEP_S = 5.0
_LOOK_S = 0.1
"""How often is asked, during a whole analysis, whether another slice has come, or the job."""


@dataclass(frozen=True)
class Found:
    """What was computed of a claimed series.

    ahead: by its model's slices.  loaded, analysis: of all that it is.
    objects: those of a first result that says nothing of any other result; None if there was no time to make them.
    """

    ahead: Ahead | None = None
    loaded: Loaded | None = None
    analysis: Analysis | None = None
    objects: ResultObjects | None = None

    def of(self, paths: Sequence[Path]) -> "Found":
        """What of it holds for these files: a volume also names the files that it is from."""
        volume = None if self.loaded is None else self.loaded.volume
        if volume is None or {one.path for one in volume.slices} <= set(paths):
            return self
        return Found(self.ahead)


NOTHING = Found()


@dataclass
class _Series:
    """The series in hand.  model: who will probably analyse it.  digest: of the instances that are there."""

    series_pk: int
    model: ModelRef
    opened: OpenModel
    ahead: Ahead | None
    digest: str = ""
    since: float = 0.0
    there: tuple[tuple[int, int | None], Arrived | None] | None = None
    patience_s: float = SETTLED_S
    whole: tuple[str, Loaded, Analysis, ResultObjects | None] | None = None

    def arrived(self, decoded: Mapping[str, DecodedFile], expected: int | None) -> Arrived | None:
        """What the model may begin with; put in order once for several steps."""
        if self.ahead is None:
            return None
        key = len(decoded), expected
        if self.there is None or self.there[0] != key:
            self.there = key, arrived(decoded, expected)
        return self.there[1]


class AnalysesAhead:
    """What one worker analyses ahead: of one series at a time.

    open_model: gives a model that is ready; called by one thread at a time.
    on_queued: called if a job of the series in hand is seen while all of that is being analysed.
    on_lost: called if the GPU computes no more.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        files: FileStore,
        open_model: Callable[[ModelRef], OpenModel],
        on_queued: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._database = database
        self._files = files
        self._open_model = open_model
        self._on_queued, self._on_lost = on_queued, on_lost
        self._notes = AheadNotes(settings.data_dir)
        self._expected = ExpectedCount(settings, database, files)
        # Held by whoever computes ahead; a job waits for it, and `_job_waits` lets go of it soon.
        self._computing = threading.Lock()
        self._job_waits = threading.Event()
        self._awaited: tuple[str, str] | None = None
        self._series: _Series | None = None
        self._not_again: int | None = None
        # The series in hand looks gone as soon as its job is claimed, and only then the job takes what was computed.
        self._claiming = False
        self._left: _Series | None = None

    def claims(self) -> None:
        """The worker looks for a job: until it takes what was computed for it, or has none, nothing is dropped."""
        self._claiming = True

    def go_on(self, series_pk: int, held: Sequence[StoredInstance], decoded: Mapping[str, DecodedFile]) -> bool:
        """Compute a little more of a series that still arrives. Returns False if there is nothing to compute.

        held: its instances.  decoded: those that were decoded, by stored path.
        """
        with self._computing:
            if self._job_waits.is_set() or series_pk == self._not_again:
                return False
            try:
                return self._step(series_pk, held, decoded)
            except Interrupted:
                return False
            except DeviceLost:
                self._drop(series_pk)
                self._on_lost()
                return False
            except Exception as error:  # noqa: BLE001 - nobody has asked for this; the job itself says what is wrong
                log.warning("not analysed ahead", series=series_pk, error=type(error).__name__)
                self._drop(series_pk)
                return False

    def take(self, job: ClaimedJob) -> Found:
        """A job begins: what was computed for it. Waits for a step that is being computed, a fraction of a second;
        or for a whole analysis, if it is the job's own."""
        self._awaited = (job.instances_digest, job.model.digest)
        self._job_waits.set()
        with self._computing:
            self._awaited = None
            self._claiming = False
            one, left, self._left = self._series, self._left, None
            if one is not None:
                one.there = None  # the slices that were decoded are dropped for the job's
            if one is None or one.series_pk != job.series_pk or one.model.digest != job.model.digest:
                if one is left:
                    self._drop(None)
                return NOTHING
            self._series = None
            self._notes.end()
            if job.attempt > 1 or job.refusal is not None:
                return NOTHING
            if one.whole is not None and one.whole[0] == job.instances_digest:
                return Found(one.ahead, *one.whole[1:])
            return Found(one.ahead)

    def done(self) -> None:
        """The worker has no job in hand."""
        self._claiming = False
        left, self._left = self._left, None
        # If somebody computes, it is of another series by now. The worker waits for that only once it has a job.
        if left is not None and self._computing.acquire(blocking=False):
            if self._series is left:
                self._drop(None)
            self._computing.release()
        self._job_waits.clear()

    def leave(self) -> None:
        """The series in hand is no longer looked at: it was refused, or another worker has it, or this one stops."""
        with self._computing:
            if self._claiming:
                self._left = self._series
            else:
                self._drop(None)

    def stop(self) -> None:
        """The worker ends of its own will. A step that does not end in time leaves the note of its series."""
        self._job_waits.set()
        if self._computing.acquire(timeout=_LAST_STEP_S):
            self._drop(None)
            self._computing.release()

    def _drop(self, series_pk: int | None) -> None:
        """Forget what is in hand.  series_pk: a series that is not to be taken up again."""
        self._series, self._not_again = None, series_pk
        self._notes.end()

    def _step(self, series_pk: int, held: Sequence[StoredInstance], decoded: Mapping[str, DecodedFile]) -> bool:
        if self._series is None or self._series.series_pk != series_pk:
            self._begin(series_pk)
        one = self._series
        if one is None:
            return False
        digest, now = instances_digest(held), time.monotonic()
        if digest != one.digest:
            one.digest, one.since = digest, now
        expected = None if one.ahead is None else self._expected.of(series_pk, len(held))
        # A PACS that has more will be asked for them before the series is closed, and may be wrong.
        patience_s = one.patience_s if expected is None else max(one.patience_s, _OVERDUE_S)
        settled = expected == len(held) or now - one.since >= patience_s
        with interruptible(self._job_waits.is_set):
            there = one.arrived(decoded, expected)
            if there is not None and one.ahead is not None and one.ahead.go_on(there, settled=settled):
                return True
        all_there = all(item.path in decoded for item in held)
        if not settled or not all_there or (one.whole is not None and one.whole[0] == digest):
            return False
        return self._whole(one, held, decoded)

    def _begin(self, series_pk: int) -> None:
        self._drop(series_pk)
        with self._database.read() as tx:
            source = series.first_sender(tx, series_pk)
        models = current_models(self._settings).of(source)
        if models is None or not self._notes.begin(series_pk):
            return
        opened = self._open_model(models.reporting)
        if not isinstance(opened.loaded, WorksAhead):
            self._notes.end()  # it has no checkpoints, and a job would have to wait for it
            return
        ahead = opened.loaded.ahead(self._settings.worker.read_ahead_mb << 20)
        self._series, self._not_again = _Series(series_pk, models.reporting, opened, ahead), None

    def _whole(self, one: _Series, held: Sequence[StoredInstance], decoded: Mapping[str, DecodedFile]) -> bool:
        """Analyse the series as it is, as if it were closed now."""
        looked = time.monotonic()

        def stop() -> bool:
            nonlocal looked
            if self._job_waits.is_set():
                return self._awaited != (one.digest, one.model.digest)
            if time.monotonic() - looked < _LOOK_S:
                return False
            looked = time.monotonic()
            with self._database.read() as tx:
                if series.is_queued(tx, one.series_pk):
                    self._on_queued()
                return series.instance_count(tx, one.series_pk) != len(held)

        # Twice as long for the next, in case this one is not the last.
        one.patience_s *= 2
        with interruptible(stop), self._files.at_hand(held, {item.path for item in held}) as paths:
            loaded = load_series(paths, {path: decoded[item.path] for item, path in zip(held, paths, strict=True)})
            analysis = analyse_loaded(loaded, one.opened, own=self._settings.report, ahead=one.ahead)
            one.whole = one.digest, loaded, analysis, None
            checkpoint()
            one.whole = one.digest, loaded, analysis, self._objects(one, analysis, paths)
        return True

    def _objects(self, one: _Series, analysis: Analysis, paths: Sequence[Path]) -> ResultObjects | None:
        """The objects of a first result that says nothing of any other result."""
        try:
            return report_objects(
                analysis,
                paths,
                one.opened.identity,
                self._settings,
                instances_digest=one.digest,
                operating_points=figures_of(one.opened.card, self._settings.models_dir),
            )
        except CorruptInstance:
            return None
