"""The workers that are wanted and those that are there, made the same, every few seconds.

What is wanted is in the settings and in the index, what is there is asked of Ray each time. Nothing is remembered here,
so several nodes may do this at once, and one that was killed has left nothing undone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from config.settings import Settings
from dicom_node.cluster import pools
from dicom_node.cluster.actor import WorkerState
from dicom_node.cluster.engine import ANSWER_S, ClusterAway, Engine
from dicom_node.cluster.pools import Place, places
from dicom_node.errors import NodeError
from storage.database import Database
from storage.errors import StorageError
from storage.facts import get_fact, set_fact
from storage.identity import identity_of

log = structlog.get_logger()

WANTED = "cluster"
UP, DOWN = "up", "down"


@dataclass(frozen=True)
class Pass:
    """What a pass has found. workers: by place, None if the actor did not answer; ending: not wanted, still there."""

    workers: dict[Place, WorkerState | None]
    ending: int

    @property
    def working(self) -> int:
        """How many workers run."""
        return sum(one is not None and one.pid != 0 for one in self.workers.values())


def want(tx: Connection, up: bool) -> None:
    """Remember that workers are wanted on the cluster, or that none are."""
    set_fact(tx, WANTED, UP if up else DOWN)


def are_wanted(tx: Connection) -> bool:
    """Whether workers are wanted on the cluster: only once a person has said so."""
    return get_fact(tx, WANTED) == UP


@contextmanager
def connected(settings: Settings, database: Database) -> Iterator[Engine]:
    """A connection to the cluster of these settings.

    Raises ClusterAway; NodeError if the cluster cannot be used with these settings.
    """
    with database.read() as tx:
        identity = identity_of(tx)
    store = identity.store if identity else "none"
    engine = Engine(settings.cluster.address, f"dicom-node-{store}")
    try:
        hosts = engine.hosts()
        if len(hosts) > 1 and settings.database_url.startswith("sqlite"):
            raise NodeError(
                f"{len(hosts)} hosts are in the cluster, and the index is in SQLite, which is a file of one machine: "
                "use PostgreSQL"
            )
        yield engine
    finally:
        engine.close()


def reconcile(engine: Engine, wanted: list[Place], answer_s: float = ANSWER_S) -> Pass:
    """One pass: place what is missing, start what does not run, let what is not wanted end."""
    placed = engine.placed()
    names = {place.name: place for place in wanted}
    for name in names.keys() - placed:
        engine.place(names[name])
    ending = _let_end(engine, sorted(placed - names.keys()))
    running = engine.run(list(names), answer_s)
    return Pass({place: running.get(name) for name, place in names.items()}, ending)


def _let_end(engine: Engine, names: list[str]) -> int:
    """Ask workers to end, and take away the actors of those that have. Returns how many are still busy.

    An actor that does not answer waits for a host or is out of reach; if it has a worker, that ends by itself.
    """
    ended = engine.end(names)
    for name in names:
        if ended.get(name, True):
            engine.remove(name)
    return list(ended.values()).count(False)


def keep(settings: Settings, database: Database, stop: threading.Event) -> None:
    """Make passes until `stop` is set. A cluster that is away is tried again: it is nobody's mistake."""
    while not stop.is_set():
        try:
            with connected(settings, database) as engine:
                _keep(engine, settings, database, stop)
        except ClusterAway as error:
            log.warning("the cluster is away", reason=str(error))
        stop.wait(pools.EVERY_S)


def _keep(engine: Engine, settings: Settings, database: Database, stop: threading.Event) -> None:
    said = None
    while not stop.is_set():
        wanted = wanted_now(settings, database)
        if wanted is not None:
            found = reconcile(engine, wanted)
            state = {"wanted": len(wanted), "working": found.working, "ending": found.ending}
            if state != said:
                log.info("workers on the cluster", **state)
                said = state
        stop.wait(pools.EVERY_S)


def wanted_now(settings: Settings, database: Database) -> list[Place] | None:
    """The workers that there are to be; None if the index does not tell: then all stays as it is."""
    try:
        with database.read() as tx:
            return places(settings.cluster) if are_wanted(tx) else []
    except StorageError as error:
        log.warning("the index does not say whether workers are wanted", error=type(error).__name__)
        return None
