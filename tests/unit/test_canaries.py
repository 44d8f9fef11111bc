"""Canaries: what makes one, what it is judged by, what it counts in, and what is left of it if the node is killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text
from typer.testing import CliRunner

from config.settings import Settings
from dicom_node.canary.judging import judge
from dicom_node.canary.runner import Canaries, ask
from dicom_node.cli.app import app
from dicom_node.cli.own_data import stored_results, stored_scans
from dicom_node.receiver import meters
from dicom_node.runtime.metrics import problems
from dicom_node.web.health import examine
from storage import (
    activity,
    canaries,
    deliveries,
    jobs,
    notifications,
    own_objects,
    quiet_time,
    senders,
    series,
    status,
    tallies,
    verdicts,
    weekly,
    worklist,
)
from storage.arrival import Outcome
from storage.canaries import CanaryState, Run
from storage.folder import FolderStore
from storage.jobs import Models
from storage.listings import OF_CANARIES
from tests.outbox import ct_series, write_all
from tests.programs import free_port
from tests.receiving import Node
from tests.storage_factory import MODEL, Store, analysed, check_listings, not_analysed

NOW = 1_800_000_000.0
HOUR_S, WITHIN_S = 3600.0, 600.0
PATIENCE_S = HOUR_S + WITHIN_S
STUDY, SERIES = "2.25.{0}", "2.25.{0}.1"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


class Flight:
    """One canary of three slices, without a network and without a model."""

    def __init__(self, store: Store, number: int, now: float = NOW) -> None:
        self.store, self.now = store, now
        self.study, self.series = STUDY.format(number), SERIES.format(number)
        self.slices = [f"{self.series}.{slice_}" for slice_ in (1, 2, 3)]
        with store.database.transaction() as tx:
            self.number = canaries.ask(tx, self.study, self.series, "a test", now, WITHIN_S)
            canaries.begin(tx, self.number, self.slices, "the same source", now)

    def arrive(self, *slices: int, **how: str) -> list[Outcome]:
        where = {"series_uid": self.series, "study_uid": self.study, "patient_id": canaries.PATIENT_ID, **how}
        return self.store.receive(*slices, now=self.now, **where)

    def analyse(self, probability: float, *destinations: str) -> None:
        """Its series is closed and analysed."""
        with self.store.database.transaction() as tx:
            canaries.sent(tx, self.number, self.now)
        self.store.close_due(self.now + 31)
        job = self.store.claim(self.now + 31)
        assert job is not None and job.canary
        with self.store.database.transaction() as tx:
            jobs.finish(
                tx, job.job_id, job.fence, self.now + 32, analysed(probability), [self.store.report()], destinations
            )

    def fly(self, probability: float) -> Run:
        """The whole way. Returns what became of it."""
        self.arrive(1, 2, 3)
        self.analyse(probability)
        return self.judged()

    def judged(self, at: float = 40) -> Run:
        node = Canaries(settings(self.store.folder), self.store.database, self.store.files)
        with self.store.database.read() as tx:
            (run,) = canaries.open_runs(tx)
        node._judge(run, self.now + at)
        with self.store.database.read() as tx:
            return canaries.latest(tx)[0]


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(data_dir=folder, canary={"every_hours": 1, "within_minutes": 10, "keep": 1, **more})


def alarm(store: Store, now: float) -> str | None:
    with store.database.read() as tx:
        return canaries.alarm(tx, now, PATIENCE_S)


def test_what_the_first_one_says_is_expected_of_the_next_ones_until_a_person_expects_something_else(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Flight(store, 1).fly(0.9).state == CanaryState.PASSED
    assert Flight(store, 2, NOW + 60).fly(0.9).said == f"{MODEL.name}: as expected."
    assert Flight(store, 3, NOW + 120).fly(0.9009).state == CanaryState.PASSED, "another device adds differently"
    wrong = Flight(store, 4, NOW + 180).fly(0.95)
    assert (wrong.state, alarm(store, NOW + 240)) == (CanaryState.DIFFERS, "differs")
    assert "probability is 0.95 and not 0.9" in wrong.said
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(store.folder))
    monkeypatch.setenv("DICOM_NODE_STORAGE__DATABASE_URL", store.url)
    done = CliRunner().invoke(app, ["canary", "expect", str(wrong.id)])
    structlog.reset_defaults()  # the command's log ended with it
    assert done.exit_code == 0, done.output
    assert Flight(store, 5, NOW + 300).fly(0.95).state == CanaryState.PASSED
    assert alarm(store, NOW + 360) is None
    events = [event for event in store.events() if str(event).startswith("canary.")]
    assert events.count("canary.expected") == 2 and events.count("canary.differs") == 1


def test_one_that_does_not_get_through_is_an_alarm_everywhere(store: Store) -> None:
    flight = Flight(store, 1)
    flight.arrive(1, 2, 3)
    flight.analyse(0.9, "place")
    assert flight.judged().state == CanaryState.WAITING
    late = flight.judged(WITHIN_S + 1)
    assert (late.state, late.said) == (
        CanaryState.FAILED,
        "After 10 minutes it was not through: its report is not at place.",
    )
    with_canaries = settings(store.folder)
    assert problems(with_canaries, store.database, store.files, None) == ["canary-failed"]
    told = [one.what for one in examine(with_canaries, store.database, store.files, NOW).problems]
    assert any("canary" in what for what in told)


def test_none_within_its_period_is_an_alarm_and_audited_once(store: Store) -> None:
    Flight(store, 1).fly(0.9)  # which ends 40 s later
    assert [alarm(store, NOW + after) for after in (PATIENCE_S, PATIENCE_S + 60)] == [None, "stale"]
    node = Canaries(settings(store.folder), store.database, store.files)
    for _ in range(2):
        node._note_stale(NOW + PATIENCE_S + 60)
    assert store.events().count("canary.stale") == 1


def test_nobody_else_can_put_an_image_into_a_canary_or_be_taken_for_one(store: Store) -> None:
    flight = Flight(store, 1)
    assert flight.arrive(9) == [Outcome.CONFLICT], "before the first of its own images"
    assert flight.arrive(1, 2, 9) == [Outcome.CANARY, Outcome.CANARY, Outcome.CONFLICT]
    assert flight.arrive(3, study_uid="1.2.99") == [Outcome.CONFLICT]
    (aside, *_) = store.rows("SELECT reason FROM conflicts ORDER BY id")
    assert "which did not make this image" in str(aside["reason"])
    # A patient's series that says of itself what canaries say is a patient's.
    store.receive(1, 2, now=NOW, series_uid="1.2.3", study_uid=flight.study, patient_id=canaries.PATIENT_ID)
    assert store.rows("SELECT canary FROM series ORDER BY id") == [{"canary": True}, {"canary": False}]
    store.close_due(NOW + 31)
    claimed = [store.claim(NOW + 31), store.claim(NOW + 31)]
    assert [(job.canary, job.refusal is None) for job in claimed if job] == [(True, False), (False, True)]
    assert flight.arrive(3) == [Outcome.CANARY]
    with store.database.transaction() as tx:
        (run,) = canaries.open_runs(tx)
        canaries.end(tx, run, CanaryState.ABANDONED, "", NOW)
    assert flight.arrive(8) == [Outcome.CONFLICT], "when it is over, nothing belongs to it"


def test_a_canary_that_arrived_in_part_is_refused_as_incomplete(store: Store) -> None:
    Flight(store, 1).arrive(1, 3)
    store.close_due(NOW + 31)
    (job,) = store.rows("SELECT refusal_code, refusal_text FROM jobs")
    assert job == {
        "refusal_code": "MISSING_SLICES",
        "refusal_text": "The canary was made of 3 slices, and 2 arrived.",
    }


def test_it_counts_in_no_statistics_and_no_notification(store: Store) -> None:
    flight = Flight(store, 1)
    flight.arrive(1, 2, 3)
    flight.analyse(0.9, "place")
    with store.database.transaction() as tx:
        told = notifications.told_result(tx, 1)
        assert told is not None and told.positive and not told.is_live
        verdicts.record_verdict(tx, 1, "reader", "AGREES", None, "", NOW)
    with store.database.read() as tx:
        assert stored_results(tx, shadow=False) == [] and stored_scans(tx, store.files) == []
        assert weekly.settled(tx, "2000-01-01") == []
        assert verdicts.labelled_results(tx) == []
        assert own_objects.find_studies(tx, own_objects.Wanted()).studies == []
        assert own_objects.objects_of_study(tx, 1, 10) == []
        assert senders.senders(tx, NOW - 60) == [] and senders.last_series(tx) == {}
        counted = activity.between(tx, NOW - 60, NOW + 60)
        assert (counted.received, counted.analysed) == (0, 0)
        assert status.status(tx, NOW)["results"] == {"ANALYSED": 0, "NOT_ANALYSED": 0, "SHADOW": 0}
        (line,) = worklist.find(tx, worklist.Search()).lines
        assert line.source == OF_CANARIES
        assert tallies.differences(tx) == {}
        check_listings(tx)
    assert store.rows("SELECT COUNT(*) AS rows FROM turnarounds") == [{"rows": 0}]
    assert store.rows("SELECT canary FROM model_results") == [{"canary": True}]


def test_its_failures_are_in_no_view_of_causes(store: Store) -> None:
    flight = Flight(store, 1)
    flight.arrive(1, 2)
    store.receive(1, now=NOW)
    store.close_due(NOW + 31)
    for _ in range(2):
        job = store.claim(NOW + 31)
        assert job is not None
        refused = not_analysed("GAP", "A slice is missing.")
        with store.database.transaction() as tx:
            jobs.finish(tx, job.job_id, job.fence, NOW + 32, refused, [], ["place" if job.canary else "PACS"])
    with store.database.transaction() as tx:
        for destination in ("place", "PACS"):
            [claimed] = deliveries.claim(tx, destination, NOW + 33, 60)
            deliveries.fail(tx, claimed.delivery_id, claimed.fence, NOW + 34, "0xA900")
    found = store.rows("SELECT what, times FROM failures_by_cause ORDER BY what")
    assert found == [{"what": "delivery failed to PACS", "times": 1}, {"what": "series not analysed", "times": 1}]


def test_it_goes_to_no_other_place_than_canaries_do() -> None:
    place = {"name": "place", "ae_title": "PLACE", "host": "10.0.0.9", "port": 104}
    for destinations, wrong in (
        ([], "not the name of a destination"),
        ([place], "gets results too"),
        ([{**place, "send_results": False}], ""),
    ):
        broken = [one.message for one in rules({"canary": {"destination": "place"}, "destinations": destinations})]
        assert any(wrong in message for message in broken) if wrong else not broken
    asked = {"completion": {"query_destination": "place"}, "destinations": [{**place, "send_results": False}]}
    assert any("is asked about" in one.message for one in rules({"canary": {"destination": "place"}, **asked}))


def rules(values: dict[str, Any]) -> list[Any]:
    from config.rules import broken_rules

    return broken_rules(values)


class Killed(BaseException):
    """SIGKILL, as far as one thread can have it."""


class KilledDatabase:
    """An index in which the node dies at its nth commit: just before it, or just after."""

    def __init__(self, database: Any, at: int) -> None:
        self.now, self.read, self._database, self.left = database.now, database.read, database, at

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._database.transaction() as tx:
            yield tx
            self._reached()
        self._reached()

    def _reached(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def test_killed_at_any_commit_it_is_sent_again_in_its_time_and_never_said_to_be_two_things(tmp_path: Path) -> None:
    write_all(ct_series(3), tmp_path / "study")
    points, counted = 0, _counted()
    with Node(tmp_path / "node", {"port": free_port()}, canary=_often(tmp_path)) as node:
        while _fly(node, KilledDatabase(node.database, points + 1)):
            points += 1
            _fly(node, node.database)
        with node.database.read() as tx:
            runs = canaries.latest(tx, 100)
            passed = tx.scalar(text("SELECT COUNT(*) FROM audit WHERE event = 'canary.passed'"))
            assert tallies.differences(tx) == {}
    assert points >= 8, "asked, begun, sent and judged, each before and after"
    assert {run.state for run in runs[1:]} == {"PASSED", "ABANDONED"}
    assert sum(run.state == "PASSED" for run in runs) == passed
    assert (_counted()[0] - counted[0] >= 3 * points, _counted()[1]) == (True, counted[1]), "no image of a patient came"


def _counted() -> tuple[float, float]:
    """How many images were received of canaries, and of patients."""
    of_canaries, of_patients = (meters.INSTANCES.labels(outcome)._value.get() for outcome in ("CANARY", "NEW"))
    return of_canaries, of_patients


def _often(folder: Path) -> dict[str, Any]:
    return {"every_hours": 1e-9, "within_minutes": 10, "folder": folder / "study", "keep": 1}


def _fly(node: Node, database: Any) -> bool:
    """Everything that a node does until one more canary has passed. True if it was killed."""
    before = _passed(node)
    for _ in range(12):
        try:
            Canaries(node.settings, database, node.files).step()
        except Killed:
            return True
        _analyse(node)
        if _passed(node) > before:
            return False
    raise AssertionError("no canary passed")


def _passed(node: Node) -> int:
    with node.database.read() as tx:
        return tallies.read(tx).rows("canary_runs", CanaryState.PASSED)


def _analyse(node: Node) -> None:
    now = node.database.now() + 100
    with node.database.transaction() as tx:
        for due in quiet_time.due_series(tx, now):
            series.close_series(tx, due.series_pk, now, series.Closing(Models(MODEL).reporting))
        while (job := jobs.claim(tx, "test", now, 60, 3)) is not None:
            if job.refusal is None:
                jobs.finish(tx, job.job_id, job.fence, now, analysed(0.9), [], [])
            else:
                jobs.fail(tx, job.job_id, job.fence, now, "incomplete", None)


def test_the_images_of_old_ones_are_deleted(store: Store) -> None:
    for number in (1, 2):
        Flight(store, number, NOW + 60 * number).fly(0.9)
    assert isinstance(store.files, FolderStore)
    Canaries(settings(store.folder), store.database, store.files)._clear(NOW + 200)
    held = store.rows("SELECT series_pk, COUNT(*) AS n FROM instances WHERE gone_at IS NULL GROUP BY series_pk")
    assert held == [{"series_pk": 2, "n": 3}]
    assert len([path for path in (store.folder / "files").rglob("*") if path.is_file() and path.suffix == ".dcm"]) >= 3


def test_asking_twice_sends_one(store: Store) -> None:
    given = settings(store.folder)
    assert ask(store.database, given, "somebody") == ask(store.database, given, "somebody else") == 1
    with store.database.read() as tx:
        assert judge(tx, canaries.latest(tx)[0], store.database.now()).state is None
