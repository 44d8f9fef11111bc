"""The interval jobs of the node, on APScheduler: nothing else is decided here.

Deadlines are in the database and every rule takes `now`, so a restart forgets nothing: a job that was missed is
done by the next tick.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from apscheduler.events import EVENT_JOB_ERROR, JobExecutionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from config.settings import Settings
from dicom_node.analysis.current_model import current_models
from dicom_node.batch.feeder import Feeder
from dicom_node.canary import runner
from dicom_node.canary.runner import Canaries
from dicom_node.completion import still_there
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from dicom_node.completion.second_copies import compare
from dicom_node.completion.still_there import StillThere
from dicom_node.gateways.notifications.notifier import Notifier
from dicom_node.performer.opening import listening, performers
from dicom_node.runtime import certificate_expiry
from dicom_node.runtime.metrics import problems
from storage import job_takeover, orphans, retention
from storage.database import Database
from storage.errors import NotLeader, StorageError
from storage.files import FileStore
from storage.identity import Epoch
from storage.leader import Leadership

log = structlog.get_logger()

CHOOSE_SERIES = "choose series"
CLOSE_EVERY_S = 0.5
CHOOSE_EVERY_S = 1.0
LEASES_EVERY_S = 5.0
COMPARE_EVERY_S = 2.0
RETENTION_EVERY_S = 3600.0
SWEEP_EVERY_S = 6 * 3600.0
EPOCH_EVERY_S = 60.0
BATCHES_EVERY_S = 0.5
WORKLISTS_EVERY_S = 1.0
NOTIFICATIONS_EVERY_S = 5.0
WATCH_EVERY_S = 600.0
"""How often it is asked whether a look at the models is due; when, the index knows."""
CERTIFICATES_EVERY_S = 24 * 3600.0
FIRST_SILENCE_S, LONGEST_SILENCE_S = 1.0, 300.0
LEAD_EVERY_S = 2.0
"""How often a host that does not lead asks whether it may, and one that does whether it still does."""
ORPHAN_AGE_S = 24 * 3600.0
"""While the node runs, a file without a row may belong to an instance that is still being received."""


def run_scheduler(settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> None:
    """Run the interval jobs until `stop` is set; a running job is finished first.

    If several hosts share the index, only one of them does, and another takes over when that one is gone.
    """
    leadership = Leadership(database, socket.gethostname())
    certificate_expiry.warn(settings)
    waits = False
    while not stop.is_set():
        if _may_lead(leadership):
            _lead(settings, database, files, stop, leadership)
            waits = False
        elif not waits:
            log.info("another host leads; this one waits")
            waits = True
        stop.wait(0 if stop.is_set() else LEAD_EVERY_S)


def _may_lead(leadership: Leadership) -> bool:
    try:
        return leadership.take()
    except StorageError as error:
        log.warning("this host cannot lead", error=type(error).__name__)
        return False


def _lead(
    settings: Settings, database: Database, files: FileStore, stop: threading.Event, leadership: Leadership
) -> None:
    """Run the interval jobs until `stop` is set, or until another host may lead."""
    ends = threading.Event()
    try:
        with contextlib.ExitStack() as held:
            held.callback(_start_jobs(settings, database, files, ends))
            held.callback(ends.set)
            while leadership.holds():
                if stop.wait(LEAD_EVERY_S):
                    return
            log.warning("this host no longer leads")
    finally:
        leadership.give_up()


def _start_jobs(settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> Callable[[], None]:
    """Start the interval jobs. Returns what ends them, which finishes a running one."""
    # A thread more for each worklist, which may fetch images for minutes.
    threads = {"default": ThreadPoolExecutor(11 + len(settings.worklists) + len(settings.rs_worklists))}
    rules = {"coalesce": True, "max_instances": 1}
    scheduler = BackgroundScheduler(timezone="UTC", executors=threads, job_defaults=rules)
    scheduler.add_listener(Complaints(), EVENT_JOB_ERROR)
    completion = Completion(settings, database, files, lambda: _run_now(scheduler, CHOOSE_SERIES))
    jobs = _jobs(settings, database, files, completion)
    if settings.batch.enabled:
        jobs.append(("batches", BATCHES_EVERY_S, Feeder(settings, database, files, stop).step))
    found = performers(settings, database, files, stop)
    for entry, performer in zip((*settings.worklists, *settings.rs_worklists), found, strict=True):
        jobs.append((f"worklist {entry.name}", WORKLISTS_EVERY_S, performer.step))
    pacs = settings.dicom_destination(settings.completion.query_destination)
    if settings.iocm.poll_hours and pacs is not None:
        jobs.append(("still there", still_there.EVERY_S, StillThere(settings, pacs, database, files).step))
    if settings.watch.enabled:
        from dicom_node.runtime.watching import Watching  # its statistics take a second to load

        jobs.append(("watch", WATCH_EVERY_S, Watching(settings, database).step))
    if settings.canary.every_hours is not None:
        jobs.append(("canaries", runner.EVERY_S, Canaries(settings, database, files).step))
    if settings.notifications:
        notifier = Notifier(settings, database, lambda: problems(settings, database, files, None))
        jobs.append(("notifications", NOTIFICATIONS_EVERY_S, lambda: notifier.step(time.time())))
    for name, every_s, action in jobs:
        scheduler.add_job(action, "interval", seconds=every_s, id=name)
    events = contextlib.ExitStack()
    events.enter_context(listening(settings, found, database))
    scheduler.start()
    log.info("scheduler started", jobs=[job.id for job in scheduler.get_jobs()])

    def end() -> None:
        events.close()
        scheduler.shutdown(wait=True)
        completion.stop()

    return end


def _run_now(scheduler: BackgroundScheduler, job_id: str) -> None:
    """Let an interval job run at once, and then in its intervals again."""
    if scheduler.running:
        scheduler.modify_job(job_id, next_run_time=datetime.now(UTC))


def _jobs(
    settings: Settings, database: Database, files: FileStore, completion: Completion
) -> list[tuple[str, float, Callable[[], None]]]:
    """Name, interval in seconds and action of each job."""

    def close_series() -> None:
        completion.close_due_series(current_models(settings), database.now())

    best = BestSeries(settings, database, files)

    def choose_series() -> None:
        best.choose(current_models(settings), database.now())

    def release_leases() -> None:
        with database.transaction() as tx:
            job_takeover.release_expired(tx, database.now(), settings.worker.max_attempts)

    def compare_copies() -> None:
        compare(database, files, database.now())

    def delete_old_images() -> None:
        days = settings.storage.retention_days
        if days is not None:
            retention.delete_old_images(database, files, database.now(), days)

    def sweep_orphans() -> None:
        orphans.sweep_regularly(database, files, database.now(), ORPHAN_AGE_S)
        orphans.empty_quarantine(database, files, database.now(), settings.storage.quarantine_days)

    epoch = Epoch(database, files)

    return [
        ("close series", CLOSE_EVERY_S, close_series),
        (CHOOSE_SERIES, CHOOSE_EVERY_S, choose_series),
        ("compare copies", COMPARE_EVERY_S, compare_copies),
        ("release leases", LEASES_EVERY_S, release_leases),
        ("retention", RETENTION_EVERY_S, delete_old_images),
        ("sweep", SWEEP_EVERY_S, sweep_orphans),
        ("epoch", EPOCH_EVERY_S, epoch.raise_after_work),
        ("certificates", CERTIFICATES_EVERY_S, lambda: certificate_expiry.warn(settings)),
    ]


class Complaints:
    """Logs repeated failures at growing intervals: a job that runs each second must not fill the log."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silences: dict[str, tuple[float, float]] = {}

    def __call__(self, event: JobExecutionEvent) -> None:
        """A job has failed. One of a host that no longer leads was meant to."""
        if isinstance(event.exception, NotLeader):
            return
        now = self._clock()
        until, silence_s = self._silences.get(event.job_id, (now, FIRST_SILENCE_S))
        if now < until:
            return
        if now > until + 2 * silence_s:
            silence_s = FIRST_SILENCE_S  # it has worked meanwhile
        self._silences[event.job_id] = now + silence_s, min(2 * silence_s, LONGEST_SILENCE_S)
        # The type and not the text: a library's message may quote patient data.
        log.error("scheduled job failed", job=event.job_id, error=type(event.exception).__name__)
