"""The node's own results by QIDO-RS and WADO-RS, asked as a web viewer does, on a real socket."""

import io
import json
import re
from email.message import EmailMessage

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydantic import ValidationError
from pydicom.dataset import Dataset

from config.gateways.dicomweb_server import DicomwebSettings
from dicom_node.cli.configure import read_and_check
from dicom_node.web.dicomweb import access, asked, server, told
from dicom_node.web.dicomweb.access import Folded
from dicom_node.web.security.guard import for_whom
from storage.object_kinds import ObjectKind
from tests.shown_series import reported
from tests.web_pages import Visitor, serving

TOKEN = "f" * 40
ORIGIN = "https://viewer.example"
STUDIES = "/dicomweb/studies"
JSON, PARTS = "application/dicom+json", 'multipart/related; type="application/dicom"'
SERVED = ("report", "segmentation", "summary")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicomweb")
    token = folder / "token"
    token.write_text(f"{TOKEN}\n")
    given = {"enabled": True, "credentials": token, "origins": (ORIGIN,)}
    with serving(folder, web={"dicomweb": given}) as found:
        header = {"study_date": "20260102", "accession_number": "A1", "patient_name": "Müller^Änne"}
        reported(found.store, folder / "sent", **header)
        yield found


@pytest.fixture(scope="module")
def objects(pages):
    """The stored objects of the result by their UIDs: what a viewer is to see."""
    rows = pages.store.rows("SELECT * FROM result_objects ORDER BY id")
    assert {row["kind"] for row in rows} == set(SERVED)
    return {
        row["sop_instance_uid"]: pages.store.files.read_verified(row["path"], row["sha256"])
        for row in rows
        if row["kind"] in SERVED
    }


@pytest.fixture(scope="module")
def study(objects):
    return str(pydicom.dcmread(io.BytesIO(next(iter(objects.values())))).StudyInstanceUID)


@pytest.fixture
def viewer(pages):
    return pages.visitor(headers={"Authorization": f"Bearer {TOKEN}"})


def datasets(answer: httpx.Response) -> list[Dataset]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == JSON
    return [Dataset.from_json(one) for one in answer.json()]


def parts(answer: httpx.Response) -> list[bytes]:
    """The bodies of an answer in parts, as a mail program takes it apart."""
    assert answer.status_code == 200, answer.text
    kind = EmailMessage()
    kind["Content-Type"] = answer.headers["content-type"]
    assert kind.get_content_type() == "multipart/related"
    assert kind.get_param("type") == "application/dicom"
    first, *bodies, last = re.split(b"\r?\n?--" + kind.get_param("boundary").encode(), answer.content)
    assert (first, last) == (b"", b"--\r\n")
    for body in bodies:
        assert body.startswith(b"\r\nContent-Type: application/dicom; transfer-syntax=1.2.840.10008.1.2.1\r\n\r\n")
    return [body.partition(b"\r\n\r\n")[2] for body in bodies]


def test_objects_come_byte_for_byte(viewer, objects, study):
    assert sorted(parts(viewer.get(f"{STUDIES}/{study}", headers={"Accept": PARTS}))) == sorted(objects.values())
    for uid, content in objects.items():
        series = pydicom.dcmread(io.BytesIO(content)).SeriesInstanceUID
        path = f"{STUDIES}/{study}/series/{series}"
        assert parts(viewer.get(path)) == [content]
        assert parts(viewer.get(f"{path}/instances/{uid}", headers={"Accept": f"{PARTS}; transfer-syntax=*"})) == [
            content
        ]
        assert viewer.get(f"{path}/instances/{uid}", headers={"Accept": "application/dicom"}).content == content


def test_frames_and_pictures_are_those_of_the_objects(viewer, objects, study):
    kinds = {}
    for uid, content in objects.items():
        stored = pydicom.dcmread(io.BytesIO(content))
        path = f"{STUDIES}/{study}/series/{stored.SeriesInstanceUID}/instances/{uid}"
        if "PixelData" not in stored:
            assert viewer.get(f"{path}/frames/1").status_code == viewer.get(f"{path}/rendered").status_code == 406
            continue
        kinds[str(stored.SOPClassUID.name)] = path, stored
        last = int(stored.get("NumberOfFrames", 1))
        pixels = stored.pixel_array.reshape(
            last, *stored.pixel_array.shape[-3 if stored.SamplesPerPixel == 3 else -2 :]
        )
        one = viewer.get(f"{path}/frames/{last}", headers={"Accept": "application/octet-stream"}).content
        values = np.frombuffer(one, np.uint8)
        if stored.BitsAllocated == 1:
            values = np.unpackbits(values, bitorder="little")[: pixels[-1].size]
        assert np.array_equal(values.reshape(pixels[-1].shape), pixels[-1])
        if last > 1:
            assert viewer.get(f"{path}/frames/{last},1").content.count(b"Content-Type: application/octet-stream") == 2
        picture = viewer.get(f"{path}/frames/1/rendered", headers={"Accept": "image/png"})
        shown = np.asarray(Image.open(io.BytesIO(picture.content)))
        assert np.array_equal(shown, pixels[0] * (255 if stored.BitsAllocated == 1 else 1))
        assert viewer.get(f"{path}/frames/{last + 1}").status_code == 404
        assert viewer.get(f"{path}/frames/0").status_code == 400
        assert viewer.get(f"{path}/frames/1,{last},1").status_code == 400
        assert viewer.get(f"{path}/rendered").status_code == (406 if last > 1 else 200)
    assert (
        set(kinds) == {"Segmentation Storage", "Multi-frame True Color Secondary Capture Image Storage"}
        or len(kinds) == 2
    )
    path, _ = next(found for found in kinds.values() if found[1].SamplesPerPixel == 3)
    small = viewer.get(f"{path}/frames/1/rendered?viewport=64,64&quality=50")
    assert small.headers["content-type"] == "image/jpeg" and max(Image.open(io.BytesIO(small.content)).size) == 64
    for query, accept, status in (("window=1,2", "*/*", 400), ("quality=0", "*/*", 400), ("", "image/gif", 406)):
        assert viewer.get(f"{path}/frames/1/rendered?{query}", headers={"Accept": accept}).status_code == status


def test_metadata_is_everything_but_pixels(viewer, objects, study):
    found = datasets(viewer.get(f"{STUDIES}/{study}/metadata"))
    assert [one.SOPInstanceUID for one in found] == list(objects)
    for one, content in zip(found, objects.values(), strict=True):
        stored = pydicom.dcmread(io.BytesIO(content))
        assert "PixelData" not in one
        left_out = {element.tag for element in stored if element.tag not in one}
        assert left_out <= {pydicom.tag.Tag("PixelData")}
        assert one.StudyInstanceUID == study
        assert one.get("ContentSequence") == stored.get("ContentSequence")
        assert one.PatientName == stored.PatientName
    assert str(found[0].PatientName) == "Doe^Jane"  # of the images that were sent


def test_a_search_tells_what_the_objects_tell(viewer, objects, study):
    [one] = datasets(viewer.get(STUDIES, params={"StudyInstanceUID": study, "fuzzymatching": "false"}))
    assert one.StudyInstanceUID == study
    assert sorted(one.ModalitiesInStudy) == ["OT", "SEG", "SR"]
    assert (one.NumberOfStudyRelatedSeries, one.NumberOfStudyRelatedInstances) == (3, 3)
    series = datasets(viewer.get(f"{STUDIES}/{study}/series"))
    assert sorted(item.Modality for item in series) == ["OT", "SEG", "SR"]
    assert all(item.NumberOfSeriesRelatedInstances == 1 for item in series)
    [sr] = datasets(viewer.get(f"{STUDIES}/{study}/series", params={"Modality": "SR"}))
    [report] = datasets(viewer.get(f"{STUDIES}/{study}/series/{sr.SeriesInstanceUID}/instances"))
    assert report.SOPInstanceUID == next(iter(objects))
    everything = datasets(viewer.get(f"{STUDIES}/{study}/instances"))
    assert [item.SOPInstanceUID for item in everything] == list(objects)
    assert datasets(viewer.get(f"{STUDIES}/{study}/instances", params={"limit": 1, "offset": 2})) == [everything[2]]
    chosen = {"SOPInstanceUID": everything[1].SOPInstanceUID, "SOPClassUID": everything[1].SOPClassUID}
    assert datasets(viewer.get(f"{STUDIES}/{study}/instances", params=chosen)) == [everything[1]]


def test_modalities_are_those_of_the_objects(pages, objects):
    rows = pages.store.rows("SELECT kind, sop_instance_uid FROM result_objects")
    for row in rows:
        if row["sop_instance_uid"] in objects:
            read = pydicom.dcmread(io.BytesIO(objects[row["sop_instance_uid"]]), stop_before_pixels=True)
            assert told.MODALITY[ObjectKind(row["kind"])] == read.Modality


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({}, True),
        ({"PatientID": "4711"}, True),
        ({"00100020": "4711", "limit": "101", "offset": "0", "includefield": "00081030,00080060"}, True),
        ({"PatientID": "471"}, False),
        ({"PatientID": "' OR 1=1 --"}, False),
        ({"AccessionNumber": "A1"}, True),
        ({"AccessionNumber": "A2"}, False),
        ({"AccessionNumber": "A1", "PatientID": "4712"}, False),
        ({"StudyDate": "20260102"}, True),
        ({"StudyDate": "20260102-"}, True),
        ({"StudyDate": "-20260102"}, True),
        ({"StudyDate": "20260101-20260103", "PatientID": "4711"}, True),
        ({"StudyDate": "20260103-"}, False),
        ({"StudyDate": "-20260101"}, False),
        ({"StudyInstanceUID": "1.2.3"}, False),
        ({"PatientName": "*", "StudyDescription": ""}, True),
        ({"offset": "1"}, False),
        ({"limit": "0"}, False),
    ],
)
def test_studies_are_found_by_the_keys_that_an_index_has(viewer, pages, monkeypatch, keys, found):
    monkeypatch.setattr(asked.Days, "reported_since", None)  # the test's clock begins in 1970
    assert len(datasets(viewer.get(STUDIES, params=keys))) == int(found)


def test_more_than_the_limit_is_said_in_a_warning(viewer):
    answer = viewer.get(STUDIES, params={"limit": "0", "fuzzymatching": "true"})
    said = answer.headers.get_list("warning")
    assert [one for one in said if "fuzzymatching" in one]
    assert [one for one in said if server.MORE in one]
    assert all(one.startswith("299 ") for one in said)


@pytest.mark.parametrize(
    "query",
    [
        "PatientName=Doe*",
        "PatientID=47*",
        "PatientID=4711&PatientID=4712",
        "PatientID=4711&00100020=4711",
        "StudyInstanceUID=1.2';DROP%20TABLE%20studies",
        "StudyDate=yesterday",
        "StudyDate=20261399",
        "StudyDate=20260101-20260102-20260103",
        "StudyDate=-",
        "limit=-1",
        "limit=1e9",
        "limit=99999999999999999999",
        "offset=1001",
        "offset=%00",
        "PatientID=" + "1" * 1025,
        "&".join(f"includefield={number}" for number in range(41)),
        "nonsense=1",
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(viewer, query):
    answer = viewer.get(f"{STUDIES}?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/plain")
    assert "4711" not in answer.text


def test_a_huge_limit_gets_what_the_node_gives_at_once(viewer):
    assert len(datasets(viewer.get(STUDIES, params={"limit": "999999999"}))) == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("../../files", 404),
        ("..%2f..%2fnode.db", 404),
        ("%2e%2e", 404),
        ("1.2.3/../1.2.3", 404),
        ("1.2.3%00", 400),
        ("1.2.3'%20OR%20'1'='1", 400),
        ("1" * 65, 400),
        ("1.2.3%23import", 400),
        ("1.2.3", 404),
    ],
)
def test_no_uid_of_a_path_leads_anywhere_but_to_its_study(viewer, path, status):
    for end in ("", "/metadata", "/series", "/instances"):
        assert viewer.get(f"{STUDIES}/{path}{end}").status_code == status


def test_an_object_is_found_in_its_own_study_and_series_only(viewer, objects, study):
    first, second = (pydicom.dcmread(io.BytesIO(one)) for one in list(objects.values())[:2])
    wrong = f"{STUDIES}/{study}/series/{first.SeriesInstanceUID}/instances/{second.SOPInstanceUID}"
    assert viewer.get(wrong).status_code == 404
    assert viewer.get(f"{STUDIES}/1.2.3/series/{first.SeriesInstanceUID}").status_code == 404


@pytest.mark.parametrize(
    ("end", "accept"),
    [
        ("", "image/jpeg"),
        ("", "application/dicom"),  # several objects need parts
        ("", 'multipart/related; type="application/octet-stream"'),
        ("", f"{PARTS}; transfer-syntax=1.2.840.10008.1.2.4.50"),
        ("", f"{PARTS};q=0"),
        ("", ";;;,,,=" * 500),
        ("/metadata", "application/dicom+xml"),
        ("/series", "text/html"),
    ],
)
def test_another_form_than_there_is_is_refused(viewer, study, end, accept):
    assert viewer.get(f"{STUDIES}/{study}{end}", headers={"Accept": accept}).status_code == 406


@pytest.mark.parametrize(
    "header", [None, "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer \xff"]
)
def test_nobody_sees_anything_without_login_or_token(pages, study, header):
    visitor = pages.visitor(headers={} if header is None else {"Authorization": header.encode("latin-1")})
    for path in (STUDIES, f"{STUDIES}/{study}", f"{STUDIES}/{study}/series", f"{STUDIES}/{study}/metadata"):
        answer = visitor.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert study not in answer.text


def test_every_route_needs_a_viewer_and_only_reads():
    for route in server.ROUTES:
        assert for_whom(route.endpoint) == "viewer"
        assert route.methods == {"GET", "HEAD", "OPTIONS"}


def test_nothing_can_be_changed(viewer, study):
    for method in ("POST", "PUT", "DELETE"):
        assert viewer.request(method, f"{STUDIES}/{study}").status_code == 405


def test_a_browser_that_is_logged_in_sees_them_too(pages, study):
    assert pages.logged_in("viewer").get(f"{STUDIES}/{study}/series").status_code == 200


def test_a_wrong_token_is_in_the_trail_once(pages):
    visitor = pages.visitor(headers={"Authorization": "Bearer wrong"})
    for _ in range(3):
        visitor.get(STUDIES)
    assert [row["address"] for row in pages.audit("web.login-refused")] == ["127.0.0.1"]
    assert "wrong" not in str(pages.audit("web.login-refused"))


def test_a_token_that_is_too_short_or_missing_lets_nobody_in(tmp_path):
    path = tmp_path / "token"
    assert access.token_in(None) == access.token_in(path) == ""
    path.write_text("s" * 31)
    assert access.token_in(path) == ""
    path.write_text("s" * 32 + "\n")
    assert access.token_in(path) == "s" * 32


def test_only_viewers_that_the_settings_name_may_read_the_answers(viewer, pages):
    named = viewer.get(STUDIES, headers={"Origin": ORIGIN})
    assert named.headers["access-control-allow-origin"] == ORIGIN
    assert "access-control-allow-credentials" not in named.headers
    before = pages.visitor().options(STUDIES, headers={"Origin": ORIGIN, "Access-Control-Request-Method": "GET"})
    assert (before.status_code, before.content) == (204, b"")
    assert "Authorization" in before.headers["access-control-allow-headers"]
    for origin in ("https://evil.example", "null", f"{ORIGIN}.evil.example", "*"):
        assert "access-control-allow-origin" not in viewer.get(STUDIES, headers={"Origin": origin}).headers
    assert "access-control-allow-origin" in pages.visitor().get(STUDIES, headers={"Origin": ORIGIN}).headers


def test_each_look_at_a_study_is_audited_once_with_who_and_from_where(pages, study, objects):
    pages.add_user("carl", "reader")
    reader = pages.visitor()
    reader.log_in("carl")
    for _ in range(3):
        reader.get(f"{STUDIES}/{study}/metadata")
        reader.get(f"{STUDIES}/{study}")
        reader.get(STUDIES)
    rows = [row for row in pages.audit("web.read") if json.loads(row["detail"])["user"] == "carl"]
    assert [json.loads(row["detail"])["what"] for row in rows] == ["metadata", "objects", "search"]
    assert {row["address"] for row in rows} == {"127.0.0.1"}
    assert [(row["study_uid"], row["patient_id"]) for row in rows[:2]] == [(study, "4711")] * 2
    assert json.loads(rows[2]["detail"])["studies"] == [study]


def test_a_row_that_was_not_written_is_written_with_the_next_look():
    now, written = [0.0], []
    folded = Folded(lambda: now[0])

    def fail() -> None:
        raise OSError

    with pytest.raises(OSError):
        folded.once("a", fail)
    for at in (0.0, access.FOLD_S - 1, access.FOLD_S):
        now[0] = at
        folded.once("a", lambda: written.append(now[0]))
    assert written == [0.0, access.FOLD_S]


def test_the_log_names_no_study(viewer, study, capfd):
    viewer.get(f"{STUDIES}/{study}/metadata")
    viewer.get(STUDIES, params={"PatientID": "4711"})
    said = "".join(capfd.readouterr())
    assert study not in said
    assert "4711" not in said


def test_a_study_that_cannot_be_read_keeps_no_other_from_being_found(tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with serving(tmp_path, web={"dicomweb": {"enabled": True, "credentials": token}}) as pages:
        reported(pages.store, tmp_path / "sent")
        viewer = pages.visitor(headers={"Authorization": f"Bearer {TOKEN}"})
        [report] = pages.store.rows("SELECT * FROM result_objects WHERE kind = 'report'")
        pages.store.files.absolute(str(report["path"])).unlink()
        found = viewer.get(STUDIES)
        assert datasets(found) == []
        assert [one for one in found.headers.get_list("warning") if server.LOST in one]


def test_a_demonstration_models_results_stay_on_this_machine(tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    web = {"dicomweb": {"enabled": True, "credentials": token}, "behind_proxy": ("127.0.0.1",)}
    with serving(tmp_path, web=web) as pages:
        reported(pages.store, tmp_path / "sent")
        here = pages.visitor(headers={"Authorization": f"Bearer {TOKEN}"})
        elsewhere = pages.visitor(headers={"Authorization": f"Bearer {TOKEN}", "X-Forwarded-For": "10.1.2.3"})
        [study] = datasets(elsewhere.get(STUDIES))
        with pages.store.database.transaction() as tx:
            tx.exec_driver_sql("UPDATE results SET model_name = 'demonstration'")
        assert datasets(here.get(STUDIES)) == [study]
        assert datasets(elsewhere.get(STUDIES)) == []
        for end in ("", "/metadata", "/series", "/instances"):
            assert elsewhere.get(f"{STUDIES}/{study.StudyInstanceUID}{end}").status_code == 404
            assert here.get(f"{STUDIES}/{study.StudyInstanceUID}{end}").status_code == 200


def test_it_is_off_until_a_site_turns_it_on(tmp_path):
    with serving(tmp_path) as pages:
        assert pages.visitor().get(STUDIES).status_code == 404


def test_a_damaged_object_is_not_served_and_a_former_result_neither(tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with serving(tmp_path, web={"dicomweb": {"enabled": True, "credentials": token}}) as pages:
        reported(pages.store, tmp_path / "sent")
        viewer = Visitor(pages.port, headers={"Authorization": f"Bearer {TOKEN}"})
        pages.visitors.append(viewer)
        [one] = datasets(viewer.get(STUDIES))
        path = f"{STUDIES}/{one.StudyInstanceUID}"
        report, row, summary = pages.store.rows("SELECT * FROM result_objects ORDER BY id")
        file = pages.store.files.absolute(str(row["path"]))
        content = file.read_bytes()
        file.chmod(0o600)
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert viewer.get(f"{path}/series/{row['series_instance_uid']}").status_code == 410
        assert viewer.get(f"{path}/metadata").status_code == 410
        with pages.store.database.transaction() as tx:
            tx.exec_driver_sql("UPDATE result_objects SET kind = 'heat' WHERE kind = 'summary'")
        assert viewer.get(f"{path}/series").status_code == 410
        assert len(parts(viewer.get(f"{path}/series/{report['series_instance_uid']}"))) == 1
        assert viewer.get(f"{path}/series/{summary['series_instance_uid']}").status_code == 404
        with pytest.raises(httpx.RemoteProtocolError):  # of several, the answer ends where it cannot go on
            viewer.get(path)
        file.unlink()
        assert viewer.get(path).status_code == 410
        pages.store.files.absolute(str(report["path"])).unlink()
        with pages.store.database.transaction() as tx:
            tx.exec_driver_sql("UPDATE results SET superseded_at = 1.0")
        assert viewer.get(path).status_code == 404
        assert datasets(viewer.get(STUDIES)) == []


@pytest.mark.parametrize(
    "given",
    [
        {"origins": ["https://viewer.example"]},  # nobody there could say who asks
        {"credentials": "token", "origins": ["*"]},
        {"credentials": "token", "origins": ["https://viewer.example/app"]},
        {"credentials": "token", "origins": ["viewer.example"]},
        {"credentials": "token", "origins": ["https://viewer.example\r\nX: y"]},
    ],
)
def test_settings_that_let_in_too_many_or_nobody_are_refused(given):
    with pytest.raises(ValidationError):
        DicomwebSettings(**given)


def test_an_unreadable_token_is_found_by_config_check(tmp_path):
    (tmp_path / "node.toml").write_text('[web.dicomweb]\nenabled = true\ncredentials = "/nowhere"\n')
    assert [one.key for one in read_and_check(tmp_path / "node.toml")[1]] == ["web.dicomweb.credentials"]
