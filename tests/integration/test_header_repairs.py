"""A header that a report cannot copy as it is costs the series nothing, and the audit names what was left out."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydicom import dcmread

from config.settings import ReportSettings, Settings
from dicom_node.analysis import worker
from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.result_objects import ResultObjects
from dicom_node.report.header_reader import tag_of
from inference.errors import CorruptInstance
from inference.models.cards import read_card, shipped_folder
from tests.factories import Grid, write_series
from tests.fuzz.headers import element, rewrite
from tests.integration.test_replay import take_in
from tests.storage_factory import Store

UNTOLD = b"Hopper^Grace\\Lovelace^Ada"


def test_what_a_report_could_not_copy_is_audited_by_name_and_never_by_value(tmp_path: Path) -> None:
    write_series(tmp_path / "s", Grid(shape=(6, 32, 32)))
    paths = sorted((tmp_path / "s").iterdir())
    changes = {
        "PatientName": ("PN", UNTOLD),
        "PatientID": ("FD", b"\0\0\0\0\0\0\xf0\x3f"),
        "StudyDate": ("DA", b"20200301\\20200302"),
        "StudyDescription": ("LO", b"C" * 100),
    }
    for path in paths:
        rewrite(path, {tag_of(keyword): element(tag_of(keyword), *stored) for keyword, stored in changes.items()})
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as store:
        take_in(store, paths, time.time() - 60, ReportSettings(report_not_analysed=True))
        ((job,),) = [store.rows("SELECT state FROM jobs")]
        assert job["state"] == "REPORTED"
        (report,) = store.rows("SELECT path FROM result_objects WHERE kind = 'report'")
        (row,) = store.rows("SELECT detail, result_id, series_uid FROM audit WHERE event = 'result.header_repaired'")
        everything = store.rows("SELECT * FROM audit")
        sent = dcmread(store.files.absolute(str(report["path"])))
    assert json.loads(str(row["detail"])) == {
        "left_empty": "PatientName, PatientID, StudyDate",
        "altered": "StudyDescription",
    }
    assert (
        row["result_id"] == 1
        and row["series_uid"]
        == sent.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].SeriesInstanceUID
    )
    assert "Hopper" not in str(everything)
    assert (sent.PatientName, sent.PatientID, sent.StudyDate) == ("", "", "")
    assert sent.StudyDescription == "C" * 64


def test_a_sequence_of_too_many_items_is_left_out_of_the_report(tmp_path: Path) -> None:
    write_series(tmp_path / "s", Grid(shape=(6, 32, 32)))
    paths = sorted((tmp_path / "s").iterdir())
    tag = tag_of("OtherPatientIDsSequence")
    for path in paths:
        rewrite(path, {tag: element(tag, "SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * 60_000)})
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as store:
        take_in(store, paths, time.time() - 60, ReportSettings(report_not_analysed=True))
        assert store.rows("SELECT count(*) AS n FROM result_objects WHERE kind = 'report'") == [{"n": 1}]
        (row,) = store.rows("SELECT detail FROM audit WHERE event = 'result.header_repaired'")
    assert "OtherPatientIDsSequence" in json.loads(str(row["detail"]))["left_empty"]


def test_images_of_whose_headers_no_report_can_be_made_end_in_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(analysis: Analysis, **_: Any) -> ResultObjects:
        if analysis.finding is not None:
            raise CorruptInstance("one.dcm: the header cannot be read")
        return ResultObjects()

    monkeypatch.setattr(worker, "report_objects", build)
    pipeline = SimpleNamespace(identity=None, card=read_card(shipped_folder() / "demonstration"))
    job = SimpleNamespace(instances_digest="", revision=1, series_instance_uid="1.2")
    with Store(tmp_path / "node", f"sqlite:///{tmp_path}/node/node.db") as store:
        one: Any = worker.Worker(Settings(data_dir=tmp_path / "node"), store.database, store.files, "cpu")
        found: Any = SimpleNamespace(output=SimpleNamespace(findings=()))
        analysis, _ = one._built(job, Analysis(found, None, None), [], None, pipeline, [], None, None)
    assert (analysis.finding, analysis.refusal.code) == (None, "CORRUPT_INSTANCE")
