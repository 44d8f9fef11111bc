"""What the destinations of every kind have in common."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from pydantic import Field

from config.section import Section

DestinationName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$", examples=["pacs"])]


class CommonDestination(Section):
    """A place that results go to. Each kind has a `kind` of its own, by which the settings tell them apart."""

    name: DestinationName
    """Its name in this file, in the index and on the command line: letters, digits, - and _."""
    send_results: bool = True
    """False: nothing is sent there."""

    @property
    def peer_host(self) -> str:
        """Host name or IP address of the peer."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """Where it is, for a person: without a secret."""
        raise NotImplementedError

    @property
    def is_encrypted(self) -> bool:
        """True if nobody on the way can read what is sent."""
        raise NotImplementedError

    @property
    def certificate_files(self) -> tuple[Path | None, Path | None]:
        """PEM files of TLS that expire: the node's certificate, and the authorities of the peer's. None if not used."""
        return None, None

    def wants(self, analysed: bool) -> bool:
        """Whether results of this sort go there: those of series that were analysed, or that were not."""
        return True

    @property
    def is_loopback(self) -> bool:
        """True when results sent there stay on this machine."""
        return is_loopback(self.peer_host)


def is_loopback(host: str) -> bool:
    """Whether a host name or IP address is this machine."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
