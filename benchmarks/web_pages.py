"""How fast the pages are with a large index, and what twenty browsers that poll cost receiving and analysing.

    python -m benchmarks.web_pages [--folder index-sizes] [--sizes 100000,1000000] [--rounds 20] [--seconds 6]
                                   [--postgresql URL]

Uses the SQLite indexes of `benchmarks.index_size` and fills those that are missing (8 GB for the largest; they stay),
or with --postgresql its databases on that server.
Each page is asked REPEATS times over a socket: the median and the longest time, and the server's processor time, with
what rendering takes and the audit row of each look, which is committed. The server notes its longest query.

For the loss, one process receives (files of 512 KB made durable, eight instances in a transaction), one analyses
phantoms with the demonstration model on one thread, and the pages are served by a third. Windows of time with and
without browsers take turns, so that whatever else the machine does falls on both. The browsers run on the same machine,
with the lowest priority.
"""

import argparse
import http.client
import multiprocessing
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from sqlalchemy import event

from benchmarks.index_size import is_there, make, tidy, url_of
from benchmarks.record_instances import arrivals
from config.settings import Settings, StorageSettings, WebSettings
from config.values import DatabaseUrl
from storage import recording, web_users
from storage.database import Database, open_database
from storage.folder import FolderStore
from tests.programs import free_port, listening, wait_for
from tests.web_pages import PASSWORD, password_hash

REPEATS = 15
BROWSERS, POLL_S = 20, 5.0
SLICE = os.urandom(512 * 1024)
GROUP = 8
Process = multiprocessing.get_context("spawn").Process
Value = multiprocessing.get_context("spawn").Value


def settings_of(folder: Path, url: str, port: int) -> Settings:
    """The pages of an index on this machine."""
    return Settings(
        data_dir=folder,
        storage=StorageSettings(database_url=DatabaseUrl(url)),
        web=WebSettings(port=port, host="127.0.0.1"),
    )


def serve_pages(folder: Path, url: str, port: int, longest: Any) -> None:
    """A process: the pages. longest: seconds of the longest query so far."""
    from dicom_node.cli.web import NICE
    from dicom_node.web.server import serve

    os.nice(NICE)  # as the command
    database = Database(url, busy_timeout_s=5.0)

    @event.listens_for(database.engine, "before_cursor_execute")
    def _begin(_connection: Any, _cursor: Any, _statement: str, _values: Any, context: Any, _many: bool) -> None:
        context.began = time.perf_counter()

    @event.listens_for(database.engine, "after_cursor_execute")
    def _end(_connection: Any, _cursor: Any, _statement: str, _values: Any, context: Any, _many: bool) -> None:
        longest.value = max(longest.value, time.perf_counter() - context.began)

    serve(settings_of(folder, url, port), database, FolderStore(folder / "files"), threading.Event())


def receive(folder: Path, url: str, received: Any) -> None:
    """A process: files made durable, and their rows, as fast as they go. received: instances so far."""
    database, files = Database(url), FolderStore(folder / "received")
    while True:
        start = int(time.time()) * 1000
        for first in range(0, 3000, GROUP):
            batch = arrivals(GROUP, start + first)
            stored = [files.write_durably([SLICE, os.urandom(16)]) for _ in batch]
            batch = [type(one)(**{**vars(one), "file": file}) for one, file in zip(batch, stored, strict=True)]
            with database.transaction() as tx:
                recording.record_instances(tx, batch, time.time(), 1e6)
            for file in stored:
                files.remove(file.path)
            received.value += GROUP


def analyse_phantoms(folder: Path, analysed: Any) -> None:
    """A process: the demonstration model on one phantom, again and again. analysed: how often so far."""
    import torch

    from dicom_node.analysis.analyse import analyse
    from dicom_node.analysis.open_model import open_folder
    from inference.models.registry import find_model
    from inference.phantom.chest import make_phantom
    from inference.phantom.series import write_series

    torch.set_num_threads(1)
    settings = Settings(data_dir=folder)
    os.nice(settings.worker.nice)  # as the command
    opened = open_folder(find_model(settings.models_dir, "demonstration", None), settings, "cpu")
    paths = write_series(make_phantom(12, slices=60, size=256), folder / "phantom")
    while True:
        analyse(paths, opened, own=settings.report)
        analysed.value += 1


class Browser:
    """One connection that stays open, with a login."""

    def __init__(self, port: int, name: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._cookies: dict[str, str] = {}
        self.log_in(name)

    def ask(self, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        """Status and text of an answer; a redirect is followed. form: fields to send, with the page's token."""
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        body = None
        if form is not None:
            body = urlencode({"csrf": self.token, **form})
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        answer = self._answer("GET" if form is None else "POST", path, body, headers)
        text = answer.read().decode()
        for name, value in answer.headers.items():
            if name.lower() == "set-cookie":
                key, _, held = value.partition(";")[0].partition("=")
                self._cookies[key] = held
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', text)
        self.token = found[1] if found else self.token
        if answer.status == 303:
            return self.ask(str(answer.headers["location"]))
        return answer.status, text

    def _answer(self, *request: Any) -> http.client.HTTPResponse:
        """As browsers do: on a new connection if the server has closed the old one, because it was idle."""
        try:
            self._connection.request(*request)
            return self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            self._connection.request(*request)
            return self._connection.getresponse()

    token = ""

    def log_in(self, name: str) -> None:
        """As an account that has PASSWORD."""
        self.ask("/login")
        status, _ = self.ask("/login", {"name": name, "password": PASSWORD})
        if status != 200:
            raise RuntimeError(f"no login: {status}")


def questions(count: int) -> Iterator[tuple[str, str, dict[str, str] | None]]:
    """What is asked: name, path, form. Pages first, then searches, then what comes after a page."""
    some = count // 2
    for path in (
        "/",
        "/worklist",
        "/not-analysed",
        "/not-analysed?weeks=52",
        "/models",
        "/audit",
        "/peers",
        "/settings",
    ):
        yield path, path, None
    yield "/series/N", f"/series/{some}", None
    for order in ("received-back", "probability", "source", "outcome", "model"):
        yield f"worklist by {order}", f"/worklist?sort={order}", None
    filters = (
        {"outcome": "NOT_ANALYSED"},
        {"outcome": "NOT_ANALYSED", "reason": "KERNEL", "source": "CT3"},
        {"finding": "POSITIVE", "model": "covid-ct 1.0"},
        {"source": "RARE"},
        {"outcome": "FAILED"},
        {"from": "2026-03-01", "to": "2026-04-01", "outcome": "ANALYSED"},
        {"from": "2026-12-01", "to": "2026-12-05", "sort": "probability"},
        {"source": "no such"},
    )
    for given in filters:
        yield f"worklist {' '.join(given.values())}", f"/worklist?{urlencode(given)}", None
    texts = {
        "patient ID": f"P{1_000_000 + some // 4}",
        "name": "baco",
        "name of very many": "ba",
        "accession": str(some),
    }
    for name, text in texts.items():
        yield f"search for {name}", "/worklist", {"text": text}
    yield "worklist, kept up to date", "/worklist/lines", {}
    searches = (
        {"event": "job"},
        {"event": "delivery.failed"},
        {"outcome": "ANALYSED"},
        {"patient": texts["patient ID"]},
    )
    for given in searches:
        yield f"audit {' '.join(given.values())}", "/audit", given
    yield "audit, days", "/audit", {"from": "2026-03-01", "to": "2026-03-03"}
    yield "saved question", "/audit/question", {"sql": "SELECT * FROM model_results LIMIT 100"}


def measure(browser: Browser, count: int, server: psutil.Process) -> list[tuple[str, float, float, float]]:
    """Name, median and longest of each question, and processor time of the server for one, all in milliseconds."""
    found = []
    for name, path, form in questions(count):
        spans, before = [], sum(server.cpu_times()[:2])
        for _ in range(REPEATS):
            began = time.perf_counter()
            status, _ = browser.ask(path, form)
            spans.append(1000 * (time.perf_counter() - began))
            if status not in (200, 204):
                raise RuntimeError(f"{name}: {status}")
        processor = 1000 * (sum(server.cpu_times()[:2]) - before) / REPEATS
        found.append((name, statistics.median(spans), max(spans), processor))
    return found


def poll(browser: Browser, offset: float, polling: threading.Event, ending: threading.Event) -> None:
    """A thread: a worklist that is kept up to date, while `polling` is set."""
    os.nice(19)  # of this thread: browsers have machines of their own
    time.sleep(offset)
    held = ""
    while not ending.is_set():
        if polling.is_set():
            status, text = browser.ask("/worklist/lines", {"held": held})
            if status == 200:
                found = re.search(r'name="held" value="(\w+)"', text)
                held = found[1] if found else ""
        time.sleep(POLL_S)


def watch(port: int, browser: Browser, polling: threading.Event, ending: threading.Event) -> None:
    """A thread: Today, kept up to date by server-sent events, while `polling` is set."""
    os.nice(19)
    while not ending.is_set():
        if not polling.wait(1.0):
            continue
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        cookies = "; ".join(f"{name}={value}" for name, value in browser._cookies.items())
        connection.request("GET", "/live/today", headers={"Cookie": cookies})
        answer = connection.getresponse()
        while polling.is_set() and answer.readline():
            pass
        connection.close()


def loss(
    port: int, folder: Path, url: str, browsers: list[Browser], rounds: int, seconds: float, server: psutil.Process
) -> None:
    """Print what browsers cost receiving (instances) and analysing (processor time that it gets)."""
    received, analysed = Value("q", 0), Value("q", 0)
    receiver = Process(target=receive, args=(folder, url, received), daemon=True)
    worker = Process(target=analyse_phantoms, args=(folder, analysed), daemon=True)
    polling, ending = threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=poll, args=(one, number * POLL_S / BROWSERS, polling, ending), daemon=True)
        for number, one in enumerate(browsers)
    ]
    threads += [threading.Thread(target=watch, args=(port, one, polling, ending), daemon=True) for one in browsers]
    receiver.start()
    worker.start()
    for thread in threads:
        thread.start()
    wait_for(lambda: analysed.value > 0 and received.value > 0, 300, "both work")
    work = psutil.Process(worker.pid)

    def counted() -> tuple[float, float, float]:
        return received.value, sum(work.cpu_times()[:2]), sum(server.cpu_times()[:2])

    sums = {False: [0.0, 0.0, 0.0], True: [0.0, 0.0, 0.0]}
    for number in range(2 * rounds):
        with_browsers = number % 4 in (1, 2)  # alone, with, with, alone: whatever drifts falls on both
        (polling.set if with_browsers else polling.clear)()
        time.sleep(1.0)
        before = counted()
        time.sleep(seconds)
        sums[with_browsers] = [held + b - a for held, a, b in zip(sums[with_browsers], before, counted(), strict=True)]
    ending.set()
    for process in (receiver, worker):
        process.terminate()
    whole = rounds * seconds
    for name, part, unit in (("receiving", 0, "instances/s"), ("analysing", 1, "s of processor time a second")):
        alone, polled = sums[False][part], sums[True][part]
        print(f"{name}: {alone / whole:.2f} {unit} alone, {polled / whole:.2f} with {BROWSERS} browsers: "
              f"{100 * (polled / alone - 1):+.1f} %")  # fmt: skip
    print(f"the pages' process: {100 * sums[True][2] / whole:.1f} % of one core", flush=True)


@contextmanager
def pages(folder: Path, url: str) -> Iterator[tuple[int, Any, psutil.Process]]:
    """The port of the pages of an index, the longest query so far, and the process."""
    port, longest = free_port(), Value("d", 0.0)
    server = Process(target=serve_pages, args=(folder, url, port, longest), daemon=True)
    server.start()
    try:
        wait_for(lambda: listening(port), 60, "the pages listen")
        yield port, longest, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.join(10)


def accounts(url: str, count: int) -> list[str]:
    """Names of so many accounts, which are made if there are none."""
    names = [f"browser{number}" for number in range(count)]
    database = open_database(url)
    with database.transaction() as tx:
        for name in names:
            if web_users.find(tx, name) is None:
                web_users.add(tx, name, ("administrator",), password_hash(), time.time())
    database.close()
    tidy(url)
    return names


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("index-sizes"))
    parser.add_argument("--sizes", default="100000,1000000")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--postgresql", metavar="URL", default="")
    options = parser.parse_args()
    sizes = [int(part) for part in options.sizes.split(",")]
    columns: dict[int, list[tuple[str, float, float, float]]] = {}
    for count in sizes:
        options.folder.mkdir(parents=True, exist_ok=True)
        sqlite = f"sqlite:///{options.folder}/index_{count}.sqlite"
        url = url_of(options.postgresql, count) if options.postgresql else sqlite
        if not is_there(url):
            make(url, count)
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            names = accounts(url, BROWSERS)
            with pages(Path(scratch), url) as (port, longest, server):
                browsers = [Browser(port, name) for name in names]
                columns[count] = measure(browsers[0], count, server)
                print(f"{count:,} series: the longest query took {1000 * longest.value:.0f} ms", flush=True)
                if options.rounds:
                    loss(port, Path(scratch), url, browsers, options.rounds, options.seconds, server)
    print("| page, ms | " + " | ".join(f"{count:,}: median | longest | processor" for count in sizes) + " |")
    print("|---|" + "---|---|---|" * len(sizes))
    for rows in zip(*columns.values(), strict=True):
        cells = (f"{median:.0f} | {most:.0f} | {processor:.0f}" for _, median, most, processor in rows)
        print(f"| {rows[0][0]} | " + " | ".join(cells) + " |")
    every = [row for column in columns.values() for row in column]
    print(
        f"median of all {statistics.median(row[1] for row in every):.0f} ms, most {max(row[1] for row in every):.0f} ms"
    )


if __name__ == "__main__":
    main()
