"""One worker process and two on one device: how many CTs an hour, and what becomes of the time of each."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

from benchmarks.analysis_speed import ours, synthetic_volume
from inference.covid.loading import load_pipeline

Process = multiprocessing.get_context("spawn").Process
Value = multiprocessing.get_context("spawn").Value
Event = multiprocessing.get_context("spawn").Event
START_S = 120.0


def analyse(model: Path, device: str, slices: int, ready: Any, go: Any, done: Any, until: Any) -> None:
    """A process: volumes from HU to probability until the time is over. done: how many so far."""
    pipeline, hu = load_pipeline(model, device), synthetic_volume(slices)
    ours(hu, 1.0, pipeline, True)
    ready.set()
    go.wait()
    while time.time() < until.value:
        ours(hu, 1.0, pipeline, True)
        done.value += 1


def one_and_two_workers(model: Path, device: str, slices: int, seconds: float) -> None:
    """Print CTs an hour of one and of two processes."""
    alone = 0.0
    for count in (1, 2):
        rate = _rate(model, device, slices, seconds, count)
        alone = alone or rate
        ratio = f", {rate / alone:.2f} times one" if count > 1 and alone else ""
        print(
            f"{count} worker{'s' if count > 1 else ''}: {3600 * rate:.0f} CTs of {slices} slices an hour{ratio}",
            flush=True,
        )


def _rate(model: Path, device: str, slices: int, seconds: float, count: int) -> float:
    """CTs a second of `count` processes together. A CT that began in time counts, and so does the time it took."""
    go, until = Event(), Value("d", 0.0)
    readies, dones = [Event() for _ in range(count)], [Value("i", 0) for _ in range(count)]
    processes = [
        Process(target=analyse, args=(model, device, slices, ready, go, done, until))
        for ready, done in zip(readies, dones, strict=True)
    ]
    for process in processes:
        process.start()
    if not all(ready.wait(START_S) for ready in readies):
        raise RuntimeError("a worker did not start")
    started = time.time()
    until.value = started + seconds
    go.set()
    for process in processes:
        process.join(seconds + START_S)
        if process.is_alive():
            process.kill()
    return float(sum(done.value for done in dones)) / (time.time() - started)
