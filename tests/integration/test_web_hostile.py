"""Names that try to be markup or a formula, from the network to every page that shows them, in a real browser."""

import csv
import io
import time
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from playwright.sync_api import expect

from config.settings import Destination
from dicom_node.web.routes import navigation
from storage import audit, deliveries, jobs, recording, refused
from storage.arrival import Arrival, IndexedHeader
from storage.jobs import ModelRef
from storage.refused import RefusedInstance
from tests.browser import chromium, window
from tests.outbox import part10
from tests.receiving import Node, associate, ct_slice
from tests.shown_series import claimed, reported
from tests.storage_factory import CT_IMAGE, EXPLICIT_LE, QUIET_S, not_analysed
from tests.web_pages import serving

AE = "<b onclick=x()>'"
"""As long as an AE title may be."""
TEXT = "\"'></script></textarea><img src=x onerror=owned()>{{7*7}}"
QUOTED = "&lt;img src=x onerror=owned()&gt;"
PATHS = [*(entry.path for entry in navigation()), "/series/1", "/series/2", "/series/3", "/not-analysed?weeks=52"]


class Injected(HTMLParser):
    """What a page holds that none of ours does."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        if any(name.startswith("on") for name in names) or names.get("src") == "x" or tag == "b":
            self.found.append(self.get_starttag_text() or tag)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=9)
    with Node(folder, destinations=(pacs,)) as node:
        with associate(node, calling_ae=AE) as association:
            sent = ct_slice(1)
            sent.PatientName = sent.PatientID = sent.SeriesDescription = sent.StudyDescription = TEXT
            sent.AccessionNumber, sent.StationName = AE, AE
            association.send_c_store(sent)
        with associate(node, calling_ae=AE, called_ae=AE):
            pass  # refused, and written down
        with serving(folder, url=node.settings.database_url, destinations=(pacs,)) as found:
            _history(found.store, folder, time.time() - 600)
            yield found


def _history(store, folder, now):
    """A series of each outcome, with hostile text wherever a peer, a scanner or a model can put it."""
    header = IndexedHeader(**{one.name: TEXT for one in fields(IndexedHeader)})
    for number in (1, 2):
        uid = f"1.2.{number}"
        file = store.files.write_durably([part10(ct_slice(1))])
        arrival = Arrival(f"{uid}.1", CT_IMAGE, uid, f"{uid}.9", EXPLICIT_LE, AE, AE, "127.0.0.1", file, header)
        with store.database.transaction() as tx:
            recording.record_instance(tx, arrival, now, QUIET_S)
    store.close_due(now + QUIET_S, ModelRef(TEXT, TEXT, "d" * 64))
    refused_job, failed_job = claimed(store, "1.2.1", now + 40), claimed(store, "1.2.2", now + 40)
    with store.database.transaction() as tx:
        jobs.finish(tx, refused_job.job_id, refused_job.fence, now + 50, not_analysed("LUNG_CUT_OFF", TEXT), [], [])
        jobs.fail(tx, failed_job.job_id, failed_job.fence, now + 50, TEXT, None)
        peer = audit.Peer(ae_title=AE, address="10.0.0.66")
        audit.append(tx, now, "association.rejected", peer=peer, outcome="REJECTED", detail={"reason": TEXT})
        refused.record(tx, RefusedInstance("1.9", "1.8", "1.7", TEXT, "A700", TEXT, AE, "10.0.0.66"), now)
    texts = dict.fromkeys(("patient_name", "series_description", "study_description", "manufacturer"), TEXT)
    reported(store, folder / "sent", **texts)
    with store.database.transaction() as tx:
        [due] = deliveries.claim(tx, "pacs", now, 60.0)
        deliveries.fail(tx, due.delivery_id, due.fence, now, TEXT)


def shows(text: str) -> bool:
    """Whether a page shows a hostile name, and holds nothing of it as markup."""
    assert Injected(text).found == []
    assert "owned()>" not in text
    return QUOTED in text or "&lt;b onclick=x()&gt;" in text


@pytest.mark.parametrize("path", [path for path in PATHS if path not in ("/models", "/settings")])
def test_a_page_shows_hostile_names_as_the_text_that_they_are(pages, path):
    assert shows(pages.logged_in("administrator").get(path).text), path


def test_what_the_receiver_wrote_down_is_what_was_sent(pages):
    rows = pages.store.rows("SELECT DISTINCT calling_ae FROM instances")
    assert {row["calling_ae"] for row in rows} >= {AE}
    assert pages.audit("association.rejected")


@pytest.mark.parametrize(
    ("page", "form"),
    [
        ("/worklist", {"text": TEXT}),
        ("/worklist", {"source": AE, "sort": TEXT, "after": TEXT}),
        ("/audit", {"event": TEXT, "patient": TEXT, "outcome": TEXT}),
        ("/audit", {"event": "association"}),
        ("/audit/question", {"sql": TEXT}),
        ("/audit/question", {"sql": "SELECT calling_ae, patient_id AS \"<img src=x onerror=owned()>\" FROM instances"}),
        ("/audit/question", {"sql": "SELECT name AS \"<b onclick=x()>\" FROM patients"}),
    ],
)  # fmt: skip
def test_what_is_typed_and_what_it_finds_is_shown_as_text(pages, page, form):
    visitor = pages.logged_in("administrator")
    answer = visitor.fill(page, "/audit", **form)
    if answer.status_code == 303:
        answer = visitor.get(answer.headers["location"])
    assert shows(answer.text), form


def test_every_saved_question_and_its_file_hold_no_markup_and_no_formula(pages):
    auditor = pages.logged_in("administrator")
    saved = [one for one in Saved(auditor.get("/audit").text).found if one.startswith("SELECT")]
    assert len(saved) > 5
    for sql in saved:
        shows(auditor.fill("/audit/question", "/audit", sql=sql).text)
    for first in ("=", "+", "-", "@", "\t", "\r", "\n", " =", "\u00a0=", "\uff1d", "\x0b="):
        sql = f"SELECT '{first}cmd|calc' AS \"=HYPERLINK\""
        text = auditor.fill("/audit/question", "/audit", sql=sql, **{"as": "csv"}).text
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert len(cells) == 2, cells
        assert all(cell.startswith("'") for cell in cells), (first, cells)


class Saved(HTMLParser):
    """The values of a page's buttons and fields."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "value" and value]


def test_nothing_of_it_runs_in_a_browser(pages):
    with chromium() as browser, window(browser, pages, "administrator") as page:  # its console must stay empty
        page.add_init_script("window.owned = () => { window.isOwned = true; }")
        for path in PATHS:
            page.goto(path)
            if path.startswith("/series"):
                expect(page.locator("[data-seen]")).to_be_visible()
            assert page.locator("[onclick], [onerror], img[src=x]").count() == 0, path
            assert page.evaluate("window.isOwned") is None
