"""Kills at random moments under load from four senders: any process, all of them, or a power failure.

NODE_RANDOM_KILLS=n kills n times (8 by default; `make faults` 500). NODE_RANDOM_SEED repeats the choices of a run.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.campaign import Node, Pacs, check, ct_series, send
from tests.faults.scenarios import TWO_MODELS
from tests.postgresql import postgresql_server
from tests.programs import wait_for
from tests.s3 import S3
from tests.zygote import Zygote

ROUNDS = int(os.environ.get("NODE_FAULT_ROUNDS", "0"))
KILLS = int(os.environ.get("NODE_RANDOM_KILLS", "500" if ROUNDS else "8"))
SEED = int(os.environ.get("NODE_RANDOM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SENDERS = 4
MEAN_PAUSE_S = 1.5
MOST_WAITING = 16
"""Series that may wait for their report before a sender begins another: there is load, and an end to it."""


class Load(threading.Thread):
    """A sender that sends one series after the other, some of them twice, some with a late slice."""

    def __init__(self, node: Node, pacs: Pacs, number: int, enough: threading.Event) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.series = 0
        self._node, self._pacs, self._enough = node, pacs, enough
        self._choose = random.Random(SEED * 10 + number)

    def run(self) -> None:
        while not self._enough.is_set():
            instances = ct_series(7)
            late = dict(list(instances.items())[-1:]) if self._choose.random() < 0.3 else {}
            self._until_acknowledged({uid: data for uid, data in instances.items() if uid not in late})
            self.series += 1
            if self._choose.random() < 0.3:
                send(self._node.port, instances if not late else {}, {})
            if late:
                time.sleep(self._choose.uniform(0.3, 3.0))
                self._until_acknowledged(late)
            while not self._enough.is_set() and self.series * SENDERS > self._reported() + MOST_WAITING:
                time.sleep(0.1)

    def _reported(self) -> float:
        """How many series have been reported on, about."""
        return len(self._pacs.reports()) / len(self._node.models)

    def _until_acknowledged(self, instances: dict[str, bytes]) -> None:
        while not send(self._node.port, instances, self.acknowledged):
            time.sleep(self._choose.uniform(0.05, 0.3))


@contextmanager
def under_load(node: Node, pacs: Pacs) -> Iterator[list[Load]]:
    enough = threading.Event()
    senders = [Load(node, pacs, number, enough) for number in range(SENDERS)]
    for sender in senders:
        sender.start()
    yield senders
    enough.set()
    for sender in senders:
        wait_for(lambda: (node.tend(), not sender.is_alive())[1], 180, "the senders end")  # noqa: B023


def kill_one_way_or_another(node: Node, choose: random.Random) -> str:
    """Kill the whole node, cut its power, or kill one of its processes. Returns which."""
    node.tend()
    how = choose.choices(["tree", "power", "process"], [4, 2, 4])[0]
    if how == "process":
        try:
            os.kill(choose.choice(node.processes()), signal.SIGKILL)
        except ProcessLookupError:
            pass
        return how
    node.kill()
    if how == "power":
        node.lose_what_was_not_synced()
    node.tend()
    return how


def _some_work_is_done(node: Node, pacs: Pacs) -> None:
    """Otherwise, on a slow machine, kills would come before there is anything to interrupt."""
    before = len(pacs.reports())
    wait_for(lambda: (node.tend(), len(pacs.reports()) >= before + SENDERS)[1], 180, "reports arrive between the kills")


@pytest.mark.timeout(600 + 30 * KILLS)
def test_kills_at_random_moments_lose_nothing_and_report_nothing_twice(
    zygote: Zygote, tmp_path: Path, figures: list[str]
) -> None:
    """With two models, each of whose reports must be there once."""
    pacs = Pacs()
    kill_at_random(Node(zygote, tmp_path, pacs.port, models=TWO_MODELS), pacs, KILLS, figures)


@pytest.mark.timeout(600 + 30 * KILLS)
def test_with_an_index_in_postgresql_too(zygote: Zygote, tmp_path: Path, figures: list[str]) -> None:
    """The server keeps running: what it promises about power failures is not tested here."""
    with postgresql_server() as url:
        pacs = Pacs()
        kill_at_random(Node(zygote, tmp_path, pacs.port, index=url), pacs, max(4, KILLS // 5), figures)


@pytest.mark.timeout(600 + 30 * KILLS)
def test_with_files_in_a_bucket_too(zygote: Zygote, s3: S3, tmp_path: Path, figures: list[str]) -> None:
    """The S3 server keeps running: what it has taken stays."""
    pacs = Pacs()
    kill_at_random(Node(zygote, tmp_path, pacs.port, s3=s3), pacs, max(2, KILLS // 5), figures)


def kill_at_random(node: Node, pacs: Pacs, kills: int, figures: list[str]) -> None:
    choose = random.Random(SEED)
    ways: list[str] = []
    try:
        node.start()
        wait_for(lambda: node.listens, 60, "the node listens")
        with under_load(node, pacs) as senders:
            for number in range(1, kills + 1):
                if number % 5 == 0:
                    _some_work_is_done(node, pacs)
                if choose.random() < 0.8:  # otherwise at its start, perhaps before it listens
                    wait_for(lambda: (node.tend(), node.listens)[1], 60, "the node listens")
                time.sleep(min(0.05 + choose.expovariate(1 / MEAN_PAUSE_S), 10))
                ways.append(kill_one_way_or_another(node, choose))
        node.settle(300)
        acknowledged = {uid: sha256 for sender in senders for uid, sha256 in sender.acknowledged.items()}
        counts = check(node, pacs, acknowledged)
        node.end()
    except AssertionError as error:
        raise AssertionError(f"seed {SEED}: {error}: {node.describe()}") from error
    finally:
        node.kill()
        pacs.stop()
    kinds = {way: ways.count(way) for way in sorted(set(ways))}
    index, files = node.database().url.get_backend_name(), "bucket" if node.s3 else "folder"
    figures.append(
        f"random kills, {index}, {files}, seed {SEED}: {kinds}, starts {node.starts}; {counts}; "
        "lost 0, twice 0, stuck 0"
    )
