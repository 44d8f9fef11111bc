"""status: does the node run and take images, what waits, what has failed, and what to do about it."""

import time
from collections.abc import Iterator
from typing import Any

import typer

from config.settings import Settings
from dicom_node.cli.canary import standing
from dicom_node.cli.common import (
    ConfigOption,
    JsonOption,
    clipped,
    database_of,
    duration_text,
    local_text,
    plural,
    print_json,
    say,
    settings_from,
    zone,
)
from dicom_node.cli.hosts import host_lines, hosts_shown
from dicom_node.errors import NoIndex
from dicom_node.runtime.certificate_expiry import expiries
from dicom_node.runtime.liveness import Liveness, look
from storage import worklists_away
from storage.deliveries import DeliveryState
from storage.job_state import JobState
from storage.series_state import SeriesState
from storage.status import status as read_status
from storage.withdrawals import Withdrawal

GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(status)


def status(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Does the node run and take images; what waits, what has failed, and what to do."""
    settings = settings_from(config)
    alive = look(settings)
    certificates = [vars(found) for found in expiries(settings, time.time())]
    node = {"runs": alive.runs, "accepts": alive.accepts, "why_not": alive.why_not}
    counts: dict[str, Any] = {}
    try:
        database = database_of(settings)
        with database.read() as tx:
            now = database.now()
            counts = read_status(tx, now)
            away = worklists_away.away(tx, settings.worklist_names, now)
            counts["worklists_away"] = [vars(one) for one in away]
            counts["canary"] = standing(tx, settings, now)
            if database.is_server:
                counts["hosts"] = hosts_shown(tx, settings, now)
    except NoIndex:
        pass  # before the first start
    if json:
        print_json({**counts, "certificates": certificates, "node": node})
        return
    told = _audit_messages(counts) if settings.audit.syslog.host else ()
    shared = host_lines(counts.get("hosts"))
    for line in (*_node(settings, alive), *shared, "", *_work(counts), *told, *_certificates(certificates)):
        say(line)


def _node(settings: Settings, alive: Liveness) -> Iterator[str]:
    where = f"{settings.receiver.ae_title} on port {settings.receiver.port if settings.receiver.plain else '-'}"
    if settings.receiver.tls_certificate is not None:
        where += f", TLS on port {settings.receiver.tls_port}"
    if alive.accepts:
        yield f"The node runs and takes images: {where}."
    elif alive.runs:
        yield f"The node runs but does NOT take images ({where}): {alive.why_not}."
    else:
        yield "The node does NOT run on this machine. Start it with `dicom-node run`."


def _work(counts: dict[str, Any]) -> Iterator[str]:
    if not counts:
        yield "Nothing is stored yet: the node has not run with this configuration."
        return
    series, jobs, deliveries, results = (counts[part] for part in ("series", "jobs", "deliveries", "results"))
    waiting = [
        plural(series[SeriesState.OPEN], "series", "series") + " still arriving",
        plural(jobs[JobState.QUEUED], "analysis", "analyses") + _oldest(counts["oldest_queued_s"]),
        plural(deliveries[DeliveryState.PENDING], "delivery", "deliveries") + _oldest(counts["oldest_pending_s"]),
    ]
    yield f"waiting     {'; '.join(waiting)}"
    analysed = plural(jobs[JobState.RUNNING], "analysis", "analyses")
    yield f"running     {analysed}; {plural(deliveries[DeliveryState.SENDING], 'delivery', 'deliveries')}"
    done = f"{results['ANALYSED']} analysed, {results['NOT_ANALYSED']} not analysed with a reason"
    yield f"results     {done}" + (f", {results['SHADOW']} of a shadow model" if results["SHADOW"] else "")
    confirmed = deliveries[DeliveryState.COMMITTED]
    yield f"delivered   {deliveries[DeliveryState.SENT] + confirmed}, of which {confirmed} confirmed"
    removed = counts["instances_removed_by_retention"]
    yield (
        f"stored      {plural(counts['instances'] - removed - counts['instances_lost'], 'image')}, "
        f"{counts['bytes_stored'] / GIB:.1f} GiB" + (f"; {removed} removed as finished and old" if removed else "")
    )
    if counts["instances_lost"]:
        yield f"LOST        {plural(counts['instances_lost'], 'image')}: missing or damaged; have the series sent again"
    if counts["conflicts"]:
        yield f"set aside   {plural(counts['conflicts'], 'image')} that contradict what the node holds"
    for one in counts["paused"]:
        yield f"PAUSED      {one['kind']} {one['name']}, by {one['paused_by']}, {local_text(one['paused_at'])} {zone()}"
        yield f"            to go on: dicom-node resume --{one['kind']} {one['name']}"
    for one in counts["suspended"]:
        since = f"{local_text(one['suspended_at'])} {zone()}"
        yield f"SUSPENDED   model {one['model_name']}, by {one['suspended_by']}, {since}: {one['reason']}"
        yield f"            to go on: dicom-node models resume {one['model_name']}"
    for one in counts["withdrawn"]:
        said = Withdrawal(**one)
        yield f"withdrawn   series {said.series_pk}, {local_text(said.at)} {zone()}. {said.sentence}"
    for one in counts["drift_alarms"]:
        if one["acknowledged_at"] is None:
            since = f"{local_text(one['raised_at'])} {zone()}"
            model = f"{one['model_name']} {one['model_version']}"
            yield f"DRIFT       alarm {one['id']} of model {model}, since {since}: {one['sentence']}"
            yield f"            to answer: dicom-node watch ack {one['id']} --reason TEXT"
    if counts["worklist_steps"]:
        yield f"worklist    {', '.join(f'{rows} {state}' for state, rows in counts['worklist_steps'].items())}"
    for one in counts["worklists_away"]:
        yield f"worklist {one['name']} has not answered for {duration_text(one['seconds'])}: {one['error']}"
        yield f"            ask it: dicom-node worklist test {one['name']}"
    yield from _canary(counts["canary"])
    yield from _destinations(counts)
    yield from _failures(counts)


def _canary(found: dict[str, Any]) -> Iterator[str]:
    if found["alarm"]:
        yield f"CANARY      {found['alarm']}; more: dicom-node canary show"
    elif found["on"]:
        passed = "none has passed yet" if found["passed_at"] is None else f"passed at {local_text(found['passed_at'])}"
        yield f"canary      {passed}"


def _oldest(seconds: float | None) -> str:
    return "" if seconds is None else f" (the oldest for {duration_text(seconds)})"


def _destinations(counts: dict[str, Any]) -> Iterator[str]:
    for name, found in counts["destinations"].items():
        waits, failed = found.get(DeliveryState.PENDING, 0), found.get(DeliveryState.FAILED, 0)
        if waits or failed:
            yield f"to {name}: {waits} waiting, {failed} failed; last error: {found['last_error'] or 'none'}"


def _audit_messages(counts: dict[str, Any]) -> Iterator[str]:
    found = counts.get("audit_messages")
    if found and found["error"]:
        waiting = f"{plural(found['rows'], 'row')} of the audit trail wait{_oldest(found['seconds'])}"
        yield f"audit messages: {waiting}; {found['error']}"


def _certificates(certificates: list[dict[str, Any]]) -> Iterator[str]:
    for found in certificates:
        left = found["days_left"]
        if left is None or left < 60:
            state = "cannot be read" if left is None else "has EXPIRED" if left < 0 else f"expires in {left:.0f} days"
            yield f"certificate {found['use']} {state}: {found['file']}"


def _failures(counts: dict[str, Any]) -> Iterator[str]:
    jobs, deliveries, unconfirmed = (
        counts[name] for name in ("failed_jobs", "failed_deliveries", "unconfirmed_deliveries")
    )
    yield ""
    if not jobs and not deliveries and not unconfirmed:
        yield "Nothing has failed."
    if jobs:
        yield f"{plural(counts['jobs']['FAILED'], 'analysis', 'analyses')} failed; the latest (times: {zone()}):"
    for job in jobs:
        number, reason = job["series_pk"], clipped(job["failure_reason"], 200)
        model = f"{job['model_name']} {job['model_version']}"
        yield f"  job {job['job_id']} ({model}) of series {number}, {local_text(job['finished_at'])}: {reason}"
        yield f"    try again: dicom-node retry --job {job['job_id']}; more: dicom-node series show {number}"
    if deliveries:
        yield f"{plural(counts['deliveries']['FAILED'], 'delivery', 'deliveries')} failed; the latest:"
    for delivery in deliveries:
        yield f"  to {delivery['destination']} after {plural(delivery['attempts'], 'attempt')}: {delivery['error']}"
        yield f"    try again: dicom-node retry --delivery {delivery['delivery_id']}"
    if unconfirmed:
        yield f"{plural(counts['unconfirmed'], 'delivery', 'deliveries')} sent but never confirmed; the latest:"
    for delivery in unconfirmed:
        yield f"  to {delivery['destination']}: {clipped(delivery['error'], 200)}"
        yield f"    ask again: dicom-node retry --delivery {delivery['delivery_id']}"
