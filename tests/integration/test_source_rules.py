"""What a source may store, which of its series are analysed, how soon, and where their results go."""

import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, build_context

from config.reasons import Refusal
from config.settings import SeriesFilter, Settings
from dicom_node.analysis.current_model import current_model
from dicom_node.analysis.worker import Worker
from dicom_node.completion.closing import Completion
from storage import jobs, series
from storage.jobs import Models
from tests.outbox import destination, make_node
from tests.receiving import Node, ct_slice, store
from tests.storage_factory import MODEL, QUIET_S, Store


def test_a_class_that_a_source_may_not_store_gets_no_presentation_context(tmp_path: Path) -> None:
    sources = [{"ae_title": "PLAIN", "classes": ["ct"]}, {"ae_title": "ANY"}]
    proposed = [build_context(uid, ExplicitVRLittleEndian) for uid in (CTImageStorage, EnhancedCTImageStorage)]
    accepted = {}
    with Node(tmp_path, sources=sources) as node:
        for title in ("PLAIN", "ANY"):
            association = AE(ae_title=title).associate("127.0.0.1", node.port, contexts=proposed, ae_title="DICOM_NODE")
            accepted[title] = {str(context.abstract_syntax) for context in association.accepted_contexts}
            association.release()
    assert accepted == {"PLAIN": {CTImageStorage}, "ANY": {CTImageStorage, EnhancedCTImageStorage}}


@pytest.mark.parametrize(
    ("description", "body_part", "wanted"),
    [
        ("Thorax 1.0 B60f", "CHEST", True),
        ("THORAX lung", "", True),
        ("Thorax MIP cor", "CHEST", False),
        ("Abdomen 5.0", "CHEST", False),
        ("thorax", "ABDOMEN", False),
        ("", "", False),
    ],
)
def test_the_series_filter(description: str, body_part: str, wanted: bool) -> None:
    rule = SeriesFilter(descriptions=("*thorax*",), not_descriptions=("*mip*",), body_parts=("CHEST",))
    assert rule.wants(description, body_part) is wanted
    assert SeriesFilter().wants(description, body_part)


def test_a_series_that_the_filter_leaves_out_is_kept_audited_and_not_analysed(tmp_path: Path) -> None:
    sources = [{"ae_title": "SENDER", "series": {"descriptions": ["*chest*"]}, "quiet_s": 0.1}]
    with Node(tmp_path, sources=sources, completion={"select": "all"}) as node:
        for description in ("Chest 1mm", "Topogram"):
            sent = ct_slice(series_uid=None)
            sent.SeriesDescription = description
            assert store(node, sent)[0][0] == 0x0000
        node.stop()
        completion = Completion(node.settings, node.database, node.files)
        completion.close_due_series(Models(MODEL), time.time() + 1)
        completion.stop()
        with node.database.read() as tx:
            found = {record.description: record for record in series.list_series(tx)}
    assert {record.state for record in found.values()} == {"CLOSED"}
    assert (found["Chest 1mm"].job_state, found["Chest 1mm"].refusal_code) == ("QUEUED", None)
    assert (found["Topogram"].job_state, found["Topogram"].refusal_code) == (None, "NOT_WANTED")


def test_a_higher_priority_is_analysed_first_and_the_same_in_order(tmp_path: Path) -> None:
    with Store(tmp_path) as node:
        for number, priority in ((1, 0), (2, 5), (3, 5), (4, -1)):
            node.receive(1, now=number, series_uid=f"1.{number}", study_uid=f"1.{number}.0", patient_id=f"P{number}")
            with node.database.transaction() as tx:
                series.close_series(tx, number, number + QUIET_S, series.Closing(MODEL, priority=priority))
        order = [node.claim(100) for _ in range(4)]
    assert [job.series_instance_uid for job in order if job] == ["1.2", "1.3", "1.1", "1.4"]


def test_results_go_to_the_destinations_of_the_source_that_began_the_series(tmp_path: Path) -> None:
    sources = [{"ae_title": "PACS", "destinations": ["b"], "priority": 7}]
    three = [destination(1000 + number, name) for number, name in enumerate("abc")]
    node = make_node(tmp_path, *three, sources=sources, report={"report_not_analysed": True})
    sent = ct_slice()
    node.receive([sent], time.time(), quiet_s=0.1)
    model = current_model(node.settings)
    with node.database.transaction() as tx:
        job_id = series.close_series(
            tx, 1, time.time() + 1, series.Closing(model, refusal=Refusal("MISSING_SLICES", "One of two is missing."))
        )
        assert job_id is not None
    assert Worker(node.settings, node.database, node.files, "cpu").work_once(time.time() + 1)
    assert set(node.states()) == {"b"}


def test_a_series_that_another_source_ends_keeps_the_rules_of_the_one_that_began_it(tmp_path: Path) -> None:
    with Store(tmp_path) as node:
        node.receive(1, now=0, calling_ae="FIRST")
        node.receive(2, now=1, calling_ae="SECOND")
        node.close_due(60)
        with node.database.transaction() as tx:
            job = jobs.claim(tx, "worker", 60, 60, 3)
    assert job is not None
    assert job.calling_ae == "FIRST"


def test_sources_that_contradict_themselves_are_named() -> None:
    with pytest.raises(ValidationError, match="same AE title"):
        Settings(sources=[{"ae_title": "PACS"}, {"ae_title": "PACS"}])
    with pytest.raises(ValidationError, match="'nowhere' is not the name of a destination"):
        Settings(sources=[{"ae_title": "PACS", "destinations": ["nowhere"]}])
