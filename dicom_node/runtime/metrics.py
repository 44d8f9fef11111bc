"""Prometheus metrics and a health check over HTTP, for a monitor on this machine. Nothing about patients.

    GET /metrics    queues, associations, refusals, disk, certificates
    GET /health     200 "ok", or 503 with a word for each problem

It is a process of its own, so that no scrape can hold up an image. It reads what it shows from the index, except what
only the receivers know (see receiver/meters.py).
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.errors import NodeError
from dicom_node.runtime.certificate_expiry import DAY_S, expiries
from dicom_node.runtime.supervisor import COUNTS_VARIABLE, PARTS_VARIABLE
from storage import canaries, forwarding, watch_alarms, watch_state, worklists_away
from storage.database import Database
from storage.errors import StorageError, StoreReplaced
from storage.files import FileStore
from storage.status import lateness, queues

log = structlog.get_logger()

LATE_S = 900.0
"""Work that is overdue by this long shows that its process does not get to it."""
MIB = 1024**2
STARTED = time.time()
READ_TIMEOUT_S = 5
WORDS = (
    "low-disk",
    "store-away",
    "receiver-down",
    "store-replaced",
    "index-unreadable",
    "closing-late",
    "leases-late",
    "sending-late",
    "worklist-late",
    "audit-messages-late",
    "canary-failed",
    "canary-differs",
    "canary-stale",
)
"""What /health may say, a word for each problem; docs/runbook.md has a section for each."""


class NodeCollector(Collector):
    """What the index, the disk and the certificate files say.

    health: what keeps the node from working, in WORDS.
    """

    def __init__(
        self, settings: Settings, database: Database, files: FileStore, health: Callable[[], list[str]]
    ) -> None:
        self._settings = settings
        self._database = database
        self._files = files
        self._health = health

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client. Without the index, the rest is shown."""
        yield GaugeMetricFamily("dicom_node_disk_free_bytes", "Free space of the file store.", self._files.free_bytes())
        left = GaugeMetricFamily("dicom_node_certificate_expiry_seconds", "Until a file expires.", labels=["use"])
        for found in expiries(self._settings, time.time()):
            # A file that cannot be read is no better than one that has expired.
            left.add_metric([found.use], 0 if found.days_left is None else found.days_left * DAY_S)
        yield left
        problems = self._health()
        answers = "store-away" not in problems
        yield GaugeMetricFamily("dicom_node_file_store_up", "1 if the file store answers.", float(answers))
        yield _labelled("problem", "1 while /health says this word.", "word", _as_flags(problems))
        try:
            yield from self._queues()
        except StorageError:
            yield GaugeMetricFamily("dicom_node_index_up", "1 if the index can be read.", 0)

    def _queues(self) -> Iterator[Metric]:
        with self._database.read() as tx:
            found = queues(tx, self._database.now())
            away = worklists_away.away(tx, self._settings.worklist_names, self._database.now())
            untold = forwarding.lag(tx, self._database.now()) if self._settings.audit.syslog.host else None
            watched = list(_watches(tx, self._database.now())) if self._settings.watch.enabled else []
            watched += _last_canary(tx) if self._settings.canary.every_hours is not None else []
        yield GaugeMetricFamily("dicom_node_index_up", "1 if the index can be read.", 1)
        if untold is not None:
            name = "dicom_node_audit_rows_untold"
            yield GaugeMetricFamily(name, "Rows of the audit trail without a message yet.", untold["rows"])
            name = "dicom_node_audit_rows_untold_oldest_seconds"
            yield GaugeMetricFamily(name, "How long they wait.", untold["seconds"] or 0)
        for part, counts in found["states"].items():
            yield _labelled(part, f"{part.capitalize()} by state.", "state", counts)
        if found["worklist_steps"]:
            yield _labelled("worklist_steps", "Steps of worklists by state.", "state", found["worklist_steps"])
        yield _labelled("results", "Results by outcome.", "outcome", found["results"])
        yield _labelled("instances_gone", "Instances that are no longer held.", "why", found["instances_gone"])
        yield GaugeMetricFamily("dicom_node_instances_set_aside", "They contradict what is held.", found["conflicts"])
        yield _labelled("paused", "Paused by a person.", "kind", found["paused"])
        for name, of in DELIVERIES.items():
            yield _labelled(f"destination_{name}", of, "destination", found["destinations"][name])
        if self._settings.worklist_names:
            up = {name: int(name not in {one.name for one in away}) for name in self._settings.worklist_names}
            yield _labelled("worklist_up", "1 if a worklist answers when it is asked.", "worklist", up)
        for part, age in found["oldest_s"].items():
            yield GaugeMetricFamily(f"dicom_node_{part}_oldest_seconds", f"How long {part} wait.", age or 0)
        yield from watched


def _watches(tx: Connection, now: float) -> Iterator[Metric]:
    """How many alarms of drift nobody has answered, and when the models were last looked at.

    Until there is a look, since this process was started: a look that never succeeds must be told as well.
    """
    open_ = Counter((one.model, one.watch) for one in watch_alarms.unanswered(tx))
    family = GaugeMetricFamily("dicom_node_drift_alarms", "Alarms that wait for an answer.", labels=["model", "watch"])
    for labels, number in sorted(open_.items()):
        family.add_metric(list(labels), number)
    yield family
    last = watch_state.looked_at(tx)
    since = max(0.0, now - (STARTED if last is None else last))
    yield GaugeMetricFamily("dicom_node_watch_last_look_seconds", "Since the models were last looked at.", since)


def _last_canary(tx: Connection) -> Iterator[Metric]:
    passed = canaries.last_in(tx, canaries.CanaryState.PASSED)
    if passed is not None and passed.ended_at is not None:
        name = "dicom_node_canary_passed_timestamp_seconds"
        yield GaugeMetricFamily(name, "When a canary passed last.", passed.ended_at)


DELIVERIES = {
    "failed": "Deliveries that are not tried again.",
    "waiting": "Deliveries that wait.",
    "oldest_seconds": "How long the first of them has waited.",
}


def _labelled(name: str, what: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"dicom_node_{name}", what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _as_flags(found: Collection[str]) -> dict[str, float]:
    return {word: float(word in found) for word in WORDS}


def problems(settings: Settings, database: Database, files: FileStore, receivers: float | None) -> list[str]:
    """What keeps the node from working, in WORDS; empty if nothing does.

    receivers: how many listen; None if that is not known.
    """
    found = []
    if files.free_bytes() < settings.storage.low_disk_mb * MIB:
        found.append("low-disk")
    try:
        files.ask()
    except StorageError:
        found.append("store-away")
    receives = "receive" in os.environ.get(PARTS_VARIABLE, "receive").split(",")
    if receives and receivers is not None and receivers < settings.receiver.processes:
        found.append("receiver-down")
    try:
        database.check()
        with database.read() as tx:
            late = lateness(tx, database.now())
            away = worklists_away.away(tx, settings.worklist_names, database.now())
            late["worklist"] = max((one.seconds for one in away), default=None)
            patience_s = settings.canary.patience_s
            wrong = None if patience_s is None else canaries.alarm(tx, database.now(), patience_s)
            found += [f"canary-{wrong}"] if wrong else []
            if settings.audit.syslog.host:
                late |= {"audit-messages": (forwarding.lag(tx, database.now()) or {}).get("seconds")}
    except StoreReplaced:
        return [*found, "store-replaced"]
    except StorageError:
        return [*found, "index-unreadable"]
    return found + [f"{part}-late" for part, seconds in late.items() if seconds is not None and seconds > LATE_S]


class _Quiet(WSGIRequestHandler):
    """Logs no requests, and waits for none without end."""

    timeout = READ_TIMEOUT_S

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def registry_of(settings: Settings, database: Database, files: FileStore) -> CollectorRegistry:
    """Everything that is measured, of all processes."""
    registry = CollectorRegistry()
    folder = os.environ.get(COUNTS_VARIABLE)
    if folder:
        MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    registry.register(NodeCollector(settings, database, files, lambda: health(settings, database, files)))
    return registry


def health(settings: Settings, database: Database, files: FileStore) -> list[str]:
    """See `problems`."""
    return problems(settings, database, files, _receivers(os.environ.get(COUNTS_VARIABLE)))


def serve(settings: Settings, database: Database, files: FileStore, stop: threading.Event) -> None:
    """Answer until `stop` is set. Raises NodeError if the port is taken."""
    app = _application(registry_of(settings, database, files), lambda: health(settings, database, files))
    where = settings.metrics
    try:
        server = make_server(where.host, where.port, app, ThreadingWSGIServer, handler_class=_Quiet)
    except OSError as error:
        raise NodeError(f"cannot listen on {where.host}:{where.port} for metrics: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    log.info("metrics listen", host=where.host, port=where.port)
    stop.wait()
    server.shutdown()
    server.server_close()


def _receivers(folder: str | None) -> float | None:
    """How many receiver processes say that they listen."""
    if not folder:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry.get_sample_value("dicom_node_receivers") or 0.0


def _application(registry: CollectorRegistry, health: Callable[[], list[str]]) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, object], start: Callable[..., object]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start)
            return answer
        found = health() if path == "/health" else ["no such page"]
        status = "404 Not Found" if path != "/health" else "503 Service Unavailable" if found else "200 OK"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return ["\n".join(found or ["ok"]).encode() + b"\n"]

    return application
