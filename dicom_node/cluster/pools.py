"""Which workers there are to be on the cluster, from the settings."""

import hashlib
from dataclasses import dataclass

from config.cluster import ClusterSettings

EVERY_S = 10.0
"""How often the workers that are wanted are compared with those that are there."""


@dataclass(frozen=True)
class Place:
    """One worker of a pool and what it needs. gpus: its share of GPUs; resource: what its host must offer, or empty.

    configuration: where its host keeps its own configuration.
    """

    pool: str
    number: int
    gpus: float
    resource: str
    configuration: str

    @property
    def device(self) -> str:
        """What it computes on. Ray shows a worker only the GPUs that it gave it, so that the first is its own."""
        return "cuda" if self.gpus else "cpu"

    @property
    def name(self) -> str:
        """The name of its actor. It tells what the worker was placed with: after a change, another takes its place."""
        placed_with = f"{self.gpus} {self.resource} {self.configuration}"
        return f"{self.pool}-{self.number}-{hashlib.sha256(placed_with.encode()).hexdigest()[:8]}"


def places(cluster: ClusterSettings) -> list[Place]:
    """Every worker that there is to be."""
    configuration = str(cluster.configuration)
    return [
        Place(pool.name, number, pool.gpus, pool.resource, configuration)
        for pool in cluster.pools
        for number in range(pool.workers)
    ]
