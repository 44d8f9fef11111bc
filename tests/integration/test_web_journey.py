"""A radiologist's way through the pages, in a real browser: from a series that a scanner sends to a verdict on it."""

import time

import numpy as np
import pydicom
from playwright.sync_api import expect

from dicom_node.web.viewer.planes import windowed
from inference.volume.load import load
from tests.browser import canvas_pixels, chromium, window
from tests.factories import Grid, chest, write_series
from tests.receiving import Node, store
from tests.shown_series import report
from tests.web_pages import serving

GRID = Grid(shape=(12, 48, 60), spacing_mm=(3.0, 0.8, 0.7))
SOON_MS = 30_000
"""The worklist looks for new series every few seconds."""


def test_a_series_is_sent_appears_is_opened_scrolled_and_overlaid_and_gets_a_verdict(tmp_path):
    write_series(tmp_path / "sent", GRID, PatientName="Roe^Rita", SeriesDescription="Thorax 3 mm")
    paths = sorted((tmp_path / "sent").iterdir())
    with (
        chromium() as browser,
        Node(tmp_path / "node") as node,
        serving(node.settings.data_dir, url=node.settings.database_url) as pages,
        window(browser, pages, "reader") as page,
    ):
        page.goto("/worklist")
        expect(page.get_by_text("No series is like that.")).to_be_visible()
        page.evaluate("window.loadedOnce = true")
        assert {status for status, _ in store(node, *map(pydicom.dcmread, paths))} == {0}
        row = page.get_by_role("row", name="Roe Rita")
        expect(row).to_contain_text("12 images", timeout=SOON_MS)
        report(pages.store, load(paths), 0.93, time.time() + 5, localisation=chest(GRID) < -2000)
        expect(row).to_contain_text("Positive", timeout=SOON_MS)
        assert page.evaluate("window.loadedOnce")  # the same page all the while

        row.get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("93 %")
        where = page.locator("[data-part=where]")
        expect(where).to_contain_text("Slice 6 of 12")
        page.locator("[data-part=stage]").hover()
        page.mouse.wheel(0, -100)
        expect(where).to_contain_text("Slice 7 of 12")
        expected = windowed(chest(GRID)[6], -600, 1500)
        assert np.array_equal(canvas_pixels(page)[..., 0], expected)
        page.get_by_role("checkbox", name="Lungs").check()
        page.wait_for_load_state("networkidle")
        assert not np.array_equal(canvas_pixels(page)[..., 0], expected)

        page.get_by_label("It does not").check()
        page.get_by_label("Your own opinion of the scan").select_option("negative")
        page.get_by_role("button", name="Keep the verdict").click()
        expect(page.locator(".timeline")).to_contain_text("reader gave a verdict: disagrees.")
        expect(page.locator(".timeline")).to_contain_text("reader looked at the series")
        [given] = pages.audit("verdict.given")
        assert given["outcome"] == "DISAGREES"
        assert {row["patient_id"] for row in pages.audit("web.read") if row["series_uid"]} == {"4711"}

        with window(browser, pages, "auditor") as audit:
            audit.goto("/audit")
            audit.get_by_label("Event").fill("verdict")
            audit.get_by_role("button", name="Search").click()
            expect(audit.get_by_role("row", name="verdict.given")).to_contain_text("DISAGREES")
