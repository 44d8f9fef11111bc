"""A process ends when its index is replaced under it."""

import threading
from pathlib import Path

import pytest

from dicom_node.runtime.store_watch import watched
from storage.database import open_database
from storage.errors import StoreReplaced
from tests.programs import wait_for


def test_a_process_is_told_to_stop_and_ends_with_the_reason(tmp_path: Path) -> None:
    database, stop = open_database(f"sqlite:///{tmp_path}/node.db"), threading.Event()
    with pytest.raises(StoreReplaced), watched(database, stop, every_s=0.02):
        (tmp_path / "node.db").rename(tmp_path / "away.db")
        assert stop.wait(10)


def test_a_process_that_is_stopped_in_good_order_ends_without_a_word(tmp_path: Path) -> None:
    database, stop = open_database(f"sqlite:///{tmp_path}/node.db"), threading.Event()
    with watched(database, stop, every_s=0.02):
        stop.set()
    wait_for(lambda: not any(t.name == "store watch" for t in threading.enumerate()), 10, "the watch ends")
