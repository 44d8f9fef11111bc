"""Completeness against a small PACS of our own on loopback; DCMTK's and Orthanc are asked in tests/peers."""

import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pynetdicom import AE, evt
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind  # type: ignore[attr-defined]

from config.reasons import ReasonCode
from dicom_node.analysis.current_model import current_models
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from dicom_node.completion.rule import PACS_COUNT, PACS_HAS_FEWER, PACS_LIST, PACS_SILENT
from dicom_node.demo.pacs import Pacs
from storage import efforts, series
from storage.errors import StorageFull
from tests.outbox import MODELS, Node, ct_series, destination, encoded, make_node, write_all
from tests.programs import free_port, wait_for

SETTLE_S = 0.1


def asking_node(folder: Path, port: int, **completion: object) -> Node:
    """A node that asks the PACS at this port, and queues each series that closes."""
    pacs = destination(port, "pacs", "DEMO_PACS")
    asking = {"query_destination": "pacs", "settle_s": SETTLE_S, "query_timeout_s": 2.0, "select": "all"}
    settings = asking | completion
    return make_node(folder, pacs, completion=settings)


def close(node: Node, timeout_s: float = 15.0) -> float:
    """Run the scheduler's job until the only series is closed. Returns the seconds that took."""
    started = time.monotonic()
    completion = Completion(node.settings, node.database, node.files)
    try:

        def closed() -> bool:
            completion.close_due_series(MODELS, time.time())
            return node.series().state == "CLOSED"

        wait_for(closed, timeout_s, "the series closes")
        return time.monotonic() - started
    finally:
        completion.stop()


def test_an_equal_count_completes_at_once_without_the_quiet_time(tmp_path: Path) -> None:
    slices = ct_series(4)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, time.time(), quiet_s=60)
        assert close(node) < 2.0
    record = node.series()
    assert (record.completeness, record.expected_count, record.refusal_code) == (PACS_COUNT, 4, None)
    assert record.job_state == "QUEUED"


@pytest.mark.parametrize(("series_in_pacs", "waits"), [(1, False), (2, True)])
def test_a_study_waits_for_no_further_series_if_the_pacs_lists_none(
    tmp_path: Path, series_in_pacs: int, waits: bool
) -> None:
    slices, other = ct_series(3), ct_series(2)
    for one in other:
        one.StudyInstanceUID = slices[0].StudyInstanceUID
    sent = [*slices, *(other if series_in_pacs == 2 else [])]
    write_all(sent, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        node = asking_node(tmp_path / "node", pacs.port, select="best")
        node.receive(slices, time.time(), quiet_s=600)
        close(node)
    BestSeries(node.settings, node.database, node.files).choose(current_models(node.settings), time.time() + 1)
    record = node.series()
    assert (record.selection, record.job_state) == (("WAITING", None) if waits else ("CHOSEN", "QUEUED"))


@pytest.mark.parametrize("counts", [True, False])
def test_missing_slices_are_fetched_unchanged_and_then_the_series_is_complete(tmp_path: Path, counts: bool) -> None:
    slices = ct_series(7)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs", counts=counts) as pacs:
        pacs.load(tmp_path / "pacs")
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices[::2], time.time(), quiet_s=60)
        assert close(node) < 5.0
    record = node.series()
    assert (record.completeness, record.instance_count, record.refusal_code) == (PACS_COUNT, 7, None)
    held = node.held()
    assert set(held) == {s.SOPInstanceUID for s in slices}
    for number, dataset in enumerate(slices):
        assert encoded(held[dataset.SOPInstanceUID]) == encoded(tmp_path / "pacs" / f"{number:04}.dcm")
    assert [row["outcome"] for row in node.audited("series.fetch")] == ["OK"]
    assert len(node.audited("instance.received")) == 7


def test_slices_that_cannot_be_fetched_refuse_the_series_by_name(tmp_path: Path) -> None:
    slices = ct_series(5)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        (tmp_path / "pacs" / "0003.dcm").unlink()  # indexed, and gone from its disk
        node = asking_node(tmp_path / "node", pacs.port, fetch_attempts=2)
        node.receive(slices[:3], time.time(), quiet_s=0.5)
        close(node)
    record = node.series()
    assert record.refusal_code == ReasonCode.MISSING_SLICES
    assert record.expected_count == 5
    assert record.refusal_text is not None and "5" in record.refusal_text
    assert record.job_state == "QUEUED"


def test_a_fetched_slice_that_the_node_refuses_is_remembered_like_one_that_was_sent(tmp_path: Path) -> None:
    slices = ct_series(4)
    write_all(slices, tmp_path / "pacs")
    with Pacs(tmp_path / "pacs") as pacs:
        pacs.load(tmp_path / "pacs")
        spoilt = dcmread(tmp_path / "pacs" / "0003.dcm")
        del spoilt.StudyInstanceUID
        spoilt.save_as(tmp_path / "pacs" / "0003.dcm")
        node = asking_node(tmp_path / "node", pacs.port, fetch_attempts=1)
        node.receive(slices[:3], time.time(), quiet_s=0.5)
        close(node)
    assert node.series().refusal_code == ReasonCode.MISSING_SLICES
    [row] = node.audited("instance.refused")
    assert row["sop_uid"] == slices[3].SOPInstanceUID
    assert row["detail"]["reason"] == "Study Instance UID is missing"  # type: ignore[index]


def test_a_pacs_that_is_away_leaves_the_quiet_time_to_decide_and_that_is_recorded(tmp_path: Path) -> None:
    node = asking_node(tmp_path / "node", free_port())
    received_at = time.time()
    node.receive(ct_series(3), received_at, quiet_s=1.0)
    close(node)
    record = node.series()
    assert (record.completeness, record.refusal_code) == (PACS_SILENT, None)
    assert record.closed_at is not None and record.closed_at >= received_at + 1.0
    (note,) = node.audited("series.count-unknown")
    assert "no connection" in note["detail"]["reason"]  # type: ignore[index]


def test_a_pacs_that_does_not_know_the_series_leaves_the_quiet_time_to_decide(tmp_path: Path) -> None:
    with Pacs(tmp_path / "pacs") as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(ct_series(3), time.time(), quiet_s=0.5)
        close(node)
    assert (node.series().completeness, node.series().expected_count) == (PACS_HAS_FEWER, 0)


def test_without_a_pacs_to_ask_the_quiet_time_counts(tmp_path: Path) -> None:
    node = make_node(tmp_path / "node")
    now = 1_700_000_000.0
    node.receive(ct_series(3), now, quiet_s=30)
    completion = Completion(node.settings, node.database, node.files)
    completion.close_due_series(MODELS, now + 29.9)
    assert node.series().state == "OPEN"
    completion.close_due_series(MODELS, now + 30.0)
    assert (node.series().state, node.series().completeness) == ("CLOSED", "quiet-time")
    completion.stop()


def test_a_silent_pacs_delays_no_series_beyond_its_own_timeout(tmp_path: Path) -> None:
    """Ten series at once against a PACS that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        node = asking_node(tmp_path / "node", silent.getsockname()[1], query_timeout_s=0.5)
        for _ in range(10):
            node.receive(ct_series(1), time.time(), quiet_s=0.3)
        completion = Completion(node.settings, node.database, node.files)

        def all_closed() -> bool:
            completion.close_due_series(MODELS, time.time())
            with node.database.read() as tx:
                return all(s.state == "CLOSED" for s in series.list_series(tx))

        wait_for(all_closed, 25)
        completion.stop()


class CountingPacs:
    """Answers C-FIND: it counts `count` instances and lists `listed`. It gives none of them.

    odd: a value for the count that is no number. lists: False for one that answers at series level only.
    """

    def __init__(self, slices: Sequence[Dataset], count: int, odd: bytes | None = None, lists: bool = True) -> None:
        self.slices, self.count, self.odd, self.lists = slices, count, odd, lists
        self.questions: Counter[str] = Counter()
        entity = AE(ae_title="DEMO_PACS")
        entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        self._server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, self._find)])
        self.port = int(self._server.server_address[1])

    def __enter__(self) -> "CountingPacs":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = str(event.identifier.QueryRetrieveLevel)
        self.questions[level] += 1
        if level == "IMAGE" and not self.lists:
            yield 0xA900, None
            return
        for instance in self.slices if level == "IMAGE" else self.slices[:1]:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            answer.SeriesInstanceUID = instance.SeriesInstanceUID
            if level == "IMAGE":
                answer.SOPInstanceUID = instance.SOPInstanceUID
            elif self.odd is not None:
                answer[0x00201209] = RawDataElement(Tag(0x00201209), "IS", len(self.odd), self.odd, 0, False, True)
            else:
                answer.NumberOfSeriesRelatedInstances = self.count
            yield 0xFF00, answer


def live(node: Node, now: float, until: float, restart: bool = False) -> float:
    """The scheduler's job over simulated time, every second of it until the series is closed. Returns when that was.

    restart: every time in a new process, which remembers nothing but the index.
    """
    completion = Completion(node.settings, node.database, node.files)
    while now < until and node.series().state == "OPEN":
        completion.close_due_series(MODELS, now)
        wait_for(lambda asking=completion: not asking._in_flight)  # type: ignore[misc]
        if restart:
            completion.stop()
            completion = Completion(node.settings, node.database, node.files)
        now += 1.0
    completion.stop()
    return now


BEGIN = 2_000_000_000.0


def test_a_pacs_that_counts_more_than_it_lists_is_asked_again_and_then_its_list_is_believed(tmp_path: Path) -> None:
    slices = ct_series(40)
    with CountingPacs(slices, 41) as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, BEGIN, quiet_s=60)
        closed = live(node, BEGIN + 1, BEGIN + 100)
        assert pacs.questions == {"SERIES": 2, "IMAGE": 2}
    assert closed < BEGIN + 10
    record = node.series()
    assert (record.completeness, record.expected_count, record.refusal_code) == (PACS_LIST, 40, None)
    assert record.job_state == "QUEUED"
    (row,) = node.audited("series.count-contradicted")
    assert row["outcome"] == "LIST_BELIEVED"
    assert row["detail"]["reason"] == "The PACS counts 41 instances and lists 40, also when asked again."  # type: ignore[index]


def test_a_pacs_that_lists_more_than_it_counts_is_not_believed_its_count(tmp_path: Path) -> None:
    slices = ct_series(5)
    with CountingPacs(slices, 3) as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices[:3], BEGIN, quiet_s=30)
        live(node, BEGIN + 1, BEGIN + 1000)
    record = node.series()
    assert (record.refusal_code, record.expected_count) == (ReasonCode.MISSING_SLICES, 5)
    assert record.refusal_text is not None
    assert "counts 3 instances of this series and lists 5; 3 instances are here" in record.refusal_text


@pytest.mark.parametrize("how", ["no-list", "renamed"])
def test_an_equal_count_completes_also_if_the_list_is_refused_or_names_other_instances(
    tmp_path: Path, how: str
) -> None:
    slices = ct_series(3)
    others = ct_series(3)
    for ours, other in zip(slices, others, strict=True):
        other.SeriesInstanceUID = ours.SeriesInstanceUID
    with CountingPacs(slices if how == "no-list" else others, 3, lists=how != "no-list") as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, BEGIN, quiet_s=600)
        assert live(node, BEGIN + 1, BEGIN + 100) < BEGIN + 10
    assert (node.series().completeness, node.series().refusal_code) == (PACS_COUNT, None)


def test_slices_that_it_lists_and_does_not_give_refuse_the_series_in_a_true_sentence(tmp_path: Path) -> None:
    slices = ct_series(40)
    with CountingPacs(slices, 41) as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices[:38], BEGIN, quiet_s=30)
        live(node, BEGIN + 1, BEGIN + 1000)
    record = node.series()
    assert record.refusal_code == ReasonCode.MISSING_SLICES
    assert record.refusal_text is not None
    assert "counts 41 instances of this series and lists 40; 38 instances are here" in record.refusal_text


@pytest.mark.parametrize("restart", [False, True])
def test_what_cannot_be_fetched_is_asked_for_a_few_times_and_no_more_after_restarts(
    tmp_path: Path, restart: bool
) -> None:
    slices = ct_series(5)
    day_s = 86400.0
    with CountingPacs(slices, 5) as pacs:
        node = asking_node(tmp_path / "node", pacs.port, settle_s=1.0)
        node.receive(slices[:3], BEGIN, quiet_s=600)
        closed = live(node, BEGIN + 1, BEGIN + day_s, restart)
        assert BEGIN + 600 <= closed < BEGIN + 700
        assert pacs.questions["SERIES"] < 25, "ten minutes, at distances of up to a minute"
    assert len(node.audited("series.fetch")) == node.settings.completion.fetch_attempts
    assert node.series().refusal_code == ReasonCode.MISSING_SLICES
    with node.database.read() as tx:
        assert efforts.all_efforts(tx) == {}


@pytest.mark.parametrize("retrieve", ["get", "none"])
def test_a_pacs_that_goes_away_after_it_listed_missing_slices_does_not_make_the_series_complete(
    tmp_path: Path, retrieve: str
) -> None:
    slices = ct_series(5)
    with CountingPacs(slices, 5) as pacs:
        node = asking_node(tmp_path / "node", pacs.port, retrieve=retrieve)
        node.receive(slices[:3], BEGIN, quiet_s=60)
        live(node, BEGIN + 1, BEGIN + 10)
    live(node, BEGIN + 10, BEGIN + 200)
    assert node.series().refusal_code == ReasonCode.MISSING_SLICES
    assert node.series().completeness == PACS_SILENT


def test_an_answer_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    slices = ct_series(3)
    with CountingPacs(slices, 3, odd=b"\xff\xfe\\7.5x") as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, BEGIN, quiet_s=30)
        live(node, BEGIN + 1, BEGIN + 200)
    assert node.series().state == "CLOSED"
    assert node.series().job_state == "QUEUED"


def test_a_fault_of_our_own_is_tried_again_at_growing_distances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def full(*_arguments: object) -> None:
        tried.append(1.0)
        raise StorageFull("no space")

    slices = ct_series(3)
    with CountingPacs(slices, 3) as pacs:
        node = asking_node(tmp_path / "node", pacs.port)
        node.receive(slices, BEGIN, quiet_s=30)
        monkeypatch.setattr(Completion, "_close", full)
        live(node, BEGIN + 1, BEGIN + 600)
        assert 6 <= len(tried) <= 9
        monkeypatch.undo()
        live(node, BEGIN + 600, BEGIN + 1500)
    assert node.series().state == "CLOSED"
