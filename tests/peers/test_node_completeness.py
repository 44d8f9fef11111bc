"""Slices withheld from the node, which Orthanc holds or has lost: reported on the whole, or not analysed."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_node.scu import push
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.programs import Orthanc, orthanc, wait_for
from tests.running import Node, running

pytestmark = pytest.mark.peer

LOST = slice(15, 19)


def reports(server: Orthanc, folder: Path, study_uid: str) -> list[Dataset]:
    """The SR objects of a study in Orthanc."""
    found = []
    for identifier in server.call("/instances"):
        tags = server.call(f"/instances/{identifier}/simplified-tags")
        if tags["Modality"] == "SR" and tags["StudyInstanceUID"] == study_uid:
            path = folder / f"{identifier}.dcm"
            path.write_bytes(server.file(identifier))
            found.append(dcmread(path))
    return found


def send_without_lost(paths: Sequence[Path], folder: Path, node: Node) -> None:
    folder.mkdir()
    for path in [p for number, p in enumerate(paths) if number not in range(LOST.start, LOST.stop)]:
        shutil.copy(path, folder)
    sent = push.send(folder, "127.0.0.1", node.port, node.ae_title, "SENDER")
    assert (sent.stored, sent.failed) == (36, 0), sent.detail


def test_withheld_slices_are_fetched_and_the_whole_is_reported_and_what_the_pacs_lost_too_is_not_analysed(
    tmp_path: Path,
) -> None:
    whole = write_series(make_phantom(31, slices=40, size=256, lesions="mixed"), tmp_path / "whole")
    lost = write_series(make_phantom(32, slices=40, size=256), tmp_path / "lost")
    with orthanc(tmp_path / "orthanc") as pacs:
        identifiers = [pacs.upload(path) for path in (*whole, *lost)]
        for identifier in identifiers[len(whole) :][LOST]:
            pacs.call(f"/instances/{identifier}", method="DELETE")
        node = Node(
            tmp_path / "node",
            pacs.port,
            "ORTHANC",
            DICOM_NODE_COMPLETION__QUERY_DESTINATION="pacs",
            DICOM_NODE_COMPLETION__QUIET_S="600",  # the count alone completes a series here
            DICOM_NODE_REPORT__REPORT_NOT_ANALYSED="true",
        )
        with running(node):
            send_without_lost(whole, tmp_path / "sent whole", node)
            send_without_lost(lost, tmp_path / "sent lost", node)
            (report,) = _wait(pacs, tmp_path, whole[0])
            (refusal,) = _wait(pacs, tmp_path, lost[0])
            shown = node.command("series", "show", str(dcmread(lost[0]).SeriesInstanceUID))
            waited = node.command("series", "show", str(dcmread(whole[0]).SeriesInstanceUID))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 40
    assert (waited["outcome"], waited["instance_count"], waited["completeness"]) == ("ANALYSED", 40, "pacs-count")
    assert (shown["outcome"], shown["reason_code"]) == ("NOT_ANALYSED", "MISSING_SLICES")
    assert (shown["completeness"], shown["expected_count"]) == ("pacs-count", 36)
    assert shown["closed_at"] - shown["last_instance_at"] < 10  # and not the quiet time of ten minutes
    assert "MISSING_SLICES" in str(refusal) and "CompletionFlag" in refusal


def _wait(pacs: Orthanc, folder: Path, path: Path) -> list[Dataset]:
    study = str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)
    return wait_for(lambda: reports(pacs, folder, study), 200, "a report in Orthanc")
