"""The best series of a study, on a real index and real files; a worker's verdict is handed in if one is needed."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid

from dicom_node.analysis.current_model import current_model, current_models
from dicom_node.completion import best_series
from dicom_node.completion.best_series import BestSeries
from dicom_node.completion.closing import Completion
from inference.suitability import ranking
from storage import audit, jobs, quiet_time, reopening, retention, selection, series
from storage.jobs import Models
from storage.results import NewObject, NewResult
from storage.series import SeriesRecord
from tests.outbox import Node, ct_series, instance, make_node, part10
from tests.storage_factory import said

QUIET_S = 30.0


@dataclass
class Site:
    """A node that wants the best series of each study. now: Unix seconds."""

    node: Node
    now: float = 1_700_000_000.0

    def receive(self, slices: list[Dataset]) -> str:
        """Returns the Series Instance UID."""
        self.node.receive(slices, self.now, QUIET_S)
        return str(slices[0].SeriesInstanceUID)

    def wait(self, seconds: float) -> None:
        """Time passes; then the scheduler does its work."""
        self.now += seconds
        models = current_models(self.node.settings)
        completion = Completion(self.node.settings, self.node.database, self.node.files)
        completion.close_due_series(models, self.now)
        completion.stop()
        BestSeries(self.node.settings, self.node.database, self.node.files).choose(models, self.now)

    def work(self, probability: float | None = 0.9) -> str:
        """The worker ends the only queued job, NOT_ANALYSED without a probability. Returns its series."""
        model = current_model(self.node.settings)
        if probability is not None:
            verdict: dict[str, object] = {"outcome": "ANALYSED", "content": said(probability), "threshold": 0.5}
        else:
            verdict = {"outcome": "NOT_ANALYSED", "reason_code": "LUNG_CUT_OFF", "reason_text": "Cut off."}
        report = instance()
        file = self.node.files.write_durably([part10(report)])
        objects = [NewObject("report", report.SOPInstanceUID, report.SOPClassUID, report.SeriesInstanceUID, file)]
        with self.node.database.transaction() as tx:
            job = jobs.claim(tx, "test", self.now, 60, 3)
            assert job is not None, "no job is queued"
            assert jobs.claim(tx, "test", self.now, 60, 3) is None, "more than one job is queued"
            result = NewResult(model_name=model.name, model_version=model.version, model_digest=model.digest, **verdict)  # type: ignore[arg-type]
            jobs.finish(tx, job.job_id, job.fence, self.now, result, objects, [])
        return job.series_instance_uid

    def has_job(self) -> bool:
        with self.node.database.transaction() as tx:
            found = jobs.claim(tx, "test", self.now, 60, 3)
            if found is not None:
                jobs.hand_back(tx, found.job_id, found.fence, self.now)
        return found is not None

    def series(self, uid: str) -> SeriesRecord:
        with self.node.database.read() as tx:
            return series.get_series(tx, uid)

    def choices(self) -> list[dict[str, object]]:
        with self.node.database.read() as tx:
            return list(audit.search(tx, event="study.series-chosen"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(make_node(tmp_path / "node", completion={"select": "best", "quiet_s": QUIET_S}))


STUDY = generate_uid()
_numbers = itertools.count(2)


def chest(spacing_mm: float = 5.0, extent_mm: float = 300.0, **values: object) -> list[Dataset]:
    """Headers of a chest series; its pixels are few, as nobody looks at them here."""
    count = round(extent_mm / spacing_mm)
    uid, number = generate_uid(), str(next(_numbers))
    slices = ct_series(count)
    defaults: dict[str, object] = {
        "StudyInstanceUID": STUDY, "SeriesInstanceUID": uid, "SeriesNumber": number, "Rows": 256, "Columns": 256,
        "PixelData": bytes(2 * 256 * 256), "PixelSpacing": [1.4, 1.4], "SliceThickness": spacing_mm,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "RescaleSlope": 1, "RescaleIntercept": -1024,
        "ConvolutionKernel": "B30f",
    }  # fmt: skip
    for index, one in enumerate(slices):
        for keyword, value in {**defaults, **values}.items():
            setattr(one, keyword, value)
        one.ImagePositionPatient = [0, 0, index * spacing_mm]
    return slices


def test_one_series_is_analysed_once_the_whole_study_is_quiet_and_the_audit_says_why(site: Site) -> None:
    thick = site.receive(chest(5.0))
    site.wait(20)
    thin = site.receive(chest(1.25))
    coronal = site.receive(chest(2.5, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]))
    site.wait(15)  # the first series is quiet, the study is not
    assert site.series(thick).state == "CLOSED"
    assert not site.has_job()
    site.wait(20)
    assert site.work() == thin
    site.wait(1)
    assert not site.has_job()
    assert [site.series(uid).selection for uid in (thin, thick, coronal)] == ["ANALYSED", "PASSED_OVER", "UNSUITABLE"]
    assert site.series(coronal).refusal_code in ("NOT_AXIAL", "SINGLE_SLICE")
    first = site.choices()[0]
    assert (first["series_uid"], first["outcome"]) == (thin, "CHOSEN")
    detail = first["detail"]
    assert isinstance(detail, dict)
    assert {note["series"]: note["code"] for note in detail["passed_over"]}[thick] == "PASSED_OVER"
    assert any("thickness is nearer" in note["why"] for note in detail["passed_over"])
    assert "1.25 mm" in detail["what"]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"spacing_mm": 5.0}, {"spacing_mm": 1.0, "extent_mm": 200.0}),
        ({"spacing_mm": 5.0}, {"spacing_mm": 1.0, "ContrastBolusAgent": "Ultravist"}),
        ({"spacing_mm": 5.0}, {"spacing_mm": 2.0, "SliceThickness": 1.0}),
        ({"spacing_mm": 1.0}, {"spacing_mm": 0.5}),
        ({"ConvolutionKernel": "B70f"}, {"ConvolutionKernel": "B30f"}),
        ({"spacing_mm": 2.5, "SliceThickness": 3.0}, {"spacing_mm": 3.0, "SliceThickness": 3.0}),
    ],
    ids=["coverage", "contrast", "gaps", "thickness", "kernel", "spacing"],
)
def test_what_makes_a_series_the_better_one(site: Site, better: dict[str, object], worse: dict[str, object]) -> None:
    site.receive(chest(**worse))  # type: ignore[arg-type]
    expected = site.receive(chest(**better))  # type: ignore[arg-type]
    site.wait(31)
    assert site.work() == expected


def test_where_the_worker_refuses_the_best_series_the_next_one_is_analysed(site: Site) -> None:
    thick, thin = site.receive(chest(5.0)), site.receive(chest(1.25))
    site.wait(31)
    assert site.work(None) == thin
    site.wait(1)
    assert site.work() == thick
    site.wait(1)
    assert [site.series(uid).selection for uid in (thin, thick)] == ["UNSUITABLE", "ANALYSED"]
    assert not site.has_job()


def test_a_study_without_a_suitable_series_has_one_outcome_with_its_reason(site: Site) -> None:
    gap = chest(5.0)
    del gap[20]
    few, gapped = site.receive(chest(5.0, 50.0)), site.receive(gap)
    site.wait(31)
    with site.node.database.transaction() as tx:
        job = jobs.claim(tx, "test", site.now, 60, 3)
        assert job is not None and jobs.claim(tx, "test", site.now, 60, 3) is None
        jobs.hand_back(tx, job.job_id, job.fence, site.now)
    assert job.series_instance_uid == gapped
    assert job.refusal is not None and job.refusal.code == "MISSING_SLICES"
    assert site.work(None) == gapped
    site.wait(1)
    assert not site.has_job()
    assert site.series(few).selection == "UNSUITABLE"


@pytest.mark.parametrize(
    "odd",
    [
        {"ImageOrientationPatient": ["1e308", "0", "0", "0", "1", "0"]},
        {"SpacingBetweenSlices": "1e-308"},
        {"SliceThickness": "1e308"},
        {"PixelSpacing": ["1e-308", "1e-308"]},
        {"RescaleSlope": "1e308"},
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_a_series_of_impossible_numbers_does_not_keep_the_others_waiting(site: Site, odd: dict[str, object]) -> None:
    good = site.receive(chest(5.0))
    bad = site.receive(chest(1.25, **odd))
    site.wait(31)
    assert site.work() == (bad if "SpacingBetweenSlices" in odd else good)


def test_what_nobody_thought_of_in_one_series_does_not_keep_the_others_waiting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = site.receive(chest(5.0)), site.receive(chest(1.25))

    def examine(paths: list[Path], policy: object) -> ranking.Candidate:
        if len(paths) > 100:
            raise OverflowError("no one thought of this")
        return ranking.examine(paths, policy)  # type: ignore[arg-type]

    monkeypatch.setattr(best_series, "examine", examine)
    site.wait(31)
    assert site.work() == good
    assert (site.series(bad).selection, site.series(bad).refusal_code) == ("UNSUITABLE", "CORRUPT_INSTANCE")


def test_a_late_series_is_passed_over_once_the_study_has_its_result(site: Site) -> None:
    thick = site.receive(chest(5.0))
    site.wait(31)
    assert site.work() == thick
    late = site.receive(chest(1.25))
    site.wait(31)
    assert not site.has_job()
    assert [site.series(uid).selection for uid in (thick, late)] == ["ANALYSED", "PASSED_OVER"]
    assert site.series(late).refusal_text == "Another series of the study was analysed already."


def test_a_second_series_that_a_person_had_analysed_settles_the_study_too(site: Site) -> None:
    thick, thin = site.receive(chest(5.0)), site.receive(chest(1.25))
    site.wait(31)
    assert site.work() == thin
    site.wait(1)
    with site.node.database.transaction() as tx:
        reopening.analyse_again(tx, site.series(thick).series_pk, site.now, current_model(site.node.settings))
    assert site.work() == thick
    site.wait(1)
    decided = len(site.node.audited("study.decided"))
    site.wait(1)
    assert [site.series(uid).selection for uid in (thin, thick)] == ["ANALYSED", "ANALYSED"]
    assert len(site.node.audited("study.decided")) == decided


def test_a_study_waits_its_quiet_time_and_no_longer_if_the_clock_is_set_back(site: Site) -> None:
    site.receive(chest(5.0))
    site.receive(chest(1.25))
    site.wait(29.9)
    site.now += 0.2
    completion = Completion(site.node.settings, site.node.database, site.node.files)
    completion.close_due_series(current_models(site.node.settings), site.now)
    completion.stop()
    site.now -= 3600
    site.wait(1)
    assert not site.has_job()
    site.wait(QUIET_S + 1)
    assert site.has_job()


def test_a_late_slice_of_the_reported_series_has_that_series_reported_again(site: Site) -> None:
    slices = chest(5.0)
    reported = site.receive(slices[:-1])
    site.wait(31)
    assert site.work() == reported
    site.receive(chest(1.25))  # better, but the earlier report must not be contradicted
    site.receive(slices[-1:])
    site.wait(31)
    assert site.work() == reported
    site.wait(1)
    assert not site.has_job()
    assert site.series(reported).revision == 2


def test_a_late_slice_while_the_chosen_series_is_analysed_starts_the_choice_again(site: Site) -> None:
    slices = chest(1.25)
    other, chosen = site.receive(chest(5.0)), site.receive(slices[:-1])
    site.wait(31)
    with site.node.database.transaction() as tx:
        running = jobs.claim(tx, "test", site.now, 60, 3)
    assert running is not None and running.series_instance_uid == chosen
    site.receive(slices[-1:])
    assert site.series(chosen).job_state == "SUPERSEDED"
    site.wait(31)
    assert site.work() == chosen
    assert site.series(other).selection == "PASSED_OVER"


def test_a_slice_that_comes_between_deciding_and_recording_is_not_overlooked(site: Site) -> None:
    slices = chest(5.0)
    uid = site.receive(slices[:-1])
    site.wait(29.9)
    completion = Completion(site.node.settings, site.node.database, site.node.files)
    site.now += 1
    completion.close_due_series(current_models(site.node.settings), site.now)
    completion.stop()
    with site.node.database.read() as tx:
        (study,) = selection.undecided_studies(tx, site.now)
        before = selection.members(tx, study)
    site.receive(slices[-1:])
    best = BestSeries(site.node.settings, site.node.database, site.node.files)
    model = current_model(site.node.settings)
    best._record(best._decide(before, model), site.now, Models(model))
    assert site.series(uid).state == "OPEN"
    assert not site.has_job()


def test_a_restart_makes_the_study_wait_its_quiet_time_again(site: Site) -> None:
    site.receive(chest(5.0))
    site.now += 31
    completion = Completion(site.node.settings, site.node.database, site.node.files)
    completion.close_due_series(current_models(site.node.settings), site.now)
    completion.stop()
    with site.node.database.transaction() as tx:
        assert quiet_time.restart_quiet_times(tx, site.now) == 1
    site.wait(29)
    assert not site.has_job()
    site.wait(2)
    assert site.has_job()


def test_a_site_that_wants_every_series_again_gets_what_still_waits(site: Site) -> None:
    expected = {site.receive(chest(5.0)), site.receive(chest(1.25))}
    site.wait(29.9)
    site.now += 1
    completion = Completion(site.node.settings, site.node.database, site.node.files)
    completion.close_due_series(current_models(site.node.settings), site.now)
    completion.stop()
    every = site.node.settings.completion.model_copy(update={"select": "all"})
    site.node.settings = site.node.settings.model_copy(update={"completion": every})
    done = set()
    for _ in expected:
        site.wait(1)
        done.add(site.work())
    assert done == expected


def test_images_of_a_series_that_was_passed_over_go_with_retention(site: Site) -> None:
    thick, thin = site.receive(chest(5.0)), site.receive(chest(1.25))
    site.wait(31)
    with site.node.database.read() as tx:
        assert retention.finished_series(tx, site.now + 1)[0] == [site.series(thick).series_pk]
    assert site.work() == thin
