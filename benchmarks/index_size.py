"""What the index takes, and how long its questions take, by the number of series: 1,000, 100,000, 1,000,000.

    python -m benchmarks.index_size [--folder DIR] [--sizes 1000,100000,1000000] [--postgresql URL] [--keep]

Fills a SQLite index of each size (8 GB and some minutes for the largest; the upgrade needs as much again for its copy)
and, with --postgresql, a database of each size on that server, named index_SIZE. Prints milliseconds: the least of
fifteen, because what else the machine does only adds to it, and for SQLite processor time. What writes is rolled back.
An index that is there already is only measured.
"""

# ruff: noqa: S608 - every part of a query is a constant of this file

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, make_url, text

from benchmarks import index_fill
from benchmarks.index_fill import EVERY_S, NOW, UID
from config.reasons import ReasonCode, Refusal
from storage import (
    activity,
    audit,
    batch_cases,
    batches,
    canaries,
    commitments,
    copies,
    deliveries,
    efforts,
    facts,
    forwarding,
    job_takeover,
    jobs,
    listings,
    model_outcomes,
    notifications,
    orphans,
    overtaken,
    own_objects,
    quiet_time,
    reconcile,
    recording,
    refused,
    rejections,
    results,
    retention,
    selection,
    senders,
    series,
    shadow_pairs,
    status,
    step_outcomes,
    turnarounds,
    verdicts,
    watch_alarms,
    watch_facts,
    watch_state,
    watch_work,
    web_users,
    weekly,
    withdrawals,
    workitems,
    worklist,
    worklists_away,
)
from storage.arrival import Arrival, IndexedHeader
from storage.database import Database, open_database
from storage.examinations import Examination, earlier_ids, earlier_result
from storage.files import StoredFile
from storage.lost import mark_lost
from storage.messages import Messages
from storage.models import instances
from storage.own_objects import Wanted
from storage.refused import RefusedInstance
from storage.results import NewResult
from storage.worklist import Order, Search

REPEATS = 15
Ask = Callable[[Connection], object]
DAY_S = 86400.0
NOT_KNOWN = Refusal(ReasonCode.ANALYSIS_FAILED, "")
MODEL = jobs.ModelRef("covid-ct", "1.0", f"{'0' * 51}1000000000001")
SERIES_UID = UID.format("0").split("'")[1] + "{}"


@dataclass(frozen=True)
class Question:
    """ask: what is measured. kind: "by itself", "a person", "whole history"."""

    name: str
    kind: str
    ask: Ask


class _Undo(Exception):
    pass


def uid(number: int) -> str:
    """The Series Instance UID of a series of the filled index."""
    return SERIES_UID.format(10_000_000_000 + number)


def arrival(count: int) -> Arrival:
    """A late slice of the last closed series but many."""
    number = count // 2
    header = IndexedHeader(patient_id=f"P{1_000_000 + number // 4}", modality="CT", instance_number="9")
    file = StoredFile("2026/11/30/new.dcm", "f" * 64, 526_000)
    study = SERIES_UID.format(10_000_000_000 + number // 2) + ".1"
    classes = "1.2.840.10008.5.1.4.1.1.2", uid(number), study, "1.2.840.10008.1.2.1"
    return Arrival(f"{uid(number)}.99", *classes, "CT", "NODE", "10.0.0.1", file, header)


def sql(query: str, **values: object) -> Ask:
    """A question to a view, as a person asks it."""
    return lambda tx: tx.execute(text(query), values).all()


def alone(count: int) -> Iterator[Question]:
    """Everything that a program asks or does again and again without being told to."""
    now, late = NOW + 1, arrival(count)

    def by_itself(name: str, ask: Ask) -> Question:
        return Question(name, "by itself", ask)

    yield by_itself("record a late slice", lambda tx: recording.record_instance(tx, late, now, 30.0))
    yield by_itself("series due", lambda tx: quiet_time.due_series(tx, now))
    yield by_itself("series to ask about", lambda tx: quiet_time.quiet_series(tx, now, 5.0))
    yield by_itself("completion efforts", efforts.all_efforts)
    yield by_itself("rejected instances", lambda tx: rejections.why_withdrawn(tx, uid(count // 2)))
    yield by_itself("missing instances", lambda tx: refused.why_incomplete(tx, uid(count // 2)))
    yield by_itself("close a series", lambda tx: _close(tx, count, now))
    yield by_itself("selection: studies to decide", lambda tx: selection.undecided_studies(tx, now))
    yield by_itself("second copies to compare", lambda tx: copies.to_compare(tx, 20))
    yield by_itself("jobs: claim", lambda tx: jobs.claim(tx, "w", now, 60.0, 3))
    yield by_itself("jobs: claim of a batch", lambda tx: jobs.take_of_batch(tx, "w", now, 60.0, 3))
    yield by_itself("batches to feed", batches.to_feed)
    yield by_itself("batch: next 20 cases", lambda tx: batch_cases.waiting(tx, 1, now, 20))
    yield by_itself("batch: one more job", lambda tx: _queue(tx, now))
    yield by_itself("batch: what ended", lambda tx: batch_cases.settle(tx, 1, now, lambda _: NOT_KNOWN))
    yield by_itself("batch: progress", lambda tx: batches.rate_per_s(tx, 1, now))
    yield by_itself("jobs: leases", lambda tx: job_takeover.release_expired(tx, now - DAY_S, 3))
    yield by_itself("jobs: queued", jobs.count_queued)
    yield by_itself("series to read ahead", lambda tx: series.next_series(tx, None))
    yield by_itself("outbox: has work", lambda tx: deliveries.has_work(tx, "PACS", now))
    yield by_itself("outbox: claim", lambda tx: deliveries.claim(tx, "PACS", now, 60.0))
    yield by_itself("outbox: sent", lambda tx: _send(tx, now))
    yield by_itself("outbox: kept message", lambda tx: Messages("").kept(tx, count // 2, "hl7"))
    yield by_itself("result of a report", lambda tx: results.object_by_uid(tx, f"{uid(count // 2)}.9"))
    yield by_itself("commitments due", lambda tx: commitments.due(tx, "PACS", now))
    yield by_itself("worklist: next step", lambda tx: workitems.take(tx, "ris", now, 60.0))
    yield from (Question(name, "by itself", ask) for name, ask in _of_gateways(count, now).items())
    yield by_itself("worklist: room", lambda tx: workitems.count_open(tx, "ris"))
    yield by_itself("worklist: known steps", lambda tx: workitems.known(tx, "ris", ["1.2.3", f"{uid(7)}.5"]))
    yield by_itself("worklist: is it fetched", lambda tx: workitems.is_being_fetched(tx, uid(20)))
    yield by_itself("worklist: is it whole", lambda tx: workitems.why_incomplete(tx, uid(20)))
    yield by_itself("worklist: outcome", lambda tx: _step_outcome(tx))
    yield by_itself("worklist: cancel", lambda tx: workitems.ask_to_cancel(tx, "ris", f"{uid(3)}.5", "", now))
    yield from _canaries(count, by_itself)
    yield by_itself("metrics: queues", lambda tx: status.queues(tx, now))
    yield by_itself("audit messages: next rows, and how many wait", _told)
    yield by_itself("notifications: what is due", lambda tx: notifications.has_work(tx, now))
    yield by_itself("notifications: is a destination stuck", lambda tx: notifications.stuck(tx, now, 600.0))
    yield by_itself("notifications: a result", lambda tx: notifications.told_result(tx, count // 2))
    yield from _watches(count, by_itself)
    yield by_itself("health: lateness", lambda tx: status.lateness(tx, now))
    yield from _parts(count, by_itself)
    yield by_itself("retention: next 100 series", lambda tx: retention.finished_series(tx, now - 250 * EVERY_S))
    yield by_itself("start: quiet times, leases", lambda tx: _restart(tx, now))
    yield by_itself("sweep: 100 paths", lambda tx: orphans.rows_of(tx, [f"2026/11/23/{n}.dcm" for n in range(100)]))
    yield by_itself("end of the audit trail", audit.head)
    yield by_itself("a fact", lambda tx: facts.get_fact(tx, "store"))


def _watches(count: int, by_itself: Callable[[str, Ask], Question]) -> Iterator[Question]:
    """How the watched models stand."""
    yield by_itself("watch: the latest 400 facts", lambda tx: next(watch_facts.latest(tx, MODEL.digest)))
    yield by_itself("watch: the first 400 facts", lambda tx: next(watch_facts.first(tx, MODEL.digest)))
    yield by_itself("watch: a look", lambda tx: _look(tx, NOW))
    yield by_itself("watch: alarms that wait", watch_alarms.unanswered)
    yield by_itself("watch: analyses given up", lambda tx: watch_work.failed_jobs(tx, MODEL.digest, NOW - 28 * DAY_S))
    yield by_itself("watch: what waits longest", lambda tx: watch_work.oldest_waiting(tx, MODEL.digest))
    yield by_itself("watch: shadow beside live", lambda tx: _shadow_pairs(tx, count // 2))


def _shadow_pairs(tx: Connection, some: int) -> None:
    """Also for as many results as there may be pairs, though these are of no shadow."""
    shadow_pairs.latest_pairs(tx, "none", MODEL.digest, since=NOW - 28 * DAY_S)
    shadow_pairs._said(tx, range(some, some + 100))


def _canaries(count: int, by_itself: Callable[[str, Ask], Question]) -> Iterator[Question]:
    """What is asked of every new series, and what the leader asks."""
    now = NOW + 1
    yield by_itself("canaries: is this image of one", lambda tx: canaries.kin_of(tx, uid(count // 2), "1.2", "1.2.3"))
    yield by_itself("canaries: is it whole", lambda tx: canaries.why_incomplete(tx, "2.25.7.1"))
    yield by_itself("canaries: what is to be done", canaries.open_runs)
    yield by_itself("canaries: which are old", lambda tx: canaries.to_clear(tx, 3))
    yield by_itself("canaries: is there an alarm", lambda tx: canaries.alarm(tx, now, 3600.0))


def _parts(count: int, by_itself: Callable[[str, Ask], Question]) -> Iterator[Question]:
    """What happens to one series, job, or delivery."""
    now, job, done = NOW + 1, count - 60, count - 210
    found = NewResult("NOT_ANALYSED", "covid-ct", "1.0", "d", reason_code="SLICE_GAP", reason_text="A gap.")
    refusal = RefusedInstance(f"{uid(done)}.66", uid(done), "1.2", "P1", "A700", "the disk is full", "CT", "10.0.0.1")
    sent = f"{uid(count - 150)}.7"
    yield by_itself("job: heartbeat", lambda tx: jobs.heartbeat(tx, job, 1, now, 60.0))
    yield by_itself("job: reported", lambda tx: jobs.finish(tx, job, 1, now, found, [], ["PACS"]))
    yield by_itself("job: reported, with its facts", lambda tx: _watched(tx, job, now, found))
    yield by_itself("job: failed", lambda tx: jobs.fail(tx, job, 1, now, "no memory", None))
    yield by_itself("job: handed back", lambda tx: jobs.hand_back(tx, job, 1, now))
    yield by_itself("a series' instances", lambda tx: series.series_instances(tx, done))
    yield by_itself("a series' former report", lambda tx: results.previous_result(tx, done))
    yield by_itself("delivery: again later", lambda tx: _again(tx, now))
    yield by_itself("commitment: asked", lambda tx: commitments.ask(tx, _found(tx, sent), now, now + 60, "1.2.3"))
    yield by_itself("commitment: kept", lambda tx: commitments.mark_committed(tx, _found(tx, sent), now))
    yield by_itself("refused instance", lambda tx: refused.record(tx, refusal, now))
    yield by_itself("earlier results of a patient", lambda tx: _earlier(tx, done))
    yield by_itself("a study's members", lambda tx: selection.members(tx, done // 2))
    yield by_itself("a file lost", lambda tx: mark_lost(tx, instances.c.id == done * 5, "missing", now))
    yield by_itself("start: next 1000 instances", lambda tx: reconcile.next_instances(tx, count))
    yield by_itself("start: next 1000 objects", lambda tx: reconcile.next_objects(tx, count // 2))
    yield by_itself("effort noted", lambda tx: efforts.save(tx, count - 5, efforts.Effort(5, asked=2)))


def _of_gateways(count: int, now: float) -> dict[str, Ask]:
    page = range(count // 2, count // 2 + 50)
    return {
        "outbox: still held": lambda tx: deliveries.is_held(tx, count // 2, 1, now),
        "outbox: told late": lambda tx: _late(tx, now),
        "worklist: away": lambda tx: worklists_away.away(tx, ["ris"], now),
        "a page's withdrawn series": lambda tx: withdrawals.of_series(tx, page),
    }


def _late(tx: Connection, now: float) -> None:
    [claimed] = deliveries.claim(tx, "PACS", now, 60.0)
    overtaken.set_right(tx, claimed, now, lambda _: None)


def _step_outcome(tx: Connection) -> None:
    for one in workitems.inputs_of(tx, 2):
        step_outcomes.outcome_of(tx, one)
        step_outcomes.is_reported(tx, one)
        step_outcomes.outputs(tx, [20])


def _watched(tx: Connection, job: int, now: float, found: NewResult) -> None:
    result_id = jobs.finish(tx, job, 1, now, found, [], ["PACS"])
    watch_facts.record(tx, result_id, now, watch_facts.Facts("ACME", "CT1", "B30f", kv=120.0))


def _look(tx: Connection, now: float) -> None:
    """What a look reads and writes, apart from the facts."""
    watch_state.looked_at(tx)
    watch_state.freeze(tx, MODEL, "{}", 500, now)
    watch_state.reference(tx, MODEL.digest)
    found = [watch_state.Assessed("mix", f"fact {n}", "", "alarm", "PSI", 0.3, 0.25, "It changed.") for n in range(5)]
    for _ in range(2):
        watch_state.keep(tx, MODEL.digest, found, now)
        watch_alarms.settle(tx, MODEL, found, now)
    watch_state.latest(tx, MODEL.digest)
    watch_state.note_look(tx, now)


def _earlier(tx: Connection, series_pk: int) -> None:
    examination = Examination(f"P{1_000_000 + series_pk // 4}", "covid-ct", "2026-03-01", {})
    for result_id in earlier_ids(tx, series_pk, examination, locked=True):
        earlier_result(tx, result_id)


def _found(tx: Connection, transaction_uid: str) -> int:
    return commitments.find(tx, transaction_uid).delivery_id


def _again(tx: Connection, now: float) -> None:
    [claimed] = deliveries.claim(tx, "PACS", now, 60.0)
    deliveries.heartbeat(tx, claimed.delivery_id, claimed.fence, now, 60.0)
    deliveries.retry_later(tx, claimed.delivery_id, claimed.fence, now, now + 60, "no answer")


def _close(tx: Connection, count: int, now: float) -> None:
    series.close_series(tx, count, now, series.Closing(jobs.ModelRef("covid-ct", "1.0", "d"), "command"))


def _told(tx: Connection) -> None:
    """The end of the trail is still to be told."""
    number, digest = audit.head(tx)
    place = forwarding.keep(tx, forwarding.Place(number - 10, digest))
    forwarding.last_row_is_there(tx, place)
    tx.execute(forwarding.next_rows(place.number, 10)).all()
    forwarding.lag(tx, 0.0)


def _send(tx: Connection, now: float) -> None:
    [claimed] = deliveries.claim(tx, "PACS", now, 60.0)
    deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, now, {}, None, now)


def _queue(tx: Connection, now: float) -> None:
    [case] = batch_cases.waiting(tx, 1, now, 1)
    batch_cases.input_of(tx, case.series_pk or 0)
    batch_cases.queue(tx, case, case.series_pk or 0, jobs.ModelRef("third", "1.0", "third"), now)


def _restart(tx: Connection, now: float) -> None:
    quiet_time.restart_quiet_times(tx, now)
    job_takeover.release_all(tx, now)
    deliveries.release_all(tx, now)


def asked(count: int, limit: int = 50) -> Iterator[Question]:
    """What a person asks, and at most so many rows of it."""
    some, day = count // 2, time.strftime("%Y-%m-%d", time.gmtime(NOW - EVERY_S * min(count // 2, 5000)))

    def person(name: str, ask: Ask) -> Question:
        return Question(name, "a person", ask)

    yield person("status", lambda tx: status.status(tx, NOW))
    listed = partial(series.list_series, limit=limit)
    yield person("series list", lambda tx: model_outcomes.of_series(tx, [one.series_pk for one in listed(tx)]))
    yield person("series list --state OPEN", lambda tx: series.list_series(tx, state="OPEN", limit=limit))
    yield person("series list --state CLOSED", lambda tx: series.list_series(tx, state="CLOSED", limit=limit))
    yield person("series show", lambda tx: series.get_series(tx, uid(some)))
    old = {"since": NOW - EVERY_S * count * 0.9, "until": NOW - EVERY_S * count * 0.8}
    filters: dict[str, dict[str, Any]] = {
        "": {},
        "--event job": {"event": "job"},
        "--event delivery.failed": {"event": "delivery.failed"},
        "--event instance.received": {"event": "instance.received"},
        "--event association": {"event": "association"},
        "--event no.such": {"event": "no.such"},
        "--outcome ANALYSED": {"outcome": "ANALYSED"},
        "--outcome UNKNOWN_AE": {"outcome": "UNKNOWN_AE"},
        "--outcome NEW": {"outcome": "NEW"},
        "--outcome NONE": {"outcome": "NONE"},
        "--event --outcome": {"event": "association", "outcome": "UNKNOWN_AE"},
        "--patient": {"patient": f"P{1_000_000 + some // 4}"},
        "--series": {"series": uid(some)},
        "--series --event": {"series": uid(some), "event": "result"},
        "--study --outcome": {"study": SERIES_UID.format(10_000_000_000 + some // 2) + ".1", "outcome": "SENT"},
        "--since --until": old,
        "--event --since --until": {"event": "delivery.failed", **old},
        "--outcome --since --until": {"outcome": "ANALYSED", **old},
    }
    for name, how in filters.items():
        yield person(f"audit {name} --limit {limit}", lambda tx, how=how: audit.search(tx, limit=limit, **how))  # type: ignore[misc]
    yield from _worklist(person, some, count, limit)
    yield from _pages(person)
    yield from _dicomweb(person, some, count, limit)
    yield from _views(person, some, day, limit)


def _pages(person: Callable[[str, Ask], Question]) -> Iterator[Question]:
    """What every page asks, and what Today and Peers do."""
    yield person("page: whose login it is", lambda tx: web_users.who_is(tx, "0" * 64, NOW))
    yield person("page Today: an hour", lambda tx: activity.between(tx, NOW - 3600, NOW))
    yield person("page Today: turnarounds", lambda tx: turnarounds.of_days(tx, ["2026-11-29", "2026-11-30"]))
    yield person("page Peers: senders of an hour", lambda tx: senders.senders(tx, NOW - 3600))
    yield person("page Peers: senders of a day", lambda tx: senders.senders(tx, NOW - DAY_S))
    yield person("page Peers: each sender's last series", senders.last_series)
    yield person("page Peers: refusals", lambda tx: senders.refusals(tx, NOW - 3600))
    yield person("page Peers: refused images", senders.refused_images)


def _dicomweb(person: Callable[[str, Ask], Question], some: int, count: int, limit: int) -> Iterator[Question]:
    """What a web viewer asks of the node's own results; a study's objects with each."""
    found = partial(own_objects.find_studies, most=10 * limit)
    day = NOW - EVERY_S * min(count // 2, 5000)
    asked: dict[str, tuple[Wanted, float | None]] = {
        "the newest": (Wanted(), None),
        "of days": (Wanted(since="19700101", until="20990101"), day),
        "by UID": (Wanted(study_uids=(SERIES_UID.format(10_000_000_000 + some // 2) + ".1",)), None),
        "of a patient": (Wanted(patient_id=f"P{1_000_000 + some // 4}"), None),
        "of an accession number": (Wanted(accession_number=str(2 * (some // 2))), None),
    }

    def ask(tx: Connection, wanted: Wanted, since: float | None) -> None:
        for study in found(tx, wanted, since).studies[:limit]:
            own_objects.objects_of_study(tx, study.study_pk, 500)

    for name, how in asked.items():
        yield person(f"dicomweb: {name}", lambda tx, how=how: ask(tx, *how))  # type: ignore[misc]


def _worklist(person: Callable[[str, Ask], Question], some: int, count: int, limit: int) -> Iterator[Question]:
    """What the pages search for. The first page of each, and one in the middle."""
    days = {"since": NOW - EVERY_S * count * 0.9, "until": NOW - EVERY_S * count * 0.8}
    rare = {"source": "CT3", "standing": "NOT_ANALYSED", "reason_code": "KERNEL"}
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "of days": days,
        "of a reason": rare,
        "of a reason and days": {**rare, **days},
    }
    for order in Order:
        asked[f"by {order}"] = {"order": order}
        asked[f"positive, by {order}"] = {"order": order, "finding": "POSITIVE"}
    asked |= {
        "of a patient": {"text": f"P{1_000_000 + some // 4}"},
        "of an accession number": {"text": str(2 * (some // 2))},
        "of nobody": {"text": "qqqqqq"},
        "of no source": {"source": "none"},
    }
    middle = worklist.Place(NOW - EVERY_S * count * 0.5, 0)
    for name, how in asked.items():
        search = Search(**how)
        yield person(f"worklist {name}".strip(), lambda tx, search=search: worklist.find(tx, search, most=limit))  # type: ignore[misc]
    yield person("worklist, a page in the middle", lambda tx: worklist.find(tx, Search(), middle, most=limit))
    monday = listings.week_of(NOW - 84 * DAY_S)
    yield person("not analysed, of 12 weeks", lambda tx: weekly.settled(tx, monday, but=("model", "finding")))
    yield person("not analysed, what was said last", lambda tx: weekly.latest_sentences(tx, ["KERNEL", "NOT_CHEST"]))
    yield person("shadow beside live", lambda tx: shadow_pairs.latest_pairs(tx, "none", "none"))
    yield person("verdicts on a result", lambda tx: verdicts.verdicts_on(tx, some))


def _views(person: Callable[[str, Ask], Question], some: int, day: str, limit: int) -> Iterator[Question]:
    of_series = {"uid": uid(some)}
    queries: dict[str, tuple[str, dict[str, object]]] = {
        "patient_history by patient": ("patient_id = :patient", {"patient": f"P{1_000_000 + some // 4}"}),
        "series_without_outcome": ("TRUE", {}),
        "result_weights by result": ("result_id = :id", {"id": some + 1}),
        "result_weights by series": ("series_instance_uid = :uid", of_series),
        "model_results": ("model_name = 'covid-ct' ORDER BY result_id DESC", {}),
        "model_results by series": ("series_instance_uid = :uid", of_series),
        "turnaround_per_day of a month": ("day_utc >= :day", {"day": day}),
        "connections": ("TRUE ORDER BY audit_id DESC", {}),
        "connections since a day": ("time_utc >= :day AND time_utc < :end", {"day": day, "end": f"{day} 03:00"}),
        "delivery_overview failed": ("state = 'FAILED' ORDER BY delivery_id DESC", {}),
        "delivery_overview": ("destination = 'PACS' ORDER BY delivery_id DESC", {}),
        "instances_set_aside": ("standing = 'contradicts'", {}),
        "instances_refused by series": ("series_instance_uid = :uid", of_series),
    }
    for name, (condition, values) in queries.items():
        query = f"SELECT * FROM {name.split()[0]} WHERE {condition} LIMIT {limit}"
        yield person(f"view {name}", sql(query, **values))


def whole() -> Iterator[Question]:
    """What is about the whole history."""
    for view in ("turnaround_per_day", "failures_by_cause"):
        yield Question(f"view {view}", "whole history", sql(f"SELECT * FROM {view}"))


def questions(count: int) -> list[Question]:
    """All that is measured."""
    return [*alone(count), *asked(count), *whole()]


def milliseconds(database: Database, question: Question, repeats: int = REPEATS) -> float:
    """The least time of a question, with what its transaction writes before the commit, but without the commit."""
    # SQLite runs in this thread: its own time is known even while other work holds the processor.
    clock = time.thread_time if database.engine.dialect.name == "sqlite" else time.perf_counter
    spans = []
    for _ in range(repeats):
        with contextlib.suppress(_Undo), database.transaction() as tx:
            began = clock()
            question.ask(tx)
            audit.flush(tx)
            listings.flush(tx)
            spans.append(clock() - began)
            raise _Undo
    return 1000 * min(spans)


def make(url: str, count: int) -> None:
    """Fill an index, bring it up to date, and say how long both took."""
    began = time.perf_counter()
    index_fill.fill(url, count)
    filled = time.perf_counter()
    database = open_database(url)
    index_fill.fill_later(database)
    index_fill.add_batch(database, count)
    index_fill.add_workitems(database, count)
    index_fill.add_canaries(database, count)
    database.close()
    print(
        f"{count} series: filled in {filled - began:.0f} s, upgraded in {time.perf_counter() - filled:.0f} s",
        flush=True,
    )
    tidy(url)


def tidy(url: str) -> None:
    """As a node's index is: with the statistics that PostgreSQL gathers by itself, and without the upgrade's copy."""
    if make_url(url).get_backend_name() == "sqlite":
        for path in Path(str(make_url(url).database)).parent.glob("*.backup"):
            path.unlink()
        return
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as tx:
        tx.exec_driver_sql("VACUUM ANALYZE")
    engine.dispose()


def size(database: Database, count: int) -> float:
    """KiB of the index for each series."""
    with database.read() as tx:
        if tx.dialect.name == "sqlite":
            total = Path(str(database.url.database)).stat().st_size
        else:
            total = int(tx.scalar(text("SELECT pg_database_size(current_database())")) or 0)
    return total / count / 1024


def url_of(server: str, count: int) -> str:
    """The URL of the database for this many series, which is made if it is not there."""
    name = f"index_{count}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as tx:
        if tx.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": name}) is None:
            tx.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def is_there(url: str) -> bool:
    """Whether an index has been filled."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return Path(str(parsed.database)).exists()
    engine = create_engine(url)
    with engine.connect() as tx:
        found = tx.scalar(text("SELECT to_regclass('series')"))
    engine.dispose()
    return found is not None


def table(urls: dict[int, str]) -> None:
    """Measure the indexes of one kind of database, and print."""
    columns: list[dict[str, float]] = []
    for count, url in urls.items():
        if not is_there(url):
            make(url, count)
        database = open_database(url)
        found = {f"{q.kind}: {q.name}": milliseconds(database, q) for q in questions(count)}
        columns.append({**found, "size, KiB a series": size(database, count)})
        database.close()
    print("| | " + " | ".join(f"{count:,}" for count in urls) + " |")
    print("|---|" + "---|" * len(urls))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("index-sizes"))
    parser.add_argument("--sizes", default="1000,100000,1000000")
    parser.add_argument("--postgresql", help="URL of a server, such as postgresql+psycopg://node@host/postgres")
    options = parser.parse_args()
    sizes = [int(part) for part in options.sizes.split(",")]
    options.folder.mkdir(parents=True, exist_ok=True)
    print("SQLite, ms")
    table({count: f"sqlite:///{options.folder}/index_{count}.sqlite" for count in sizes})
    if options.postgresql:
        print("PostgreSQL, ms")
        table({count: url_of(options.postgresql, count) for count in sizes})


if __name__ == "__main__":
    main()
