"""A node that stops hands back what it cannot finish, and one that starts waits for what is left of the last."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from config.reasons import Refusal
from config.settings import Settings, WorkerSettings
from dicom_node.analysis.worker import Worker
from dicom_node.cli import processes
from dicom_node.cli.exits import UNAVAILABLE
from dicom_node.errors import GpuLost, NodeError
from dicom_node.runtime.node_lock import only_node
from inference.errors import DeviceLost
from storage.jobs import ClaimedJob
from tests.programs import wait_for
from tests.storage_factory import QUIET_S, Store


class Slow(Worker):
    """A worker whose analysis takes as long as the test wants."""

    def __init__(self, store: Store, drain_s: float) -> None:
        settings = Settings(data_dir=store.folder, worker=WorkerSettings(drain_s=drain_s, poll_s=0.02, lease_s=1.01))
        super().__init__(settings, store.database, store.files, "cpu")
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.lost: list[bool] = []

    def handle(self, job: ClaimedJob) -> None:
        self.begun.set()
        self.go_on.wait(30)
        self._commit(job, *self.found())

    def found(self) -> tuple[object, ...]:
        from dicom_node.analysis.analyse import Analysis
        from dicom_node.analysis.result_objects import ResultObjects
        from tests.factories import model

        return Analysis(None, Refusal("MISSING_SLICES", "Slices are missing."), None), model(), ResultObjects()


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Store(tmp_path) as opened:
        opened.receive(1, now=time.time() - 2 * QUIET_S)
        opened.close_due(time.time())
        yield opened


def stopped(worker: Worker, store: Store) -> bool:
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(worker.run(stop)))
    thread.start()
    assert worker.begun.wait(10)  # type: ignore[attr-defined]
    stop.set()
    if worker.settings.worker.drain_s > 1:
        worker.go_on.set()  # type: ignore[attr-defined]
    thread.join(20)
    return bool(ended[0])


class OnLostGpu(Slow):
    """A worker whose GPU fails in mid-run."""

    def handle(self, job: ClaimedJob) -> None:
        raise DeviceLost("H200 computes no more")


def test_a_worker_whose_gpu_is_lost_ends_after_one_job_which_is_tried_again(store: Store) -> None:
    store.receive(2, series_uid="1.2.4", study_uid="1.5", now=time.time() - 2 * QUIET_S)
    store.close_due(time.time())
    with pytest.raises(GpuLost):
        OnLostGpu(store, drain_s=1).run(threading.Event())
    assert store.rows("SELECT state, attempts, failure_reason FROM jobs ORDER BY attempts") == [
        {"state": "QUEUED", "attempts": 0, "failure_reason": None},
        {"state": "QUEUED", "attempts": 1, "failure_reason": "H200 computes no more"},
    ]


def test_a_gpu_that_is_lost_while_a_series_is_analysed_ahead_costs_no_job_an_attempt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> bool:
        raise DeviceLost("H200 computes no more")

    settings = Settings(data_dir=store.folder, worker=WorkerSettings(ahead=True, poll_s=0.02, drain_s=1))
    worker = Worker(settings, store.database, store.files, "cuda:0")
    assert worker._ahead is not None
    monkeypatch.setattr(worker._ahead, "_step", step)
    assert not worker._ahead.go_on(1, [], {})
    with pytest.raises(GpuLost):
        worker.run(threading.Event())
    assert store.rows("SELECT state, attempts FROM jobs") == [{"state": "QUEUED", "attempts": 0}]


def lose_gpu(folder: Path, url: str) -> None:
    def run(*_: object) -> bool:
        raise GpuLost("H200 computes no more")

    Worker.run = run  # type: ignore[method-assign]
    os.environ |= {"DICOM_NODE_DATA_DIR": str(folder), "DICOM_NODE_STORAGE__DATABASE_URL": url}
    processes.work(device="cpu", number=0)


def test_the_process_of_a_worker_whose_gpu_is_lost_says_so_by_its_exit_status(store: Store) -> None:
    """The supervisor takes 1 for a fault of a new configuration."""
    process = multiprocessing.get_context("spawn").Process(target=lose_gpu, args=(store.folder, store.url))
    process.start()
    process.join(25)
    assert process.exitcode == UNAVAILABLE


def test_a_worker_without_its_gpu_claims_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_DATA_DIR", str(store.folder))
    found = subprocess.run(
        [sys.executable, "-m", "dicom_node", "work", "--device", "cuda:7"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == UNAVAILABLE and "this machine has 0 CUDA devices" in found.stderr
    assert store.rows("SELECT state, attempts FROM jobs") == [{"state": "QUEUED", "attempts": 0}]


def hang(folder: Path, url: str, superseded: bool) -> None:
    with Store(folder, url) as opened:
        if superseded:  # the lease ends with its job
            threading.Timer(0.5, opened.receive, (2,), {"now": time.time()}).start()
        worker = Slow(opened, drain_s=1)  # waits for half a minute
        worker.settings = worker.settings.model_copy(
            update={"worker": worker.settings.worker.model_copy(update={"longest_s": 1.0})}
        )
        worker.run(threading.Event())


def ends_hanging(store: Store, *, superseded: bool) -> bool:
    process = multiprocessing.get_context("spawn").Process(target=hang, args=(store.folder, store.url, superseded))
    process.start()
    process.join(25)
    return process.exitcode == 1


def test_a_worker_whose_job_hangs_ends_its_process_also_if_nobody_needs_the_job_any_more(store: Store) -> None:
    assert ends_hanging(store, superseded=True)
    assert store.states("jobs") == ["SUPERSEDED"]


def test_a_worker_whose_job_hangs_ends_its_process_and_the_next_one_gets_the_job(store: Store) -> None:
    assert ends_hanging(store, superseded=False)
    wait_for(lambda: store.claim(time.time()) is not None, 10, "its lease is over")
    assert store.rows("SELECT state, attempts FROM jobs") == [{"state": "RUNNING", "attempts": 2}]


def test_a_stopped_worker_finishes_what_it_can(store: Store) -> None:
    assert stopped(Slow(store, drain_s=20), store)
    assert store.states("jobs") == ["REPORTED"]


def test_a_stopped_worker_hands_back_what_it_cannot_finish_and_it_costs_no_attempt(store: Store) -> None:
    worker = Slow(store, drain_s=0.1)
    assert not stopped(worker, store)
    assert store.rows("SELECT state, attempts, worker FROM jobs") == [
        {"state": "QUEUED", "attempts": 0, "worker": None}
    ]
    assert "handed back" in str(store.rows("SELECT detail FROM audit WHERE event = 'job.queued' ORDER BY id DESC"))
    next_one = store.claim(time.time())
    assert next_one is not None
    worker.go_on.set()  # the analysis that was given up ends after all: its result is nobody's
    time.sleep(0.3)
    assert store.rows("SELECT * FROM results") == []
    store.finish(next_one, time.time())
    assert store.states("jobs") == ["REPORTED"]


def test_a_second_node_waits_for_the_first_and_its_children_and_then_says_why_not(tmp_path: Path) -> None:
    stop = threading.Event()
    with only_node(tmp_path, stop), pytest.raises(NodeError, match="another node"), only_node(tmp_path, stop, 0.3):
        pass
    begun, ended = time.monotonic(), threading.Event()

    def first() -> None:
        with only_node(tmp_path, stop):
            ended.wait(10)

    holder = threading.Thread(target=first)
    holder.start()
    wait_for(lambda: any(tmp_path.glob("node-*.lock")))
    time.sleep(0.2)
    threading.Timer(0.5, ended.set).start()
    with only_node(tmp_path, stop, 10):
        assert time.monotonic() - begun >= 0.5
    holder.join()
