"""A real Chromium for the tests of the pages, driven by Playwright, and pictures of pages for the documents."""

import base64
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.conftest import ROOT
from tests.web_pages import Pages

CHROMIUM = Path("/usr/bin/chromium")
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    """One browser; each test opens contexts of its own in it. Skips if there is none."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (Debian package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def window(browser: Browser, pages: Pages, *roles: str, **options: Any) -> Iterator[Page]:
    """A window in which an account with these roles is logged in. Any error in the console fails the test."""
    base = f"http://127.0.0.1:{pages.port}"
    context = browser.new_context(base_url=base, viewport=options.pop("viewport", WIDE), **options)
    cookies = dict(pages.logged_in(*roles).cookies)
    context.add_cookies([{"name": name, "value": value, "url": base} for name, value in cookies.items()])
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(_of(message)))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert [text for text in said if text] == []


def _of(message: ConsoleMessage) -> str:
    return message.text if message.type == "error" else ""


def canvas_pixels(page: Page) -> np.ndarray:
    """What is on the viewer's canvas, (Y, X, 4) uint8."""
    found = page.evaluate(
        """() => {
            const canvas = document.querySelector("[data-part=canvas]");
            const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let text = "";
            for (let at = 0; at < data.length; at += 8192) text += String.fromCharCode(...data.subarray(at, at + 8192));
            return [width, height, btoa(text)];
        }"""
    )
    width, height, encoded = found
    return np.frombuffer(base64.b64decode(encoded), np.uint8).reshape(height, width, 4)


def picture(page: Page, name: str) -> None:
    """Keep a picture of the window in docs/images, if DICOM_NODE_SCREENSHOTS asks for it."""
    assert re.fullmatch(r"[a-z-]+", name)
    if os.environ.get("DICOM_NODE_SCREENSHOTS"):
        page.screenshot(path=ROOT / "docs" / "images" / f"{name}.png")
