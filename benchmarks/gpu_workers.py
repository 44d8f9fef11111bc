"""One worker process and two on one device: how many CTs an hour, and what becomes of the time of each."""

import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.analysis_speed import ours, synthetic_volume
from benchmarks.chest_series import make_chest
from dicom_node.analysis.analyse import analyse
from dicom_node.analysis.open_model import OpenModel
from inference.covid.card import read_zheng_card
from inference.covid.loading import load_pipeline
from inference.covid.plug import PLUG
from inference.plug import DeviceChoice

SPAWNED = multiprocessing.get_context("spawn")
START_S = 60.0
LOOK_EVERY_S = 0.2


def keep_on(model: Path, device: str, slices: int, ready: Any, go: Any, until: Any, done: Any, ended: Any) -> None:
    """A process: volumes from HU to probability until the time is over. done: how many.  ended: when; Unix seconds."""
    pipeline, hu = load_pipeline(model, device), synthetic_volume(slices)
    ours(hu, 1.0, pipeline, True)
    ready.set()
    go.wait()
    while time.time() < until.value:
        ours(hu, 1.0, pipeline, True)
        done.value += 1
        ended.value = time.time()


def one_and_two_workers(model: Path, device: str, slices: int, seconds: float) -> None:
    """Print CTs an hour of one and of two processes."""
    alone = 0.0
    for count in (1, 2):
        rate = _rate(model, device, slices, seconds, count)
        alone = alone or rate
        ratio = f", {rate / alone:.2f} times one" if count > 1 and alone else ""
        print(f"{count} worker{'s' if count > 1 else ''}: {3600 * rate:.0f} CTs of {slices} slices an hour{ratio}")


def _rate(model: Path, device: str, slices: int, seconds: float, count: int) -> float:
    """CTs a second of `count` processes together. A CT that began in time counts, and so does the time it took.

    Raises RuntimeError if a process does not start, or fails.
    """
    go, until = SPAWNED.Event(), SPAWNED.Value("d", 0.0)
    readies = [SPAWNED.Event() for _ in range(count)]
    dones, ends = ([SPAWNED.Value(kind, 0) for _ in range(count)] for kind in "id")
    processes = [
        # Daemons: a process that waits for ever must not keep this one from ending.
        SPAWNED.Process(target=keep_on, args=(model, device, slices, ready, go, until, done, end), daemon=True)
        for ready, done, end in zip(readies, dones, ends, strict=True)
    ]
    try:
        for process in processes:
            process.start()
        _wait_until_ready(processes, readies)
        started = time.time()
        until.value = started + seconds
        go.set()
        for process in processes:
            process.join(seconds + START_S)
            if process.exitcode != 0:
                raise RuntimeError(f"a worker ended with {process.exitcode}" if process.exitcode else "a worker hangs")
        return sum(done.value / (end.value - started) for done, end in zip(dones, ends, strict=True))
    finally:
        for process in processes:
            process.kill()


def _wait_until_ready(processes: list[Any], readies: list[Any]) -> None:
    deadline = time.monotonic() + START_S
    for process, ready in zip(processes, readies, strict=True):
        while not ready.wait(LOOK_EVERY_S):
            if not process.is_alive():
                raise RuntimeError(f"a worker ended with {process.exitcode} before it began")
            if time.monotonic() > deadline:
                raise RuntimeError(f"a worker did not begin within {START_S:.0f} s")


def from_files(model: Path, device: str, slices: int) -> None:
    """Print what a chest takes from its DICOM files to its finding, by stage: the file cache is warm, no report."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make_chest(Path(folder), slices).files
        for where in dict.fromkeys((device, "cpu")):
            card = read_zheng_card(model)
            opened = OpenModel(card, card.identity(), PLUG.load(model, card, DeviceChoice(where, "exact", 0, False)))
            analyse(paths, opened)
            runs = [analyse(paths, opened) for _ in range(1 if where == "cpu" else 3)]
            if runs[0].refusal is not None:
                print(f"{card.name} on {where}: refused, {runs[0].refusal.code}")
                continue
            stages = {name: median([run.timings_s[name] for run in runs]) for name in runs[0].timings_s}
            each = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in stages.items())
            print(f"{card.name} on {where}, {slices} slices: {3600 / stages['total']:.0f} CTs an hour; ms: {each}")
