"""The settings of workers on a Ray cluster."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from config.section import Section
from config.values import ClusterAddress


class Pool(Section):
    """A pool of workers, on the hosts that offer its resource."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,32}$", examples=["main"])]
    """Its name: letters, digits and _."""
    workers: int = Field(default=1, ge=0, le=1000)
    """How many workers there are to be."""
    gpus: float = Field(default=0, ge=0, le=16)
    """GPUs of each worker; a share, such as 0.5, lets two workers use one GPU; 0: it computes on CPUs."""
    resource: str = Field(default="", pattern=r"^[A-Za-z0-9_]{0,64}$")
    """A host offers it, with the number of workers that it takes; empty: any host of the cluster."""

    @field_validator("gpus")
    @classmethod
    def _is_a_share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and not gpus.is_integer():
            raise ValueError("more than one GPU must be a whole number")
        return gpus


class ClusterSettings(Section):
    """[cluster]: workers on the hosts of a Ray cluster (`dicom-node cluster up`), beside those of [worker].

    They need the extra: pip install 'dicom-node[ray]'. Name the cluster on one node only, or alike on several.
    """

    address: ClusterAddress = ""
    """The head of the cluster, such as "10.20.30.40:6379"; empty: none. This machine must be a host of it."""
    pools: tuple[Pool, ...] = ()
    """Pools of workers, each with name, workers, gpus (of each worker; 0: on CPUs) and resource (what the hosts that
    may take them offer; empty: any host). An entry: { name = "site_a", workers = 2, gpus = 1, resource = "site_a" }"""
    configuration: Path = Path("/etc/dicom-node/node.toml")
    """Where each host keeps its own configuration. Workers read it there; nothing of it goes through the cluster."""
    credentials: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/ray-token")])
    """File with the token that every host of the cluster knows, readable by the node's user only. Beyond this machine,
    there must be one: whoever may connect to Ray may run anything on its hosts."""
    tls_certificate: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/ray.pem")])
    """PEM: this host's certificate for the cluster's own lines, which are then encrypted."""
    tls_key: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/ray.key")])
    """PEM: its private key."""
    tls_authorities: Path | None = Field(default=None, examples=[Path("/etc/dicom-node/ray-ca.pem")])
    """PEM: the authority that issued all hosts' certificates."""
    plain: bool = False
    """Do without TLS beyond this machine. The token then crosses the network readable."""
