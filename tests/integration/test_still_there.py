"""Asking the PACS about results that were reported: what it says twice is taken back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from config.errors import ConfigError
from config.load import load_settings
from config.reasons import ReasonCode
from config.settings import Destination
from dicom_node.completion.still_there import DAY_S, HOUR_S, StillThere
from dicom_node.demo.pacs import Pacs
from storage import reopening, series
from storage.jobs import ModelRef
from storage.series import SeriesRecord
from tests.storage_factory import Store
from tests.told import ToldSeries, node_of

ROUND_S = 6 * HOUR_S


class Asking:
    """A node with one result, and the PACS that it asks."""

    def __init__(self, store: Store, folder: Path, pacs: Pacs) -> None:
        self.images = folder / "series"
        self.told = ToldSeries(store, self.images, to=("pacs",))
        self.now = self.told.analysed().created_at + 1
        self.store = store
        pacs.load(self.images)
        peer = Destination(name="pacs", ae_title="DEMO_PACS", host="127.0.0.1", port=pacs.port)
        completion = {"query_destination": "pacs"}
        self.node = node_of(store, peer, completion=completion, iocm={"poll_hours": 6, "days": 30_000})
        self.still_there = StillThere(self.node.settings, peer, store.database, self.node.files)

    def ask(self, rounds: int) -> SeriesRecord:
        """So many rounds later."""
        for _ in range(rounds):
            for _ in range(3):
                self.still_there.step_at(self.now)
            self.now += ROUND_S
        with self.store.database.read() as tx:
            return series.get_series(tx, 1)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    with Pacs(tmp_path / "pacs") as running:
        yield running


@pytest.fixture
def asking(tmp_path: Path, pacs: Pacs) -> Iterator[Asking]:
    with Store(tmp_path / "store") as store:
        yield Asking(store, tmp_path, pacs)


def test_as_long_as_the_pacs_lists_the_images_nothing_happens(asking: Asking) -> None:
    assert asking.ask(3).outcome == "ANALYSED"


@pytest.mark.parametrize("count", [1, 9])
def test_images_that_are_gone_in_two_rounds_take_the_result_back(asking: Asking, pacs: Pacs, count: int) -> None:
    for path in sorted(asking.images.iterdir())[:count]:
        pacs.delete(dcmread(path).SOPInstanceUID)
    assert asking.ask(1).refusal_code is None
    record = asking.ask(1)
    assert (record.refusal_code, record.job_state, record.revision) == (ReasonCode.WITHDRAWN, "QUEUED", 2)
    assert "the PACS no longer lists all of them" in str(record.refusal_text)
    assert asking.ask(2).revision == 2


def test_images_that_are_back_in_the_next_round_take_nothing_back(asking: Asking, pacs: Pacs) -> None:
    path = sorted(asking.images.iterdir())[0]
    for _ in range(2):
        pacs.delete(dcmread(path).SOPInstanceUID)
        assert asking.ask(1).refusal_code is None
        pacs.load(asking.images)
        assert asking.ask(1).refusal_code is None


def test_a_study_that_was_given_to_another_patient_takes_the_result_back(asking: Asking, pacs: Pacs) -> None:
    for path in asking.images.iterdir():
        image = dcmread(path)
        pacs.delete(image.SOPInstanceUID)
        image.PatientID = "another"
        image.save_as(path)
    pacs.load(asking.images)
    record = asking.ask(2)
    assert record.refusal_code == ReasonCode.WITHDRAWN
    assert "under another patient" in str(record.refusal_text)


def test_a_person_who_has_them_analysed_all_the_same_is_not_overruled(asking: Asking, pacs: Pacs) -> None:
    pacs.delete(dcmread(sorted(asking.images.iterdir())[0]).SOPInstanceUID)
    asking.ask(2)
    with asking.store.database.transaction() as tx:
        reopening.analyse_again(tx, 1, asking.now, ModelRef("test-model", "1", "d" * 64))
    assert asking.ask(3).refusal_code is None


def test_a_pacs_that_is_away_takes_nothing_back_and_is_asked_again(asking: Asking, pacs: Pacs) -> None:
    pacs.stop()
    assert asking.ask(3).outcome == "ANALYSED"
    assert asking.still_there._after is not None


def test_only_results_of_the_last_days_are_asked_about(asking: Asking, pacs: Pacs) -> None:
    pacs.delete(dcmread(sorted(asking.images.iterdir())[0]).SOPInstanceUID)
    asking.now += 30_001 * DAY_S
    assert asking.ask(3).refusal_code is None


def test_polling_needs_a_pacs_to_ask(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[iocm]\npoll_hours = 6\n")
    with pytest.raises(ConfigError, match="query_destination"):
        load_settings(path)
