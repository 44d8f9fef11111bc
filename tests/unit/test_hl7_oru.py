"""What an ORU^R01 says of odd patients and studies, and of what a later result no longer says."""

from dataclasses import replace

import pytest

from config.coding import Code
from config.gateways.fhir import FhirDestination
from config.gateways.hl7 import Hl7Destination
from dicom_node.gateways.fhir.bundle import bundle_of
from dicom_node.gateways.hl7.gateway import Hl7
from dicom_node.gateways.reported import Former, Name, PatientSaid, ReportedResult
from tests.reported import example_result

FIRST = example_result()


def segments(result: ReportedResult, name: str) -> list[list[str]]:
    content = Hl7(Hl7Destination(kind="hl7", name="ris", host="127.0.0.1", port=1)).compose(result).content.decode()
    return [line.split("|") for line in content.split("\r") if line.startswith(name)]


def lines(result: ReportedResult, *, status: str) -> set[tuple[str, str]]:
    """OBX-3 and OBX-4 of the lines of findings and measurements that have a status."""
    return {(obx[3], obx[4]) for obx in segments(result, "OBX") if obx[4].isdecimal() and obx[11] == status}


def sentences(result: ReportedResult) -> list[tuple[str, bool, str]]:
    """Number, whether there is a text, and status of each line of text."""
    return [(obx[4], bool(obx[5]), obx[11]) for obx in segments(result, "OBX") if obx[2] == "TX"]


def said_by(result: ReportedResult, model: str = "zheng2020") -> Former:
    return Former(result.result_id, result.report_uid, (), model, "", result.findings, result.numbers)


def later(former: Former, **changes: object) -> ReportedResult:
    return replace(FIRST, result_id=8, report_uid="2.25.30", replaces=former, **changes)


@pytest.mark.parametrize("first", [FIRST, replace(FIRST, findings=()), replace(FIRST, numbers=())])
def test_every_line_of_a_result_that_is_taken_back_is_called_wrong(first: ReportedResult) -> None:
    """Not its certainty alone: a receiver that matches lines would leave a volume or "positive" standing."""
    nothing = later(said_by(first), analysed=False, reason_code="WITHDRAWN", findings=(), numbers=())
    assert lines(nothing, status="W") == lines(first, status="P") != set()
    wrong = [obx for obx in segments(nothing, "OBX") if obx[11] == "W"]
    assert not any("".join(obx[5:11]) for obx in wrong)


def test_a_correction_calls_wrong_what_it_no_longer_says_and_nothing_else() -> None:
    second = later(said_by(FIRST), numbers=())
    assert lines(second, status="C") == lines(replace(FIRST, numbers=()), status="P")
    assert lines(second, status="W") == lines(FIRST, status="P") - lines(second, status="C") != set()
    assert not lines(later(said_by(FIRST)), status="W")


def test_each_sentence_that_no_later_one_takes_the_place_of_is_called_wrong() -> None:
    first = replace(FIRST, sentences=("One.", "Two.", "Three."))
    assert sentences(first) == [("T1", True, "P"), ("T2", True, "P"), ("T3", True, "P")]
    former = replace(said_by(first), sentences=first.sentences)
    withdrawn = later(former, analysed=False, reason_code="WITHDRAWN", findings=(), numbers=(), sentences=("Why.",))
    assert sentences(withdrawn) == [("T1", True, "C"), ("T2", False, "W"), ("T3", False, "W")]
    between = replace(said_by(FIRST), replaces=former)
    assert sentences(later(between, sentences=())) == [("T1", False, "W"), ("T2", False, "W"), ("T3", False, "W")]


def test_what_an_earlier_one_of_several_results_said_is_taken_back_too() -> None:
    """The one in between need not have reached this receiver."""
    between = replace(said_by(replace(FIRST, findings=(), numbers=())), replaces=said_by(FIRST))
    nothing = later(between, analysed=False, reason_code="WITHDRAWN", findings=(), numbers=())
    assert lines(nothing, status="W") == lines(FIRST, status="P")


def test_a_result_of_another_model_corrects_under_the_number_of_the_first() -> None:
    second = replace(later(said_by(FIRST)), model=replace(FIRST.model, name="another"))
    (before,), (after,) = segments(FIRST, "OBR"), segments(second, "OBR")
    assert after[3] == before[3] and after[25] == "C"


def test_nobody_is_named_by_an_issuer_alone() -> None:
    nobody = replace(FIRST, patient=PatientSaid("", "HOSPITAL", Name(), "", ""))
    assert segments(nobody, "PID") == [["PID", "1"]]


@pytest.mark.parametrize(
    ("date", "time", "day", "hl7"),
    [
        ("20260102", "235960", "2026-01-02", "20260102"),
        ("20260102", "12:00:00", "2026-01-02", "20260102"),
        ("20260102", "2400", "2026-01-02", "20260102"),
        ("20260102", "1015", "2026-01-02T10:15:00+01:00", "202601021015+0100"),
        ("20260230", "101500", None, ""),
        ("2026.01.02", "101500", None, ""),
        ("2026", "", None, ""),
    ],
)
def test_no_message_holds_a_moment_that_no_calendar_has(date: str, time: str, day: str | None, hl7: str) -> None:
    """Servers and engines refuse the whole message for it."""
    odd = replace(FIRST, study=replace(FIRST.study, date=date, time=time))
    odd = replace(odd, patient=replace(FIRST.patient, birth_date=date))
    destination = FhirDestination(kind="fhir", name="fhir", url="http://127.0.0.1:1", patient="contained")
    bundle = bundle_of(odd, destination)
    assert bundle is not None
    report = bundle["entry"][-1]["resource"]
    assert report.get("effectiveDateTime") == day
    assert report["contained"][0].get("birthDate") == (day and day[:10])
    assert segments(odd, "OBR")[0][7] == hl7
    assert (segments(odd, "PID")[0][7:8] or [""])[0] == hl7[:8]


def test_a_finding_without_a_certainty_is_taken_back_by_its_own_lines() -> None:
    sign = replace(FIRST.findings[0], percent="", concept=Code("1", "SCT", "A sign"))
    first = replace(FIRST, findings=(sign,), numbers=())
    nothing = later(said_by(first), analysed=False, reason_code="WITHDRAWN", findings=(), numbers=())
    assert {name.partition("^")[0] for name, _ in lines(nothing, status="W")} == {"121071", "363713009", "363698007"}
