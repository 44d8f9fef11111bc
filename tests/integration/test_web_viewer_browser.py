"""The viewer in a real browser: what stands on its canvas is what numpy makes of the stored images."""

import os
import re
import time

import numpy as np
import pydicom
import pytest
from playwright.sync_api import Page, expect

from dicom_node.web.viewer.encode import FILL_ALPHA, outline_of
from dicom_node.web.viewer.planes import windowed
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series as write_phantom
from tests.browser import PHONE, canvas_pixels, chromium, picture, window
from tests.factories import Grid, chest, lungs
from tests.shown_series import PHANTOM, Shown, phantom_reported, refuse, reported, store_files
from tests.storage_factory import QUIET_S
from tests.unit.ct_series import noise, write_series
from tests.web_pages import serving

GRID = Grid(shape=(12, 48, 60), spacing_mm=(3.0, 0.8, 0.7))
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
OPACITY = 0.7


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("viewer")) as found:
        yield found


@pytest.fixture(scope="module")
def shown(pages) -> Shown:
    hostile = dict.fromkeys(("patient_name", "series_description", "study_description", "accession_number"), HOSTILE)
    return reported(pages.store, pages.settings.data_dir / "sent", GRID, **hostile)


def opened(page: Page, series_pk: int, where: str = "Slice 6 of 12") -> Page:
    page.goto(f"/series/{series_pk}")
    return at(page, where)


def at(page: Page, where: str) -> Page:
    """Wait until this image is drawn: what is said of it is said with it."""
    expect(page.locator("[data-part=where]")).to_contain_text(where)
    return page


def grey(page: Page, expected: np.ndarray) -> bool:
    """Whether the canvas shows these grey values, opaque and pixel for pixel."""
    found = canvas_pixels(page)
    return np.array_equal(found, np.dstack([expected] * 3 + [np.full_like(expected, 255)]))


def test_the_canvas_shows_each_image_as_numpy_windows_it(browser, pages, shown):
    hu = chest(GRID)
    with window(browser, pages, "viewer") as page:
        opened(page, shown.series_pk)
        assert grey(page, windowed(hu[5], -600, 1500))
        page.get_by_role("button", name="Soft tissue").click()
        expect(page.locator("[data-part=window]")).to_have_text("centre 40, width 400 HU")
        expect(page.locator("[data-part=stage]")).not_to_have_class(re.compile("waits"))
        assert grey(page, windowed(hu[5], 40, 400))
        page.get_by_role("button", name="Coronal").click()
        at(page, "Coronal 24 of 48")
        assert grey(page, windowed(hu[::-1, 23], 40, 400))
        page.get_by_role("button", name="Sagittal").click()
        at(page, "Sagittal 30 of 60")
        assert grey(page, windowed(hu[::-1, :, 29], 40, 400))
        box = page.locator("[data-part=canvas]").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(48 * 0.8 / (12 * 3.0), rel=0.01)


def test_wheel_keys_dragging_and_the_slider_step_through_the_stack(browser, pages, shown):
    hu = chest(GRID)
    with window(browser, pages, "viewer") as page:
        stage = opened(page, shown.series_pk).locator("[data-part=stage]")
        stage.focus()
        for key, where in (("ArrowUp", 7), ("ArrowDown", 6), ("End", 12), ("PageDown", 2), ("Home", 1)):
            page.keyboard.press(key)
            at(page, f"Slice {where} of 12")
        assert grey(page, windowed(hu[0], -600, 1500))
        stage.hover()
        page.mouse.wheel(0, -100)
        at(page, "Slice 2 of 12")
        page.mouse.down()
        page.mouse.move(600, 200, steps=4)
        page.mouse.up()
        expect(page.locator("[data-part=where]")).not_to_contain_text("Slice 2 of 12")
        page.get_by_role("slider", name="Image, axial").fill("9")
        at(page, "Slice 10 of 12")
        assert grey(page, windowed(hu[9], -600, 1500))


def test_looking_through_images_keeps_a_person_logged_in(browser, pages, shown):
    with window(browser, pages, "viewer") as page:
        page.clock.install()
        stage = opened(page, shown.series_pk).locator("[data-part=stage]")
        page.wait_for_load_state("networkidle")
        page.clock.fast_forward("01:00:00")
        with page.expect_response("**/here") as answered:  # the next picture is here already
            stage.press("ArrowUp")
        assert answered.value.status == 204
        assert "login=" in answered.value.header_value("set-cookie")


def test_position_value_and_uid_belong_to_the_pixel_under_the_pointer(browser, pages, shown):
    with window(browser, pages, "viewer") as page:
        opened(page, shown.series_pk)
        box = page.locator("[data-part=canvas]").bounding_box()
        column, row = 20, 16
        page.mouse.move(box["x"] + (column + 0.5) / 60 * box["width"], box["y"] + (row + 0.5) / 48 * box["height"])
        x, y, z = (GRID.affine @ (column, row, 5, 1))[:3]
        words = f"x {x:.1f}  y {y:.1f}  z {z:.1f} mm   {chest(GRID)[5, row, column]} HU".replace("-", "\N{MINUS SIGN}")
        expect(page.locator("[data-part=place]")).to_have_text(words)
        uid = page.locator("[data-part=uid]").inner_text()
        assert uid.endswith(".6")
        # The point that is marked here is the one that the other planes go through.
        page.mouse.down()
        page.mouse.up()
        page.get_by_role("button", name="Coronal").click()
        at(page, f"Coronal {row + 1} of 48")


def test_an_overlay_lies_over_the_image_in_its_colour_and_opacity(browser, pages, shown):
    hu, mask = chest(GRID), lungs(GRID)
    with window(browser, pages, "viewer") as page:
        opened(page, shown.series_pk)
        expect(page.get_by_role("checkbox", name="Lungs demo 1")).to_be_visible()
        page.get_by_role("checkbox", name="Lungs demo 1").check()
        below = windowed(hu[5], -600, 1500).astype(float)
        alpha = np.where(outline_of(mask[5]), 1.0, np.where(mask[5], FILL_ALPHA / 255, 0.0)) * OPACITY
        told = page.request.get(f"/series/{shown.series_pk}/overlays.json").json()
        colour = np.array(list(bytes.fromhex(told[0]["colour"][1:])), float)
        expected = below[..., None] * (1 - alpha[..., None]) + colour * alpha[..., None]
        for _ in range(50):
            found = canvas_pixels(page)[..., :3].astype(float)
            if np.abs(found - expected).max() <= 2:  # the browser multiplies with 8 bits
                break
            page.wait_for_timeout(100)
        assert np.abs(found - expected).max() <= 2
        assert (np.abs(expected - below[..., None]).max(axis=2) > 20)[mask[5]].any()
        page.get_by_role("checkbox", name="Lungs demo 1").uncheck()
        assert grey(page, windowed(hu[5], -600, 1500))


def test_dragging_with_the_right_button_makes_a_window_of_ones_own(browser, pages, shown):
    with window(browser, pages, "viewer") as page:
        opened(page, shown.series_pk)
        page.locator("[data-part=stage]").hover()
        page.mouse.down(button="right")
        page.mouse.move(500, 400, steps=5)
        page.mouse.up(button="right")
        said = page.locator("[data-part=window]")
        expect(said).to_contain_text("own, centre")
        expect(page.locator("[data-part=stage]")).not_to_have_class(re.compile("waits"))
        centre, width = (int(n) for n in re.findall(r"-?\d+", said.inner_text().replace("\N{MINUS SIGN}", "-")))
        page.wait_for_load_state("networkidle")
        assert grey(page, windowed(chest(GRID)[5], centre, width))


def test_a_refused_series_is_looked_through_image_by_image(browser, pages, tmp_path):
    stored = noise(4, 20, 30)
    sent = write_series(tmp_path, stored, [0, 2, 8, 10], SeriesInstanceUID="2.25.71", StudyInstanceUID="2.25.70")
    series_pk = store_files(pages.store, sent)
    with window(browser, pages, "viewer") as page:
        opened(page, series_pk, "Slice 2 of 4")
        assert grey(page, windowed((stored[1] - 1024).astype(np.int16), -600, 1500))
        expect(page.locator("[data-part=notes]")).to_contain_text("2 slices are missing")
        expect(page.get_by_role("button", name="Coronal")).to_be_disabled()


def test_a_reader_gives_a_verdict_and_sees_it_in_the_timeline(browser, pages, shown):
    with window(browser, pages, "reader") as page:
        opened(page, shown.series_pk)
        page.get_by_label("It agrees with what I see").check()
        page.get_by_label("Remarks").fill("Ground glass in both lower lobes.")
        page.get_by_role("button", name="Keep the verdict").click()
        expect(page.get_by_role("status").first).to_have_text("Your verdict is kept. It changes no report.")
        expect(page.locator("#verdicts")).to_contain_text("Ground glass in both lower lobes.")
        expect(page.locator(".timeline")).to_contain_text("reader gave a verdict: agrees.")
        assert len(pages.audit("verdict.given")) == 1


def test_nothing_that_a_header_says_runs(browser, pages, shown):
    with window(browser, pages, "viewer") as page:
        opened(page, shown.series_pk)
        assert "owned" not in page.title()
        assert page.locator("main img[src=x]").count() == 0
        expect(page.locator("dl.pairs").last).to_contain_text("<script>")


def test_the_page_fits_a_phone_and_a_light_room(browser, pages, shown):
    with window(browser, pages, "viewer", viewport=PHONE, color_scheme="light", has_touch=True) as page:
        opened(page, shown.series_pk)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        stage = page.locator("[data-part=stage]").bounding_box()
        page.touchscreen.tap(stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2)
        expect(page.locator("[data-part=place]")).to_contain_text("HU")


def test_pictures_of_a_series_and_of_a_refusal(browser, pages, tmp_path):
    slices, size = (160, 384) if os.environ.get("DICOM_NODE_SCREENSHOTS") else (16, 96)
    now = time.time() - 600
    found = phantom_reported(pages.store, tmp_path / "sent", slices, size, now)
    with window(browser, pages, "reader", color_scheme="dark") as page:
        opened(page, found.series_pk, f"Slice {slices // 2} of {slices}")
        for label in ("Lungs demo 1", "What drove the model"):
            page.get_by_role("checkbox", name=label).check()
        page.get_by_role("slider", name="Image, axial").fill(str(int(slices * 0.34)))
        expect(page.locator(".headline")).to_contain_text("93 %")
        _keep(page, "web-series")
        page.get_by_role("button", name="Coronal").click()
        at(page, "Coronal")
        _keep(page, "web-viewer-coronal")
    with window(browser, pages, "reader", color_scheme="dark", viewport=PHONE) as page:
        opened(page, found.series_pk, f"Slice {slices // 2} of {slices}")
        _keep(page, "web-series-phone")
    sent = write_phantom(make_phantom(12, slices=40, size=size), tmp_path / "gap")
    del sent[27], sent[11:13]
    series_pk, uid = store_files(pages.store, sent, now, **PHANTOM), pydicom.dcmread(sent[0]).SeriesInstanceUID
    pages.store.close_due(now + QUIET_S)
    sentence = "3 slices are missing: up to 22.5 mm from one slice to the next, 7.5 mm elsewhere."
    refuse(pages.store, uid, "MISSING_SLICES", sentence, now + QUIET_S)
    with window(browser, pages, "viewer", color_scheme="dark", viewport={"width": 1280, "height": 760}) as page:
        opened(page, series_pk, "Slice 19 of 37")
        expect(page.locator(".positions")).to_have_attribute("aria-label", re.compile("37 images .* 2 holes"))
        _keep(page, "web-missing-slices")


def _keep(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")
    picture(page, name)
