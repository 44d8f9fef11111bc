"""Anything may happen in any order: receive, resend, late, crash, lease lost, restart, PACS away, clock set back.

A Hypothesis state machine drives the real index and file store, with a model beside it of what was acknowledged
and of what a PACS holds. DICOM_NODE_STATEFUL_STEPS sets the number of steps (600 by default; `make faults` asks
for 10000).
"""

import contextlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from sqlalchemy import select

from storage import (
    audit,
    clock,
    deliveries,
    job_state,
    jobs,
    quiet_time,
    recording,
    reopening,
    series,
    series_state,
    tallies,
)
from storage.arrival import Outcome
from storage.deliveries import ClaimedDelivery
from storage.errors import IllegalMove, StaleLease
from storage.jobs import ClaimedJob
from storage.models import audit as table
from storage.reconcile import reconcile
from tests.storage_factory import LEASE_S, MODEL, QUIET_S, Store, analysed, check_listings

STEPS = int(os.environ.get("DICOM_NODE_STATEFUL_STEPS", "600"))
STEPS_EACH = 40
ATTEMPTS = 3
# Nobody pulls the plug here, so the fsyncs may go to memory.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
DESTINATIONS = ["PACS", "ARCHIVE"]
SERIES = ["1.1", "1.2"]
MACHINES = {
    "job": job_state.TRANSITIONS,
    "delivery": deliveries.TRANSITIONS,
    "series": series_state.TRANSITIONS,
}
BORN = {"job": "QUEUED", "delivery": "PENDING", "series": "OPEN"}


@dataclass
class Pacs:
    """What a destination holds: it keeps the first bytes it got under a UID, as Orthanc does."""

    held: dict[str, bytes] = field(default_factory=dict)

    def store(self, uid: str, data: bytes) -> None:
        assert self.held.setdefault(uid, data) == data, "one UID, two contents"


class Node(RuleBasedStateMachine):
    claimed = Bundle("claimed")
    sending = Bundle("sending")

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="node-", dir=FAST))
        self.store = Store(self.folder)
        self.elapsed = 2e6  # what a clock that nobody sets would show
        self.offset = 0.0  # what was done to the one we have
        self.acknowledged: dict[str, str] = {}
        self.verified: set[str] = set()
        self.audited: dict[tuple[str, object], str] = {}
        self.audited_to = 0
        self.last_new: dict[str, float] = {}
        self.pacs = {name: Pacs() for name in DESTINATIONS}

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.settle()
            self.store.database.close()
            shutil.rmtree(self.folder)

    @property
    def now(self) -> float:
        return self.elapsed + self.offset

    def write(self, function, *arguments):
        with self.store.database.transaction() as tx:
            return function(tx, *arguments)

    @rule(seconds=st.sampled_from([0.5, 5.0, 29.0, 31.0, 61.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.elapsed += seconds

    @rule(seconds=st.sampled_from([1.0, 4.0, 6.0, 45.0, 3600.0]))
    def the_clock_is_set_back(self, seconds: float) -> None:
        self.offset -= seconds

    @rule(uid=st.sampled_from(SERIES), numbers=st.lists(st.integers(1, 5), min_size=1, max_size=4), crash=st.booleans())
    def slices_arrive(self, uid: str, numbers: list[int], crash: bool) -> None:
        arrivals = [self.store.arrival(number, series_uid=uid, study_uid="1") for number in numbers]
        with contextlib.suppress(KeyboardInterrupt), self.store.database.transaction() as tx:
            outcomes = recording.record_instances(tx, arrivals, self.now, QUIET_S)
            if crash:
                raise KeyboardInterrupt
        if crash:
            return
        expected = []
        for arrival in arrivals:
            known = arrival.sop_instance_uid in self.acknowledged
            expected.append(Outcome.DUPLICATE if known else Outcome.NEW)
            self.acknowledged[arrival.sop_instance_uid] = arrival.file.sha256
        assert outcomes == expected
        if Outcome.NEW in outcomes:
            self.last_new[uid] = self.elapsed

    @rule(uid=st.sampled_from(SERIES), number=st.integers(1, 5))
    def other_bytes_arrive_under_a_known_uid(self, uid: str, number: int) -> None:
        if f"{uid}.{number}" in self.acknowledged:
            arrival = self.store.arrival(number, series_uid=uid, study_uid="1", content="other")
            assert self.write(recording.record_instance, arrival, self.now, QUIET_S) == Outcome.SECOND_COPY

    @rule()
    def quiet_series_close(self) -> None:
        for due in self.write(quiet_time.due_series, self.now):
            assert self.elapsed - self.last_new[due.series_instance_uid] >= QUIET_S, "closed too early"
            self.write(series.close_series, due.series_pk, self.now, series.Closing(MODEL))

    @rule(target=claimed)
    def a_worker_claims(self):
        return self.write(jobs.claim, "worker", self.now, LEASE_S, ATTEMPTS)

    @rule(job=claimed)
    def a_worker_lives(self, job: ClaimedJob | None) -> None:
        if job:
            self.write(jobs.heartbeat, job.job_id, job.fence, self.now, LEASE_S)

    @rule(job=claimed, crash=st.booleans())
    def a_worker_finishes(self, job: ClaimedJob | None, crash: bool) -> None:
        """Also one that was thought dead, and one that already finished: the bundle keeps them all."""
        if job is None:
            return
        report = self.store.report(f"2.25.{job.series_pk}.{job.instances_digest}.{job.revision}")
        with contextlib.suppress(StaleLease, KeyboardInterrupt), self.store.database.transaction() as tx:
            jobs.finish(tx, job.job_id, job.fence, self.now, analysed(), [report], DESTINATIONS)
            if crash:
                raise KeyboardInterrupt

    @rule(job=claimed, how=st.sampled_from(["back", "later", "for good"]))
    def a_worker_gives_up(self, job: ClaimedJob | None, how: str) -> None:
        if job is None:
            return
        with contextlib.suppress(StaleLease):
            if how == "back":
                self.write(jobs.hand_back, job.job_id, job.fence, self.now)
            else:
                retry_at = self.now + 20 if how == "later" else None
                self.write(jobs.fail, job.job_id, job.fence, self.now, "broken", retry_at)

    @rule(target=sending, destination=st.sampled_from(DESTINATIONS), stored=st.booleans())
    def a_sender_claims(self, destination: str, stored: bool):
        """`stored`: the destination gets it now, whether or not its answer is ever heard."""
        found = self.write(deliveries.claim, destination, self.now, LEASE_S)
        if found and stored:
            self.transmit(found[0])
        return found[0] if found else None

    def transmit(self, delivery: ClaimedDelivery) -> None:
        for item in delivery.objects:
            self.pacs[delivery.destination].store(
                item.sop_instance_uid, self.store.files.read_verified(item.path, item.sha256)
            )

    @rule(delivery=consumes(sending), answer=st.sampled_from(["success", "busy", "refused", "success"]))
    def a_destination_answers(self, delivery: ClaimedDelivery | None, answer: str) -> None:
        if delivery is None:
            return
        ticket = delivery.delivery_id, delivery.fence, self.now
        with contextlib.suppress(StaleLease):
            if answer == "success":
                self.transmit(delivery)
                self.write(deliveries.mark_sent, *ticket)
            elif answer == "busy":
                self.write(deliveries.retry_later, *ticket, self.now + 40, "0xA700")
            else:
                self.write(deliveries.fail, *ticket, "0xA900")

    @rule()
    def the_node_is_killed_and_starts(self) -> None:
        reconcile(self.store.database, self.store.files, self.now)

    @rule()
    def an_operator_retries_everything(self) -> None:
        for row in self.store.rows("SELECT id FROM jobs WHERE state = 'FAILED'"):
            self.write(jobs.retry, row["id"], self.now)
        for row in self.store.rows("SELECT id FROM deliveries WHERE state = 'FAILED'"):
            self.write(deliveries.retry, row["id"], self.now)

    @rule(uid=st.sampled_from(SERIES))
    def an_operator_wants_a_series_analysed_again(self, uid: str) -> None:
        for row in self.store.rows("SELECT id FROM series WHERE series_instance_uid = :uid", uid=uid):
            with contextlib.suppress(IllegalMove):  # it still waits for slices
                self.write(reopening.analyse_again, row["id"], self.now, MODEL)

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        if not hasattr(self, "store"):
            return
        held = {row["sop_instance_uid"]: row for row in self.store.rows("SELECT * FROM instances")}
        assert {uid: row["sha256"] for uid, row in held.items()} == self.acknowledged
        for uid in held.keys() - self.verified:
            self.store.files.read_verified(held[uid]["path"], held[uid]["sha256"])
            self.verified.add(uid)

    @invariant()
    def there_is_one_current_report_and_one_living_job_at_most(self) -> None:
        if not hasattr(self, "store"):
            return
        for name, living in (("results", "superseded_at IS NULL"), ("jobs", "state IN ('QUEUED', 'RUNNING')")):
            twice = f"SELECT series_pk FROM {name} WHERE {living} GROUP BY series_pk HAVING COUNT(*) > 1"
            assert self.store.rows(twice) == [], name
        outdated = "JOIN results ON results.id = result_id WHERE state = 'PENDING' AND superseded_at IS NOT NULL"
        assert self.store.rows(f"SELECT * FROM deliveries {outdated}") == []

    @invariant()
    def every_change_of_state_is_allowed_and_audited(self) -> None:
        if not hasattr(self, "store"):
            return
        with self.store.database.read() as tx:
            for row in tx.execute(select(table).where(table.c.id > self.audited_to).order_by(table.c.id)).mappings():
                self.audited_to = row["id"]
                self.follow(row)
        rows = [
            *((("job", row["id"]), row["state"]) for row in self.store.rows("SELECT id, state FROM jobs")),
            *(
                (("series", row["series_instance_uid"]), row["state"])
                for row in self.store.rows("SELECT series_instance_uid, state FROM series")
            ),
            *(
                (("delivery", (row["result_id"], row["destination"])), row["state"])
                for row in self.store.rows("SELECT result_id, destination, state FROM deliveries")
            ),
        ]
        assert dict(rows) == self.audited

    def follow(self, row) -> None:
        """One audit row of a change of state: it begins where the one before it ended."""
        entity, _, _ = row["event"].partition(".")
        if entity not in MACHINES or row["outcome"] is None:
            return
        detail = json.loads(row["detail"])
        thing = {
            "job": row["job_id"],
            "series": row["series_uid"],
            "delivery": (row["result_id"], detail.get("destination")),
        }[entity]
        before = self.audited.get((entity, thing))
        assert detail.get("from") == before
        allowed = before in MACHINES[entity][row["outcome"]] if before else row["outcome"] == BORN[entity]
        assert allowed, (entity, before, row["outcome"])
        self.audited[entity, thing] = row["outcome"]

    def settle(self) -> None:
        """With every part at work and the clock left alone, all ends in bounded time: one current report each."""
        for _ in range(4):
            # Nothing here waits longer; if the clock was set back, this round notices and the next one is in time.
            self.elapsed += max(QUIET_S, LEASE_S, 40.0) + clock.TOLERANCE_S
            self.an_operator_retries_everything()
            self.quiet_series_close()
            while job := self.write(jobs.claim, "worker", self.now, LEASE_S, ATTEMPTS):
                self.a_worker_finishes(job, crash=False)
            for destination in DESTINATIONS:
                while found := self.write(deliveries.claim, destination, self.now, LEASE_S):
                    self.transmit(found[0])
                    self.write(deliveries.mark_sent, found[0].delivery_id, found[0].fence, self.now)
        assert set(self.store.states("series")) <= {"CLOSED"}
        assert set(self.store.states("jobs")) <= {"REPORTED", "SUPERSEDED"}
        assert set(self.store.states("deliveries")) <= {"SENT", "SUPERSEDED"}
        current = self.store.rows(
            "SELECT series.series_instance_uid, series.instances_digest, jobs.instances_digest AS analysed, "
            "sop_instance_uid FROM results JOIN jobs ON jobs.id = job_id JOIN series ON series.id = results.series_pk "
            "JOIN result_objects ON result_objects.result_id = results.id WHERE superseded_at IS NULL"
        )
        assert sorted(row["series_instance_uid"] for row in current) == sorted(self.last_new)
        for row in current:
            assert row["instances_digest"] == row["analysed"], "the report is on the whole series"
            assert all(row["sop_instance_uid"] in pacs.held for pacs in self.pacs.values())
        self.every_change_of_state_is_allowed_and_audited()
        self.verified.clear()
        self.nothing_acknowledged_is_lost()
        with self.store.database.read() as tx:
            assert audit.verify(tx) is None
            assert tallies.differences(tx) == {}
            check_listings(tx)
        assert self.store.rows(WRONG_MARKS) == []


# Series whose mark does not say whether they have a current result.
WRONG_MARKS = (
    "SELECT id FROM series WHERE has_result <> EXISTS (SELECT 1 FROM results "
    "WHERE results.series_pk = series.id AND results.superseded_at IS NULL AND NOT results.shadow)"
)

TestNode = Node.TestCase
TestNode.settings = settings(
    max_examples=max(1, STEPS // STEPS_EACH),
    stateful_step_count=STEPS_EACH,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    derandomize=STEPS <= 600,
    suppress_health_check=list(HealthCheck),
)
TestNode.pytestmark = [pytest.mark.timeout(300 + STEPS // 4)]  # type: ignore[attr-defined]
