"""Several models on several series of a study: each model's result is read with its own on the other series, and with
nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.coding import NEGATIVE, POSITIVE, Code
from config.reasons import Refusal
from config.settings import Settings
from dicom_node.analysis import study_statement
from dicom_node.analysis.analyse import Analysis
from inference.models.cards import read_card, shipped_folder
from inference.plug import Finding, FindingByCode, Output
from storage import jobs, quiet_time, series, study_results
from storage.coded import CodedFinding, Content
from storage.jobs import ModelRef
from storage.replaces import Replaces
from storage.results import NewResult
from tests.factories import model
from tests.storage_factory import DISEASE, MODEL, Store, analysed

NODULE = Code("27925004", "SCT", "Nodule")
SECOND = ModelRef("second", "1", "model-digest-2")


def second(probability: float) -> NewResult:
    interpretation = POSITIVE if probability >= 0.5 else NEGATIVE
    finding = CodedFinding("Nodule", NODULE, interpretation, probability, 0.5)
    return NewResult("ANALYSED", SECOND.name, SECOND.version, SECOND.digest, Content((finding,)), threshold=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two series of one study; both models find nothing in the first, and the second model does in the second."""
    with Store(tmp_path) as store:
        for number, probability in ((1, 0.1), (2, 0.9)):
            store.receive(1, now=100.0 * number, series_uid=f"1.2.{number}")
            with store.database.transaction() as tx:
                for due in quiet_time.due_series(tx, 100 * number + 50):
                    closing = series.Closing(MODEL, beside=(SECOND,))
                    series.close_series(tx, due.series_pk, 100 * number + 50, closing)
            end(store, analysed(0.1), Replaces(but=frozenset({SECOND.name})))
            end(store, second(probability), Replaces(only=SECOND.name))
        yield store


def end(store: Store, result: NewResult, replaces: Replaces) -> jobs.ClaimedJob:
    job = store.claim(450.0)
    assert job is not None
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, 460.0, result, [store.report()], [], replaces)
    return job


def test_each_models_result_stands_for_its_series_also_when_a_late_slice_has_come(store: Store) -> None:
    for _ in range(2):
        with store.database.read() as tx:
            others = study_results.others(tx, 2)
        assert [(one.model_name, one.concept, one.positive) for one in others] == [
            (MODEL.name, DISEASE, False), (SECOND.name, NODULE, False)
        ]  # fmt: skip
        store.receive(2, now=700.0, series_uid="1.2.1")


def test_only_results_on_the_same_concept_differ(store: Store) -> None:
    with store.database.read() as tx:
        others = study_results.others(tx, 2)
    said = [*analysed(0.1).content.findings, *second(0.9).content.findings]
    assert study_results.differ(said, others) and not study_results.differ(said[:1], others)
    assert study_results.on_the_same(said[1:], others) == [others[1]]
    assert len(study_results.on_the_same([], others)) == 2, "what was not analysed is read with all"


@pytest.mark.parametrize(
    ("findings", "refused", "named"),
    [([DISEASE], False, [0]), ([NODULE], False, [1]), ([], False, []), ([], True, [0, 1])],
    ids=["disease", "nodule", "measurements", "refusal"],
)
def test_a_report_names_the_results_on_what_it_is_on(
    findings: list[Code], refused: bool, named: list[int], store: Store
) -> None:
    said = tuple(FindingByCode("x", concept, POSITIVE, 0.9, 0.5) for concept in findings)
    finding = None if refused else Finding(model(), Output(findings=said), "p" * 64)
    refusal = Refusal("NOT_CHEST", "No lungs.") if refused else None
    with store.database.read() as tx:
        others = study_results.others(tx, 2)
    job = jobs.ClaimedJob(9, 1, 1, 2, "1.2.2", "1.2", "CT", 1, "", 1, MODEL, None, 0.0)
    card, folder = read_card(shipped_folder() / "densitometry"), Settings(data_dir=store.folder).models_dir
    analysis = Analysis(finding, refusal, None)
    statement = study_statement.of_stored(store.database, store.files, folder, job, [], card, others, analysis)
    earlier = () if statement is None else statement.earlier
    assert [one.probability for one in earlier] == [others[number].probability for number in named]
    assert len({one.model_name for one in others}) == 2
