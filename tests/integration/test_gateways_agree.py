"""The same result, read from its report and from what each gateway sends, is the same number with the same code."""

import pytest

from config.gateways.fhir import FhirDestination
from config.gateways.hl7 import Hl7Destination
from config.gateways.stow import StowDestination
from config.settings import SenderSettings
from dicom_node.gateways.fhir.gateway import FhirGateway
from dicom_node.gateways.hl7.gateway import Hl7
from dicom_node.gateways.reported import ReportedResult
from dicom_node.gateways.stow import Stow
from dicom_node.report.frame import to_part10
from dicom_node.scu.store import read_instance
from tests import stow_server
from tests.readings import Reading, from_fhir, from_oru, from_report
from tests.storage_factory import Store
from tests.told import ToldSeries


def fhir(result: ReportedResult) -> Reading:
    """What a FHIR server reads."""
    private = {"99DICOMNODE": "urn:test:99DICOMNODE"}
    destination = FhirDestination(
        kind="fhir", name="fhir", url="http://127.0.0.1/fhir", patient="contained", coding_systems=private
    )
    return from_fhir(FhirGateway(destination, SenderSettings()).compose(result).content)


def hl7(result: ReportedResult) -> Reading:
    """What a RIS reads."""
    return from_oru(Hl7(Hl7Destination(kind="hl7", name="ris", host="127.0.0.1", port=1)).compose(result).content)


# By gateway: what a receiver reads of its message.
RECEIVERS = {"fhir": fhir, "hl7": hl7}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Results with what the report says of each: positive, near the threshold, negative."""
    folder = tmp_path_factory.mktemp("told")
    with Store(folder / "store") as store:
        made = ToldSeries(store, folder / "series")
        results = [made.analysed(0.91273, localised=True), made.analysed(0.49996), made.analysed(0.00004)]
        yield [(result, from_report(to_part10(made.report(result.result_id)))) for result in results]


def test_a_dicomweb_archive_gets_the_report_itself(tmp_path):
    with Store(tmp_path / "store") as store, stow_server.archive() as archive:
        made = ToldSeries(store, tmp_path / "series")
        report = to_part10(made.report(made.analysed(0.91273, localised=True).result_id))
        (tmp_path / "report.dcm").write_bytes(report)
        destination = StowDestination(kind="stow", name="archive", url=archive.url)
        Stow(destination, SenderSettings()).store([read_instance(tmp_path / "report.dcm")])
        ((arrived,),) = archive.held.values()
        assert from_report(arrived) == from_report(report)


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_every_gateway_tells_the_numbers_codes_and_units_of_the_report(told, receiver):
    for result, expected in told:
        assert RECEIVERS[receiver](result) == expected
        assert len(expected.values) >= 4 and len(expected.findings) == 1


def test_the_readings_are_of_different_results(told):
    assert len({expected for _, expected in told}) == 3
    assert [expected.findings[0] for _, expected in told] == [
        ("840539006 SCT", "POS"), ("840539006 SCT", "NEG"), ("840539006 SCT", "NEG"),
    ]  # fmt: skip
