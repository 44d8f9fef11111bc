"""The ports that the settings name: held by this node while it runs, free while it does not."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from config.settings import Settings
from dicom_node.runtime.installation.found import Found, good, look, wrong
from dicom_node.runtime.liveness import LISTEN, Liveness

OWN = "dicom_node"
"""What the command line of each process of a node has in it."""


def ports(settings: Settings, alive: Liveness) -> Iterator[Found]:
    """One line for each port. alive: whether a node runs on this machine's data folder."""
    for use, host, port in wanted_ports(settings):
        yield _port(f"port {port}", use, host, port, alive.runs)


def wanted_ports(settings: Settings) -> Iterator[tuple[str, str, int]]:
    """What each is for, the address, and the port."""
    receiver, asking = settings.receiver, settings.sender.commitment
    named = [
        ("images", receiver.host, receiver.port if receiver.plain else 0),
        ("images over TLS", receiver.host, receiver.tls_port if receiver.tls_certificate is not None else 0),
        ("storage commitment", receiver.host, asking.port),
        *((f"events of worklist {one.name}", receiver.host, one.event_port) for one in settings.worklists),
        ("metrics", settings.metrics.host, settings.metrics.port),
        ("pages", settings.web.host, settings.web.port),
    ]
    yield from ((use, host, port) for use, host, port in named if port)


def _port(part: str, use: str, host: str, port: int, runs: bool) -> Found:
    holder = holder_of(port)
    if runs:
        if holder is None:
            return look(part, f"for {use}: nothing listens on it, though the node runs", "its log says why")
        if holder and OWN not in holder:
            return wrong(part, f"for {use}: held by {holder}", "stop that program, or choose another port")
        return good(part, f"for {use}: the node listens")
    if holder is not None:
        says = f"for {use}: taken{' by ' + holder if holder else ''}"
        return wrong(part, says, "stop that program, or choose another port")
    return _try(part, use, host, port)


def _try(part: str, use: str, host: str, port: int) -> Found:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EACCES:
            do = "ports below 1024 need CAP_NET_BIND_SERVICE: the systemd unit of the package grants it"
            return look(part, f"for {use}: this user may not take it", do)
        return wrong(part, f"for {use}: cannot be taken on {host}: {error.strerror}", "correct host or port")
    return good(part, f"for {use}: free")


def holder_of(port: int) -> str | None:
    """Who listens on a TCP port: the command line, "" if this user may not see it; None: nobody."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if any(_link(descriptor) in inodes for descriptor in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"{words[:80]} (process {folder.name})"
    return ""


def _link(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except OSError:
        return ""  # closed meanwhile


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text(encoding="ascii").splitlines()[1:]]
        except OSError:
            continue
        found |= {
            f"socket:[{row[9]}]" for row in rows if row[3] == LISTEN and int(row[1].rsplit(":", 1)[1], 16) == port
        }
    return found
