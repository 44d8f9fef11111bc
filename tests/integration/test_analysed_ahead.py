"""A worker that analyses ahead: what it says is what it would have said, and no job waits for it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from dicom_node.analysis import ahead as module
from dicom_node.analysis import worker as worker_module
from dicom_node.analysis.analyse import analyse_loaded, load_series
from dicom_node.analysis.expected import ExpectedCount
from dicom_node.analysis.worker import Worker
from inference.phantom.chest import make_phantom
from inference.phantom.series import write_series
from storage import series
from tests.ahead_orders import arriving, in_pieces
from tests.conftest import ROOT

AHEAD = {"ahead": True}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(make_phantom(12, slices=40, size=256), tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def plain(phantom: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the node says of the series without analysing ahead."""
    with arriving(tmp_path_factory.mktemp("plain"), ahead=False) as node:
        node.receive(phantom)
        node.close()
        said = node.analyse()
        assert said["outcome"] == "ANALYSED"
        return said


@pytest.fixture
def analysed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who has analysed a whole volume: "ahead", or "job"."""
    calls: list[str] = []

    def noted(who: str) -> Any:
        def analyse(*arguments: Any, **options: Any) -> Any:
            calls.append(who)
            return analyse_loaded(*arguments, **options)

        return analyse

    monkeypatch.setattr(module, "analyse_loaded", noted("ahead"))
    monkeypatch.setattr(worker_module, "analyse_loaded", noted("job"))
    return calls


def test_a_series_that_closes_as_it_was_seen_is_reported_at_once(
    tmp_path: Path, phantom: list[Path], plain: dict[str, Any], analysed: list[str]
) -> None:
    with arriving(tmp_path, ahead=True) as node:
        in_pieces(node, phantom, 1)
        node.settle()
        assert set(analysed) == {"ahead"} and not node.store.rows("SELECT * FROM jobs"), "and nothing is claimed for it"
        node.close()
        assert node.analyse() == plain
    assert set(analysed) == {"ahead"}, "the job itself had nothing left to compute"
    assert not list((tmp_path / "ahead").iterdir())


@pytest.mark.parametrize(("more", "at_once"), [(0, ["ahead"]), (1, [])])
def test_a_series_is_analysed_as_soon_as_all_that_the_pacs_has_are_here(
    tmp_path: Path,
    phantom: list[Path],
    analysed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    more: int,
    at_once: list[str],
) -> None:
    monkeypatch.setattr(ExpectedCount, "of", lambda *_: len(phantom) + more)
    monkeypatch.setattr(module, "SETTLED_S", 0.0 if more else 600.0)
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        node.idle(10_000)
    assert analysed == at_once


def test_what_was_computed_is_there_for_the_job_however_early_its_series_looks_claimed(
    tmp_path: Path, phantom: list[Path], plain: dict[str, Any], analysed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Worker.handle

    def looked_again_before(self: Worker, *arguments: Any) -> None:
        self._read_ahead.step()  # the other thread: the series is neither open nor queued any more
        handle(self, *arguments)

    monkeypatch.setattr(Worker, "handle", looked_again_before)
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        node.settle()
        node.close()
        assert node.analyse() == plain
    assert set(analysed) == {"ahead"}


def test_a_series_that_another_worker_has_claimed_is_dropped(tmp_path: Path, phantom: list[Path]) -> None:
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        node.settle()
        assert list((tmp_path / "ahead").iterdir())
        node.close()
        assert node.store.claim(node.now) is not None
        assert node.worker._ahead is not None
        node.worker._ahead.claims()
        node.worker._read_ahead.step()  # while this worker looks for a job, too
        assert not node.worker.work_once(node.now)
        assert not list((tmp_path / "ahead").iterdir())


def test_a_worker_without_a_job_does_not_wait_for_what_is_computed(tmp_path: Path, phantom: list[Path]) -> None:
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        node.settle()
        ahead = node.worker._ahead
        assert ahead is not None
        ahead.claims()
        ahead.leave()
        with ahead._computing:  # the other thread, with the next series
            looking = threading.Thread(target=ahead.done, daemon=True)
            looking.start()
            looking.join(20)
            assert not looking.is_alive()


def test_a_slice_that_comes_late_is_in_the_result(
    tmp_path: Path, phantom: list[Path], plain: dict[str, Any], analysed: list[str]
) -> None:
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom[:-1])
        node.settle()
        node.receive(phantom[-1:])
        node.close()  # at once: the worker has no time to look again
        assert node.analyse() == plain
    assert analysed[0] == "ahead" and analysed.count("job") == 1


def test_slices_that_are_missing_at_the_close_are_missing_in_the_result(tmp_path: Path, phantom: list[Path]) -> None:
    said = []
    for ahead in (False, True):
        with arriving(tmp_path / str(ahead), ahead=ahead) as node:
            node.receive(phantom[:20] + phantom[23:])
            node.settle()
            node.close()
            said.append(node.analyse())
    assert said[0] == said[1] and said[0]["reason_code"] == "MISSING_SLICES"


def test_a_job_of_another_series_goes_before(
    tmp_path: Path, phantom: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_series(make_phantom(13, slices=40, size=256), tmp_path / "other")
    with arriving(tmp_path / "node", ahead=True) as node:
        node.receive(other)
        node.close()
        node.receive(phantom)
        steps: list[bool] = []
        analyse = Worker._analyse

        def analysing(self: Worker, *arguments: Any, **options: Any) -> None:
            steps.append(self._ahead is not None and self._ahead.go_on(2, [], {}))
            analyse(self, *arguments, **options)

        monkeypatch.setattr(Worker, "_analyse", analysing)
        assert node.worker.work_once(node.now)
        assert steps == [False]


def test_what_was_begun_is_left_when_a_job_is_claimed(
    tmp_path: Path, phantom: list[Path], analysed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with arriving(tmp_path, ahead=True) as node:
        ahead = node.worker._ahead
        assert ahead is not None

        def loading(*arguments: Any) -> Any:
            ahead._job_waits.set()  # meanwhile the worker claims a job of another series
            return load_series(*arguments)

        monkeypatch.setattr(module, "load_series", loading)
        node.receive(phantom)
        node.settle()
        assert analysed == ["ahead"] and ahead._series is not None and ahead._series.whole is None
        ahead.done()
        monkeypatch.setattr(module, "load_series", load_series)
        node.settle()
        assert ahead._series.whole is not None, "and taken up again afterwards"


def test_a_series_in_which_the_model_fails_is_left_to_its_job(
    tmp_path: Path, phantom: list[Path], plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(module, "arrived", failing)
    with arriving(tmp_path, ahead=True) as node:
        for start in range(0, len(phantom), 10):
            node.receive(phantom[start : start + 10])
            node.idle(100)
        node.close()
        assert node.analyse() == plain
    assert len(calls) == 1, "it is not tried again"


def test_a_refused_series_is_dropped(tmp_path: Path, phantom: list[Path]) -> None:
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        node.idle(10_000)
        ahead = node.worker._ahead
        assert ahead is not None and ahead._series is not None
        with node.store.database.transaction() as tx:
            series.close_series(tx, 1, node.now + 10, series.Closing(None))
        node.idle(1)
        assert ahead._series is None and not list((tmp_path / "ahead").iterdir())


DIES = """
import os, sys
from pathlib import Path
from config.settings import Settings
from dicom_node.analysis import ahead
from dicom_node.analysis.expected import ExpectedCount
from dicom_node.analysis.worker import Worker
from storage.database import Database
from storage.folder import FolderStore
folder = Path(sys.argv[1])
ahead.arrived = lambda *_arguments: os.kill(os.getpid(), 9)
settings = Settings(data_dir=folder, sources=[{"ae_title": "CT"}], worker={"ahead": True})
worker = Worker(settings, Database(f"sqlite:///{folder}/node.db"), FolderStore(folder / "files"), "cpu")
while worker._read_ahead.step():
    pass
"""


def test_a_series_that_killed_a_worker_is_analysed_by_its_job_alone(
    tmp_path: Path, phantom: list[Path], plain: dict[str, Any], analysed: list[str]
) -> None:
    with arriving(tmp_path, ahead=True) as node:
        node.receive(phantom)
        died = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=ROOT, check=False)
        assert died.returncode == -signal.SIGKILL and os.listdir(tmp_path / "ahead") == ["1"]
        node.settle()
        assert node.worker._ahead is not None and node.worker._ahead._series is None
        node.close()
        assert node.analyse() == plain
    assert analysed == ["job"]


def test_of_series_that_arrive_together_one_is_stayed_with(tmp_path: Path, phantom: list[Path]) -> None:
    others = write_series(make_phantom(13, slices=40, size=256), tmp_path / "other")
    with arriving(tmp_path / "node", ahead=True) as node:
        stayed = set()
        for start in range(0, 40, 8):
            for paths in (phantom, others):
                node.receive(paths[start : start + 8])
                node.idle(9)
                stayed.add(node.worker._read_ahead._series_pk)
        assert len(stayed) == 1


def test_the_setting_needs_what_it_builds_on() -> None:
    for without in ({"read_ahead_mb": 0}, {"max_attempts": 1}):
        with pytest.raises(ValueError, match="ahead = true needs"):
            Settings(worker={"ahead": True, **without})
    assert Settings().worker.ahead is False
