"""Workers on a Ray cluster of several raylets: whatever dies of it, no job is lost or doubled, and the pool comes back.

`make cluster` takes everything away in turn and then kills at random (NODE_CLUSTER_KILLS, 300 of them); without it, a
short cut of each. The index is in PostgreSQL; the node has no workers of its own.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dicom_node.cli.common import PEER_UNREACHABLE
from storage.database import Database
from tests.faults.campaign import Node, Pacs, check, ct_series
from tests.postgresql import postgresql_server
from tests.programs import wait_for
from tests.ray_cluster import RayCluster
from tests.zygote import Zygote

KILLS = int(os.environ.get("NODE_CLUSTER_KILLS", "0"))
WORKERS = 3
PATIENCE_S = 300


def cluster_variables(cluster: RayCluster, folder: Path) -> dict[str, str]:
    """The environment of a node whose workers are on the cluster only. The hosts' own configuration is empty."""
    configuration = folder / "host.toml"
    configuration.touch()
    return {
        "DICOM_NODE_WORKER__DEVICES": "[]",
        "DICOM_NODE_CLUSTER__ADDRESS": cluster.address,
        "DICOM_NODE_CLUSTER__CREDENTIALS": str(cluster.token_file),
        "DICOM_NODE_CLUSTER__CONFIGURATION": str(configuration),
        "DICOM_NODE_CLUSTER__POOLS": f'[{{"name": "main", "workers": {WORKERS}}}]',
    }


def own(variables: dict[str, str]) -> dict[str, str]:
    """Of an environment, what is about the node."""
    return {name: value for name, value in variables.items() if name.startswith(("DICOM_NODE_", "NODE_FAULTS", "AWS_"))}


@dataclass
class Site:
    """A node, its PACS, and the cluster that its workers are on."""

    node: Node
    pacs: Pacs
    cluster: RayCluster
    acknowledged: dict[str, str] = field(default_factory=dict)

    def workers(self) -> list[int]:
        """The pids of the worker processes that its actors hold."""
        return self.cluster.workers()

    def send(self, series: int = 3) -> None:
        """Send some series, so that there is work."""
        for _ in range(series):
            self.node.send(ct_series(), self.acknowledged)

    def is_whole(self) -> bool:
        """Whether the pool has its size again, and no more than that."""
        self.node.tend()
        return len(self.workers()) == WORKERS

    def is_at_work(self) -> bool:
        """Whether a job is in a worker's hand."""
        return bool(self.node.rows("SELECT 1 FROM jobs WHERE state = 'RUNNING'"))


@pytest.fixture
def site(zygote: Zygote, tmp_path: Path) -> Iterator[Site]:
    pacs = Pacs()
    with postgresql_server() as url:
        cluster = RayCluster(tmp_path)
        node = Node(zygote, tmp_path, pacs.port, index=url, **cluster_variables(cluster, tmp_path))
        node.configure(slow="0.5")
        cluster.variables.update(own(node.variables))
        try:
            cluster.start(hosts=2)
            node.start()
            wait_for(lambda: node.listens, 60, "the node listens")
            yield Site(node, pacs, cluster)
        finally:
            node.kill()
            cluster.end()
            pacs.stop()


def command(site: Site, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run a command of the node. Returns its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node", *arguments], env={**site.node.variables, **variables},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def strangers_and_a_file_of_one_machine_are_refused(site: Site, folder: Path) -> None:
    """One host's token is not the cluster's; and two hosts cannot share an index in SQLite."""
    wrong = folder / "wrong"
    wrong.touch(0o600)
    wrong.write_text(secrets.token_hex(32))
    status, said = command(site, "cluster", "status", DICOM_NODE_CLUSTER__CREDENTIALS=str(wrong))
    assert status == PEER_UNREACHABLE and "does not take this node's token" in said, said
    Database(f"sqlite:///{folder}/index.db").migrate()
    elsewhere = {
        "DICOM_NODE_STORAGE__DATABASE_URL": f"sqlite:///{folder}/index.db",
        "DICOM_NODE_DATA_DIR": str(folder / "elsewhere"),
    }
    status, said = command(site, "cluster", "up", **elsewhere)
    assert status == 1 and "use PostgreSQL" in said, said
    for told in (wrong, site.cluster.token_file):
        assert told.read_text() not in said


def the_command_takes_the_workers_away_and_brings_them_back(site: Site) -> None:
    status, said = command(site, "cluster", "down")
    assert status == 0, said
    assert site.workers() == site.cluster.actors() == []
    status, said = command(site, "cluster", "up")
    assert status == 0, said


def an_actor_is_killed(site: Site) -> None:
    os.kill(site.cluster.actors()[0], signal.SIGKILL)


def a_worker_is_killed(site: Site) -> None:
    os.kill(site.workers()[0], signal.SIGKILL)


def a_host_is_removed_and_comes_back(site: Site) -> None:
    site.cluster.remove(1)
    site.node.settle()  # with what is left
    site.cluster.add(1)


def the_head_is_restarted(site: Site) -> None:
    """Its hosts end once they have missed it; the service manager starts them again."""
    site.cluster.kill_head()
    wait_for(lambda: not site.cluster.actors(), PATIENCE_S, "the hosts end")
    site.cluster.kill()
    site.cluster.start(hosts=2)


def all_of_it_is_killed_and_comes_back(site: Site) -> None:
    site.cluster.kill()
    site.cluster.start(hosts=2)


FAULTS = (
    an_actor_is_killed,
    a_worker_is_killed,
    a_host_is_removed_and_comes_back,
    the_head_is_restarted,
    the_command_takes_the_workers_away_and_brings_them_back,
    all_of_it_is_killed_and_comes_back,
)


@pytest.mark.timeout(1200)
def test_whatever_dies_no_job_is_lost_or_doubled_and_the_pool_comes_back(
    site: Site, tmp_path: Path, figures: list[str]
) -> None:
    faults: tuple[Callable[[Site], None], ...] = FAULTS if KILLS else FAULTS[:1]
    strangers_and_a_file_of_one_machine_are_refused(site, tmp_path)
    status, said = command(site, "cluster", "up")
    assert status == 0, said
    wait_for(site.is_whole, PATIENCE_S, "the pool has its size")
    for fault in faults:
        began = time.monotonic()
        site.send()
        wait_for(site.is_at_work, PATIENCE_S, "a worker works")
        fault(site)
        site.node.settle()
        wait_for(site.is_whole, PATIENCE_S, f"the pool has its size again after {fault.__name__}")
        figures.append(f"cluster: {fault.__name__}: pool whole again after {time.monotonic() - began:.0f} s")
    seen = site.node.rows("SELECT 1 FROM hosts WHERE parts = 'work' AND stopped_at IS NULL")
    assert seen, "a node that starts must know that workers are there"
    ray_is_gone_and_a_worker_of_the_node_goes_on(site)
    counts = check(site.node, site.pacs, site.acknowledged)
    site.node.end()
    figures.append(f"cluster: {len(faults)} faults, then without Ray: {counts}; lost 0, twice 0, stuck 0")


def ray_is_gone_and_a_worker_of_the_node_goes_on(site: Site) -> None:
    site.send()
    wait_for(site.is_at_work, PATIENCE_S, "a worker works")
    site.cluster.kill()
    site.node.kill()
    site.node.variables["DICOM_NODE_WORKER__DEVICES"] = '["cpu"]'
    site.node.start()
    site.send(1)
    site.node.settle()
