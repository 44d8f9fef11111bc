"""How many slices of a series will come, asked of a PACS while they arrive."""

import time
from pathlib import Path

import pytest

from dicom_node.analysis import expected
from dicom_node.analysis.expected import ExpectedCount
from tests.integration.test_completion import CountingPacs, asking_node
from tests.outbox import Node, ct_series
from tests.programs import free_port, wait_for

HERE = 3


def counted(node: Node) -> tuple[ExpectedCount, int]:
    """Somebody who asks about the only series of a node; and its number."""
    return ExpectedCount(node.settings, node.database, node.files), node.series().series_pk


def node_with(folder: Path, port: int, **completion: object) -> Node:
    node = asking_node(folder, port, **completion)
    node.receive(ct_series(HERE), time.time(), quiet_s=60)
    return node


def test_what_the_pacs_counts_is_known_before_the_last_slice_has_come(tmp_path: Path) -> None:
    slices = ct_series(HERE)
    with CountingPacs(slices, 10) as pacs:
        node = asking_node(tmp_path, pacs.port)
        node.receive(slices, time.time(), quiet_s=60)
        asks, series_pk = counted(node)
        assert asks.of(series_pk, HERE) is None  # nobody waits for the answer
        assert wait_for(lambda: asks.of(series_pk, HERE), 10, "the count") == 10
        assert asks.of(series_pk, 9) == 10
        assert asks.of(series_pk, 10) == 10  # all are here
        assert pacs.questions == {"SERIES": 1}
        assert asks.of(series_pk, 11) is None


def test_a_pacs_that_still_gets_the_series_itself_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "_AGAIN_AFTER_S", 0.1)
    slices = ct_series(HERE)
    with CountingPacs(slices, HERE) as pacs:
        node = asking_node(tmp_path, pacs.port)
        node.receive(slices, time.time(), quiet_s=60)
        asks, series_pk = counted(node)
        wait_for(lambda: asks.of(series_pk, HERE) is None and pacs.questions["SERIES"] > 1, 10, "it is asked again")
        pacs.count = 10
        assert wait_for(lambda: asks.of(series_pk, HERE), 10, "the new count") == 10


def test_a_pacs_that_is_away_is_left_alone_and_nothing_is_guessed(tmp_path: Path) -> None:
    node = node_with(tmp_path, free_port(), silence_s=600)
    asks, series_pk = counted(node)
    assert asks.of(series_pk, HERE) is None
    wait_for(lambda: not asks._asking, 10, "the question has failed")
    assert asks.of(series_pk, HERE) is None and not asks._asking


def test_without_a_pacs_to_ask_nobody_is_asked(tmp_path: Path) -> None:
    node = node_with(tmp_path, free_port(), query_destination="")
    asks, series_pk = counted(node)
    assert asks.of(series_pk, HERE) is None and not asks._asking
