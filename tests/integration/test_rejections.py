"""Rejection notes (IOCM): a real sender, a real receiver, real workers. What was reported on rejected images is taken
back at every destination that had it."""

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydicom import Dataset, dcmread
from pynetdicom import AE
from sqlalchemy import text
from typer.testing import CliRunner

from config.reasons import ReasonCode
from dicom_node.analysis.current_model import current_models
from dicom_node.analysis.worker import Worker
from dicom_node.cli.app import app
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from dicom_node.web.pages import series_words
from dicom_node.web.pages.today import Today
from dicom_node.web.pages.worklist_words import outcome_of
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import audit, deliveries, reopening, results, series, withdrawals, worklist
from storage.database import open_database
from storage.models import instances
from storage.series import SeriesRecord
from storage.worklist import Search
from tests.outbox import destination
from tests.receiving import Node
from tests.rejection_notes import rejection_note

PACS = {"ae_title": "PACS", "quiet_s": 1.0, "classes": ["ct", "rejections"]}
OTHER = {"ae_title": "OTHER", "quiet_s": 1.0, "classes": ["ct", "results"]}
SETTINGS = {"sources": [PACS, OTHER], "destinations": [destination(1), destination(2, "archive")]}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Dataset]:
    folder = tmp_path_factory.mktemp("phantom")
    return [dcmread(path) for path in write_series(make_phantom(12, slices=40, size=256, lesions="none"), folder)]


@dataclass
class Site:
    """A node, and a clock that the test moves on."""

    node: Node
    now: float

    def send(self, *datasets: Dataset, ae_title: str = "PACS") -> list[int | None]:
        """C-STORE each. Returns the statuses; None if its class was not accepted."""
        ae = AE(ae_title)
        ae.add_requested_context("1.2.840.10008.1.1")
        for uid in dict.fromkeys(one.SOPClassUID for one in datasets):
            ae.add_requested_context(uid)
        association = ae.associate("127.0.0.1", self.node.port, ae_title="DICOM_NODE")
        assert association.is_established
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        statuses = [association.send_c_store(one).Status if one.SOPClassUID in accepted else None for one in datasets]
        association.release()
        return statuses

    def go_on(self, *, select: str = "all", work: bool = True) -> None:
        """The scheduler and a worker, until there is nothing to do."""
        settings = self.node.settings
        settings = settings.model_copy(update={"completion": settings.completion.model_copy(update={"select": select})})
        completion = Completion(settings, self.node.database, self.node.files)
        models = current_models(settings)
        for _ in range(4):
            self.now += 30
            completion.close_due_series(models, self.now)
            if select == "best":
                BestSeries(settings, self.node.database, self.node.files).choose(models, self.now)
            while work and Worker(settings, self.node.database, self.node.files, "cpu").work_once(self.now):
                pass
        completion.stop()

    def deliver(self, *names: str) -> None:
        """As if these destinations had taken all that waits for them."""
        for name in names:
            with self.node.database.transaction() as tx:
                for one in deliveries.claim(tx, name, self.now, 60, limit=10):
                    deliveries.mark_sent(tx, one.delivery_id, one.fence, self.now)

    def record(self, uid: str) -> SeriesRecord:
        with self.node.database.read() as tx:
            return series.get_series(tx, uid)

    def report(self, uid: str) -> Dataset:
        with self.node.database.read() as tx:
            stored = results.objects_of(tx, self.record(uid).result_id or 0)[0]
        return dcmread(io.BytesIO(self.node.files.read_verified(stored.path, stored.sha256)))

    def waiting(self, uid: str) -> dict[str, str]:
        """Where the current result of a series goes, and how far it is."""
        with self.node.database.read() as tx:
            found = deliveries.of_result(tx, self.record(uid).result_id or 0)
        return {one["destination"]: one["state"] for one in found}

    def audited(self, event: str) -> list[dict[str, object]]:
        with self.node.database.read() as tx:
            return list(audit.search(tx, event=event))


@pytest.fixture(scope="module")
def reported_folder(tmp_path_factory: pytest.TempPathFactory, slices: list[Dataset]) -> Path:
    """The folder of a node that has reported the series and sent it to one of two destinations."""
    folder = tmp_path_factory.mktemp("node")
    with Node(folder, **SETTINGS) as node:
        site = Site(node, time.time())
        assert site.send(*slices) == [0] * len(slices)
        site.go_on()
        site.deliver("pacs")
        assert site.record(slices[0].SeriesInstanceUID).outcome == "ANALYSED"
    return folder


@pytest.fixture
def reported(reported_folder: Path, tmp_path: Path) -> Iterator[Site]:
    """The same in a folder of its own."""
    shutil.copytree(reported_folder, tmp_path / "node")
    with Node(tmp_path / "node", **SETTINGS) as node:
        yield Site(node, time.time() + 1000)


def test_a_rejection_takes_back_what_was_reported_and_tells_whoever_had_it(
    reported: Site, slices: list[Dataset]
) -> None:
    uid = slices[0].SeriesInstanceUID
    former = reported.report(uid)
    note = rejection_note(slices)
    assert reported.send(note) == [0]
    reported.go_on()
    record = reported.record(uid)
    assert (record.outcome, record.reason_code) == ("NOT_ANALYSED", ReasonCode.WITHDRAWN)
    assert record.reason_text is not None
    assert "Rejected for Quality Reasons (113001, DCM)" in record.reason_text
    report = reported.report(uid)
    (predecessor,) = report.PredecessorDocumentsSequence
    named = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
    assert named == former.SOPInstanceUID
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert report.get(keyword) == former.get(keyword), keyword
    assert reported.waiting(uid) == {"pacs": "PENDING", "archive": "PENDING"}
    (withdrawn,) = reported.audited("series.withdrawn")
    assert (withdrawn["series_uid"], withdrawn["outcome"]) == (uid, "WITHDRAWN")
    assert [one["sop_uid"] for one in reported.audited("rejection.noted")] == [note.SOPInstanceUID]
    kept = reported.record(note.SeriesInstanceUID)
    assert (kept.state, kept.refusal_code, kept.job_id) == ("CLOSED", "NOT_IMAGES", None)


def test_it_is_taken_back_once_however_often_the_note_comes(reported: Site, slices: list[Dataset]) -> None:
    note = rejection_note(slices[:3])
    for again in (note, note, rejection_note(slices, "113037", SeriesInstanceUID=note.SeriesInstanceUID)):
        assert reported.send(again) == [0]
        reported.go_on(work=False)
    assert len(reported.audited("series.withdrawn")) == 1
    assert reported.record(slices[0].SeriesInstanceUID).revision == 2


def test_one_rejected_image_is_enough(reported: Site, slices: list[Dataset]) -> None:
    reported.send(rejection_note(slices[:1], "113038"))
    reported.go_on()
    record = reported.record(slices[0].SeriesInstanceUID)
    assert record.reason_code == ReasonCode.WITHDRAWN
    assert "Incorrect Modality Worklist Entry (113038, DCM)" in str(record.reason_text)


def test_the_result_is_taken_back_when_its_images_are_no_longer_stored(reported: Site, slices: list[Dataset]) -> None:
    with reported.node.database.transaction() as tx:
        held = series.series_instances(tx, reported.record(slices[0].SeriesInstanceUID).series_pk)
        tx.execute(instances.update().values(gone_at=1.0, gone_reason="retention"))
    for one in held:
        reported.node.files.remove(one.path)
    reported.send(rejection_note(slices))
    reported.go_on()
    assert reported.record(slices[0].SeriesInstanceUID).reason_code == ReasonCode.WITHDRAWN
    assert reported.report(slices[0].SeriesInstanceUID).PatientID == slices[0].PatientID


@pytest.mark.parametrize("what", ["another title", "another study", "an unknown image", "another sender", "unreadable"])
def test_what_is_no_rejection_by_a_source_that_may_reject_takes_nothing_back(
    reported: Site, slices: list[Dataset], what: str
) -> None:
    title = "113000" if what == "another title" else "113001"
    note = rejection_note(slices[:2], title)
    (study,) = note.CurrentRequestedProcedureEvidenceSequence
    (referenced,) = study.ReferencedSeriesSequence
    if what == "another study":
        study.StudyInstanceUID = "1.2.3"
    if what == "an unknown image":
        del referenced.ReferencedSOPSequence[1:]
        referenced.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"
    if what == "unreadable":
        referenced.SeriesInstanceUID = "not a UID"
    assert reported.send(note, ae_title="OTHER" if what == "another sender" else "PACS") == [0]
    reported.go_on()
    assert reported.record(slices[0].SeriesInstanceUID).outcome == "ANALYSED"
    assert reported.audited("series.withdrawn") == []
    assert len(reported.audited("rejection.unreadable")) == (what == "unreadable")


def test_a_source_that_may_not_reject_cannot_send_notes(tmp_path: Path, slices: list[Dataset]) -> None:
    with Node(tmp_path / "node", sources=[{**PACS, "classes": ["ct"]}]) as node:
        assert Site(node, time.time()).send(rejection_note(slices)) == [None]


def test_a_note_that_comes_before_its_images_keeps_them_from_being_analysed(
    tmp_path: Path, slices: list[Dataset]
) -> None:
    with Node(tmp_path / "node", **SETTINGS) as node:
        site = Site(node, time.time())
        site.send(rejection_note(slices))
        site.go_on()
        site.send(*slices[:5])
        site.go_on()
        record = site.record(slices[0].SeriesInstanceUID)
        assert (record.outcome, record.reason_code) == ("NOT_ANALYSED", ReasonCode.WITHDRAWN)
        assert site.waiting(slices[0].SeriesInstanceUID) == {}, "nobody had a result"


def test_a_person_may_have_rejected_images_analysed_until_they_are_rejected_anew(
    reported: Site, slices: list[Dataset]
) -> None:
    uid, note = slices[0].SeriesInstanceUID, rejection_note(slices)
    reported.send(note)
    reported.go_on()
    with reported.node.database.transaction() as tx:
        model = current_models(reported.node.settings).reporting
        reopening.analyse_again(tx, reported.record(uid).series_pk, reported.now, model)
    reported.send(rejection_note(slices, "113000", SeriesInstanceUID=note.SeriesInstanceUID))
    reported.go_on(work=False)  # the note is read again, with the one that came
    assert (reported.record(uid).job_state, reported.record(uid).refusal_code) == ("QUEUED", None)
    reported.send(rejection_note(slices, "113037"))
    reported.go_on()
    assert "113037" in str(reported.record(uid).reason_text)


def test_a_note_never_counts_as_a_slice(reported: Site, slices: list[Dataset]) -> None:
    uid = slices[0].SeriesInstanceUID
    disguised = rejection_note(slices, "113000", SeriesInstanceUID=uid, Modality="CT")
    assert reported.send(disguised) == [0]
    assert reported.record(uid).instance_count == len(slices)
    assert [one["sop_uid"] for one in reported.audited("instance.conflict")] == [disguised.SOPInstanceUID]
    alone = rejection_note(slices, "113000", SeriesInstanceUID="1.2.3.4", Modality="CT")
    reported.send(alone)
    slice_ = dcmread(io.BytesIO(_bytes(slices[0])))
    slice_.SeriesInstanceUID, slice_.SOPInstanceUID = "1.2.3.4", "1.2.3.4.5"
    slice_.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    reported.send(slice_)
    assert reported.record("1.2.3.4").instance_count == 1


def _bytes(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_series_show_says_that_it_was_withdrawn_and_why(
    reported_folder: Path, tmp_path: Path, slices: list[Dataset]
) -> None:
    shutil.copytree(reported_folder, tmp_path / "node")
    with Node(tmp_path / "node", **SETTINGS) as node:
        site = Site(node, time.time() + 1000)
        site.send(rejection_note(slices))
        site.go_on()
    environment = {"DICOM_NODE_DATA_DIR": str(tmp_path / "node")}
    shown = CliRunner().invoke(app, ["series", "show", slices[0].SeriesInstanceUID], env=environment).stdout
    assert ": withdrawn\n" in shown and "Not analysed: WITHDRAWN" in shown
    assert "Rejected by PACS: Rejected for Quality Reasons" in shown
    assert "Rejected by PACS: Rejected for Quality" in CliRunner().invoke(app, ["status"], env=environment).stdout
    database = open_database(f"sqlite:///{tmp_path / 'node' / 'node.db'}")
    with database.read() as tx:
        (line,) = worklist.find(tx, Search(reason_code=ReasonCode.WITHDRAWN)).lines
        (latest,) = withdrawals.latest(tx, site.now)
        record = series.get_series(tx, slices[0].SeriesInstanceUID)
        assert withdrawals.latest(tx, site.now + 8 * 86400) == []
    page = Today(SimpleNamespace(settings=node.settings, database=database, files=node.files)).text()  # type: ignore[arg-type]
    database.close()
    assert "Withdrawn in the last 7 days" in page and "Rejected for Quality Reasons" in page
    assert outcome_of(line).text == "Withdrawn" and "Rejected by PACS" in outcome_of(line).more
    assert series_words.headline(record, [], latest).text == "Withdrawn: images of it were rejected."
    assert latest.who == "PACS" and "Rejected for Quality Reasons" in latest.why


def test_each_model_that_reported_takes_its_own_result_back_even_if_it_is_no_longer_in_use(
    tmp_path: Path, slices: list[Dataset]
) -> None:
    uid = slices[0].SeriesInstanceUID
    with Node(tmp_path / "node", **SETTINGS, models=[{"name": "demonstration"}, {"name": "densitometry"}]) as node:
        site = Site(node, time.time())
        site.send(*slices)
        site.go_on()
        site.deliver("pacs")
        with node.database.read() as tx:
            former = tx.execute(text("SELECT id, model_name FROM results ORDER BY id")).all()
        assert [name for _, name in former] == ["demonstration", "densitometry"]
    with Node(tmp_path / "node", **SETTINGS) as node:
        site = Site(node, time.time() + 1000)
        site.send(rejection_note(slices))
        site.go_on()
        assert site.record(uid).reason_code == ReasonCode.WITHDRAWN
        with node.database.read() as tx:
            told = tx.execute(
                text(
                    "SELECT model_name, destination, state FROM results JOIN deliveries ON result_id = results.id "
                    "WHERE outcome = 'NOT_ANALYSED' ORDER BY model_name, destination"
                )
            ).all()
        assert [tuple(row) for row in told] == [
            (model, place, "PENDING") for model in ("demonstration", "densitometry") for place in ("archive", "pacs")
        ]
