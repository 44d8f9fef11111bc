"""Today, Peers and Settings: what they say, to whom, and that nothing from outside becomes markup."""

import re
import time

import pytest

from config.load import load_settings
from config.settings import Destination, Source
from storage import audit, deliveries, refused
from storage.refused import RefusedInstance
from tests.web_pages import serving

EVIL = "<script>alert(1)</script>"
QUOTED = "&lt;script&gt;alert(1)&lt;/script&gt;"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    node = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=9)
    with serving(folder, destinations=(node,), sources=(Source(ae_title="CT1"), Source(ae_title="CT2"))) as found:
        yield found


def test_today_counts_what_came_and_what_became_of_it(pages):
    now = time.time()
    pages.store.receive(1, 2, now=now - 100, calling_ae="CT1")
    pages.store.close_due(now)
    job = pages.store.claim(now)
    pages.store.finish(job, now, "pacs")
    text = pages.logged_in("viewer").get("/").text
    assert "The node does not run on this machine." in text
    assert "<dt>series received<small></small></dt><dd>1</dd>" in text.replace("\n", "")
    assert "1 analysed, 0 not analysed, 0 failed" in text
    assert "1 to be sent" in text


def test_today_tells_how_often_was_sent_from_how_many_deliveries_were_taken(tmp_path):
    now = time.time()
    with serving(tmp_path) as pages:
        pages.store.receive(1, 2, now=now - 100)
        pages.store.close_due(now)
        pages.store.finish(pages.store.claim(now), now, "pacs")
        for _ in range(3):
            with pages.store.database.transaction() as tx:
                [claimed] = deliveries.claim(tx, "pacs", now, 60.0)
                deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, now, {}, None, None)
                deliveries.resend(tx, claimed.result_id, ["pacs"], now)
        with pages.store.database.transaction() as tx:
            [claimed] = deliveries.claim(tx, "pacs", now, 60.0)
            deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, now, {}, None, None)
        text = pages.logged_in("viewer").get("/").text
    assert "<dt>times sent<small>a resend counts again</small></dt><dd>4</dd>" in text
    [row] = re.findall(r"<tr><th scope=\"row\">pacs.*?</tr>", text, re.S)
    assert re.findall(r">(\d+)<", row) == ["0", "1", "0", "0"]  # to be sent, taken, confirmed, failed


def test_today_is_kept_up_to_date_for_all_who_watch(pages):
    visitor = pages.logged_in("viewer")
    with visitor.stream("GET", "/live/today") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        first = next(line for line in answer.iter_lines() if line.startswith("data: "))
        assert 'class="state' in first


def test_what_a_peer_calls_itself_becomes_no_markup(pages):
    with pages.store.database.transaction() as tx:
        peer = audit.Peer(ae_title=EVIL, address="10.0.0.66")
        audit.append(tx, time.time(), "association.rejected", peer=peer, outcome="REJECTED", detail={"reason": EVIL})
        refused.record(tx, RefusedInstance("1.9", "1.8", "1.7", EVIL, "A700", EVIL, EVIL, "10.0.0.66"), time.time())
    pages.store.receive(7, now=time.time(), series_uid="9.9", calling_ae=EVIL)
    text = pages.logged_in("viewer").get("/peers").text
    assert EVIL not in text
    assert text.count(QUOTED) >= 4
    assert "CT2" in text
    assert "never seen" in text


def test_an_operator_asks_a_peer_and_a_viewer_may_not(pages):
    assert pages.logged_in("viewer").fill("/peers/echo", destination="pacs").status_code == 403
    operator = pages.logged_in("operator")
    assert "does not answer" in operator.fill("/peers/echo", destination="pacs").text
    assert operator.fill("/peers/echo", destination="no-such").status_code == 404
    rows = pages.audit("web.echo")
    assert [(row["outcome"], '"operator"' in row["detail"]) for row in rows] == [("SILENT", True)]


def test_settings_say_where_each_value_comes_from_and_hide_secrets(tmp_path, monkeypatch):
    file = tmp_path / "node.toml"
    file.write_text('[completion]\nquiet_s = 77.0\n[storage]\npseudonym_key = "a-very-secret-key-of-the-site"\n')
    monkeypatch.setenv("DICOM_NODE_SENDER__CALLING_AE_TITLE", "FROM_ENV")
    settings = load_settings(file)
    with serving(tmp_path, file, completion=settings.completion, sender=settings.sender) as pages:
        text = pages.logged_in("viewer").get("/settings").text
    assert "a-very-secret-key" not in text
    rows = [
        line for line in text.split("<tr>") if ">completion.quiet_s<" in line or ">sender.calling_ae_title<" in line
    ]
    assert len(rows) == 2
    assert any("77.0" in row and "line 2" in row for row in rows)
    assert any("FROM_ENV" in row and "DICOM_NODE_SENDER__CALLING_AE_TITLE" in row for row in rows)
