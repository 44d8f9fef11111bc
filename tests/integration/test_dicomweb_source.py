"""Completeness by QIDO-RS and WADO-RS, against a server that answers well or badly; tests/peers asks Orthanc."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from config.gateways.stow import StowDestination
from config.load import read
from config.reasons import ReasonCode
from dicom_node.analysis.current_model import current_models
from dicom_node.completion.asking import QueriedPacs
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from dicom_node.completion.rule import PACS_COUNT, PACS_LIST, PACS_SILENT
from dicom_node.scu.query import SeriesKey
from tests.dicomweb_source import MULTIPART, Reply, WebSource, element, multipart
from tests.outbox import MODELS, Node, ct_series, encoded, make_node, part10
from tests.programs import wait_for

UNREADABLE = {
    "unavailable": Reply(503),
    "too often": Reply(429),
    "not found": Reply(404),
    "gone": Reply(410),
    "forbidden": Reply(403),
    "refused": Reply(400),
    "broken": Reply(500),
    "redirect": Reply(302),
    "a page": Reply(200, b"<html>log in</html>", "text/html"),
    "nothing": Reply(200, b""),
    "cut": Reply(200, b"[]", cut=True),
    "no list": Reply(200, b"{}"),
    "no items": Reply(200, b"[1]"),
    "deep": Reply(200, b"[" * 100_000),
    "no UID": Reply(200, b"[{}]"),
    "a path": Reply(200, json.dumps([{t: element("UI", "../1.2") for t in ("0020000E", "00080018")}]).encode()),
    "too long": Reply(200, b" " * (17 << 20), unstated=True),
}


def asking_node(folder: Path, server: WebSource, **completion: object) -> Node:
    """A node that asks this server."""
    archive = StowDestination(kind="stow", name="archive", url=server.url, send_results=False)
    asking = {"query_destination": "archive", "settle_s": 0.1, "query_timeout_s": 2.0, "select": "all"}
    return make_node(folder / "node", archive, completion=asking | completion)


def close(node: Node) -> None:
    """Run the scheduler's job until the only series is closed."""
    completion = Completion(node.settings, node.database, node.files)

    def closed() -> bool:
        completion.close_due_series(MODELS, time.time())
        return node.series().state == "CLOSED"

    try:
        wait_for(closed, 20, "the series closes")
    finally:
        completion.stop()


@pytest.mark.parametrize(
    ("counts", "cap", "pages"),
    [(True, 1000, True), (False, 1000, True), (True, 2, True), (False, 3, True), (True, 3, False)],
)
def test_missing_slices_are_fetched_unchanged_and_then_the_series_is_complete(
    tmp_path: Path, counts: bool, cap: int, pages: bool
) -> None:
    slices = ct_series(7)
    with WebSource([*slices, *ct_series(2)], cap=cap, counts=counts, pages=pages) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices[::2], time.time(), quiet_s=60)
        close(node)
    record = node.series()
    assert (record.completeness, record.instance_count, record.expected_count) == (PACS_COUNT, 7, 7)
    assert (record.refusal_code, record.job_state) == (None, "QUEUED")
    sent = tmp_path / "sent.dcm"
    for one in slices:
        sent.write_bytes(part10(one))
        assert encoded(node.held()[one.SOPInstanceUID]) == encoded(sent)
    (row,) = node.audited("series.fetch")
    assert (row["outcome"], row["detail"]) == ("OK", {"how": "wado-rs", "missing": 3, "fetched": 3})
    assert server.asked.count("instance") == 3
    assert len(node.audited("instance.received")) == 7


OF_A_LIST = ("unavailable", "a page", "cut", "no UID", "a path")


@pytest.mark.parametrize(
    ("kind", "what"), [*(("count", what) for what in UNREADABLE), *(("list", what) for what in OF_A_LIST)]
)
def test_an_answer_that_cannot_be_read_counts_as_none(tmp_path: Path, kind: str, what: str) -> None:
    slices = ct_series(4)
    with WebSource(slices, answers={kind: lambda uid: UNREADABLE[what]}) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices[:3], time.time(), quiet_s=0.2)
        close(node)
    record = node.series()
    assert (record.completeness, record.expected_count, record.instance_count) == (PACS_SILENT, None, 3)
    assert [row["outcome"] for row in node.audited("series.count-unknown")] == ["FELL_BACK"]
    assert "instance" not in server.asked


def test_an_archive_that_does_not_know_one_series_is_asked_about_the_next(tmp_path: Path) -> None:
    slices = ct_series(3)
    with WebSource(slices) as server:
        server.answers["count"] = lambda uid: None if "count" in server.asked else Reply(404)
        node = asking_node(tmp_path, server, silence_s=600)
        (archive,) = node.settings.destinations
        pacs = QueriedPacs(node.settings, archive, node.database, node.files)  # type: ignore[arg-type]
        key = SeriesKey("TEST", slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID)
        first, second = (pacs.ask(key, 3, time.time) for _ in range(2))
    assert (first.count, "404" in first.silence) == (None, True)
    assert (second.count, second.silence) == (3, "")


@pytest.mark.parametrize("stated", [-1, 1.5, "many", True, 1 << 31, [4], {"n": 4}])
def test_a_count_that_is_no_number_counts_as_none(tmp_path: Path, stated: object) -> None:
    slices = ct_series(3)
    item = {"0020000E": element("UI", slices[0].SeriesInstanceUID), "00201209": element("IS", stated)}
    with WebSource(slices, answers={"count": lambda uid: Reply(200, json.dumps([item]).encode())}) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices, time.time(), quiet_s=0.2)
        close(node)
    assert node.series().completeness == PACS_SILENT


def test_a_list_without_end_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.gateways.dicomweb.MAX_ANSWERS", 20)
    slices = ct_series(4)

    def endless(uid: str) -> Reply:
        return Reply(200, json.dumps([{"00080018": element("UI", generate_uid())} for _ in range(3)]).encode())

    with WebSource(slices, counts=False, answers={"list": endless}) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices[:3], time.time(), quiet_s=0.2)
        close(node)
    assert node.series().completeness == PACS_SILENT
    (row,) = node.audited("series.count-unknown")
    assert str(row["detail"]).endswith("the query was answered without end'}")


def test_a_number_that_is_above_the_list_is_not_believed_twice(tmp_path: Path) -> None:
    slices = ct_series(3)
    item = {"0020000E": element("UI", slices[0].SeriesInstanceUID), "00201209": element("IS", "5")}
    with WebSource(slices, answers={"count": lambda uid: Reply(200, json.dumps([item]).encode())}) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices, time.time(), quiet_s=60)
        close(node)
    assert (node.series().completeness, node.series().expected_count) == (PACS_LIST, 3)


BAD_INSTANCES: dict[str, Callable[[bytes], Reply]] = {
    "not found": lambda content: Reply(404),
    "gone": lambda content: Reply(410),
    "too often": lambda content: Reply(429),
    "unavailable": lambda content: Reply(503),
    "no such form": lambda content: Reply(406),
    "empty": lambda content: Reply(204),
    "a page": lambda content: Reply(200, b"<html>log in</html>", "text/html"),
    "a page in a part": lambda content: multipart(b"<html>log in</html>"),
    "no parts": lambda content: multipart(),
    "no multipart": lambda content: Reply(200, content, "application/dicom"),
    "no boundary": lambda content: replace(multipart(content), kind="multipart/related"),
    "cut": lambda content: replace(multipart(content), cut=True),
    "truncated": lambda content: Reply(200, multipart(content).body[:-200], MULTIPART, unstated=True),
    "not closed": lambda content: Reply(200, multipart(content).body[:-4], MULTIPART, unstated=True),
    "endless": lambda content: Reply(200, b"\r\n--limit\r\n\r\n" + b"x" * (3 << 20), MULTIPART, unstated=True),
    "another instance": lambda content: multipart(part10(ct_series(1)[0])),
}


@pytest.mark.parametrize("what", BAD_INSTANCES)
def test_an_instance_that_does_not_come_whole_refuses_the_series_by_name(tmp_path: Path, what: str) -> None:
    slices = ct_series(4)
    bad = BAD_INSTANCES[what](part10(slices[3]))
    with WebSource(slices, answers={"instance": lambda uid: bad}) as server:
        node = asking_node(tmp_path, server, fetch_attempts=1)
        receiver = node.settings.receiver.model_copy(update={"max_instance_bytes": 1 << 20})
        node.settings = node.settings.model_copy(update={"receiver": receiver})
        node.receive(slices[:3], time.time(), quiet_s=0.2)
        close(node)
    record = node.series()
    assert record.refusal_code == ReasonCode.MISSING_SLICES
    assert (record.expected_count, record.instance_count) == (4, 3)
    assert server.asked.count("instance") == 1
    assert len(node.audited("instance.received")) == 3
    assert node.audited("series.fetch")[0]["outcome"] in ("PARTLY", "FAILED")


def test_of_what_comes_with_an_instance_only_the_missing_ones_are_kept(tmp_path: Path) -> None:
    slices, others = ct_series(4), ct_series(1)
    same_uid = ct_series(1)[0]
    same_uid.SOPInstanceUID = same_uid.file_meta.MediaStorageSOPInstanceUID = slices[2].SOPInstanceUID
    unlisted = copy.deepcopy(slices[3])
    unlisted.SOPInstanceUID = unlisted.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    answer = multipart(*map(part10, (same_uid, others[0], unlisted, slices[0], slices[2], slices[3])))
    with WebSource(slices, answers={"instance": lambda uid: answer}) as server:
        node = asking_node(tmp_path, server)
        node.receive(slices[:2], time.time(), quiet_s=60)
        close(node)
    assert set(node.held()) == {one.SOPInstanceUID for one in slices}
    assert len(node.audited("instance.received")) == 4
    assert node.audited("instance.conflict") == node.audited("instance.duplicate") == []


def test_a_fetched_slice_that_the_node_refuses_is_remembered_like_one_that_was_sent(tmp_path: Path) -> None:
    slices = ct_series(4)
    spoilt = copy.deepcopy(slices[3])
    del spoilt.StudyInstanceUID
    with WebSource(slices, answers={"instance": lambda uid: multipart(part10(spoilt))}) as server:
        node = asking_node(tmp_path, server, fetch_attempts=1)
        node.receive(slices[:3], time.time(), quiet_s=0.2)
        close(node)
    assert node.series().refusal_code == ReasonCode.MISSING_SLICES
    (row,) = node.audited("instance.refused")
    assert row["sop_uid"] == slices[3].SOPInstanceUID
    assert row["detail"]["reason"] == "Study Instance UID is missing"  # type: ignore[index]


def test_a_server_that_falls_silent_after_it_listed_more_completes_nothing(tmp_path: Path) -> None:
    slices = ct_series(4)
    with WebSource(slices, answers={"instance": lambda uid: Reply(503)}) as server:
        server.answers["count"] = lambda uid: Reply(404) if "instance" in server.asked else None
        node = asking_node(tmp_path, server)
        node.receive(slices[:3], time.time(), quiet_s=1.0)
        close(node)
    record = node.series()
    assert (record.refusal_code, record.completeness) == (ReasonCode.MISSING_SLICES, PACS_SILENT)


@pytest.mark.parametrize(("others", "waits"), [(0, False), (2, True)])
def test_a_study_waits_for_no_further_series_if_the_server_lists_none(tmp_path: Path, others: int, waits: bool) -> None:
    slices, other = ct_series(3), ct_series(2)[:others]
    for one in other:
        one.StudyInstanceUID = slices[0].StudyInstanceUID
    with WebSource([*slices, *other], cap=1 if others else 1000) as server:
        node = asking_node(tmp_path, server, select="best")
        node.receive(slices, time.time(), quiet_s=600)
        close(node)
    BestSeries(node.settings, node.database, node.files).choose(current_models(node.settings), time.time() + 1)
    assert node.series().selection == ("WAITING" if waits else "CHOSEN")


def test_a_source_must_be_able_to_count_and_to_give(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    archive = '[[destinations]]\nkind = "stow"\nname = "archive"\nurl = "https://h/dicom-web"\n'
    ris = '[[destinations]]\nkind = "hl7"\nname = "ris"\nhost = "127.0.0.1"\nport = 2575\n'
    for query, expected in (
        ('query_destination = "archive"\n', []),
        ('query_destination = "archive"\nretrieve = "none"\n', []),
        ('query_destination = "archive"\nretrieve = "move"\n', ["completion.retrieve"]),
        ('query_destination = "ris"\n', ["completion.query_destination"]),
        ('query_destination = "archive"\n[iocm]\npoll_hours = 6\n', ["iocm.poll_hours"]),
    ):
        file.write_text(f"[completion]\n{query}{archive}{ris}")
        assert [one.key for one in read(file)[1]] == expected
