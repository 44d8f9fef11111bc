"""The whole node in processes of its own, with the demonstration model: CT in at one side, report out at the other."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_node.demo.pacs import Pacs
from dicom_node.scu import push
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.programs import wait_for
from tests.running import Node, running

SLICES = 40
SIZE = 256


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A positive and a negative series, small enough for a test."""
    root = tmp_path_factory.mktemp("phantoms")
    for name, seed, lesions in (("positive", 11, "mixed"), ("negative", 12, "none")):
        write_series(make_phantom(seed, slices=SLICES, size=SIZE, lesions=lesions), root / name)
    return {"positive": root / "positive", "negative": root / "negative"}


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """A listening PACS that keeps what it gets."""
    server = Pacs(tmp_path / "pacs", ae_title="PACS")
    with server:
        yield server


def reports(pacs: Pacs) -> list[Dataset]:
    found = [dcmread(path) for path in pacs.received()]
    return [dataset for dataset in found if dataset.Modality == "SR"]


def series_of(folder: Path) -> str:
    return str(dcmread(next(iter(sorted(folder.iterdir()))), stop_before_pixels=True).SeriesInstanceUID)


def evidence_of(report: Dataset) -> set[str]:
    return {
        str(series.SeriesInstanceUID)
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
    }


def send(folder: Path, node: Node) -> None:
    result = push.send(folder, "127.0.0.1", node.port, node.ae_title, "SENDER")
    assert (result.stored, result.failed) == (len(list(folder.iterdir())), 0), result.detail


def test_two_series_go_in_and_two_reports_that_name_them_come_out(
    phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path
) -> None:
    with running(Node(tmp_path / "node", pacs.port)) as node:
        for folder in phantoms.values():
            send(folder, node)
        wait_for(lambda: len(reports(pacs)) == 2, 200, "two reports")
        sources = [evidence_of(report) for report in reports(pacs)]
        for folder in phantoms.values():
            assert sum(series_of(folder) in found for found in sources) == 1

        for folder in phantoms.values():
            shown = node.command("series", "show", series_of(folder))
            assert (shown["outcome"], shown["job_state"]) == ("ANALYSED", "REPORTED")
        events = {row["event"] for row in node.command("audit")}
        assert {"association.accepted", "series.closed", "job.reported", "result.recorded"} <= events
        assert node.stop() == 0


def test_a_result_is_sent_again_byte_for_byte_and_made_again_with_new_uids_that_name_it(
    phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path
) -> None:
    uid = series_of(phantoms["negative"])
    with running(Node(tmp_path / "node", pacs.port)) as node:
        send(phantoms["negative"], node)
        wait_for(lambda: node.command("series", "show", uid)["deliveries"][:1], 200, "the result")
        wait_for(lambda: node.command("series", "show", uid)["deliveries"][0]["state"] == "SENT", 60, "it is sent")
        first = [path.read_bytes() for path in pacs.received()]

        node.command("resend", uid)
        wait_for(lambda: len(pacs.received()) == 2 * len(first), 60, "it came again")
        assert sorted(path.read_bytes() for path in pacs.received()[len(first) :]) == sorted(first)

        node.command("reanalyse", uid)
        wait_for(lambda: len({report.SOPInstanceUID for report in reports(pacs)}) == 2, 200, "another report")
        former, later = reports(pacs)[0], reports(pacs)[-1]
        [named] = later.PredecessorDocumentsSequence
        assert (
            named.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == former.SOPInstanceUID
        )
        assert {"operator.resend", "operator.reanalyse"} <= {row["event"] for row in node.command("audit")}


def test_a_killed_node_goes_on_where_it_was_and_reports_once(
    phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path
) -> None:
    node = Node(tmp_path / "node", pacs.port)
    with running(node):
        send(phantoms["positive"], node)
        wait_for(lambda: node.command("status")["jobs"].get("RUNNING"), 60, "the job runs")
        node.kill()
        node.start()
        wait_for(lambda: reports(pacs), 200, "the report")
        time.sleep(3)
        assert len({report.SOPInstanceUID for report in reports(pacs)}) == 1
        shown = node.command("series", "show", series_of(phantoms["positive"]))
        assert shown["deliveries"][0]["state"] in ("SENT", "COMMITTED")


def test_an_incomplete_series_is_refused_with_its_reason_and_nothing_is_sent(
    phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path
) -> None:
    gap = tmp_path / "gap"
    gap.mkdir()
    for number, path in enumerate(sorted(phantoms["positive"].iterdir())):
        if number not in (15, 16):
            (gap / path.name).write_bytes(path.read_bytes())
    with running(Node(tmp_path / "node", pacs.port)) as node:
        send(gap, node)
        uid = series_of(gap)
        wait_for(lambda: node.command("series", "show", uid)["outcome"], 60, "an outcome")
        shown = node.command("series", "show", uid)
        assert (shown["outcome"], shown["reason_code"]) == ("NOT_ANALYSED", "MISSING_SLICES")
        assert pacs.received() == []


def test_a_late_slice_brings_a_new_report_that_names_the_earlier_one(
    phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path
) -> None:
    paths = sorted(phantoms["negative"].iterdir())
    early, late = tmp_path / "early", tmp_path / "late"
    for folder, chosen in ((early, paths[:-1]), (late, paths[-1:])):
        folder.mkdir()
        for path in chosen:
            (folder / path.name).write_bytes(path.read_bytes())
    with running(Node(tmp_path / "node", pacs.port)) as node:
        send(early, node)
        wait_for(lambda: len(reports(pacs)) == 1, 200, "the first report")
        send(late, node)
        wait_for(lambda: len(reports(pacs)) == 2, 200, "the second report")
        first, second = reports(pacs)
        named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == first.SOPInstanceUID


def test_two_senders_at_once_lose_nothing(phantoms: dict[str, Path], pacs: Pacs, tmp_path: Path) -> None:
    with running(Node(tmp_path / "node", pacs.port)) as node:
        threads = [threading.Thread(target=send, args=(folder, node)) for folder in phantoms.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = {row["series_instance_uid"]: row["instance_count"] for row in node.command("series", "list")}
        assert counts == {series_of(folder): SLICES for folder in phantoms.values()}
