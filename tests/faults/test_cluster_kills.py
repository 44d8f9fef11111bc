"""Kills at random of two hosts' nodes and of a Ray cluster with their workers, on one PostgreSQL and one S3 store.

NODE_CLUSTER_KILLS=n kills n times (2 by default; `make cluster-kills` 300). NODE_RANDOM_SEED repeats the choices.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from dicom_node.cluster import reconciler
from tests.faults.campaign import Node, Pacs, check
from tests.faults.test_cluster import WORKERS, cluster_variables, own
from tests.faults.test_random_kills import MEAN_PAUSE_S, SEED, Load
from tests.postgresql import postgresql_server
from tests.programs import wait_for
from tests.ray_cluster import RayCluster
from tests.s3 import S3
from tests.zygote import Zygote

KILLS = int(os.environ.get("NODE_CLUSTER_KILLS", "2"))
PATIENCE_S = 600


@dataclass
class Region:
    """Two nodes without workers of their own, and the cluster that has them. away: hosts of it that are gone."""

    nodes: list[Node]
    pacs: Pacs
    cluster: RayCluster
    away: set[int]

    def tend(self) -> bool:
        """What the hosts' service managers do."""
        for node in self.nodes:
            node.tend()
        return True

    def settle(self) -> None:
        """Wait until nothing is left to do, and all workers are back."""
        wait_for(lambda: self.tend() and self.nodes[0].is_settled(), PATIENCE_S, "nothing is stuck")
        wait_for(lambda: self.tend() and len(self.cluster.workers()) == WORKERS, PATIENCE_S, "the pool has its size")

    def bring_back(self) -> None:
        """Start the cluster's hosts that are gone; all of it if its head is."""
        for number in sorted(self.away):
            self.cluster.add(number)
        self.away.clear()


def a_node(region: Region, choose: random.Random) -> None:
    choose.choice(region.nodes).kill()


def the_power_of_a_node(region: Region, choose: random.Random) -> None:
    node = choose.choice(region.nodes)
    node.kill()
    node.lose_what_was_not_synced()


def a_process_of_a_node(region: Region, choose: random.Random) -> None:
    _kill_one(choose.choice(region.nodes).processes(), choose)


def a_worker(region: Region, choose: random.Random) -> None:
    _kill_one(region.cluster.workers(), choose)


def an_actor(region: Region, choose: random.Random) -> None:
    _kill_one(region.cluster.actors(), choose)


def a_host_of_the_cluster(region: Region, choose: random.Random) -> None:
    number = choose.choice((0, 1))
    if number in region.away:
        region.bring_back()
    region.cluster.remove(number)
    region.away.add(number)


def all_of_the_cluster(region: Region, _: random.Random) -> None:
    region.cluster.kill()
    region.away.clear()
    region.cluster.start(hosts=2)


def _kill_one(processes: list[int], choose: random.Random) -> None:
    if processes:
        with suppress(ProcessLookupError):
            os.kill(choose.choice(processes), signal.SIGKILL)


WAYS: dict[Callable[[Region, random.Random], None], int] = {
    a_node: 3,
    the_power_of_a_node: 2,
    a_process_of_a_node: 4,
    a_worker: 5,
    an_actor: 5,
    a_host_of_the_cluster: 2,
    all_of_the_cluster: 1,
}


@contextmanager
def under_load(region: Region) -> Iterator[list[Load]]:
    """Two senders to each node."""
    enough = threading.Event()
    senders = [Load(region.nodes[number % 2], region.pacs, number, enough) for number in range(4)]
    for sender in senders:
        sender.start()
    yield senders
    enough.set()
    wait_for(lambda: region.tend() and not any(one.is_alive() for one in senders), PATIENCE_S, "the senders end")


@pytest.fixture
def region(zygote: Zygote, s3: S3, tmp_path: Path) -> Iterator[Region]:
    pacs = Pacs()
    with postgresql_server() as url:
        cluster = RayCluster(tmp_path)
        nodes = [
            Node(zygote, tmp_path / name, pacs.port, index=url, s3=s3, **cluster_variables(cluster, tmp_path))
            for name in ("one", "two")
        ]
        # The workers' hosts have a folder of their own; the files are in the bucket.
        workers_folder = {"DICOM_NODE_DATA_DIR": str(tmp_path / "workers")}
        cluster.variables.update({**own(nodes[0].variables), **workers_folder})
        try:
            for node in nodes:
                node.start()
                wait_for(lambda: node.listens, 120, "the node listens")  # noqa: B023
            with nodes[0].database().transaction() as tx:
                reconciler.want(tx, up=True)
            cluster.start(hosts=2)
            yield Region(nodes, pacs, cluster, set())
        finally:
            for node in nodes:
                node.kill()
            cluster.end()
            pacs.stop()


@pytest.mark.timeout(1200 + 60 * KILLS)
def test_kills_of_two_hosts_and_a_cluster_lose_nothing_and_report_nothing_twice(
    region: Region, figures: list[str]
) -> None:
    choose = random.Random(SEED)
    ways: list[str] = []
    try:
        with under_load(region) as senders:
            for number in range(1, KILLS + 1):
                time.sleep(min(0.05 + choose.expovariate(1 / MEAN_PAUSE_S), 10))
                region.tend()
                if number % 5 == 0:
                    region.bring_back()
                    _some_work_is_done(region)
                (way,) = choose.choices(list(WAYS), list(WAYS.values()))
                way(region, choose)
                ways.append(way.__name__)
            region.bring_back()
        region.settle()
        acknowledged = {uid: sha256 for sender in senders for uid, sha256 in sender.acknowledged.items()}
        counts = check(region.nodes[0], region.pacs, acknowledged)
    except AssertionError as error:
        raise AssertionError(f"seed {SEED}, {len(ways)} kills: {error}: {region.nodes[0].describe()}") from error
    kinds = {way: ways.count(way) for way in sorted(set(ways))}
    figures.append(f"cluster kills, seed {SEED}: {len(ways)}: {kinds}; {counts}; lost 0, twice 0, stuck 0")


def _some_work_is_done(region: Region) -> None:
    """Otherwise, on a slow machine, kills would come before there is anything to interrupt."""
    before = len(region.pacs.reports())
    wait_for(
        lambda: region.tend() and len(region.pacs.reports()) >= before + 4, PATIENCE_S, "reports arrive between kills"
    )
