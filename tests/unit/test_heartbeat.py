"""Keeping a lease: renewed while the work lasts, whatever a single renewal comes to."""

import threading

import pytest

from dicom_node import heartbeat
from storage.database import open_database
from storage.errors import DatabaseBusy


@pytest.fixture
def database(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/index.sqlite")
    yield database
    database.close()


def test_a_lease_is_renewed_until_the_work_is_done_even_if_a_renewal_fails(database):
    renewed, beats = threading.Event(), []

    def renew(_tx, now):
        beats.append(now)
        if len(beats) == 1:
            raise DatabaseBusy("once")
        renewed.set()
        return True

    with heartbeat.kept(database, renew, 0.1):
        assert renewed.wait(10)
    after = len(beats)
    assert not any(thread.name == "lease" for thread in threading.enumerate())
    assert len(beats) == after


def test_a_lease_that_somebody_else_has_is_left_to_them(database):
    asked = []
    with heartbeat.kept(database, lambda _tx, _now: bool(asked.append(1)), 0.1):
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "lease")
        thread.join(10)
    assert len(asked) == 1
