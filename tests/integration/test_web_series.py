"""The page of one series: what it says first, why something was not analysed, and what people may have done with it."""

import io
import json

import pydicom
import pytest

from config.reasons import ReasonCode
from config.settings import Destination
from dicom_node.web.pages.reasons import OF_PIXELS, OF_POSITIONS
from storage import examinations, jobs
from storage.lost import mark_lost
from storage.models import instances
from tests.factories import write_series as write_chest
from tests.shown_series import GRID, claimed, refuse, reported, store_files
from tests.storage_factory import QUIET_S
from tests.unit.ct_series import noise, write_series
from tests.unit.test_decoding_process import STREAM, WITHOUT_TABLE, lossless_jpegs
from tests.web_pages import serving

PACS = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=1)
HOSTILE = "<script>alert(1)</script>\"'>&"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("series"), destinations=(PACS,)) as found:
        yield found


@pytest.fixture(scope="module")
def shown(pages):
    """A reported series whose header tries to be markup."""
    hostile = dict.fromkeys(("patient_name", "series_description", "study_description"), HOSTILE)
    return reported(pages.store, pages.settings.data_dir / "sent", **hostile)


def refused(pages, folder, code, sentence, paths):
    """A series that was not analysed for this reason."""
    series_pk = store_files(pages.store, paths, now=1000.0)
    pages.store.close_due(1000 + QUIET_S)
    uid = str(pydicom.dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
    refuse(pages.store, uid, code, sentence, 1000 + QUIET_S)
    return series_pk


def test_the_page_says_first_what_became_of_the_series(pages, shown):
    text = pages.logged_in("viewer").get(f"/series/{shown.series_pk}").text
    assert "<h1>Positive for Pneumonia: 90 %, at or above the threshold of 50 %.</h1>" in text
    assert "It is not the probability that the patient has the disease" in text
    assert "9 images received from CT at 127.0.0.1." in text
    assert "Result 1: demo 1 analysed it." in text


def test_what_a_header_says_is_text_and_never_markup(pages, shown):
    text = pages.logged_in("viewer").get(f"/series/{shown.series_pk}").text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_a_look_at_a_series_and_at_its_images_is_audited_with_who_and_from_where(pages, shown):
    visitor = pages.logged_in("viewer")
    before = len(pages.audit("web.read"))
    visitor.get(f"/series/{shown.series_pk}")
    visitor.get(f"/series/{shown.series_pk}/images.json")
    page, images = pages.audit("web.read")[before:]
    for row, what in ((page, "series"), (images, "images")):
        assert (row["patient_id"], row["address"]) == ("4711", "127.0.0.1")
        assert json.loads(row["detail"]) | {"user": "viewer", "page": what} == json.loads(row["detail"])


@pytest.mark.parametrize("digits", [19, 20, 5000])
def test_a_number_that_no_index_holds_is_no_page_and_no_mistake(pages, shown, digits):
    number, visitor = "9" * digits, pages.logged_in("operator")
    for rest in (number, f"{shown.series_pk}/object/{number}", f"{shown.series_pk}/summary/{number}.png"):
        assert visitor.get(f"/series/{rest}").status_code == 404
        assert pages.visitor().get(f"/series/{rest}").status_code in (303, 404)
    assert visitor.get(f"/series/{shown.series_pk}/image/{'0' * 16}/axial/{number}.png").status_code == 404


@pytest.mark.parametrize("part", ["", "/images.json", "/overlays.json", "/object/1", "/summary/1.png"])
def test_nothing_of_a_series_is_shown_without_a_login_and_nothing_is_kept_by_the_browser(pages, shown, part):
    path = f"/series/{shown.series_pk}{part}"
    assert pages.visitor().get(path).status_code == 303
    answer = pages.logged_in("administrator").get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert pages.logged_in("administrator").get(f"/series/999{part}").status_code == 404


def test_objects_are_downloaded_as_they_were_stored_by_those_who_may(pages, shown):
    visitor = pages.logged_in("operator")
    told = visitor.get(f"/series/{shown.series_pk}/overlays.json").json()
    path = f"/series/{shown.series_pk}/object/{told[0]['object']}"
    answer = visitor.get(path)
    dataset = pydicom.dcmread(io.BytesIO(answer.content))
    assert dataset.Modality == "SEG"
    row = pages.audit("web.download")[-1]
    assert (row["result_id"], dataset.SOPInstanceUID in row["detail"]) == (shown.result_id, True)
    assert "4711" not in answer.headers["content-disposition"]
    assert pages.logged_in("viewer").get(path).status_code == 403


def test_the_summary_image_is_shown_as_a_picture(pages, shown):
    visitor = pages.logged_in("viewer")
    [row] = pages.store.rows("SELECT id FROM result_objects WHERE kind = 'summary'")
    answer = visitor.get(f"/series/{shown.series_pk}/summary/{row['id']}.png")
    assert (answer.headers["content-type"], answer.content[:4]) == ("image/png", b"\x89PNG")
    [report] = pages.store.rows("SELECT id FROM result_objects WHERE kind = 'report'")
    assert visitor.get(f"/series/{shown.series_pk}/summary/{report['id']}.png").status_code == 404


def test_pictures_refuse_what_is_no_window_no_plane_and_no_image(pages, shown):
    visitor = pages.logged_in("viewer")
    token = visitor.get(f"/series/{shown.series_pk}/images.json").json()["token"]
    base = f"/series/{shown.series_pk}/image"
    assert visitor.get(f"{base}/{token}/axial/0.png?c=-600&w=1500").status_code == 200
    for wrong, status in (
        (f"{token}/axial/0.png?w=0", 400),
        (f"{token}/axial/0.png?w=nan", 400),
        (f"{token}/axial/0.png?c=1e300", 400),
        (f"{token}/oblique/0.png", 404),
        (f"{token}/axial/{GRID.shape[0]}.png", 422),
        (f"{'0' * 16}/axial/0.png", 409),
        ("..%2f..%2fetc/axial/0.png", 404),
    ):
        assert visitor.get(f"{base}/{wrong}").status_code == status, wrong


def test_pixels_that_kill_the_decoder_cost_one_picture_and_no_page(pages, tmp_path):
    series_pk = store_files(pages.store, lossless_jpegs(tmp_path / "sent", [STREAM, WITHOUT_TABLE, STREAM]))
    visitor = pages.logged_in("viewer")
    token = visitor.get(f"/series/{series_pk}/images.json").json()["token"]
    answers = [visitor.get(f"/series/{series_pk}/image/{token}/axial/{z}.png") for z in (1, 2, 1)]
    assert [answer.status_code for answer in answers] == [422, 200, 422]
    assert "ends the decoder" in answers[0].json()["message"]
    assert visitor.get(f"/series/{series_pk}").status_code == 200


def test_acts_need_the_role_a_confirmation_and_a_token_and_are_audited(pages, shown):
    path, result = f"/series/{shown.series_pk}", {"result": shown.result_id, "sure": "yes"}
    operator, viewer = pages.logged_in("operator"), pages.logged_in("viewer")
    assert viewer.fill(f"{path}/resend", **result).status_code == 403
    assert operator.post(f"{path}/resend", data=result).status_code == 403
    assert operator.fill(f"{path}/resend", result=shown.result_id).status_code == 400
    assert pages.audit("web.resend") == []
    done = operator.fill(f"{path}/resend", to="pacs", **result)
    assert (done.status_code, done.headers["location"]) == (303, f"{path}?done=resend")
    assert "The result is sent again" in operator.get(done.headers["location"]).text
    [row] = pages.audit("web.resend")
    assert (row["result_id"], json.loads(row["detail"])["destinations"]) == (shown.result_id, ["pacs"])
    assert operator.fill(f"{path}/resend", to="nowhere", **result).status_code == 400


def test_a_waiting_delivery_is_sent_at_once_and_none_of_another_series(pages, shown, tmp_path):
    [delivery] = pages.store.rows("SELECT id, state FROM deliveries")
    operator, path = pages.logged_in("operator"), f"/series/{shown.series_pk}"
    assert delivery["state"] == "PENDING"
    assert operator.fill(f"{path}/retry", delivery=delivery["id"], sure="yes").status_code == 303
    assert len(pages.audit("web.retry")) == 1
    other = store_files(
        pages.store, write_series(tmp_path, noise(3), SeriesInstanceUID="2.25.9", StudyInstanceUID="2.25.8")
    )
    assert operator.fill(f"/series/{other}/retry", delivery=delivery["id"], sure="yes").status_code == 400
    assert operator.fill(f"/series/{other}/resend", result=shown.result_id, sure="yes").status_code == 400
    assert len(pages.audit("web.retry")) == 1


def test_a_reader_gives_a_verdict_which_is_shown_and_audited(pages, shown):
    path = f"/series/{shown.series_pk}"
    fields = {"result": shown.result_id, "verdict": "DISAGREES", "own_opinion": "NEGATIVE", "text": HOSTILE}
    assert pages.logged_in("operator").fill(f"{path}/verdict", **fields).status_code == 403
    reader = pages.logged_in("reader")
    assert reader.fill(f"{path}/verdict", **fields).status_code == 303
    text = reader.get(path).text
    assert "<strong>reader</strong> disagrees, own opinion negative" in text
    assert "<script>alert" not in text
    [row] = pages.audit("verdict.given")
    assert (row["outcome"], "script" in row["detail"]) == ("DISAGREES", False)
    contradicting = fields | {"own_opinion": "POSITIVE"}
    assert "contradict" in reader.fill(f"{path}/verdict", **contradicting).text
    assert reader.fill("/series/999/verdict", **fields).status_code == 400


def test_missing_slices_are_shown_where_they_are_missing(pages, tmp_path):
    sentence = "1 slice is missing: up to 4.0 mm from one slice to the next, 2.0 mm elsewhere."
    paths = write_series(tmp_path, noise(5), [0, 2, 4, 8, 10], SeriesInstanceUID="2.25.21", StudyInstanceUID="2.25.20")
    series_pk = refused(pages, tmp_path, "MISSING_SLICES", sentence, paths)
    text = pages.logged_in("viewer").get(f"/series/{series_pk}").text
    assert "<h1>Not analysed: slices are missing.</h1>" in text
    assert "Nothing lies between 4.0 and 8.0 mm" in text
    assert text.count('class="hole"') == 1
    assert ReasonCode.MISSING_SLICES.advice in text


def test_a_cut_off_lung_is_shown_by_the_slice_where_it_is_cut(pages, tmp_path):
    write_chest(tmp_path / "cut", GRID, SeriesInstanceUID="2.25.31", StudyInstanceUID="2.25.30")
    for number, path in enumerate(sorted((tmp_path / "cut").iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.31.{number}"
        dataset.save_as(path)
    sentence = "The lungs reach over the lowest slice."
    series_pk = refused(pages, tmp_path, "LUNG_CUT_OFF", sentence, sorted((tmp_path / "cut").iterdir()))
    visitor = pages.logged_in("viewer")
    text = visitor.get(f"/series/{series_pk}").text
    token = visitor.get(f"/series/{series_pk}/images.json").json()["token"]
    picture = f"/series/{series_pk}/image/{token}/axial/0.png?c=-600&amp;w=1500"
    assert picture in text
    assert "Slice 1 of 9: the lowest slice" in text
    assert visitor.get(picture.replace("&amp;", "&")).status_code == 200


def test_images_that_retention_deleted_are_said_to_be_gone(pages, tmp_path):
    paths = write_series(tmp_path, noise(3), SeriesInstanceUID="2.25.41", StudyInstanceUID="2.25.40")
    series_pk = store_files(pages.store, paths)
    with pages.store.database.transaction() as tx:
        mark_lost(tx, instances.c.series_pk == series_pk, "missing", 50.0)
    visitor = pages.logged_in("viewer")
    told = visitor.get(f"/series/{series_pk}/images.json").json()
    assert (told["images"], told["gone"]) == ([], {"missing": 3})
    assert visitor.get(f"/series/{series_pk}").status_code == 200


def test_every_reason_has_a_sentence_advice_and_a_picture_if_the_images_show_it():
    assert OF_PIXELS.isdisjoint(OF_POSITIONS)
    assert all(code.meaning and code.advice for code in ReasonCode)


def test_a_destination_is_paused_and_resumed_on_the_peers_page_by_operators_only(pages):
    operator, fields = pages.logged_in("operator"), {"kind": "destination", "name": "pacs"}
    assert pages.logged_in("viewer").fill("/peers/pause", sure="yes", **fields).status_code == 403
    assert operator.fill("/peers/pause", **fields).status_code == 400
    assert operator.fill("/peers/pause", sure="yes", **fields).headers["location"] == "/peers"
    text = operator.get("/peers").text
    assert '<span class="tag warn">paused</span> <small class="quiet-text">by operator' in text
    [row] = pages.audit("destination.paused")
    assert (row["address"], json.loads(row["detail"])) == ("127.0.0.1", {"name": "pacs", "user": "operator"})
    assert operator.fill("/peers/pause", sure="yes", **fields).status_code == 400
    assert operator.fill("/peers/resume", sure="yes", kind="source", name="NOBODY").status_code == 400
    assert operator.fill("/peers/resume", sure="yes", **fields).status_code == 303
    assert "paused</span>" not in operator.get("/peers").text


def test_the_change_since_an_earlier_scan_stands_with_the_result_and_what_may_explain_it(pages, shown):
    said = ("Since 2024-01-01 (10 days): more.", f"The scans differ in {HOSTILE}.")
    with pages.store.database.transaction() as tx:
        examination = examinations.Examination("someone", "demo", "2024-01-11", {})
        examinations.record(tx, 2000.0, shown.result_id, examination, shown.result_id, said)
    text = pages.logged_in("viewer").get(f"/series/{shown.series_pk}").text
    assert said[0] in text and f"Compared with result {shown.result_id}" in text
    assert "The scans differ in &lt;script&gt;" in text and "<script>alert" not in text


def test_a_failed_analysis_is_queued_again_and_a_series_is_analysed_with_a_model_of_choice(pages, shown, tmp_path):
    sent = write_series(tmp_path, noise(3), SeriesInstanceUID="2.25.51", StudyInstanceUID="2.25.50")
    series_pk = store_files(pages.store, sent, now=2000.0)
    pages.store.close_due(2000 + QUIET_S)
    job = claimed(pages.store, "2.25.51", 2000 + QUIET_S)
    with pages.store.database.transaction() as tx:
        jobs.fail(tx, job.job_id, job.fence, 2100.0, "the worker died", None)
    operator = pages.logged_in("operator")
    assert "<h1>The analysis failed.</h1>" in operator.get(f"/series/{series_pk}").text
    assert operator.fill(f"/series/{series_pk}/retry", sure="yes").status_code == 303
    assert "<h1>Waiting to be analysed.</h1>" in operator.get(f"/series/{series_pk}").text
    path = f"/series/{shown.series_pk}"
    assert operator.fill(f"{path}/reanalyse", sure="yes", model="no-such-model").status_code == 400
    assert operator.fill(f"{path}/reanalyse", sure="yes", model="densitometry").status_code == 303
    [row] = pages.audit("web.reanalyse")
    assert json.loads(row["detail"])["model"].startswith("densitometry ")
    assert "had the series analysed again with densitometry" in operator.get(path).text
