"""The node beside Debian's Orthanc as the PACS: CT is routed in by a rule of Orthanc's, the report comes back to it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from dicom_node.demo.journey import LESIONS
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from tests.conftest import require_program
from tests.programs import Orthanc, free_port, orthanc, wait_for
from tests.running import Node, running
from tests.validators import dcentvfy_errors, dciodvfy_errors, sr_errors

ROUTE = """
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/DICOM_NODE/store', seriesId)
  end
end
"""

ALL = {"SR", "SEG", "OT", "KO"}

pytestmark = pytest.mark.peer


def series_in(server: Orthanc, modality: str) -> list[dict[str, Any]]:
    found = [server.call(f"/series/{identifier}") for identifier in server.call("/series")]
    return [one for one in found if one["MainDicomTags"].get("Modality") == modality]


def test_a_series_routed_by_orthanc_comes_back_as_valid_objects_in_the_same_study(tmp_path: Path) -> None:
    series = tmp_path / "series"
    phantom = make_phantom(11, slices=40, size=256, lesions="mixed", lesion_settings=LESIONS)
    paths = write_series(phantom, series)
    source = dcmread(paths[0], stop_before_pixels=True)
    node_port = free_port()
    (tmp_path / "route.lua").write_text(ROUTE)
    options = {"LuaScripts": [str(tmp_path / "route.lua")], "StableAge": 1}
    optional = {"DICOM_NODE_REPORT__DISPLAY": "true", "DICOM_NODE_REPORT__KEY_OBJECTS": "true"}
    with orthanc(tmp_path / "orthanc", {"DICOM_NODE": node_port}, **options) as pacs:
        node = Node(tmp_path / "node", pacs.port, "ORTHANC", DICOM_NODE_RECEIVER__PORT=str(node_port), **optional)
        node.port = node_port
        with running(node):
            storescu = [require_program("storescu"), "-aec", "ORTHANC", "127.0.0.1", str(pacs.port), "+sd", str(series)]
            subprocess.run(storescu, check=True)
            wait_for(lambda: {m for m in ("SR", "SEG", "OT", "KO") if series_in(pacs, m)} >= ALL, 200, "all results")
            wait_for(lambda: len(series_in(pacs, "SR")) == 2, 20, "report and display report")
        fetched = {}
        for one in [one for modality in ALL for one in series_in(pacs, modality)]:
            (instance,) = one["Instances"]
            study = pacs.call(f"/studies/{one['ParentStudy']}")
            assert study["MainDicomTags"]["StudyInstanceUID"] == str(source.StudyInstanceUID)
            path = tmp_path / f"{instance}.dcm"
            path.write_bytes(pacs.file(instance))
            fetched[int(dcmread(path, stop_before_pixels=True).SeriesNumber)] = path
    assert sorted(fetched) == [9001, 9002, 9003, 9004, 9005]
    for number, template, codes in (
        (9001, "TID_1500", ["126000", "840539006"]),
        (9003, "TID_1500", ["126000", "840539006"]),
        (9005, "TID_2010", ["113000"]),
    ):
        assert sr_errors(fetched[number], template, codes) == []
    assert [error for number in (9002, 9004) for error in dciodvfy_errors(fetched[number])] == []
    assert dcentvfy_errors([*paths, *fetched.values()]) == []
    report, segmentation = dcmread(fetched[9001]), dcmread(fetched[9002])
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert {str(item.SeriesInstanceUID) for item in evidence} == {
        str(source.SeriesInstanceUID),
        str(segmentation.SeriesInstanceUID),
    }
    assert max(len(item.ReferencedSOPSequence) for item in evidence) == len(paths)
    assert [segment.SegmentNumber for segment in segmentation.SegmentSequence] == [1, 2]
