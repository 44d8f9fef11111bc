"""The node beside Debian's Orthanc as the PACS: CT is routed in by a rule of Orthanc's, the report comes back to it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from inference.phantom import make_phantom, write_series
from tests.conftest import require_program
from tests.programs import Orthanc, free_port, orthanc, wait_for
from tests.running import Node, running
from tests.validators import sr_errors

ROUTE = """
function OnStableSeries(seriesId, tags, metadata)
  if tags['Modality'] == 'CT' then
    RestApiPost('/modalities/DICOM_NODE/store', seriesId)
  end
end
"""

pytestmark = pytest.mark.peer


def series_in(server: Orthanc, modality: str) -> list[dict[str, Any]]:
    found = [server.call(f"/series/{identifier}") for identifier in server.call("/series")]
    return [one for one in found if one["MainDicomTags"].get("Modality") == modality]


def test_a_series_routed_by_orthanc_comes_back_as_a_valid_report_in_the_same_study(tmp_path: Path) -> None:
    series = tmp_path / "series"
    paths = write_series(make_phantom(21, slices=40, size=256, lesions="mixed"), series)
    source = dcmread(paths[0], stop_before_pixels=True)
    node_port = free_port()
    (tmp_path / "route.lua").write_text(ROUTE)
    options = {"LuaScripts": [str(tmp_path / "route.lua")], "StableAge": 1}
    with orthanc(tmp_path / "orthanc", {"DICOM_NODE": node_port}, **options) as pacs:
        node = Node(tmp_path / "node", pacs.port, "ORTHANC", DICOM_NODE_RECEIVER__PORT=str(node_port))
        node.port = node_port
        with running(node):
            storescu = [require_program("storescu"), "-aec", "ORTHANC", "127.0.0.1", str(pacs.port), "+sd", str(series)]
            subprocess.run(storescu, check=True)
            reports = wait_for(lambda: series_in(pacs, "SR"), 200, "the report in Orthanc")
        assert len(reports) == 1 and len(reports[0]["Instances"]) == 1
        study = pacs.call(f"/studies/{reports[0]['ParentStudy']}")
        assert study["MainDicomTags"]["StudyInstanceUID"] == str(source.StudyInstanceUID)
        fetched = tmp_path / "report.dcm"
        fetched.write_bytes(pacs.file(reports[0]["Instances"][0]))
    assert sr_errors(fetched, "TID_1500", ["126000", "840539006"]) == []
    report = dcmread(fetched)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(evidence.ReferencedSOPSequence) == len(paths)
