"""A worker process: claim a job, analyse the series, write the report, hand it to the outbox.

The job is claimed with a lease that a heartbeat renews. A worker that died loses it to the next one, and the fencing
number keeps a worker that comes back late from writing anything. One whose job hangs ends its own process.
"""

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy import Connection

from config.reasons import ReasonCode, Refusal
from config.settings import Settings
from dicom_node import heartbeat
from dicom_node.analysis import study_statement
from dicom_node.analysis.ahead import NOTHING, AnalysesAhead, Found
from dicom_node.analysis.analyse import Analysis, Loaded, analyse_loaded, load_series
from dicom_node.analysis.comparison import Comparison, compared, first_look
from dicom_node.analysis.current_model import replaced_by
from dicom_node.analysis.facts import facts_of
from dicom_node.analysis.figures import figures_of
from dicom_node.analysis.open_model import OpenModel, open_model
from dicom_node.analysis.read_ahead import ReadAhead
from dicom_node.analysis.repairs import note_repairs
from dicom_node.analysis.result_objects import ResultObjects, report_objects
from dicom_node.analysis.result_row import new_result
from dicom_node.analysis.suspended import suspended
from dicom_node.analysis.withdrawal import headers_from_report, is_withdrawal
from dicom_node.errors import GpuLost, ModelUnavailable
from dicom_node.report.person import Stated
from dicom_node.report.sources import Source
from dicom_node.waits import LONGEST_PAUSE_S, doubling_s
from inference.errors import CorruptInstance, DeviceLost, ModelError
from inference.finding import ModelIdentity
from inference.volume.load import DecodedFile
from storage import audit, deliveries, jobs, rejections, results, series, study_results, watch_facts
from storage.database import Database
from storage.errors import CorruptFile, StaleLease, StoreUnavailable
from storage.files import FileStore
from storage.jobs import ClaimedJob, ModelRef
from storage.replaces import Replaces
from storage.results import NewObject, PreviousResult
from storage.series import StoredInstance
from storage.study_results import StandingResult
from storage.watch_facts import Facts

log = structlog.get_logger()


class Worker:
    """Analyses queued series one after the other on one device. live_only: it takes no job of a batch."""

    def __init__(
        self, settings: Settings, database: Database, files: FileStore, device: str, *, live_only: bool = False
    ) -> None:
        self.settings = settings
        self.live_only = live_only
        self.database = database
        self.files = files
        self.device = device
        host = f"{socket.gethostname()}:" if database.is_server else ""
        self.name = f"{host}{device}:{threading.get_native_id()}"
        self._models: dict[str, OpenModel] = {}
        self._in_hand: ClaimedJob | None = None
        self._gpu_lost = False
        # Of the last job, if several models analyse a series: the next job is usually about the same one.
        self._held: tuple[tuple[int, str], Sequence[Path], Loaded] | None = None
        self._job_waits = threading.Event()
        self._ahead: AnalysesAhead | None = None
        if settings.worker.ahead:
            self._ahead = AnalysesAhead(settings, database, files, self._opened, self._job_waits.set, self._lose_gpu)
        bytes_ahead, whose = settings.worker.read_ahead_mb << 20, settings.report.changes
        self._read_ahead = ReadAhead(database, files, bytes_ahead, self._ahead, self._job_waits, whose=whose)

    def run(self, stop: threading.Event) -> bool:
        """Work until `stop` is set and for `worker.drain_s` more; then hand back what is not done.

        Returns False if a thread is still busy with what was handed back: it ends with the process.
        Raises GpuLost if the GPU failed: this process has no more use for it, a new one may.
        """
        thread = threading.Thread(target=self._work, args=(stop,), name="work", daemon=True)
        thread.start()
        worker = self.settings.worker
        # With a single attempt, a series that kills the process would take the job in hand with it.
        if worker.read_ahead_mb and worker.max_attempts > 1:
            arguments = (stop, worker.poll_s)
            threading.Thread(target=self._read_ahead.run, args=arguments, name="read-ahead", daemon=True).start()
        # In short waits: a signal's handler runs between them, whatever the other thread computes.
        while thread.is_alive() and not stop.wait(1.0):
            pass
        self._job_waits.set()  # it need not wait for one any more
        thread.join(self.settings.worker.drain_s)
        if self._ahead is not None:
            self._ahead.stop()
        if thread.is_alive():
            self._hand_back()
        if self._gpu_lost:
            raise GpuLost(f"{self.device} computes no more for this worker; a new process may find it again")
        return not thread.is_alive()

    def _lose_gpu(self) -> None:
        self._gpu_lost = True
        self._job_waits.set()  # it looks for no other

    def _hand_back(self) -> None:
        """Another worker starts the job from its beginning, and the attempt is not counted."""
        job = self._in_hand
        if job is None:
            return
        try:
            with self.database.transaction() as tx:
                jobs.hand_back(tx, job.job_id, job.fence, self.database.now())
        except StaleLease:
            return  # finished at the last moment, or lost already
        log.info("job handed back", job=job.job_id, series=job.series_pk)

    def _work(self, stop: threading.Event) -> None:
        log.info("worker started", worker=self.name)
        failures = 0
        while not (stop.is_set() or self._gpu_lost):
            try:
                worked = self.work_once(self.database.now())
                failures = 0
            except Exception as error:  # noqa: BLE001 - the worker loop outlives every job
                log.error("worker could not claim or finish", error=type(error).__name__)
                worked, failures = False, failures + 1
            if failures:
                stop.wait(doubling_s(self.settings.worker.poll_s, failures, LONGEST_PAUSE_S))
            elif not worked and not stop.is_set():
                self._job_waits.wait(self.settings.worker.poll_s)
            self._job_waits.clear()

    def work_once(self, now: float) -> bool:
        """Claim and handle one job. Returns False if none was waiting, or if it was handed back.

        Raises StoreUnavailable, with nothing claimed, while the file store is away.
        """
        worker = self.settings.worker
        self.files.check()  # no job is begun that could not be read
        self._read_ahead.claims()
        if self._ahead is not None:
            self._ahead.claims()
        try:
            with self.database.transaction() as tx:
                batches = not self.live_only and self.settings.batch.may_begin(now)
                job = jobs.claim(tx, self.name, now, worker.lease_s, worker.max_attempts, batches=batches)
        except Exception:
            self._idle()
            raise
        self._in_hand = job
        if job is None:
            self._held = None
            self._idle()
            return False
        log.info("job claimed", job=job.job_id, series=job.series_pk, attempt=job.attempt)
        try:
            with self._lease(job):
                self.handle(job)
        except StaleLease:
            log.warning("job lost to another worker", job=job.job_id)
        except StoreUnavailable as error:
            log.warning("the file store is away", job=job.job_id, reason=str(error))
            self._hand_back()
            return False
        except Exception as error:  # noqa: BLE001 - recorded with the job, and tried again
            # Every further job would fail in this process, however sound its series is.
            if isinstance(error, DeviceLost):
                self._lose_gpu()
            self._failed(job, error)
        finally:
            if self._held is None:  # else the next job is probably about the same series
                self._idle()
        return True

    def _idle(self) -> None:
        """There is no job in hand."""
        self._read_ahead.done()
        if self._ahead is not None:
            self._ahead.done()

    def handle(self, job: ClaimedJob) -> None:
        """Analyse one claimed series and commit its result."""
        read = self._read_ahead.take(job.series_pk, job.attempt)
        found = NOTHING if self._ahead is None else self._ahead.take(job)
        with self.database.read() as tx:
            job = replace(job, refusal=job.refusal or suspended(tx, job))
            instances = series.series_instances(tx, job.series_pk)
            previous = results.previous_result(tx, job.series_pk, self._replaced(tx, job))
        if series.instances_digest(instances) != job.instances_digest:
            raise StaleLease(f"job {job.job_id}: the series has changed since it was queued")
        if is_withdrawal(job) and previous is not None:
            return self._withdraw(job, instances, previous)
        held = self._loaded_before(job)
        # The digest is checked when a file is read: a disk that lies must not become a finding.
        trusted = set(read) if held is None else {instance.path for instance in instances}
        with self.files.at_hand(instances, trusted) as paths:
            found = found.of(paths) if job.refusal is None else NOTHING
            files = {path: read[one.path] for one, path in zip(instances, paths, strict=True) if one.path in read}
            stated = {path: file.stated for path, file in files.items() if file.stated is not None}
            decoded = {path: file.decoded for path, file in files.items()}
            del read, files
            if held is None:
                loaded = self._load(job, paths, decoded, found.loaded)
            else:
                loaded = held[1].at(dict(zip(held[0], paths, strict=True)))
            self._analyse(job, loaded, paths, previous, found=found, stated=stated)

    def _withdraw(self, job: ClaimedJob, instances: Sequence[StoredInstance], previous: PreviousResult) -> None:
        """Say that a report is taken back. Its images may be gone: the report itself says whose it was."""
        report = self.files.read_verified(previous.report.path, previous.report.sha256)
        headers = headers_from_report(report, job.series_instance_uid, instances)
        self._analyse(job, Loaded(None, job.refusal, 0.0), (), previous, headers)

    def _analyse(
        self,
        job: ClaimedJob,
        loaded: Loaded,
        paths: Sequence[Path],
        previous: PreviousResult | None,
        headers: Sequence[Source] | None = None,
        found: Found = NOTHING,
        stated: Mapping[Path, Stated] | None = None,
    ) -> None:
        """Analyse what was loaded of a series, and commit its result.

        paths: of its instances.  headers: theirs, if not to be read from there.  found: what was computed ahead.
        stated: whose scan they say that they are, as far as that was read ahead.
        """
        model = self._opened(job.model)
        analysis = found.analysis or analyse_loaded(loaded, model, own=self.settings.report, ahead=found.ahead)
        if job.shadow:
            self._commit(job, analysis, model.identity, ResultObjects())
            return
        facts = facts_of(analysis, paths) if self.settings.watch.enabled and not job.canary else None
        # A canary is nobody's earlier scan, and has none.
        look = None
        if not job.canary:
            look = first_look(self.settings, job.series_pk, paths, analysis, model, stated or {})
        committed = False
        while not committed:
            with self.database.read() as tx:
                others = study_results.others(tx, job.series_pk)
                refusal = suspended(tx, job) if analysis.refusal is None else None
            if refusal is not None:  # while it was being analysed
                job = replace(job, refusal=refusal)
                analysis, look = Analysis(None, refusal, analysis.volume, analysis.timings_s), None
            comparison = compared(look, self.database, analysis, model) if look else None
            said, built = self._built(job, analysis, paths, previous, model, others, comparison, headers, found)
            committed = self._commit(job, said, model.identity, built, others, comparison, previous, facts)

    def _built(
        self,
        job: ClaimedJob,
        analysis: Analysis,
        paths: Sequence[Path],
        previous: PreviousResult | None,
        model: OpenModel,
        others: Sequence[StandingResult],
        comparison: Comparison | None,
        headers: Sequence[Source] | None,
        found: Found = NOTHING,
    ) -> tuple[Analysis, ResultObjects]:
        """The result and its objects; a refusal if no report can be made of the headers of analysed images.

        others: what stands for the other series of the study.  found: what was computed ahead.
        """
        models_dir, card = self.settings.models_dir, model.card
        study = study_statement.of_stored(self.database, self.files, models_dir, job, paths, card, others, analysis)
        change = None if comparison is None else comparison.statement
        alone = job.revision == 1 and previous is None and study is None and change is None
        if found.objects is not None and alone and analysis is found.analysis:
            return analysis, found.objects
        build = partial(
            report_objects,
            paths=paths,
            headers=headers,
            model=model.identity,
            settings=self.settings,
            study=study,
            instances_digest=job.instances_digest,
            predecessor=self.files.read_verified(previous.report.path, previous.report.sha256) if previous else None,
            revision=job.revision,
            operating_points=figures_of(card, models_dir),
            change=change,
        )
        try:
            return analysis, build(analysis)
        except CorruptInstance as error:
            refused = Analysis(
                None, Refusal(ReasonCode.CORRUPT_INSTANCE, str(error)), analysis.volume, analysis.timings_s
            )
            return refused, build(refused)

    def _loaded_before(self, job: ClaimedJob) -> tuple[Sequence[Path], Loaded] | None:
        """What the last job has loaded, if it was of the same series, for another model; and from which files."""
        held, self._held = self._held, None
        input_ = (job.series_pk, job.instances_digest)
        if held is None or held[0] != input_ or job.attempt > 1 or job.refusal is not None:
            return None
        self._held = held
        return held[1], replace(held[2], seconds=0.0)

    def _load(
        self,
        job: ClaimedJob,
        paths: Sequence[Path],
        decoded: dict[Path, DecodedFile],
        found: Loaded | None,
    ) -> Loaded:
        """The series as a volume. What was decoded ahead is then released: the volume holds it.

        paths: of the instances, in their order.  found: what was loaded ahead.
        """
        if job.refusal is not None:
            return Loaded(None, job.refusal, 0.0)
        loaded = found or load_series(paths, decoded)
        decoded.clear()
        if len(self.settings.model_entries) > 1:
            self._held = (job.series_pk, job.instances_digest), paths, loaded
        return loaded

    def _commit(
        self,
        job: ClaimedJob,
        analysis: Analysis,
        model: ModelIdentity,
        built: ResultObjects,
        others: Sequence[StandingResult] | None = None,
        comparison: Comparison | None = None,
        previous: PreviousResult | None = None,
        facts: Facts | None = None,
    ) -> bool:
        """Record a result. Returns False if what it says of other results no longer holds.

        previous: the result that it replaces; who may have that is told too.  facts: for watching its model.
        """
        stored = [
            NewObject(
                o.kind, o.sop_instance_uid, o.sop_class_uid, o.series_instance_uid, self.files.write_durably([o.part10])
            )
            for o in built.objects
        ]
        destinations, withheld = self._destinations(model, job, analysis.finding is not None, previous)
        with self.database.transaction() as tx:
            study_results.lock_study(tx, job.series_pk)
            if others is not None and study_results.others(tx, job.series_pk) != others:
                return False
            if comparison is not None and not comparison.holds(tx):
                return False
            if analysis.refusal is None and suspended(tx, job):
                return False
            if job.refusal is not None and job.refusal.code == ReasonCode.MODEL_SUSPENDED:
                jobs.note_refusal(tx, job.job_id, job.refusal)
            now = self.database.now()
            result = new_result(analysis, model)
            replaces = self._replaced(tx, job)
            to = destinations if stored else []
            result_id = jobs.finish(tx, job.job_id, job.fence, now, result, stored, to, replaces)
            note_repairs(tx, job, result_id, now, built)
            if facts is not None:
                watch_facts.record(tx, result_id, now, facts if analysis.finding else facts.without_finding())
            if comparison is not None and analysis.finding is not None:
                comparison.record(tx, now, result_id)
            _note_withheld(tx, job, withheld if stored else [], now)
        log.info(
            "job done",
            job=job.job_id,
            outcome=analysis.outcome,
            shadow=job.shadow,
            reason=analysis.refusal.code if analysis.refusal else None,
        )
        return True

    def _replaced(self, tx: Connection, job: ClaimedJob) -> Replaces:
        """Which results of the series the job's replaces.

        If results are taken back, each model's own job does that, whichever models are in use now. Else what one says
        would replace what another says, and who had that one's former result would not hear of it.
        """
        found = replaced_by(self.settings, job.model.name)
        if not is_withdrawal(job) or found.only:
            return found
        beside = {model.name for model in rejections.models_of(tx, job.series_pk, job.revision)} - {job.model.name}
        return Replaces(but=found.but | beside)

    def _destinations(
        self, model: ModelIdentity, job: ClaimedJob, analysed: bool, previous: PreviousResult | None
    ) -> tuple[list[str], list[str]]:
        """Names of the destinations that get this model's result of a job, and of those that must not."""
        told: set[str] = set()
        if previous is not None and not job.canary:
            with self.database.read() as tx:
                told = deliveries.left_for(tx, previous.result_id)
        asking = self.settings.destinations_of_canaries if job.canary else self.settings.destinations_of(job.calling_ae)
        wanted = {one.name for one in asking if one.wants(analysed)}
        allowed: list[str] = []
        withheld: list[str] = []
        for destination in self.settings.destinations:
            if destination.name in wanted or (destination.name in told and destination.send_results):
                may_leave = self.settings.may_leave(destination, model.demonstration)
                (allowed if may_leave else withheld).append(destination.name)
        return allowed, withheld

    def _opened(self, model: ModelRef) -> OpenModel:
        """A model that is ready. Raises ModelUnavailable."""
        if model.digest not in self._models:
            # No more than are in use: the weights of former ones do not stay in memory.
            # A batch's model comes beside those: a live series must not wait until its own is loaded again.
            others = len(self.settings.model_entries) - 1 + self.settings.batch.enabled
            kept = list(self._models.items())[-others:] if others else []
            try:
                opened = open_model(self.settings, model, self.device)
            except ModelError as error:
                raise ModelUnavailable(f"its model cannot be opened: {error}") from error
            self._models = dict([*kept, (model.digest, opened)])
        return self._models[model.digest]

    def _failed(self, job: ClaimedJob, error: Exception) -> None:
        # The type and not the text: a library's message may quote patient data.
        reason = str(error) if isinstance(error, CorruptFile | ModelUnavailable | DeviceLost) else type(error).__name__
        log.error("job failed", job=job.job_id, error=reason)
        now = self.database.now()
        with self.database.transaction() as tx:
            jobs.fail(tx, job.job_id, job.fence, now, reason, now + self.settings.worker.retry_delay_s)

    @contextmanager
    def _lease(self, job: ClaimedJob) -> Iterator[None]:
        """Keep the job's lease while the body runs; end the process if that takes too long."""
        lease_s, longest_s = self.settings.worker.lease_s, self.settings.worker.longest_s

        def renew(tx: Connection, now: float) -> bool:
            return jobs.heartbeat(tx, job.job_id, job.fence, now, lease_s)

        # Not in the heartbeat: that ends with the lease, and waits for the index.
        watch = threading.Timer(longest_s, _end_hanging, (job.job_id, longest_s))
        watch.daemon = True
        watch.start()
        try:
            with heartbeat.kept(self.database, renew, lease_s, job=job.job_id):
                yield
        finally:
            watch.cancel()


def _end_hanging(job_id: int, longest_s: float) -> None:
    """No other way ends a thread that hangs. The next worker gets the job, as if this one had died of it."""
    log.error("job hangs: its worker ends", job=job_id, longest_s=longest_s)
    os._exit(1)


def _note_withheld(tx: Connection, job: ClaimedJob, destinations: Sequence[str], now: float) -> None:
    subject = audit.Subject(series_uid=job.series_instance_uid, study_uid=job.study_instance_uid, job_id=job.job_id)
    for name in destinations:
        detail = {"destination": name, "why": "demonstration model, destination is not loopback"}
        audit.append(tx, now, "delivery.withheld", subject, outcome="WITHHELD", detail=detail)
