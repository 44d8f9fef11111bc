"""Which earlier result a model is given to compare with, and that it is given what the index holds of it."""

from dataclasses import asdict
from datetime import date

import numpy as np
import pytest

from dicom_node.analysis.analyse import Analysis
from dicom_node.analysis.comparison import Comparison, compared
from dicom_node.analysis.content import content_of, measurements_of
from dicom_node.analysis.open_model import OpenModel
from inference.comparing import Examination, Scan
from inference.densitometry.density import Densities, Density, Part
from inference.densitometry.lungs import Lungs
from inference.densitometry.output import make_output
from inference.densitometry.settings import Settings
from inference.finding import ModelIdentity
from inference.plug import Finding, Output
from storage import examinations, jobs
from storage.results import NewResult
from tests.storage_factory import MODEL, QUIET_S, Store

SCAN = Scan("B30f", 1.0, "Maker One", False)
IDENTITY = ModelIdentity(MODEL.name, "2", "digest 2")


class Words:
    """A model that compares, and remembers what it was given."""

    def __init__(self, silent_on: str = "") -> None:
        self.given: list[tuple[Examination, Examination]] = []
        self.silent_on = silent_on

    def analyse(self, volume: object) -> Output:
        raise NotImplementedError

    def compare(self, now: Examination, before: Examination) -> tuple[str, ...]:
        self.given.append((now, before))
        return () if before.scan.kernel == self.silent_on else (f"before: {before.scan.kernel}",)


def output_of(share: float) -> Output:
    sides = ("both", "right", "left")
    parts = {
        Part(side, third): Density(2000.0, share, -940.5, -860.25, 100)  # type: ignore[arg-type]
        for side in sides
        for third in ("whole", "upper", "middle", "lower")
    }
    empty = np.zeros((1, 1, 1), bool)
    lungs = Lungs(empty, empty, empty, (slice(0, 1), slice(0, 1), slice(0, 1)), 0.0)
    return make_output(Densities(parts, np.zeros(4201, np.int64), 1.0), lungs, empty, Settings(), (), (), ())


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path) as store:
        yield store


def stored(store: Store, number: int, day: str, scan: Scan, share: float) -> tuple[int, int]:
    """A result in the index. Returns the numbers of its series and of itself."""
    store.receive(1, now=1000.0 * number, series_uid=f"1.{number}", study_uid=f"2.{number}")
    store.close_due(1000.0 * number + QUIET_S)
    job = store.claim(1000.0 * number + QUIET_S)
    result = NewResult("ANALYSED", MODEL.name, MODEL.version, MODEL.digest, content=content_of(output_of(share)))
    with store.database.transaction() as tx:
        result_id = jobs.finish(tx, job.job_id, job.fence, 1000.0 * number + 40, result, [store.report()], [])
        examination = examinations.Examination("jane", MODEL.name, day, asdict(scan))
        examinations.record(tx, 1000.0 * number + 40, result_id, examination, None, ())
    return job.series_pk, result_id


def look_and_compare(store: Store, model: Words, share: float = 20.0) -> Comparison:
    series_pk, _ = stored(store, 9, "2030-01-01", SCAN, share)
    analysis = Analysis(Finding(IDENTITY, output_of(share), "d"), None, None)
    look = Comparison(series_pk, examinations.Examination("jane", MODEL.name, "2025-06-01", asdict(SCAN)))
    return compared(look, store.database, analysis, OpenModel(None, IDENTITY, model))  # type: ignore[arg-type]


def test_of_several_results_of_one_day_the_scan_that_was_made_most_alike_is_compared(store):
    other = Scan("B70f", 5.0, "Maker Two", False)
    stored(store, 1, "2024-01-01", other, 1.0)
    _, alike = stored(store, 2, "2024-01-01", Scan("B31f", 1.0, "Maker One", False), 2.0)
    stored(store, 3, "2024-01-01", other, 3.0)
    model = Words()
    found = look_and_compare(store, model)
    assert found.earlier.result_id == alike and found.said == ("before: B31f",)
    assert found.statement.said == found.said and found.statement.report.StudyInstanceUID == "2.2"
    [(now, before)] = model.given
    assert (now.day, before.day) == (date(2025, 6, 1), date(2024, 1, 1))
    assert now.scan == SCAN and now.model != before.model
    assert [one.value for one in before.measurements if one.concept.value == "LAA_SHARE"] == [2.0] * 6


def test_a_result_that_the_model_cannot_compare_leaves_the_next(store):
    _, next_best = stored(store, 1, "2024-01-01", Scan("B70f", 1.0, "Maker One", True), 1.0)
    stored(store, 2, "2024-01-01", SCAN, 2.0)
    found = look_and_compare(store, Words(silent_on="B30f"))
    assert found.earlier.result_id == next_best
    assert len(found.found) == 2


def test_without_an_earlier_result_nothing_is_said(store):
    stored(store, 1, "2026-01-01", SCAN, 1.0)
    found = look_and_compare(store, Words())
    assert (found.earlier, found.said, found.statement, found.found) == (None, (), None, ())


def test_measurements_come_back_from_the_index_as_the_model_gave_them():
    output = output_of(12.3)
    held = measurements_of(content_of(output))
    assert [(one.concept, one.value, one.unit, one.topography, one.segment) for one in held] == [
        (one.concept, one.value, one.unit, one.topography, one.segment) for one in output.measurements
    ]
    for one, given in zip(held, output.measurements, strict=True):
        assert [(q.concept, q.value, q.unit.value) for q in one.qualifiers] == [
            (q.concept, q.value, q.unit.value) for q in given.qualifiers
        ]
        assert (one.derivation, one.laterality, one.site) == (given.derivation, given.laterality, given.site)
