"""Nodes on several hosts with one PostgreSQL and one store of files, and what can happen to hosts."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url

from tests.faults.campaign import Node, Pacs, check, ct_series, send
from tests.network_hosts import AHEAD, NAME, NAMESPACE, Network
from tests.programs import wait_for
from tests.s3 import S3
from tests.zygote import Zygote

HOSTS = {
    "r1": "receive,schedule", "r2": "receive,schedule", "w1": "work", "w2": "work", "w3": "work,schedule",
    "d1": "deliver", "d2": "deliver",
}  # fmt: skip
PORT = 11112
# What a site leaves at half a minute, so that a test need not wait: how fast both sides notice that the other is gone.
HASTE = {"connect_timeout": "3", "tcp_user_timeout": "3000", "keepalives_idle": "1", "keepalives_interval": "1",
         "keepalives_count": "2", "options": "-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1 "
         "-c tcp_keepalives_count=2 -c tcp_user_timeout=3000 -c idle_in_transaction_session_timeout=5000"}  # fmt: skip
GONE_S = 30.0


class HostNode(Node):
    """What `dicom-node run --only ...` runs on one host."""

    def __init__(self, cluster: "Cluster", name: str, parts: str) -> None:
        network = cluster.network
        super().__init__(
            cluster.zygote, cluster.folder / name, cluster.pacs.port, index=cluster.index, s3=cluster.s3,
            pacs_host=network.address,
            DICOM_NODE_RECEIVER__HOST="0.0.0.0", DICOM_NODE_RECEIVER__PORT=str(PORT),
            DICOM_NODE_SOURCES=json.dumps([{"ae_title": "ATTACKER"}]),
            DICOM_NODE_STORAGE__S3__PLAIN="true",
            DICOM_NODE_MODEL__ALLOW_DEMONSTRATION_MODEL="true", DICOM_NODE_COMPLETION__QUIET_S="2",
            DICOM_NODE_SENDER__RESPONSE_TIMEOUT_S="5", DICOM_NODE_SENDER__CONNECT_TIMEOUT_S="3",
        )  # fmt: skip
        self.name, self.parts = name, parts
        self.port, self.address = PORT, network.addresses[name]
        self.arguments = ("--only", parts)
        self.variables |= {NAMESPACE: network.namespace(name), NAME: name}
        if cluster.s3 is None:
            self.data = cluster.folder / "shared"
            self.variables["DICOM_NODE_DATA_DIR"] = str(self.data)

    @property
    def receives(self) -> bool:
        return "receive" in self.parts

    def set_clock(self, ahead_s: float) -> None:
        """From its next start on its clock is wrong."""
        self.variables[AHEAD] = str(ahead_s)

    def signal(self, number: int) -> None:
        """A signal to all of its processes."""
        try:
            os.killpg(self._pid, number)
        except ProcessLookupError:
            pass


class Cluster:
    """All hosts. index: the URL of the database."""

    def __init__(self, zygote: Zygote, folder: Path, network: Network, server: str, s3: S3 | None = None) -> None:
        self.zygote, self.folder, self.network, self.s3 = zygote, folder, network, s3
        self.index = make_url(server).update_query_dict(HASTE).render_as_string(hide_password=False)
        self.pacs = Pacs(host=network.address)
        self.nodes = {name: HostNode(self, name, HOSTS[name]) for name in network.addresses}
        self.away: set[str] = set()
        self._any = next(iter(self.nodes.values()))
        self._engine = create_engine(server)

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()
        wait_for(lambda: self.leader, 60, "a host leads")

    def tend(self) -> None:
        """As the service managers of all hosts do. What a test has taken down stays down."""
        for name, node in self.nodes.items():
            if name not in self.away:
                node.tend()

    def rows(self, statement: str) -> list[dict[str, Any]]:
        return self._any.rows(statement)

    @property
    def leader(self) -> str:
        """The host that leads by the index; nothing at first."""
        found = self.rows("SELECT value FROM properties WHERE name = 'leader'")
        return str(found[0]["value"]).partition(" ")[2] if found else ""

    @property
    def term(self) -> int:
        """Which term it is."""
        found = self.rows("SELECT value FROM properties WHERE name = 'leader'")
        return int(str(found[0]["value"]).split(" ")[0]) if found else 0

    def another_leads(self, than: str, term: int) -> None:
        """Wait until another host leads, or the same one in a later term."""
        wait_for(
            lambda: (self.tend(), self.term > term and self.leader != than)[1], GONE_S, f"another than {than} leads"
        )

    def receivers(self) -> list[HostNode]:
        return [node for node in self.nodes.values() if node.receives]

    def settle(self) -> None:
        def done() -> bool:
            self.tend()
            return self._any.is_settled()

        self._any.tend = lambda: None  # type: ignore[method-assign]
        try:
            wait_for(done, 120, "nothing is stuck")
        except AssertionError as error:
            logs = {name: node.log.read_text()[-1500:] for name, node in self.nodes.items() if node.log.exists()}
            raise AssertionError(f"{error}: {self.counts()} {logs}") from None

    def counts(self) -> list[dict[str, Any]]:
        return [
            row
            for table in ("series", "jobs", "deliveries")
            for row in self.rows(f"SELECT '{table}' AS what, state, count(*) AS n FROM {table} GROUP BY state")
        ]

    def check(self, acknowledged: dict[str, str]) -> dict[str, int]:
        """Nothing is lost, nothing is there twice, everything is audited; and each term's leader is another's heir."""
        terms = self.rows("SELECT detail FROM audit WHERE event = 'host.leads' ORDER BY id")
        return {**check(self._any, self.pacs, acknowledged), "terms": len(terms)}

    def stop(self) -> None:
        for node in self.nodes.values():
            node.signal(signal.SIGCONT)
            node.kill()
        self.pacs.stop()
        self._engine.dispose()

    def server_processes(self) -> list[int]:
        """The processes of the PostgreSQL server, the first of them first."""
        with self._engine.connect() as connection:
            backend = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        stat = Path(f"/proc/{backend}/stat").read_text()
        first = int(stat.rpartition(")")[2].split()[1])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    @contextmanager
    def paused_database(self) -> Iterator[None]:
        """The server's processes stand still, and its connections stay open."""
        processes = self.server_processes()
        _signal(processes, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[int], number: int) -> None:
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


class HostLoad(threading.Thread):
    """A scanner that sends series after series, to whichever receiver answers."""

    def __init__(self, cluster: Cluster, number: int, enough: threading.Event, slices: int = 6) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self.series = 0
        self._cluster, self._number, self._enough, self._slices = cluster, number, enough, slices

    def run(self) -> None:
        while not self._enough.is_set():
            instances = ct_series(self._slices)
            turn = self.series + self._number
            while True:
                receivers = self._cluster.receivers()
                to = receivers[turn % len(receivers)]
                turn += 1
                if self._send(to.address, instances):
                    break
                time.sleep(0.1)
            self.series += 1
            while not self._enough.is_set() and self.series * 2 > len(self._cluster.pacs.reports()) + 8:
                time.sleep(0.1)

    def _send(self, address: str, instances: dict[str, bytes]) -> bool:
        return send(PORT, instances, self.acknowledged, address)


@contextmanager
def load(cluster: Cluster, scanners: int = 2) -> Iterator[list[HostLoad]]:
    """Scanners that send while the body runs; at its end all that they began is acknowledged."""
    enough = threading.Event()
    threads = [HostLoad(cluster, number, enough) for number in range(scanners)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        enough.set()
    for thread in threads:
        wait_for(lambda: (cluster.tend(), not thread.is_alive())[1], 120, "the scanners end")  # noqa: B023


def work_goes_on(cluster: Cluster, reports: int = 1) -> None:
    """Wait for further reports at the PACS."""
    before = len(cluster.pacs.reports())
    wait_for(
        lambda: (cluster.tend(), len(cluster.pacs.reports()) >= before + reports)[1],
        60,
        f"reports arrive: {cluster.counts()}",
    )


# What can happen, each with the end of it. Every one may come at any moment.


def cable_of_the_leader(cluster: Cluster) -> None:
    """The leader is cut off from everything while it works; another takes over; it comes back."""
    leader, term = cluster.leader, cluster.term
    cluster.network.cut(leader)
    try:
        cluster.another_leads(leader, term)
        work_goes_on(cluster)
    finally:
        cluster.network.mend(leader)


def split_brain(cluster: Cluster) -> None:
    """The leader stands still and is cut off; another takes over; the old one goes on in the middle of what it did."""
    leader, term = cluster.leader, cluster.term
    node = cluster.nodes[leader]
    cluster.away.add(leader)
    node.signal(signal.SIGSTOP)
    cluster.network.cut(leader)
    try:
        cluster.another_leads(leader, term)
    finally:
        cluster.network.mend(leader)
        node.signal(signal.SIGCONT)
        cluster.away.discard(leader)
    work_goes_on(cluster)


def cable_of(name: str) -> Callable[[Cluster], None]:
    """A host is cut off for longer than its leases."""

    def fault(cluster: Cluster) -> None:
        cluster.network.cut(name)
        try:
            time.sleep(3)
        finally:
            cluster.network.mend(name)

    fault.__name__ = f"cable_of_{name}"
    return fault


def kill_of(name: str, down_s: float = 0.5) -> Callable[[Cluster], None]:
    """A host dies at once, and comes back later."""

    def fault(cluster: Cluster) -> None:
        cluster.away.add(name)
        cluster.nodes[name].kill()
        time.sleep(down_s)
        cluster.away.discard(name)

    fault.__name__ = f"kill_of_{name}"
    return fault


def stillness_of_the_database(cluster: Cluster) -> None:
    """The database stands still, for longer than leases."""
    with cluster.paused_database():
        time.sleep(3)


def bad_line_of(name: str) -> Callable[[Cluster], None]:
    """A host's line is slow and loses packets."""

    def fault(cluster: Cluster) -> None:
        cluster.network.slow(name, 40, 10)
        time.sleep(3)
        cluster.network.slow(name, 0, 0)

    fault.__name__ = f"bad_line_of_{name}"
    return fault


def all_hosts(cluster: Cluster) -> None:
    """The power fails for all hosts; the database and the files stay."""
    for node in cluster.nodes.values():
        node.kill()


FAULTS: list[Callable[[Cluster], None]] = [
    cable_of_the_leader, split_brain, stillness_of_the_database, all_hosts,
    *(make(name) for name in HOSTS for make in (cable_of, kill_of, bad_line_of)),
]  # fmt: skip
