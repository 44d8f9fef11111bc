"""A way through the pages of a whole node: DCMTK sends, the node's own worker analyses, a real browser shows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect
from pydicom import dcmread

from dicom_node.demo.journey import LESIONS
from dicom_node.demo.pacs import Pacs
from dicom_node.web.viewer.planes import windowed
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from inference.volume.load import load
from tests.browser import WIDE, canvas_pixels, chromium
from tests.conftest import require_program
from tests.programs import free_port, listening, wait_for
from tests.running import Node, running
from tests.web_pages import PASSWORD

pytestmark = pytest.mark.peer

SLICES, SIZE = 40, 256
SOON_MS, ANALYSED_MS = 30_000, 240_000


def add_user(node: Node, name: str, *roles: str) -> None:
    chosen = [option for role in roles for option in ("--role", role)]
    add = [sys.executable, "-m", "dicom_node", "web", "user", "add", name, *chosen]
    subprocess.run(add, input=PASSWORD, text=True, env=node.environment, check=True, timeout=60, capture_output=True)


@contextmanager
def logged_in(browser: Browser, port: int, name: str) -> Iterator[Page]:
    """A window in which this account has logged in by the form. Any error in the console fails the test."""
    context = browser.new_context(base_url=f"http://127.0.0.1:{port}", viewport=WIDE)
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto("/")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    page.wait_for_url("**/")
    yield page
    context.close()
    assert said == []


def test_what_dcmtk_sends_appears_is_analysed_by_the_worker_looked_at_and_gets_a_verdict(tmp_path: Path) -> None:
    phantom = make_phantom(11, slices=SLICES, size=SIZE, lesions="mixed", lesion_settings=LESIONS)
    paths = write_series(phantom, tmp_path / "sent")
    sent, uid = load(paths), str(dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
    web = free_port()
    with chromium() as browser, Pacs(tmp_path / "pacs", ae_title="PACS") as pacs:
        node = Node(tmp_path / "node", pacs.port, DICOM_NODE_WEB__PORT=str(web))
        with running(node):
            wait_for(lambda: listening(web), 60, "the pages listen")
            add_user(node, "rita", "viewer", "reader")
            add_user(node, "otto", "auditor")
            with logged_in(browser, web, "rita") as page:
                page.goto("/worklist")
                expect(page.get_by_text("No series is like that.")).to_be_visible()
                page.evaluate("window.loadedOnce = true")
                send = [require_program("storescu"), "-aet", "CT1", "-aec", "DICOM_NODE", "127.0.0.1", str(node.port)]
                subprocess.run([*send, "+sd", str(tmp_path / "sent")], check=True, timeout=120)
                row = page.locator("#lines tr", has_text="CT1")
                expect(row).to_contain_text(f"{SLICES} images", timeout=SOON_MS)
                expect(row).to_contain_text("Positive", timeout=ANALYSED_MS)
                assert page.evaluate("window.loadedOnce")  # the same page all the while

                row.get_by_role("link").first.click()
                expect(page.get_by_role("heading", level=1)).to_contain_text("%")
                where = page.locator("[data-part=where]")
                expect(where).to_contain_text(f"Slice {SLICES // 2} of {SLICES}")
                page.locator("[data-part=stage]").hover()
                page.mouse.wheel(0, -100)
                expect(where).to_contain_text(f"Slice {SLICES // 2 + 1} of {SLICES}")
                plain = canvas_pixels(page)
                assert np.array_equal(plain[..., 0], windowed(sent.hu[SLICES // 2], -600, 1500))
                page.get_by_role("checkbox", name="Lungs").check()
                page.wait_for_load_state("networkidle")
                tinted = (canvas_pixels(page)[..., :3] != plain[..., :3]).any(axis=2)
                truth = phantom.lung_mask[SLICES // 2]
                assert tinted[truth].mean() > 0.9 and tinted[~truth].mean() < 0.05

                page.get_by_label("It does not").check()
                page.get_by_role("button", name="Keep the verdict").click()
                expect(page.locator(".timeline")).to_contain_text("rita gave a verdict: disagrees.")
            with logged_in(browser, web, "otto") as audit:
                audit.goto("/audit")
                audit.get_by_label("Event").fill("verdict")
                audit.get_by_role("button", name="Search").click()
                expect(audit.get_by_role("row", name="verdict.given")).to_contain_text("DISAGREES")
            wait_for(lambda: any(dcmread(path).Modality == "SR" for path in pacs.received()), 60, "the report is sent")
            [listed] = node.command("series", "list")
    assert (listed["series_instance_uid"], listed["positive"]) == (uid, True)
