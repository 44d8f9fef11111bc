"""A result as a FHIR bundle: what it says, to whom it belongs, and that a server which has it twice holds it once."""

import json
from dataclasses import replace

import pytest
from fhir.resources.R4B.bundle import Bundle

from config.coding import Code
from config.gateways.fhir import FhirDestination
from dicom_node.gateways.fhir.bundle import bundle_of, encoded
from dicom_node.gateways.interface import CannotCompose
from dicom_node.gateways.reported import FindingSaid, Name
from tests.fhir_server import FhirServer, Store
from tests.storage_factory import Store as Index
from tests.told import ToldSeries

HOSPITAL = "urn:oid:1.2.276.0.76.3.1"


def told(**more) -> FhirDestination:
    values = {"kind": "fhir", "name": "fhir", "url": "http://127.0.0.1/fhir", "patient_systems": {"HOSP": HOSPITAL}}
    return FhirDestination(**(values | more))


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Positive with what drove the model, negative without, positive again, then not analysed, then taken back."""
    folder = tmp_path_factory.mktemp("told")
    with Index(folder / "store") as store:
        made = ToldSeries(store, folder / "series")
        results = [made.analysed(localised=True), made.analysed(0.2), made.analysed(0.8, localised=True)]
        results += [made.refused(), made.refused("OWN_OBJECT", "Taken back.")]
        yield results


@pytest.fixture
def server() -> FhirServer:
    made = FhirServer()
    made.add_patient(HOSPITAL, "4711")
    return made


def tell(server: FhirServer, result, **settings) -> None:
    """What the gateway posts, answered by the server's rules."""
    status, answer = server.post(
        encoded(bundle_of(result, told(**settings))), {"content-type": "application/fhir+json"}
    )
    assert status == 200, answer


def entries(result, kind: str, **settings) -> list[dict]:
    bundle = bundle_of(result, told(**settings))
    return [one["resource"] for one in bundle["entry"] if one["resource"]["resourceType"] == kind]


def holds(store: Store, kind: str, status: str) -> list[dict]:
    return [one for one in store.all(kind) if one["status"] == status]


def test_every_bundle_is_valid(series):
    for result in series:
        for patient in ("reference", "identifier", "contained"):
            bundle = Bundle.model_validate_json(encoded(bundle_of(result, told(patient=patient))))
            assert len(bundle.entry) >= 3


def test_it_tells_the_certainty_with_the_report_s_codes(series):
    first = entries(series[0], "Observation")[0]
    assert first["status"] == "preliminary"
    assert first["code"]["coding"] == [
        {
            "system": "http://dicom.nema.org/resources/ontology/DCM",
            "code": "111012",
            "display": "Certainty of Finding",
        }
    ]
    assert first["valueQuantity"] == {"value": 91, "unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
    assert [one["code"] for one in first["interpretation"][0]["coding"]] == ["POS", "10828004"]
    assert first["bodySite"]["coding"][0] == {
        "system": "http://snomed.info/sct", "code": "39607008", "display": "Lung",
    }  # fmt: skip
    assert first["component"][0]["valueCodeableConcept"]["coding"][0]["code"] == "840539006"
    assert first["referenceRange"][0]["high"]["value"] == 50
    assert first["meta"]["security"][0]["code"] == "AIAST"
    assert {"system": "urn:dicom:uid", "value": f"urn:oid:{series[0].findings[0].observation_uid}"} in first[
        "identifier"
    ]


def test_a_negative_result_is_told_as_one(series):
    assert entries(series[1], "Observation")[0]["interpretation"][0]["coding"][0]["code"] == "NEG"


def test_a_person_can_tell_left_from_right(series):
    volumes = [one for one in entries(series[0], "Observation") if one["code"]["coding"][0]["code"] == "118565006"]
    assert [one["code"]["text"] for one in volumes] == [
        "Volume, Lung, Bilateral", "Volume, Lung, Left", "Volume, Lung, Right",
        "Volume, Lung (Visual explanation)",
    ]  # fmt: skip


def test_the_report_has_its_observations_its_study_and_its_words(series):
    (report,) = entries(series[0], "DiagnosticReport")
    assert (report["status"], report["code"]["coding"][0]["code"]) == ("preliminary", "18748-4")
    assert len(report["result"]) == len(entries(series[0], "Observation")) == 6
    assert report["effectiveDateTime"] == "2020-03-01T10:11:12+00:00"
    assert report["conclusion"].splitlines() == list(series[0].sentences)
    (study,) = entries(series[0], "ImagingStudy")
    accession = {"type": {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN",
                                      "display": "Accession ID"}]}, "value": "AC 7"}  # fmt: skip
    assert study["identifier"][1] == accession
    assert study["identifier"][0]["value"] == f"urn:oid:{series[0].study.study_uid}"


def test_the_same_result_gives_the_same_bytes(series):
    assert encoded(bundle_of(series[0], told())) == encoded(bundle_of(series[0], told()))


def test_a_resend_changes_nothing(series, server):
    for result in series:
        tell(server, result)
        versions = dict(server.store.versions)
        tell(server, result)
        assert server.store.versions == versions


def test_a_later_result_amends_the_earlier_one_and_takes_back_what_it_no_longer_says(series, server):
    tell(server, series[0])
    tell(server, series[1])
    (report,) = server.all("DiagnosticReport")
    assert report["status"] == "amended" and len(report["result"]) == 4
    certainty, *_ = holds(server.store, "Observation", "amended")
    assert certainty["valueQuantity"]["value"] == 20
    assert [one["code"]["text"] for one in holds(server.store, "Observation", "entered-in-error")] == [
        "Volume, Lung (Visual explanation)", "Share of lung volume, Lung (Visual explanation)",
    ]  # fmt: skip
    assert not holds(server.store, "Observation", "preliminary")


def test_a_server_that_missed_a_result_in_between_holds_the_last_one_alone(series, server):
    tell(server, series[0])
    tell(server, series[2])
    (report,) = server.all("DiagnosticReport")
    assert report["status"] == "amended" and len(server.all("Observation")) == len(report["result"]) == 6


def test_a_first_result_that_comes_late_does_not_undo_a_later_one(series, server):
    tell(server, series[1])
    held = dict(server.store.versions)
    tell(server, series[0])
    (report,) = server.all("DiagnosticReport")
    assert report["status"] == "amended"
    assert {place: held[place] for place in held} == {place: server.store.versions[place] for place in held}


def test_an_earlier_result_is_in_error_once_the_series_is_not_analysed(series, server):
    for result in series[:4]:
        tell(server, result)
    (report,) = server.all("DiagnosticReport")
    assert report["status"] == "entered-in-error" and "The series has gaps of 12 mm." in report["conclusion"]
    (reason,) = [one for one in server.all("Observation") if one["status"] != "entered-in-error"]
    assert reason["status"] == "cancelled" and len(server.all("Observation")) == 7
    assert [one["code"] for one in reason["dataAbsentReason"]["coding"]] == ["not-performed", "MISSING_SLICES"]
    assert not any(name.startswith("value") for name in reason)


def test_a_result_that_was_taken_back_leaves_nothing_standing(series, server):
    for result in series[:4]:
        tell(server, result)
    tell(server, replace(series[4], reason_code="WITHDRAWN"))
    held = server.all("DiagnosticReport") + server.all("Observation")
    assert len(held) == 8 and {one["status"] for one in held} == {"entered-in-error"}


def test_a_series_that_was_never_analysed_has_a_cancelled_report(series, server):
    tell(server, replace(series[3], replaces=None))
    assert [one["status"] for one in server.all("DiagnosticReport") + server.all("Observation")] == ["cancelled"] * 2


def test_what_the_site_does_not_want_to_hear_is_not_told_unless_an_earlier_result_stands(series, server):
    assert bundle_of(replace(series[3], replaces=None), told(tell_not_analysed=False)) is None
    for result in series[:4]:
        tell(server, result, tell_not_analysed=False)
    held = server.all("DiagnosticReport") + server.all("Observation")
    assert {one["status"] for one in held} == {"entered-in-error"} and len(held) == 7


def test_the_results_of_two_models_on_a_series_stand_side_by_side(series, server):
    tell(server, series[0])
    other = replace(series[0], model=replace(series[0].model, name="another", digest="e" * 64), report_uid="1.2.3")
    tell(server, other)
    assert len(server.all("DiagnosticReport")) == 2 and len(server.all("Device")) == 2
    assert len(server.all("ImagingStudy")) == 1


def test_another_model_s_result_takes_the_place_of_the_one_that_it_replaces(series, server):
    tell(server, series[0])
    newer = replace(series[1], model=replace(series[1].model, name="newer", digest="e" * 64))
    tell(server, newer)
    (report,) = server.all("DiagnosticReport")
    assert report["status"] == "amended" and not holds(server.store, "Observation", "preliminary")


def test_a_patient_id_means_nobody_without_the_system_of_its_issuer(series):
    with pytest.raises(CannotCompose) as refused:
        bundle_of(series[0], told(patient_systems={"": HOSPITAL, "ELSEWHERE": HOSPITAL}))
    assert "HOSP" not in str(refused.value) and "4711" not in str(refused.value)
    anonymous = replace(series[0], patient=replace(series[0].patient, patient_id=""))
    with pytest.raises(CannotCompose, match="no Patient ID"):
        bundle_of(anonymous, told())


@pytest.mark.parametrize("patient_id", ["a|b", "x,4711", "1&identifier=2", "50%", "a\\b$c", "é ü+#", "a;b/c:d?"])
def test_no_patient_id_widens_the_search_for_the_patient(series, patient_id):
    server = FhirServer()
    for value in ("4711", "2", "x", "b", patient_id):
        server.add_patient(HOSPITAL, value)
    (meant,) = [one["id"] for one in server.all("Patient") if one["identifier"][0]["value"] == patient_id]
    tell(server, replace(series[0], patient=replace(series[0].patient, patient_id=patient_id)))
    assert server.all("DiagnosticReport")[0]["subject"] == {"reference": f"Patient/{meant}"}


def test_nothing_is_done_for_a_patient_who_is_unknown_or_there_twice(series, server):
    body, headers = encoded(bundle_of(series[0], told())), {"content-type": "application/fhir+json"}
    server.add_patient(HOSPITAL, "4711")
    assert server.post(body, headers)[0] == 412
    server.store.held["Patient"] = {}
    assert server.post(body, headers)[0] == 412
    assert not server.all("Device") and not server.all("Observation")


def test_a_site_may_have_the_patient_inside(series, server):
    tell(server, series[0], patient="contained", patient_systems={})
    for one in server.all("Observation") + server.all("DiagnosticReport") + server.all("ImagingStudy"):
        (patient,) = one["contained"]
        assert one["subject"] == {"reference": "#patient"}
        assert patient["name"] == [{"family": "Müller", "given": ["Jörg"]}]
        assert (patient["birthDate"], patient["gender"]) == ("1960-02-29", "female")
        assert patient["identifier"] == [{"value": "4711", "assigner": {"display": "HOSP"}}]


def test_a_private_code_has_the_site_s_system_or_one_of_its_own(series):
    def systems(**settings) -> set[str]:
        codings = [one["code"]["coding"][0] for one in entries(series[0], "Observation", **settings)]
        return {one["system"] for one in codings if one["code"] == "LUNG_SHARE"}

    assert systems(coding_systems={"99DICOMNODE": "https://hospital.example/codes"}) == {
        "https://hospital.example/codes"
    }
    (own,) = systems()
    assert own.startswith("urn:uuid:")


def test_a_finding_without_a_number_or_an_answer_is_told_as_what_it_is(series):
    code = Code("233604007", "SCT", "Pneumonia")
    unsure = FindingSaid(code, "Pneumonia", "", None, Code("82334004", "SCT", "Indeterminate"), None, None, None, "1.2")
    bare = replace(series[0], findings=(unsure, replace(unsure, interpretation=None, concept=Code("1", "99X", "x"))))
    bare = replace(bare, numbers=(), study=replace(bare.study, date="", time="", accession_number=""))
    bare = replace(bare, patient=replace(bare.patient, name=Name(), birth_date="", sex=""))
    Bundle.model_validate_json(encoded(bundle_of(bare, told(patient="contained"))))
    first, second = entries(bare, "Observation")
    assert first["code"]["coding"][0]["code"] == "121071"
    assert first["valueCodeableConcept"]["coding"][0]["code"] == "233604007"
    assert first["interpretation"][0]["coding"][0]["code"] == "IND" and "interpretation" not in second


def test_numbers_that_differ_in_their_place_only_or_in_nothing_are_told_apart(series, server):
    share = replace(
        series[0].numbers[0],
        concept=Code("LAA", "99DICOMNODE", "Share of low attenuation"),
        topography=Code("261183002", "SCT", "Upper"),
        derivation=Code("373098007", "SCT", "Mean"),
        method=Code("123", "99X", "A method"),
        qualifiers=((Code("HU", "99DICOMNODE", "Threshold"), "-950", Code("[hnsf'U]", "UCUM", "Hounsfield unit")),),
        finding=None,
    )
    lower = replace(share, topography=Code("261122009", "SCT", "Lower"), observation_uid="1.2.1")
    many = replace(series[0], findings=(), numbers=(share, lower, replace(lower, value="7", observation_uid="1.2.2")))
    tell(server, many)
    first, second, third = server.all("Observation")
    assert first["code"]["text"] == "Share of low attenuation, Mean, Lung, Bilateral, Upper"
    assert third["valueQuantity"]["value"] == 7 and second["code"] == third["code"]
    told_of = {one["code"]["text"]: one for one in first["component"]}
    assert told_of["Threshold"]["valueQuantity"]["value"] == -950
    assert told_of["Topographical modifier"]["valueCodeableConcept"]["text"] == "Upper"
    assert first["method"]["text"] == "A method"


def test_a_message_is_json_in_utf_8(series):
    body = encoded(bundle_of(series[0], told(patient="contained")))
    assert json.loads(body)["type"] == "transaction" and "Müller".encode() in body
