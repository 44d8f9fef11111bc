"""One result as gateways tell it, made up, for examples in the documents."""

from datetime import datetime, timedelta, timezone

from config.coding import Code
from dicom_node.gateways.reported import (
    FindingSaid,
    ModelSaid,
    Name,
    PatientSaid,
    ReportedResult,
    StudySaid,
)
from dicom_node.gateways.sr_content import Number

LUNG = Code("39607008", "SCT", "Lung")


def example_result() -> ReportedResult:
    """A positive finding and a volume."""
    created = datetime(2026, 1, 2, 10, 30, tzinfo=timezone(timedelta(hours=1)))
    finding = FindingSaid(
        concept=Code("840539006", "SCT", "COVID-19"),
        label="COVID-19",
        percent="93",
        threshold=0.5,
        interpretation=Code("10828004", "SCT", "Positive"),
        category=None,
        site=LUNG,
        laterality=None,
        observation_uid="2.25.5",
    )
    volume = Number(
        concept=Code("118565006", "SCT", "Volume"),
        value="3869.3",
        unit=Code("mL", "UCUM", "milliliter"),
        site=LUNG,
        laterality=None,
        topography=None,
        derivation=None,
        method=None,
        qualifiers=(),
        group="Lungs",
        observation_uid="2.25.6",
    )
    return ReportedResult(
        result_id=7,
        series_uid="2.25.2",
        analysed=True,
        reason_code="",
        reason_text="",
        patient=PatientSaid("4711", "HOSPITAL", Name("Doe^Jane", "Doe", "Jane"), "19600301", "F"),
        study=StudySaid("2.25.1", "1", "A100", "", "20260102", "101500", "CT chest", Name(), "", ""),
        report_uid="2.25.3",
        findings=(finding,),
        numbers=(volume,),
        sentences=("For research use only. Not for diagnosis, treatment or any other clinical decision.",),
        model=ModelSaid("zheng2020", "1.0", "0" * 64),
        objects=(),
        replaces=None,
        created_at=created.timestamp(),
        created=created,
    )
