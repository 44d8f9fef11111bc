"""Two transactions about one series at once: on SQLite one waits for the other, on PostgreSQL a row's lock sees to it.

`DICOM_NODE_TEST_DATABASE` runs these on PostgreSQL; tests/integration/test_storage_postgresql.py does.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import quiet_time, recording, retention, series
from storage.arrival import Outcome
from storage.errors import NotDueYet
from tests.storage_factory import MODEL, QUIET_S, Store

DAY_S = 86400.0
HEAD_START_S = 0.5
"""The second transaction ends within it if it does not wait for the first one."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as running:
        yield running


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have a second transaction come in just before a function is called for the first time."""
    second: list[threading.Thread] = []

    def arrange(module: Any, name: str, other: Callable[[], object]) -> None:
        function = getattr(module, name)
        second.append(threading.Thread(target=other))

        def interrupted(*arguments: Any) -> Any:
            if second[0].ident is None:
                second[0].start()
                second[0].join(HEAD_START_S)
            return function(*arguments)

        monkeypatch.setattr(module, name, interrupted)

    yield arrange
    second[0].join(30)
    assert not second[0].is_alive()


def test_a_series_that_is_closed_while_a_slice_is_recorded_does_not_lose_it(
    store: Store, interrupt: Callable[..., None]
) -> None:
    """The closing comes when the recording has looked at the series and not written anything yet."""
    closed = threading.Event()

    def close() -> None:
        with suppress(NotDueYet), store.database.transaction() as tx:
            for due in quiet_time.due_series(tx, QUIET_S):
                series.close_series(tx, due.series_pk, QUIET_S, series.Closing(MODEL))
        closed.set()

    store.receive(1, now=0.0)
    interrupt(recording, "_conflict", close)
    assert store.receive(2, now=QUIET_S) == [Outcome.NEW]
    assert closed.wait(30)
    with store.database.read() as tx:
        found = series.get_series(tx, "1.2.3")
        held = series.instances_digest(series.series_instances(tx, found.series_pk))
    queued = [row["instances_digest"] for row in store.rows("SELECT instances_digest FROM jobs WHERE state = 'QUEUED'")]
    assert found.state == "OPEN" or queued == [held], "closed without its last slice"


def test_a_late_slice_that_comes_while_old_images_are_deleted_is_kept(
    store: Store, interrupt: Callable[..., None]
) -> None:
    """It comes when the series was found to be finished and no image is marked yet."""
    recorded = threading.Event()

    def late() -> None:
        store.receive(3, now=100 * DAY_S)
        recorded.set()

    store.reported()
    interrupt(retention, "remove_images", late)
    assert retention.delete_old_images(store.database, store.files, 100 * DAY_S, 30) == 2
    assert recorded.wait(30)
    rows = store.rows("SELECT sop_instance_uid AS uid, path, gone_reason AS gone FROM instances ORDER BY id")
    assert [(row["uid"], row["gone"]) for row in rows] == [
        ("1.2.3.1", "retention"),
        ("1.2.3.2", "retention"),
        ("1.2.3.3", None),
    ]
    assert store.files.absolute(str(rows[2]["path"])).exists()
    assert store.states("series") == ["OPEN"]
