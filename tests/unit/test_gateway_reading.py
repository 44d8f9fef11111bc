"""What gateways tell of a result is what its report tells: the same number, code, name and identifier."""

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import text

from config.coding import NEGATIVE, POSITIVE
from config.reasons import Refusal
from dicom_node.gateways import sr_content
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.reading import read_reported
from dicom_node.report import codes
from dicom_node.report.context import ReportContext
from dicom_node.report.frame import to_part10
from dicom_node.report.not_analysed import build_not_analysed
from dicom_node.report.sources import read_sources
from dicom_node.report.structured_report import build_report
from storage import jobs
from storage.errors import CorruptFile
from storage.object_kinds import ObjectKind
from storage.results import NewObject
from tests.factories import Grid, finding_on, model, volume_of, write_series
from tests.shown_series import claimed, reported, store_files
from tests.storage_factory import QUIET_S, Store, analysed, not_analysed

NAME = "Müller^Jörg^K^Dr^Jr=山田^太郎"


def read(store: Store, result_id: int):
    return read_reported(store.database, store.files, result_id)


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store") as made:
        yield made


def stored_report(store: Store, result_id: int) -> Dataset:
    row = store.rows("SELECT path FROM result_objects WHERE result_id = :id AND kind = 'report'", id=result_id)[0]
    return pydicom.dcmread(store.files.absolute(str(row["path"])))


def numbers_in(report: Dataset) -> list[tuple[str, str, str]]:
    """Concept, value and unit of each number of the report, whatever it stands in."""
    return [
        (
            item.ConceptNameCodeSequence[0].CodeValue,
            item.MeasuredValueSequence[0].NumericValue.original_string,
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in report.iterall()
        if item.keyword == "ContentSequence"
        for item in item.value
        if item.ValueType == "NUM"
    ]


def put(store: Store, folder: Path, build, result, now: float = 0.0, to=("ris",)) -> int:
    """A series that was received, closed and ended with this report. Returns the result's id."""
    volume = volume_of(folder)
    store.close_due(now + QUIET_S)
    job = claimed(store, volume.series_instance_uid, now + QUIET_S)
    dataset = build(volume, read_sources(volume))
    file = store.files.write_durably([to_part10(dataset)])
    item = NewObject(ObjectKind.REPORT, dataset.SOPInstanceUID, dataset.SOPClassUID, dataset.SeriesInstanceUID, file)
    with store.database.transaction() as tx:
        return jobs.finish(tx, job.job_id, job.fence, now + 40, result, [item], list(to))


def test_it_tells_every_number_of_the_report_with_its_code(store, tmp_path):
    result_id = reported(store, tmp_path / "series", probability=0.91273).result_id
    with store.database.transaction() as tx:  # the index of the tests calls it another disease
        tx.execute(text("UPDATE codes SET value = '840539006' WHERE value = '233604007'"))
    said, report = read(store, result_id), stored_report(store, result_id)
    told = [("111012", one.percent, "%") for one in said.findings]
    told += [(one.concept.value, one.value, one.unit.value) for one in said.numbers]
    assert sorted(told) == sorted(numbers_in(report)) and len(told) > 3
    (finding,) = said.findings
    assert (finding.concept.value, finding.percent, finding.interpretation) == ("840539006", "91", POSITIVE)
    assert (finding.threshold, finding.positive, said.positive) == (0.5, True, True)
    assert (finding.site.value, finding.laterality.value) == ("39607008", "51440002")


def test_a_negative_result_is_told_as_one(store, tmp_path):
    said = read(store, reported(store, tmp_path / "series", probability=0.004).result_id)
    assert (said.findings[0].interpretation, said.findings[0].percent) == (NEGATIVE, "0.4")
    assert said.positive is False


def test_it_tells_whose_result_it_is_in_any_script(store, tmp_path):
    write_series(
        tmp_path / "series", Grid(), SpecificCharacterSet="ISO_IR 192", PatientName=NAME, AccessionNumber="AC 7",
        IssuerOfPatientID="HOSP", StudyDescription="Thorax nativ",
    )  # fmt: skip
    store_files(store, sorted((tmp_path / "series").iterdir()))
    result_id = put(
        store, tmp_path / "series", lambda v, s: build_report(finding_on(v), v, s, ReportContext(NOW)), analysed(0.91)
    )
    said = read(store, result_id)
    name = said.patient.name
    assert (name.text, name.family, name.given, name.middle, name.prefix, name.suffix) == (
        NAME, "Müller", "Jörg", "K", "Dr", "Jr",
    )  # fmt: skip
    assert (said.patient.patient_id, said.patient.issuer) == ("4711", "HOSP")
    assert (said.patient.birth_date, said.patient.sex) == ("19600229", "F")
    study = said.study
    assert (study.accession_number, study.date, study.time, study.description) == (
        "AC 7", "20200301", "101112", "Thorax nativ",
    )  # fmt: skip
    assert study.referring.family == "Roe" and (study.placer, study.filler) == ("", "")


def test_it_tells_the_model_the_objects_and_the_times_of_the_index(store, tmp_path):
    shown = reported(store, tmp_path / "series")
    said = read(store, shown.result_id)
    rows = store.rows("SELECT kind, sop_instance_uid FROM result_objects WHERE kind <> 'heat' ORDER BY id")
    assert [(one.kind, one.sop_instance_uid) for one in said.objects] == [
        (row["kind"], row["sop_instance_uid"]) for row in rows
    ]
    assert said.report_uid == said.objects[0].sop_instance_uid
    (row,) = store.rows("SELECT model_name, model_version, model_digest FROM results")
    assert (said.model.name, said.model.version, said.model.digest) == tuple(row.values())
    assert said.created == datetime(2026, 1, 2, tzinfo=UTC) and said.created.utcoffset() is not None
    assert (said.analysed, said.reason_code, said.replaces) == (True, "", None)


def test_it_tells_why_there_is_no_result(store, tmp_path):
    write_series(tmp_path / "series")
    store_files(store, sorted((tmp_path / "series").iterdir()))
    sentence = "The series has gaps of up to 12 mm between its slices."
    result_id = put(
        store,
        tmp_path / "series",
        lambda v, s: build_not_analysed(Refusal("MISSING_SLICES", sentence), s, ReportContext(NOW), model()),
        not_analysed("MISSING_SLICES", sentence),
    )
    said = read(store, result_id)
    assert (said.analysed, said.reason_code, said.reason_text) == (False, "MISSING_SLICES", sentence)
    assert (said.findings, said.numbers, said.positive) == ((), (), None)
    assert sentence in said.sentences
    assert said.sentences[-1].startswith("Not analysed: there is no result for this series")


def test_a_later_result_names_what_it_replaces(store, tmp_path):
    folder = tmp_path / "series"
    first = read(store, reported(store, folder).result_id)
    write_series(tmp_path / "late", Grid(shape=(10, 36, 44), spacing_mm=(3.0, 0.8, 0.7)))
    (folder / "late.dcm").write_bytes((tmp_path / "late" / "0009.dcm").read_bytes())
    store_files(store, [folder / "late.dcm"], 100.0)
    context = replace(ReportContext(NOW), predecessor=stored_report(store, first.result_id), revision=2)
    result_id = put(
        store, folder, lambda v, s: build_report(finding_on(v, 0.2), v, s, context), analysed(0.2), now=100.0
    )
    said = read(store, result_id)
    assert (said.replaces.result_id, said.replaces.report_uid) == (first.result_id, first.report_uid)
    uids = {one.observation_uid for one in (*first.findings, *first.numbers)}
    assert uids <= set(said.replaces.observation_uids)
    assert not uids & {one.observation_uid for one in (*said.findings, *said.numbers)}


def test_the_codes_that_are_looked_for_are_those_that_are_written():
    looked_for = [sr_content.CERTAINTY, sr_content.INTERPRETATION, *sr_content.SENTENCES]
    written = [codes.CERTAINTY, codes.INTERPRETATION, codes.COMMENT, codes.FINDING, codes.CONCLUSION]
    assert looked_for == [code.value for code in written]


def test_a_command_does_not_wait_for_what_only_reports_and_networks_need():
    script = "import sys, dicom_node.cli.app, dicom_node.delivery.sender as _; print({*sys.modules} & {*sys.argv[1:]})"
    run = subprocess.run(
        [sys.executable, "-c", script, "highdicom", "torch", "httpx"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


def test_what_cannot_be_told_is_an_error_and_never_another_result(store, tmp_path):
    result_id = reported(store, tmp_path / "series").result_id
    with store.database.transaction() as tx:
        tx.execute(text("UPDATE result_objects SET sha256 = :digest WHERE kind = 'report'"), {"digest": "0" * 64})
    with pytest.raises(CorruptFile):
        read(store, result_id)
    with store.database.transaction() as tx:
        tx.execute(text("DELETE FROM result_objects WHERE kind = 'report'"))
    with pytest.raises(CannotCompose, match="has no report"):
        read(store, result_id)


NOW = datetime(2026, 3, 1, 23, 30, 15, tzinfo=UTC)
