"""Worklist and Not analysed: what they find and say, to whom, and that nothing typed or received becomes markup."""

import re
import time
from dataclasses import replace

import pytest

from config.settings import ModelSettings, StorageSettings
from dicom_node.analysis.current_model import current_models
from dicom_node.web.pages.watched import EVERY_S, Watched
from storage import audit, jobs, quiet_time, recording, series
from storage.arrival import Arrival, IndexedHeader
from storage.pseudonyms import Pseudonyms
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, analysed, not_analysed
from tests.web_pages import serving

EVIL = "<script>alert(1)</script>"
QUOTED = "&lt;script&gt;alert(1)&lt;/script&gt;"
SQL = ["'; DROP TABLE series; --", '" OR 1=1 --', "%", "_", "\\", "x' UNION SELECT 1 --", "Robert'); --"]


def arrive(store, number, now, key="", **header):
    """One series of one slice, with these header fields. Returns its number in the index."""
    uid = f"1.2.3.{number}"
    file = store.files.write_durably([uid.encode()])
    given = {"patient_id": f"P{number}", "modality": "CT", "patient_name": f"Doe{number}^Jane", **header}
    ae = given.pop("calling_ae", "CT1")
    known = Pseudonyms(key).header(IndexedHeader(**given))
    arrival = Arrival(f"{uid}.1", CT_IMAGE, uid, f"{uid}.9", EXPLICIT_LE, ae, "NODE", "127.0.0.1", file, known)
    with store.database.transaction() as tx:
        recording.record_instance(tx, arrival, now, 30.0)
    return int(store.rows("SELECT MAX(id) AS id FROM series")[0]["id"])


def refuse(store, code, now):
    store.close_due(now)
    job = store.claim(now)
    with store.database.transaction() as tx:
        jobs.finish(tx, job.job_id, job.fence, now, not_analysed(code, f"It says {EVIL}."), [], [])


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("lists")) as pages:
        store, now = pages.store, time.time() - 1000
        arrive(store, 1, now, accession_number="A1", calling_ae="CT1")
        store.close_due(now + 40)
        store.finish(store.claim(now + 40), now + 50)
        evil = dict.fromkeys(("patient_name", "patient_id", "accession_number", "series_description"), EVIL)
        arrive(store, 2, now + 60, calling_ae=EVIL, manufacturer=EVIL, station_name=EVIL, modality=EVIL, **evil)
        refuse(store, "LUNG_CUT_OFF", now + 100)
        arrive(store, 3, now + 200, patient_name="Müller^Änne", station_name="CT-9")
        yield pages


def names(text):
    return re.findall(r'<td class="patient">([^<]*)<', text)


def test_the_list_says_how_many_series_there_are_and_the_outcome_of_each(pages):
    text = pages.logged_in("viewer").get("/worklist").text
    assert "3 series; 1 waits for a result." in text
    assert names(text) == ["Müller Änne", QUOTED, "Doe1 Jane"]
    assert re.findall(r'<span class="tag \w*">([^<]*)</span>', text) == ["Images arriving", "Not analysed", "Positive"]
    assert "90 %" in text
    assert "lungs that reach over the first or the last slice" in text


@pytest.mark.parametrize("address", ["/worklist", "/not-analysed", "/not-analysed?weeks=52"])
def test_what_scanners_write_becomes_no_markup(pages, address):
    text = pages.logged_in("viewer").get(address).text
    assert EVIL not in text
    assert QUOTED in text


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"text": "mueller"}, ["Müller Änne"]),
        ({"text": "MÜLLER, änne"}, ["Müller Änne"]),
        ({"text": "P1"}, ["Doe1 Jane"]),
        ({"text": "A1"}, ["Doe1 Jane"]),
        ({"text": "1.2.3.3"}, ["Müller Änne"]),
        ({"text": "nobody"}, []),
        ({"outcome": "ANALYSED"}, ["Doe1 Jane"]),
        ({"outcome": "NOT_ANALYSED", "reason": "LUNG_CUT_OFF"}, [QUOTED]),
        ({"finding": "POSITIVE"}, ["Doe1 Jane"]),
        ({"finding": "NEGATIVE"}, []),
        ({"source": "CT1"}, ["Müller Änne", "Doe1 Jane"]),
        ({"model": "demo 1"}, [QUOTED, "Doe1 Jane"]),
        ({"from": "2000-01-01", "to": "2001-01-01"}, []),
        ({"from": "2000-01-01", "to": "not a date", "outcome": "no such", "sort": "no such", "after": "{"}, None),
        ({"sort": "received-back"}, ["Doe1 Jane", QUOTED, "Müller Änne"]),
        ({"text": "Müller", "outcome": "ANALYSED"}, []),
    ],
)
def test_a_search_finds_what_was_asked_for(pages, asked, found):
    visitor = pages.logged_in("viewer")
    answer = visitor.fill("/worklist", "/worklist", **asked)
    if answer.status_code == 303:
        answer = visitor.get(answer.headers["location"])
    assert answer.status_code == 200
    assert names(answer.text) == (["Müller Änne", QUOTED, "Doe1 Jane"] if found is None else found)


def test_what_names_a_patient_never_stands_in_an_address(pages):
    visitor = pages.logged_in("viewer")
    answer = visitor.fill("/worklist", "/worklist", text="Müller", outcome="PENDING")
    assert answer.status_code == 200
    assert not any("ller" in address for address in re.findall(r'(?:href|action)="([^"]*)"', answer.text))
    redirected = visitor.fill("/worklist", "/worklist", outcome="PENDING", source="CT1")
    assert redirected.headers["location"] == "/worklist?source=CT1&outcome=PENDING"
    assert "Müller" not in visitor.get("/worklist", params={"text": "Müller"}).text.partition("<tbody")[0]


@pytest.mark.parametrize("typed", SQL)
def test_sql_in_a_box_is_only_text(pages, typed):
    visitor = pages.logged_in("viewer")
    answer = visitor.fill("/worklist", "/worklist", text=typed)
    assert (answer.status_code, names(answer.text)) == (200, [])
    for box in ("source", "model", "reason", "scanner", "from", "to", "after", "sort"):
        answer = visitor.fill("/worklist", "/worklist", **{box: typed})
        assert answer.status_code == 303
        assert visitor.get(answer.headers["location"]).status_code == 200
    assert visitor.get("/not-analysed", params={"source": typed, "scanner": typed, "weeks": typed}).status_code == 200
    assert len(pages.store.rows("SELECT id FROM series")) == 3


def test_who_looked_at_which_series_is_audited(pages):
    pages.logged_in("reader").fill("/worklist", "/worklist", text="P1")
    row = pages.audit("web.read")[-1]
    assert '"user": "reader"' in row["detail"]
    assert '"page": "worklist"' in row["detail"]
    assert '"series": [1]' in row["detail"]
    assert row["address"] == "127.0.0.1"


def test_the_list_is_kept_up_to_date_and_says_nothing_if_nothing_is_new(pages):
    visitor = pages.logged_in("operator")
    first = visitor.fill("/worklist/lines", "/worklist")
    assert first.status_code == 200
    assert len(names(first.text)) == 3
    held = re.search(r'name="held" value="(\w+)"', first.text)[1]
    assert visitor.fill("/worklist/lines", "/worklist", held=held).status_code == 204
    assert visitor.fill("/worklist/lines", "/worklist", held=held, outcome="ANALYSED").status_code == 200


def test_what_a_page_shows_by_itself_is_audited_once_a_minute():
    clock = [0.0]
    watched, who = Watched(lambda: clock[0]), ("anna", "10.0.0.1")
    assert watched.add_for(who, {1, 2}) == [[1, 2]]
    assert watched.add_for(who, {1, 2, 3}) == []
    clock[0] = EVERY_S + 1
    assert watched.add_for(who, {1, 2, 3, 4}) == [[3, 4]]
    assert watched.add_for(who, {1, 2, 3, 4}) == []


def test_not_analysed_says_how_many_why_and_what_to_change(pages):
    text = pages.logged_in("viewer").get("/not-analysed").text
    assert "1 of 2 analyses gave no result (50\N{NO-BREAK SPACE}%)" in text
    assert "Route a series that shows both lungs from apex to base." in text
    assert text.count("1 analysed, 1 not analysed") + 2 * text.count("1 analysed, 0 not analysed") in (1, 2)  # midnight
    assert "/worklist?outcome=NOT_ANALYSED&amp;reason=LUNG_CUT_OFF" in text
    narrowed = pages.logged_in("viewer").get("/not-analysed", params={"source": "CT1"}).text
    assert "every series from CT1 was analysed" in narrowed


def test_with_pseudonyms_a_patient_is_found_by_the_real_id_and_by_nothing_else(tmp_path):
    key = "a-key-of-the-site-0123456789"
    with serving(tmp_path) as pages:
        object.__setattr__(
            pages.settings, "storage", StorageSettings(**{**dict(pages.settings.storage), "pseudonym_key": key})
        )
        arrive(pages.store, 1, time.time(), key=key)
        visitor = pages.logged_in("viewer")
        assert names(visitor.fill("/worklist", "/worklist", text="P1").text) == ["(no name)"]
        assert names(visitor.fill("/worklist", "/worklist", text="Doe1").text) == []


QUESTIONS = [
    "DELETE FROM audit",
    "SELECT 1; DELETE FROM audit",
    "ATTACH DATABASE 'x' AS x",
    "SELECT * FROM web_users",
    "PRAGMA query_only = OFF",
]


def test_only_auditors_see_the_audit_trail(pages):
    viewer = pages.logged_in("viewer")
    assert viewer.get("/audit").status_code == 403
    assert viewer.fill("/audit", "/worklist", event="job").status_code == 403
    assert viewer.fill("/audit/question", "/worklist", sql="SELECT 1").status_code == 403
    assert "/audit" not in viewer.get("/worklist").text
    assert pages.logged_in("auditor").get("/audit").status_code == 200


def test_the_audit_page_finds_rows_and_goes_on_to_older_ones(pages, monkeypatch):
    monkeypatch.setattr("dicom_node.web.pages.audit.LATEST", 5)
    auditor = pages.logged_in("auditor")
    text = auditor.fill("/audit", "/audit", series="1.2.3.1", event="job").text
    assert re.findall(r'<td><span class="mono">([\w.]+)</span>', text) == ["job.reported", "job.running", "job.queued"]
    assert "No event is like that." in auditor.fill("/audit", "/audit", patient="nobody").text
    every, before = [], None
    for _ in range(100):
        text = auditor.fill("/audit", "/audit", **({"before": before} if before else {})).text
        every += [int(row) for row in re.findall(r">row (\d+)<", text)]
        found = re.search(r'name="before" value="([^"]*)"', text)
        if found is None:
            break
        before = found[1].replace("&#34;", '"')
    assert every == sorted(set(every), reverse=True)
    assert every[-1] == 1


def test_a_saved_question_and_an_own_one_are_answered_and_audited(pages):
    auditor = pages.logged_in("auditor")
    text = auditor.fill("/audit/question", "/audit", sql="SELECT patient_name FROM no_such").text
    assert "This was not answered: no such table: no_such." in text
    assert 'value="SELECT * FROM patient_history LIMIT 100"' in text
    text = auditor.fill("/audit/question", "/audit", sql="SELECT name FROM patients ORDER BY id").text
    assert EVIL not in text
    assert "3 rows" in text
    assert [row["outcome"] for row in pages.audit("web.question")][-2:] == ["REFUSED", "ANSWERED"]
    assert "SELECT name FROM patients" in pages.audit("web.question")[-1]["detail"]


@pytest.mark.parametrize("typed", [*QUESTIONS, *SQL])
def test_nothing_but_a_question_goes_through_the_sql_box(pages, typed):
    auditor = pages.logged_in("auditor")
    before = pages.store.rows("SELECT COUNT(*) AS n FROM audit")[0]["n"]
    answer = auditor.fill("/audit/question", "/audit", sql=typed)
    assert answer.status_code == 400
    assert "argon2" not in answer.text
    assert pages.store.rows("SELECT COUNT(*) AS n FROM audit")[0]["n"] > before
    for box in ("patient", "study", "series", "event", "outcome", "from", "to", "before"):
        assert auditor.fill("/audit", "/audit", **{box: typed}).status_code == 200


def test_a_file_for_a_spreadsheet_holds_no_formula(pages):
    auditor = pages.logged_in("auditor")
    sql = "SELECT '=1+1' AS a, '@x' AS b, -1 AS c, '  +2' AS d, 'a,\"b' AS e"
    answer = auditor.fill("/audit/question", "/audit", sql=sql, **{"as": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    assert "attachment" in answer.headers["content-disposition"]
    assert answer.text.splitlines()[1] == '\'=1+1,\'@x,-1,\'  +2,"a,""b"'
    rows = auditor.fill("/audit", "/audit", event="job", **{"as": "csv"}).text.splitlines()
    assert rows[0].startswith("id,at,event,outcome")
    assert len(rows) > 5


def test_the_page_says_when_the_chain_was_checked_and_what_that_found(pages, tmp_path):
    auditor = pages.logged_in("auditor")
    assert "Nobody has checked yet" in auditor.get("/audit").text
    for outcome, said in (("WHOLE", "The audit trail is whole: 1"), ("BROKEN", "The audit trail is not whole")):
        with pages.store.database.transaction() as tx:
            audit.append(tx, time.time(), "audit.verified", outcome=outcome, detail={"rows": 1})
        assert said in auditor.get("/audit").text


def finished(store, number, models, shadow, shown):
    """A series that two models judge: the one that reports, and its shadow. shown: their probabilities."""
    arrive(store, number, 1000.0 * number)
    with store.database.transaction() as tx:
        (due,) = quiet_time.due_series(tx, 1000.0 * number + 40)
        series.close_series(tx, due.series_pk, 1000.0 * number + 40, series.Closing(models, shadow=shadow))
    for probability in shown:
        job = store.claim(1000.0 * number + 50)
        with store.database.transaction() as tx:
            found = replace(analysed(probability), model_name=job.model.name, model_digest=job.model.digest)
            jobs.finish(tx, job.job_id, job.fence, 1000.0 * number + 60, found, [], [])


def test_models_shows_cards_figures_and_the_shadow_beside_the_model_that_reports(tmp_path):
    entries = {"name": "demonstration", "shadow": "densitometry"}
    with serving(tmp_path, model=ModelSettings(**entries)) as pages:
        used = current_models(pages.settings)
        for number, shown in enumerate([(0.9, 0.8), (0.1, 0.2), (0.9, 0.1)]):
            finished(pages.store, number, used.reporting, used.shadow, shown)
        text = pages.logged_in("viewer").get("/models").text
    assert "demonstration 2.0 reports; densitometry 1.0 runs beside as a shadow." in text
    assert "its results are not findings" in text
    assert "On the last 3 series that both judged" in text
    assert "in 66.7 %" in text
    assert 'href="/series/3"' in text
    assert "Nobody has published figures for it." in text
    assert "Apache-2.0" in text


def test_without_a_usable_model_the_page_says_so(tmp_path):
    with serving(tmp_path, model=ModelSettings(name="no-such-model")) as pages:
        text = pages.logged_in("viewer").get("/models").text
    assert "No model reports." in text
    assert "No series can be analysed" in text
