"""All pages in a real browser: for keyboard and screen reader, in dark and light, on a phone; kept up to date."""

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from config.settings import Destination, Source
from dicom_node.runtime.node_lock import only_node
from dicom_node.web.routes import navigation
from storage import deliveries, jobs
from tests.browser import PHONE, WIDE, chromium, picture, window
from tests.factories import Grid
from tests.programs import free_port
from tests.receiving import Node, ct_slice, store
from tests.shown_series import reported
from tests.storage_factory import QUIET_S, Store, not_analysed
from tests.web_pages import PASSWORD, serving

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
PATHS = [*(entry.path for entry in navigation()), "/account", "/series/1", "/no-such-page"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    pacs = Destination(name="pacs", ae_title="PACS", host="127.0.0.1", port=9)
    folder = tmp_path_factory.mktemp("pages")
    file = folder / "node.toml"
    file.write_text("[completion]\nquiet_s = 40.0\n[receiver]\nport = 104\n")
    given = {"destinations": (pacs,), "sources": (Source(ae_title="CT1"),)}
    with serving(folder, file, **given) as found:
        reported(found.store, found.settings.data_dir / "sent", Grid(shape=(12, 48, 60), spacing_mm=(3.0, 0.8, 0.7)))
        yield found


def findings(page) -> list[str]:
    """What axe-core finds serious."""
    found = Axe().run(page, options=RULES).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {node['html'][:200]}" for one in serious for node in one["nodes"]]


@pytest.fixture(scope="module")
def windows(browser, pages):
    """Dark, light, and a phone, each logged in as an administrator."""
    where = f"http://127.0.0.1:{pages.port}"
    cookies = [{"name": n, "value": v, "url": where} for n, v in pages.logged_in("administrator").cookies.items()]
    made = []
    for scheme, viewport in (("dark", WIDE), ("light", WIDE), ("dark", PHONE)):
        context = browser.new_context(base_url=where, color_scheme=scheme, viewport=viewport)
        context.add_cookies(cookies)
        made.append(context.new_page())
    yield made
    for page in made:
        page.context.close()


@pytest.mark.parametrize("path", PATHS)
def test_no_page_has_a_serious_fault_for_who_sees_or_hears_it_otherwise(windows, path):
    for page in windows:
        page.goto(path)
        if page is not windows[2]:  # contrast differs between dark and light, and nothing else on a phone
            assert findings(page) == [], path
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{path} is {wider} px wider than its window"


def test_a_fault_would_be_found(windows):
    page = windows[0]
    page.goto("/account")
    page.evaluate("document.querySelector('h1').style.color = '#333'; document.querySelector('label').remove()")
    assert {finding.partition(":")[0] for finding in findings(page)} == {"color-contrast", "label"}


def test_the_login_itself_has_no_fault_and_leads_to_today(browser, pages):
    pages.add_user("ada", "viewer")
    context = browser.new_context(base_url=f"http://127.0.0.1:{pages.port}", viewport=WIDE)
    page = context.new_page()
    page.goto("/")
    assert findings(page) == []
    page.keyboard.type("ada")  # the first field has the focus
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("node")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    context.close()


def test_light_or_dark_is_kept_from_page_to_page(browser, pages):
    with window(browser, pages, "viewer", color_scheme="dark") as page:
        page.goto("/")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Light or dark").click()
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        page.goto("/peers")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == light


def test_what_arrives_appears_without_loading_the_page_again(browser, tmp_path):
    with Node(tmp_path) as node, serving_beside(node) as pages, window(browser, pages, "viewer") as page:
        page.goto("/")
        figure = page.locator(".figure", has_text="series received").locator("dd")
        expect(figure).to_have_text("0")
        page.locator("#hours-table summary").click()
        assert [status for status, _ in store(node, ct_slice(1))] == [0]
        expect(figure).to_have_text("1", timeout=20_000)
        expect(page.locator("#hours-table")).to_have_attribute("open", "")


def test_an_operator_asks_a_peer_without_leaving_the_page(browser, pages):
    with window(browser, pages, "operator", color_scheme="dark") as page:
        page.goto("/peers")
        row = page.get_by_role("row", name="pacs")
        row.get_by_role("button", name="Ask now").click()
        expect(row.get_by_role("status")).to_have_text("does not answer", timeout=20_000)
        picture(page, "web-peers")
    with window(browser, pages, "viewer") as page:
        page.goto("/peers")
        expect(page.get_by_role("button", name="Ask now")).to_have_count(0)


def test_pictures_of_a_node_at_work(browser, tmp_path):
    port = free_port()
    file = tmp_path / "node.toml"
    file.write_text(f"[completion]\nquiet_s = 40.0\n[receiver]\nport = {port}\n")
    with (
        at_work(tmp_path, port),
        serving(tmp_path, file, receiver={"port": port}, completion={"quiet_s": 40.0}) as pages,
    ):
        a_days_work(pages.store, time.time())
        with window(browser, pages, "viewer", color_scheme="dark") as page:
            page.goto("/")
            expect(page.get_by_role("heading", level=1)).to_have_text(
                "All is well: the node takes images, analyses them and delivers."
            )
            expect(page.locator("rect.analysed")).not_to_have_count(0)
            assert cut_off(page) == 0
            picture(page, "web-today")
            page.goto("/settings")
            expect(page.get_by_role("heading", name="What this site has set")).to_be_visible()
            picture(page, "web-settings")
            for path, name in (("/worklist", "web-worklist"), ("/not-analysed", "web-not-analysed")):
                page.goto(path)
                expect(page.locator("tbody tr")).not_to_have_count(0)
                picture(page, name)
        with window(browser, pages, "administrator", color_scheme="dark") as page:
            for path, name in (("/models", "web-models"), ("/audit", "web-audit")):
                page.goto(path)
                expect(page.get_by_role("heading", level=1)).to_be_visible()
                picture(page, name)
        with window(browser, pages, "viewer", viewport=PHONE, color_scheme="dark") as page:
            page.goto("/")
            assert cut_off(page) == 0
            picture(page, "web-today-phone")
            page.goto("/worklist")
            picture(page, "web-worklist-phone")


def cut_off(page) -> int:
    """How many tables are wider than their boxes."""
    boxes = page.locator(".grid .table-box")
    return boxes.evaluate_all("all => all.filter((box) => box.scrollWidth > box.clientWidth).length")


@contextmanager
def at_work(folder: Path, port: int):
    """What tells from outside that a node runs here: its lock, and that it listens."""
    with only_node(folder, threading.Event()), socket.create_server(("127.0.0.1", port)):
        yield


def a_days_work(store: Store, now: float) -> None:
    """Some series of each of the last hours, most of them analysed and sent."""
    for number, (hours, minutes) in enumerate(
        (h, m) for h in range(22, -1, -1) for m in range(4 + 5 * (8 < h < 18), 0, -3)
    ):
        at, uid = now - 3600 * hours - 60 * minutes, f"1.2.{number}"
        store.receive(1, 2, now=at, series_uid=f"{uid}.1", study_uid=uid, patient_id=f"P{number}", calling_ae="CT1")
        store.close_due(at + QUIET_S)
        job = store.claim(at + QUIET_S)
        assert job is not None
        if number % 7 == 3:
            refused = not_analysed("MISSING_SLICES", "3 of 42 slices are missing.")
            with store.database.transaction() as tx:
                jobs.finish(tx, job.job_id, job.fence, at + QUIET_S + 20, refused, [], [])
            continue
        store.finish(job, at + QUIET_S + 20 + number % 5, "pacs")
        with store.database.transaction() as tx:
            for claimed in deliveries.claim(tx, "pacs", at + QUIET_S + 30, 60.0):
                deliveries.mark_sent(tx, claimed.delivery_id, claimed.fence, at + QUIET_S + 31, {}, None, None)


@contextmanager
def serving_beside(node: Node):
    """The pages of the index that a receiver writes to."""
    with serving(node.settings.data_dir, url=node.settings.database_url) as found:
        yield found
