"""Ray, and nothing else: the only module that imports it. Once imported, it no longer reads what access.py sets.

An actor is a name in a namespace of the index's own, so that two nodes may share a cluster. It is detached: it outlives
whoever placed it. Ray starts it again whenever it dies, and repeats no call.
"""

import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from dicom_node.cluster.actor import WorkerActor, WorkerState
from dicom_node.cluster.pools import Place
from dicom_node.errors import NodeError

ANSWER_S = 5.0
"""An actor that lives answers at once; one that does not may be waiting for a host."""
KNOCK_S = 5.0
FAULTS = (RayError, ConnectionError, RuntimeError, ValueError, TimeoutError)


class ClusterAway(NodeError):
    """The cluster does not answer, or does not let this node in."""


@contextlib.contextmanager
def _named_faults(address: str) -> Iterator[None]:
    try:
        yield
    except FAULTS as error:
        # Ray has put it into the words of another error.
        if AuthenticationError.__name__ in f"{error!r} {error.__cause__!r}":
            raise ClusterAway(f"the cluster at {address} does not take this node's token") from error
        # The type and not the words, which quote the environment and the processes of the cluster.
        raise ClusterAway(f"the cluster at {address} does not answer: {type(error).__name__}") from error


def _knock(address: str) -> None:
    """Ray itself would look for a head that is away for a minute, deaf to signals."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise ClusterAway(f"nothing listens at {address}, where the head of the cluster is to be") from error


class Engine:
    """A connection to the cluster. Only one can be open in a process.

    Raises ClusterAway, as its methods do.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self._address, self._namespace = address, namespace
        self._asked: dict[tuple[str, str], Any] = {}
        _knock(address)
        ours = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        with _named_faults(address):
            ray.init(address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
        for number, handler in ours.items():  # Ray has put its own there, which ends the process at once
            signal.signal(number, handler)

    def close(self) -> None:
        """Disconnect; actors stay."""
        with contextlib.suppress(*FAULTS):
            ray.shutdown()

    def hosts(self) -> set[str]:
        """The addresses of the hosts that are in the cluster."""
        with _named_faults(self._address):
            nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return {str(node["NodeManagerAddress"]) for node in nodes if node["Alive"]}

    def placed(self) -> set[str]:
        """The names of the actors that there are, those among them that wait for a host."""
        with _named_faults(self._address):
            named = ray.util.list_named_actors(all_namespaces=True)
        return {one["name"] for one in named if one["namespace"] == self._namespace}

    def place(self, place: Place) -> None:
        """Make its actor unless it is there; it starts once a host has room."""
        options: dict[str, Any] = {
            "name": place.name,
            "namespace": self._namespace,
            "lifetime": "detached",
            "get_if_exists": True,
            "max_restarts": -1,
            "max_task_retries": 0,
            "num_cpus": 1,
            "num_gpus": place.gpus,
            "resources": {place.resource: 1} if place.resource else {},
            "scheduling_strategy": "SPREAD",
        }
        with _named_faults(self._address):
            actor: Any = ray.remote(WorkerActor)
            actor.options(**options).remote(place.configuration, place.pool, str(place.number), place.device)

    def run(self, names: Sequence[str], answer_s: float = ANSWER_S) -> dict[str, WorkerState]:
        """See that their workers run. Returns how those are that answered in time."""
        return self._ask("run", names, answer_s)

    def look(self, names: Sequence[str], answer_s: float = ANSWER_S) -> dict[str, WorkerState]:
        """How their workers are, if they answered in time."""
        return self._ask("look", names, answer_s)

    def end(self, names: Sequence[str], answer_s: float = ANSWER_S) -> dict[str, bool]:
        """Ask their workers to end. True for each that has ended."""
        return self._ask("end", names, answer_s)

    def remove(self, name: str) -> None:
        """Take an actor away for good."""
        with contextlib.suppress(ValueError), _named_faults(self._address):
            ray.kill(ray.get_actor(name, self._namespace), no_restart=True)

    def _ask(self, question: str, names: Sequence[str], answer_s: float) -> dict[str, Any]:
        with _named_faults(self._address):
            asked = {name: one for name in names if (one := self._question(question, name)) is not None}
            if not asked:
                return {}
            ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=answer_s)
            answered = [name for name, question_ in asked.items() if question_ in ready]
            answers = {}
            for name in answered:
                with contextlib.suppress(RayError):  # it died meanwhile, and is asked again the next time
                    answers[name] = ray.get(self._asked.pop((question, name)))
            return answers

    def _question(self, question: str, name: str) -> Any:
        """One that is not answered yet is not asked again: questions would pile up while an actor waits for a host."""
        if (question, name) not in self._asked:
            try:
                actor = ray.get_actor(name, self._namespace)
            except ValueError:
                return None  # taken away meanwhile
            ask: Callable[[], Any] = getattr(actor, question).remote
            self._asked[question, name] = ask()
        return self._asked[question, name]
