"""What is wrong with the node, in words, and what a person can do about each problem. Nothing about patients."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from config.settings import Settings
from dicom_node.runtime.certificate_expiry import expiries
from dicom_node.runtime.liveness import Liveness, look
from dicom_node.runtime.metrics import LATE_S, MIB
from dicom_node.web.pages.words import count, duration, plural
from storage import canaries
from storage.database import Database
from storage.files import FileStore
from storage.pauses import Pausable
from storage.status import lateness, status
from storage.worklists_away import Away, away

EXPIRES_SOON_DAYS = 60
QUEUE_IS_LONG = 0.8


class Urgency(StrEnum):
    """NOW: images or results do not flow. SOON: something waits for a person. The values are the style's names."""

    NOW = "bad"
    SOON = "warn"


@dataclass(frozen=True)
class Problem:
    """what: a sentence. to_do: what helps. link: the page about it, if there is one."""

    urgency: Urgency
    what: str
    to_do: str
    link: str = ""


@dataclass(frozen=True)
class Health:
    """alive: seen from outside. counts: see storage.status. problems: the urgent ones first."""

    alive: Liveness
    counts: Mapping[str, Any]
    problems: tuple[Problem, ...]

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        urgent = sum(problem.urgency == Urgency.NOW for problem in self.problems)
        if urgent:
            return f"The node needs you: {plural(urgent, 'problem')} now."
        if self.problems:
            return f"The node works. {plural(len(self.problems), 'thing').capitalize()} to look after."
        return "All is well: the node takes images, analyses them and delivers."

    @property
    def tone(self) -> str:
        """The style's name for it."""
        return str(self.problems[0].urgency) if self.problems else "good"


def examine(settings: Settings, database: Database, files: FileStore, now: float) -> Health:
    """How the node is. Raises StorageError if the index cannot be read."""
    alive = look(settings)
    with database.read() as tx:
        counts, late = status(tx, now), lateness(tx, now)
        worklists = away(tx, settings.worklist_names, now)
        patience_s = settings.canary.patience_s
        canary = None if patience_s is None else canaries.alarm(tx, now, patience_s)
    found = [
        *_node(settings, alive),
        *_disk(settings, files),
        *_late(late),
        *_queue(settings, counts),
        *_images(counts),
        *_work(counts),
        *_paused(counts, now),
        *_suspended(counts, now),
        *_drift(counts, now),
        *_canary(canary),
        *_destinations(settings, counts),
        *_worklists(worklists),
        *_audit_messages(settings, counts),
        *_certificates(settings),
    ]
    return Health(alive, counts, tuple(sorted(found, key=lambda one: one.urgency != Urgency.NOW)))


def _node(settings: Settings, alive: Liveness) -> Iterator[Problem]:
    if not alive.runs:
        yield Problem(Urgency.NOW, "The node does not run on this machine.", "Start it: dicom-node run.")
    elif not alive.accepts:
        to_do = "Read the node's log; senders keep their images and try again."
        yield Problem(Urgency.NOW, f"The node takes no images: {alive.why_not}.", to_do)


def _disk(settings: Settings, files: FileStore) -> Iterator[Problem]:
    free, least = files.free_bytes(), settings.storage.low_disk_mb * MIB
    if free < least:
        return  # told by liveness: it takes no images
    if free < 2 * least:
        to_do = "Make room, or set retention_days in [storage] so that delivered images go by themselves."
        yield Problem(Urgency.SOON, f"Only {free / 1024**3:.1f} GiB of disk are free.", to_do)


def _late(late: Mapping[str, float | None]) -> Iterator[Problem]:
    words = {
        "closing": ("Series have been quiet for long and are not closed", "schedule"),
        "leases": ("An analysis hangs and nobody took it over", "work"),
        "sending": ("Results wait to be sent and are not tried", "deliver"),
    }
    for part, seconds in late.items():
        if seconds is not None and seconds > LATE_S:
            what, process = words[part]
            to_do = f"See in the log whether the process {process!r} runs; restart the node if it does not."
            yield Problem(Urgency.NOW, f"{what}: overdue by {duration(seconds)}.", to_do)


def _queue(settings: Settings, counts: Mapping[str, Any]) -> Iterator[Problem]:
    queued, most = counts["jobs"]["QUEUED"], settings.receiver.max_queued_series
    if queued > QUEUE_IS_LONG * most:
        what = f"{count(queued)} analyses wait; from {count(most)} on, the node takes no further images."
        yield Problem(Urgency.SOON, what, "Add a worker or a faster device in [worker], or have fewer series sent.")


def _images(counts: Mapping[str, Any]) -> Iterator[Problem]:
    if counts["instances_lost"]:
        what = f"{plural(counts['instances_lost'], 'image')} that the node held are missing or damaged."
        yield Problem(
            Urgency.NOW, what, "Have their series sent again: dicom-node audit --event instance.lost names them."
        )
    if counts["conflicts"]:
        what = f"{plural(counts['conflicts'], 'image')} were set aside: they contradict what the node holds."
        yield Problem(
            Urgency.SOON, what, "The view instances_set_aside names them; ask the sender which image is right."
        )


def _work(counts: Mapping[str, Any]) -> Iterator[Problem]:
    failed = counts["jobs"]["FAILED"]
    if failed:
        what = f"{plural(failed, 'analysis', 'analyses')} failed and will not be tried again."
        yield Problem(Urgency.SOON, what, "Look at the reason below, then retry it on the series' page.", "#failed")


def _paused(counts: Mapping[str, Any], now: float) -> Iterator[Problem]:
    for one in counts["paused"]:
        since = duration(now - one["paused_at"])
        what = f"The {one['kind']} {one['name']} has been paused by {one['paused_by']} for {since}."
        yield Problem(Urgency.SOON, what, "Resume it on the page Peers when it may go on.", "/peers")


def _suspended(counts: Mapping[str, Any], now: float) -> Iterator[Problem]:
    for one in counts["suspended"]:
        since = duration(now - one["suspended_at"])
        what = f"The model {one['model_name']} has been suspended by {one['suspended_by']} for {since}: {one['reason']}"
        yield Problem(Urgency.SOON, what, "When it may report again: `dicom-node models resume`.", "/models")


def _drift(counts: Mapping[str, Any], now: float) -> Iterator[Problem]:
    for one in counts["drift_alarms"]:
        if one["acknowledged_at"] is None:
            what = (
                f"{one['model_name']} {one['model_version']}, for {duration(now - one['raised_at'])}: {one['sentence']}"
            )
            to_do = f"See what changed, then `dicom-node watch ack {one['id']} --reason TEXT`."
            yield Problem(Urgency.SOON, what, to_do, "/models")


def _canary(alarm: str | None) -> Iterator[Problem]:
    what = {
        "failed": "The last canary, which the node sends to itself, did not get through.",
        "differs": "The last canary, whose result is known, has got another one.",
        "stale": "No canary has got through for longer than one should take.",
    }
    if alarm is not None:
        yield Problem(Urgency.NOW, what[alarm], "See what became of it: dicom-node canary show.")


def _destinations(settings: Settings, counts: Mapping[str, Any]) -> Iterator[Problem]:
    paused = {one["name"] for one in counts["paused"] if one["kind"] == Pausable.DESTINATION}
    for name, found in counts["destinations"].items():
        if settings.destination(name) is None and found.get("PENDING"):
            what = f"{plural(found['PENDING'], 'delivery', 'deliveries')} wait for {name}, which is not configured."
            yield Problem(Urgency.SOON, what, "Name it under [[destinations]] again.")
            continue
        if found.get("FAILED"):
            what = f"{plural(found['FAILED'], 'delivery', 'deliveries')} to {name} failed."
            to_do = "See that the PACS takes them, then send them again on the series' page."
            yield Problem(Urgency.SOON, what, to_do, "#failed")
        if name not in paused and found.get("PENDING") and (found["oldest_pending_s"] or 0) > LATE_S:
            what = f"{name} has taken nothing for {duration(found['oldest_pending_s'])}."
            yield Problem(Urgency.NOW, what, "Ask it on the page Peers whether it answers; see its log.", "/peers")
    if counts["unconfirmed"]:
        what = f"{plural(counts['unconfirmed'], 'delivery', 'deliveries')} were sent but never confirmed."
        yield Problem(Urgency.SOON, what, "See in the PACS whether they are there; ask again by a retry.", "#failed")


def _worklists(found: Iterable[Away]) -> Iterator[Problem]:
    for one in found:
        urgency = Urgency.NOW if one.seconds > LATE_S else Urgency.SOON
        what = f"The worklist {one.name} has not answered for {duration(one.seconds)}: {one.error}."
        yield Problem(urgency, what, f"See whether it runs; ask it by: dicom-node worklist test {one.name}.")


def _audit_messages(settings: Settings, counts: Mapping[str, Any]) -> Iterator[Problem]:
    found = counts["audit_messages"] if settings.audit.syslog.host else None
    if found and (found["seconds"] or 0) > LATE_S:
        why = found["error"] or "see in the log whether the process 'forward-audit' runs"
        what = f"The audit repository has taken no message for {duration(found['seconds'])}."
        yield Problem(Urgency.NOW, what, f"Nothing is lost. {why[:1].upper()}{why[1:]}.")


def _certificates(settings: Settings) -> Iterator[Problem]:
    for found in expiries(settings, time.time()):
        left = found.days_left
        if left is None or left < 0:
            what = f"The certificate of the {found.use} {'cannot be read' if left is None else 'has expired'}."
            yield Problem(Urgency.NOW, what, "Put a valid one in its place; the node reads it by itself.", "/peers")
        elif left < EXPIRES_SOON_DAYS:
            what = f"The certificate of the {found.use} expires in {left:.0f} days."
            yield Problem(Urgency.SOON, what, "Have a new one issued and put it in its place.", "/peers")
