"""Hosts that vanish, are cut off, stand still and come back: two receivers, three workers and two senders on machines
of their own (network namespaces), with one PostgreSQL and one store of files.

NODE_HOST_FAULTS=n has n things happen at random (`make hosts`: 100); NODE_RANDOM_SEED repeats the choices of a run.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.host_cluster import (
    FAULTS,
    HOSTS,
    Cluster,
    kill_of,
    load,
    split_brain,
    stillness_of_the_database,
    work_goes_on,
)
from tests.network_hosts import Network, network
from tests.postgresql import postgresql_server
from tests.programs import wait_for
from tests.s3 import S3, s3_server
from tests.zygote import Zygote

WANTED = int(os.environ.get("NODE_HOST_FAULTS", "0"))
SEED = int(os.environ.get("NODE_RANDOM_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    """Seven machines."""
    with network(*HOSTS) as made:
        yield made


@pytest.fixture
def server(hosts: Network) -> Iterator[str]:
    """A PostgreSQL server that they all reach."""
    with postgresql_server(hosts.address) as url:
        yield url


@pytest.fixture
def cluster(zygote: Zygote, tmp_path: Path, hosts: Network, server: str) -> Iterator[Cluster]:
    """The hosts, with a folder that they share."""
    made = Cluster(zygote, tmp_path, hosts, server)
    yield made
    made.stop()


@pytest.mark.timeout(1200)
def test_hosts_may_vanish_stand_still_and_come_back(cluster: Cluster, figures: list[str]) -> None:
    cluster.start()
    with load(cluster) as scanners:
        work_goes_on(cluster)
        kill_of("w1")(cluster)
        kill_of("d1")(cluster)
        split_brain(cluster)
        stillness_of_the_database(cluster)
    cluster.settle()
    acknowledged = {uid: sha for scanner in scanners for uid, sha in scanner.acknowledged.items()}
    counts = cluster.check(acknowledged)
    assert counts["terms"] >= 2
    senders = {row["host"] for row in cluster.rows(
        "SELECT DISTINCT CAST(detail AS json) ->> 'host' AS host FROM audit WHERE event = 'delivery.sending'"
    )}  # fmt: skip
    assert senders <= {"d1", "d2"} and senders
    figures.append(f"hosts: split brain, paused database, killed worker and sender: {counts}; lost 0, twice 0, stuck 0")


@pytest.mark.timeout(1200)
def test_a_host_whose_clock_is_hours_off_does_not_start_and_the_others_go_on(cluster: Cluster) -> None:
    for name in ("w1", "d1"):
        cluster.nodes[name].set_clock(3 * 3600)
    cluster.start()
    refused = cluster.nodes["w1"].log
    wait_for(lambda: refused.exists() and "ahead of that of the database server" in refused.read_text(), 30)
    cluster.away |= {"w1", "d1"}
    with load(cluster) as scanners:
        work_goes_on(cluster, 2)
    cluster.settle()
    cluster.check({uid: sha for scanner in scanners for uid, sha in scanner.acknowledged.items()})


if WANTED:  # no test that skips otherwise

    @pytest.mark.timeout(600 + 60 * WANTED)
    @pytest.mark.parametrize("files", ["folder", "bucket"])
    def test_whatever_happens_to_hosts_nothing_is_lost_and_nothing_comes_twice(
        files: str, zygote: Zygote, tmp_path: Path, hosts: Network, server: str, figures: list[str]
    ) -> None:
        choose = random.Random(SEED)
        happened: Counter[str] = Counter()
        with s3_server(tmp_path) as port:
            s3 = S3(port, hosts.address) if files == "bucket" else None
            cluster = Cluster(zygote, tmp_path, hosts, server, s3)
            try:
                cluster.start()
                with load(cluster, 3) as scanners:
                    for _ in range(WANTED // 2):
                        fault = choose.choice(FAULTS)
                        happened[fault.__name__] += 1
                        fault(cluster)
                        cluster.tend()
                        time.sleep(choose.uniform(0.1, 2.0))
                        if choose.random() < 0.3:
                            work_goes_on(cluster)
                cluster.settle()
                acknowledged = {uid: sha for scanner in scanners for uid, sha in scanner.acknowledged.items()}
                counts = cluster.check(acknowledged)
            except AssertionError as error:
                raise AssertionError(f"seed {SEED}, {dict(happened)}: {error}") from error
            finally:
                cluster.stop()
        figures.append(f"hosts, {files}, seed {SEED}: {dict(happened)}; {counts}; lost 0, twice 0, stuck 0")
