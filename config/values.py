"""Types of single settings: AE titles, hosts, networks, ports, and text that must not be shown."""

import re
from ipaddress import ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, Secret

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg")


def _ae_title(value: object) -> object:
    """An AE title per PS3.5: 1 to 16 printable ASCII characters, no backslash, not only spaces."""
    if not isinstance(value, str):
        return value
    title = value.strip()
    if not 1 <= len(title) <= 16 or not all(" " <= c <= "~" and c != "\\" for c in title):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return title


def _host(value: str) -> str:
    """An IP address, or a name that could be resolved."""
    try:
        ip_address(value)
    except ValueError:
        if re.fullmatch(r"[0-9.]+", value) or ":" in value:
            raise ValueError("is not an IP address; write one such as 10.20.30.40, without a port") from None
        if len(value) > 253 or not all(_LABEL.fullmatch(label) for label in value.removesuffix(".").split(".")):
            raise ValueError("is neither an IP address nor a host name") from None
    return value


def host_or_none(value: str) -> str:
    """Empty, or as `Host`."""
    return _host(value) if value else ""


def _network(value: str) -> str:
    """An IP address or a network in CIDR notation."""
    try:
        ip_network(value, strict=False)
    except ValueError:
        raise ValueError(
            "is neither an IP address nor a network; write one such as 10.20.30.40 or 10.20.30.0/24"
        ) from None
    return value


def _device(value: str) -> str:
    """A device that a worker can be told to use."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError('is not a device: "auto", "cpu", "cuda" or "cuda:1"')
    return value


def _bucket(value: str) -> str:
    """Empty, or a bucket with a prefix or without."""
    if value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*/?", value):
        raise ValueError("is not the address of a bucket; write one such as s3://bucket/prefix")
    return value.rstrip("/")


def _endpoint(value: str) -> str:
    """Empty, or the address of a server."""
    if value and not re.fullmatch(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?/?", value):
        raise ValueError("is not the address of a server; write one such as https://s3.hospital.example:9000")
    return value.rstrip("/")


def _cluster_address(value: str) -> str:
    """Empty, or the address of a cluster's head with its port."""
    if not value:
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("is not the address of a cluster; write one such as 10.20.30.40:6379")
    _host(host.removeprefix("[").removesuffix("]"))
    return value


def _ae_title_or_none(value: object) -> object:
    return "" if value == "" else _ae_title(value)


AETitle = Annotated[str, BeforeValidator(_ae_title)]
AETitleOrNone = Annotated[str, BeforeValidator(_ae_title_or_none)]
BucketUrl = Annotated[str, AfterValidator(_bucket)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
ClusterAddress = Annotated[str, AfterValidator(_cluster_address)]
Host = Annotated[str, AfterValidator(_host)]
Network = Annotated[str, AfterValidator(_network)]
Device = Annotated[str, AfterValidator(_device)]
Port = Annotated[int, Field(ge=0, le=65535)]


class DatabaseUrl(Secret[str]):
    """A SQLAlchemy URL. Printed, logged or dumped, it shows everything but its passwords."""

    def _display(self) -> str:
        """The URL with *** for each password."""
        # Up to the last @ before the path: a password may hold one that was not escaped.
        shown = re.sub(r"(?<=://)([^:/@]*):[^/]*@", r"\1:***@", self.get_secret_value())
        shown = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", shown)
        return re.sub(r"(?i)([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", r"\1***", shown)


def _supported(url: DatabaseUrl) -> DatabaseUrl:
    """An empty URL, or that of a supported database. No message shows it, because it may hold a password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    text = url.get_secret_value()
    if not text:
        return url
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        raise ValueError("is not a database URL, such as postgresql+psycopg://user:password@host/name") from None
    if parsed.drivername not in _DRIVERS:
        raise ValueError(f"a database URL begins with one of {', '.join(f'{name}://' for name in _DRIVERS)}")
    if parsed.drivername.startswith("sqlite") and parsed.database in (None, "", ":memory:"):
        raise ValueError(
            "the index needs a file, such as sqlite:////var/lib/dicom-node/node.db: several processes share it"
        )
    return url


IndexUrl = Annotated[DatabaseUrl, AfterValidator(_supported)]
