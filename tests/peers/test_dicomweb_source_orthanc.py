"""Completeness by DICOMweb against Debian's Orthanc: it holds all slices, the node was sent some of them."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian, JPEGLSLossless

from config.gateways.stow import StowDestination
from config.settings import SenderSettings
from dicom_node.completion.rule import PACS_COUNT
from dicom_node.gateways.dicomweb import WebQuery
from dicom_node.gateways.http import HttpPeer
from dicom_node.scu import push
from dicom_node.scu.query import SeriesKey
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.conftest import require_dicomweb
from tests.outbox import ct_series, encoded, make_node, write_all
from tests.peers.test_node_completeness import reports
from tests.peers.test_pacs_completeness import close
from tests.programs import Orthanc, orthanc, wait_for
from tests.running import Node, running

pytestmark = pytest.mark.peer


@contextmanager
def filled(folder: Path, paths: Sequence[Path], **options: object) -> Iterator[Orthanc]:
    """Orthanc with DICOMweb and these slices."""
    with orthanc(folder / "orthanc", Plugins=[require_dicomweb()], **options) as server:
        for path in paths:
            server.upload(path)
        yield server


def archive(server: Orthanc) -> StowDestination:
    """This Orthanc as a source only."""
    url = f"http://127.0.0.1:{server.http_port}/dicom-web"
    return StowDestination(kind="stow", name="archive", url=url, send_results=False)


@pytest.mark.parametrize("most", [0, 2], ids=["whole lists", "cut lists"])
def test_the_archive_counts_and_lists_a_series(tmp_path: Path, most: int) -> None:
    slices, others = ct_series(5), ct_series(2)
    for one in others:
        one.StudyInstanceUID = slices[0].StudyInstanceUID
    paths = write_all([*slices, *others, *ct_series(2)], tmp_path / "slices")
    with filled(tmp_path, paths, LimitFindInstances=most, LimitFindResults=most) as server:

        def query() -> WebQuery:
            return WebQuery(HttpPeer(archive(server), SenderSettings()), 10.0)

        key = SeriesKey("TEST", slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID)
        asked = query()
        assert asked.count(key) == 5
        assert asked.instances(key) == {one.SOPInstanceUID for one in slices}
        assert query().ct_series(key) == {slices[0].SeriesInstanceUID, others[0].SeriesInstanceUID}
        unknown = SeriesKey("TEST", "1.2.3.4", "1.2.3.5")
        assert query().count(unknown) == 0
        assert query().instances(unknown) == query().ct_series(unknown) == set()


@pytest.mark.parametrize(
    "syntax", [None, ImplicitVRLittleEndian, JPEGLSLossless], ids=["explicit", "implicit", "jpegls"]
)
def test_withheld_slices_are_fetched_in_the_syntax_that_the_archive_has(tmp_path: Path, syntax: str | None) -> None:
    slices: list[Dataset] = ct_series(9, syntax) if syntax == ImplicitVRLittleEndian else ct_series(9)
    if syntax == JPEGLSLossless:
        for dataset in slices:
            dataset.compress(JPEGLSLossless)
    paths = write_all(slices, tmp_path / "slices")
    with filled(tmp_path, paths) as server:
        completion = {"query_destination": "archive", "settle_s": 0.2}
        node = make_node(tmp_path / "node", archive(server), completion=completion, sender={"response_timeout_s": 10.0})
        node.receive(slices[:3] + slices[6:], time.time(), quiet_s=60)
        close(node)
    record = node.series()
    assert (record.completeness, record.instance_count, record.refusal_code) == (PACS_COUNT, 9, None)
    originals = dict(zip((one.SOPInstanceUID for one in slices), paths, strict=True))
    assert {uid: encoded(path) for uid, path in node.held().items()} == {u: encoded(p) for u, p in originals.items()}


def test_withheld_slices_are_fetched_and_the_whole_is_analysed(tmp_path: Path) -> None:
    whole = write_series(make_phantom(33, slices=40, size=256, lesions="mixed"), tmp_path / "whole")
    (tmp_path / "sent").mkdir()
    for path in whole[:15] + whole[19:]:
        shutil.copy(path, tmp_path / "sent")
    with filled(tmp_path, whole) as server:
        source = archive(server).model_dump(mode="json", exclude_none=True)
        pacs = {"name": "pacs", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": server.port}
        node = Node(
            tmp_path / "node",
            server.port,
            "ORTHANC",
            DICOM_NODE_DESTINATIONS=json.dumps([pacs, source]),
            DICOM_NODE_COMPLETION__QUERY_DESTINATION="archive",
            DICOM_NODE_COMPLETION__QUIET_S="600",  # the count alone completes a series here
        )
        with running(node):
            sent = push.send(tmp_path / "sent", "127.0.0.1", node.port, node.ae_title, "SENDER")
            assert (sent.stored, sent.failed) == (36, 0), sent.detail
            study = str(dcmread(whole[0], stop_before_pixels=True).StudyInstanceUID)
            (report,) = wait_for(lambda: reports(server, tmp_path, study), 200, "a report in Orthanc")
            shown = node.command("series", "show", str(dcmread(whole[0]).SeriesInstanceUID))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert len(evidence.ReferencedSOPSequence) == 40
    assert (shown["outcome"], shown["instance_count"], shown["completeness"]) == ("ANALYSED", 40, "pacs-count")
