"""How quickly the viewer answers while a worker computes, and how much memory its process takes.

    python -m benchmarks.web_viewer [--slices 300] [--series 6] [--lossless] [--idle] [--memory]

Stores synthetic series of 512 x 512, starts `dicom-node web` on them, and beside it an analysis that never ends, as a
worker runs it (nice 15, all cores; not with --idle). A real Chromium opens each series for the first time and steps
through it. --lossless: JPEG Lossless, as many PACS send, instead of uncompressed. Memory: of the web process and its
decoders, the most while every series is looked at in three planes. --memory: only that, without a browser and with
four people at once, for many series of the same bytes: `--memory --series 40 --slices 600`.
"""

import argparse
import dataclasses
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pydicom
from playwright.sync_api import Page

from config.settings import Settings
from dicom_node.runtime.startup import prepare
from inference.phantom.chest import make_phantom
from inference.phantom.series import EXPLICIT_LITTLE, JPEG_LOSSLESS_SV1
from inference.phantom.series import write_series as write_phantom
from storage import recording, web_users
from storage.arrival import Arrival
from tests.browser import chromium
from tests.programs import free_port, listening, wait_for
from tests.shown_series import arrival_of, store_files
from tests.storage_factory import Store
from tests.web_pages import Visitor, password_hash

MIB = 1 << 20


def main() -> None:
    """Print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--series", type=int, default=6)
    parser.add_argument("--lossless", action="store_true")
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--memory", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.memory:
            sent = _series(folder, chosen.slices, 0, lossless=chosen.lossless)
            _links(folder, sorted(sent.iterdir()), chosen.series)
            with _pages(folder) as (port, process):
                _look_at_all(port, process, chosen.series, chosen.slices)
            return
        sent = _series(folder, chosen.slices, chosen.series, lossless=chosen.lossless)
        with _pages(folder) as (port, process), _worker(sent, idle=chosen.idle), chromium() as browser:
            context = browser.new_context(base_url=f"http://127.0.0.1:{port}", viewport={"width": 1280, "height": 900})
            context.add_cookies(_login(port))
            page = context.new_page()
            page.goto("/")  # style and scripts are there after the first page
            firsts, steps, far = [], [], []
            most = 0
            for number in range(1, chosen.series + 1):
                firsts.append(_first(page, number))
                page.locator("[data-seen=all]").wait_for()
                steps += [_step(page, "ArrowUp") for _ in range(40)]
                far += [_step(page, key) for key in ("Home", "PageUp", "PageUp", "PageUp", "PageUp") * 4]
                for plane in ("c", "s"):
                    page.keyboard.press(plane)
                    page.wait_for_timeout(1500)
                most = max(most, _bytes(process))
            browser.close()
    _say("first picture, from the click", firsts)
    _say("a step to the next image", steps)
    _say("a jump to one that is not there yet", far)
    print(f"{'memory of the web process and its decoders':42} {most / MIB:7.0f} MiB")


def _series(folder: Path, slices: int, count: int, *, lossless: bool) -> Path:
    """Store several copies of a phantom under different UIDs. Returns the folder of its files."""
    phantom = make_phantom(5, slices=40, size=512)
    between = np.linspace(0, 39, slices).round().astype(int)
    noise = np.random.default_rng(1).normal(0, 15, phantom.hu.shape[1:]).astype(np.int16)
    hu = np.stack([phantom.hu[z] + np.roll(noise, 7 * at, axis=1) for at, z in enumerate(between)])
    thin = dataclasses.replace(phantom, hu=hu, spacing_mm=(1.0, *phantom.spacing_mm[1:]))
    paths = write_phantom(thin, folder / "sent", transfer_syntax=JPEG_LOSSLESS_SV1 if lossless else EXPLICIT_LITTLE)
    prepare(Settings(data_dir=folder))
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        for number in range(count):
            store_files(store, paths if number == 0 else _copies(paths, folder / f"copy{number}", number))
    return folder / "sent"


def _copies(paths: list[Path], folder: Path, number: int) -> list[Path]:
    folder.mkdir()
    for path in paths:
        dataset = pydicom.dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(dataset, keyword, f"{getattr(dataset, keyword)[:60]}.{number}")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / path.name)
    return sorted(folder.iterdir())


def _links(folder: Path, paths: list[Path], count: int) -> None:
    """So many series of these images, each with links of its own to the same bytes."""
    with Store(folder, f"sqlite:///{folder}/node.db") as store:
        first = [arrival_of(store, path, {}) for path in paths]
        for number in range(count):
            with store.database.transaction() as tx:
                recording.record_instances(tx, [_link(store, one, number) for one in first], 0.0, 60.0)


def _link(store: Store, one: Arrival, number: int) -> Arrival:
    path = f"{one.file.path}-{number}"
    store.files.absolute(path).hardlink_to(store.files.absolute(one.file.path))
    uids = ("sop_instance_uid", "series_instance_uid", "study_instance_uid")
    named = {name: f"{getattr(one, name)[:60]}.{number}" for name in uids}
    return dataclasses.replace(one, file=dataclasses.replace(one.file, path=path), **named)


def _look_at_all(port: int, process: psutil.Process, count: int, slices: int) -> None:
    """Every tenth axial image and both other planes of each series, by four people at once."""
    most = _bytes(process)
    print(f"{'memory before anybody looks':42} {most / MIB:7.0f} MiB", flush=True)

    def look(number: int) -> None:
        with Visitor(port) as visitor:
            visitor.timeout = 600.0
            visitor.log_in("ada")
            token = visitor.get(f"/series/{number}/images.json").json()["token"]
            for plane, indices in (("axial", range(0, slices, 10)), ("coronal", (200, 300)), ("sagittal", (200, 300))):
                for index in indices:
                    visitor.get(f"/series/{number}/image/{token}/{plane}/{index}.png").raise_for_status()

    with ThreadPoolExecutor(4) as people:
        looking = [people.submit(look, number) for number in range(1, count + 1)]
        while not all(one.done() for one in looking):
            most = max(most, _bytes(process))
            time.sleep(0.1)
    for one in looking:
        one.result()
    print(f"{f'the most while {count} series were looked at':42} {most / MIB:7.0f} MiB")


@contextmanager
def _pages(folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    with Store(folder, f"sqlite:///{folder}/node.db") as store, store.database.transaction() as tx:
        web_users.add(tx, "ada", ["viewer"], password_hash(), time.time())
    environment = os.environ | {
        "DICOM_NODE_DATA_DIR": str(folder),
        "DICOM_NODE_WEB__PORT": str(port),
        "DICOM_NODE_LOGGING__LEVEL": "warning",
    }
    process = subprocess.Popen([sys.executable, "-m", "dicom_node", "web"], env=environment)
    try:
        wait_for(lambda: listening(port), 300, "the pages listen")
        yield port, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def _worker(sent: Path, *, idle: bool) -> Iterator[None]:
    """An analysis after the other, at the worker's priority."""
    if idle:
        yield
        return
    command = f"nice -n 15 {sys.executable} -m dicom_node analyse {sent} >/dev/null 2>&1"
    process = subprocess.Popen(["sh", "-c", f"while true; do {command}; done"], start_new_session=True)
    time.sleep(8)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _login(port: int) -> list[dict[str, str]]:
    with Visitor(port) as visitor:
        visitor.log_in("ada")
        return [{"name": k, "value": v, "url": f"http://127.0.0.1:{port}"} for k, v in visitor.cookies.items()]


def _first(page: Page, number: int) -> float:
    """Milliseconds from the click on a series to its first picture on the canvas."""
    page.goto(f"/series/{number}", wait_until="commit")
    return float(
        page.evaluate(
            """() => new Promise((done) => {
                const look = () => document.querySelector("[data-viewer]")?.dataset.seen
                    ? done(performance.now()) : requestAnimationFrame(look);
                look();
            })"""
        )
    )


def _step(page: Page, key: str) -> float:
    """Milliseconds from a key to the picture that it asks for."""
    page.wait_for_timeout(60)
    page.locator("[data-part=stage]").focus()
    return float(
        page.evaluate(
            """(key) => new Promise((done) => {
                const stage = document.querySelector("[data-part=stage]");
                const viewer = document.querySelector("[data-viewer]").viewer, began = performance.now();
                stage.dispatchEvent(new KeyboardEvent("keydown", { key }));
                const look = () => viewer.drawn.key === viewer.key(viewer.plane, viewer.index[viewer.plane])
                    ? done(performance.now() - began) : setTimeout(look, 1);
                look();
            })""",
            key,
        )
    )


def _bytes(process: psutil.Process) -> int:
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))


def _say(what: str, milliseconds: list[float]) -> None:
    worst = max(milliseconds)
    print(f"{what:42} {statistics.median(milliseconds):7.0f} ms median, {worst:.0f} ms at worst")


if __name__ == "__main__":
    main()
