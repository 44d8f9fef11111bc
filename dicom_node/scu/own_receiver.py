"""The node's own receiver as a peer: how this machine stores there as one of the configured sources would."""

from ipaddress import ip_address, ip_network
from pathlib import Path

from config.settings import Settings, Source
from dicom_node.errors import NodeError
from dicom_node.scu.association import Address

ANY_SENDER = "SENDER"
"""With no source configured, this machine may store under every AE title."""
EVERYWHERE = ("0.0.0.0", "::")


def local_host(settings: Settings) -> str:
    """Where the receiver is reached from this machine."""
    return "127.0.0.1" if settings.receiver.host in EVERYWHERE else settings.receiver.host


def is_meant(settings: Settings, host: str | None, port: int | None, called_ae: str | None) -> bool:
    """Whether this address is the receiver's; None: not given."""
    receiver = settings.receiver
    return (
        host in (None, local_host(settings))
        and port in (None, receiver.port, receiver.tls_port)
        and called_ae in (None, receiver.ae_title)
    )


def calling_ae(settings: Settings) -> str:
    """An AE title that the receiver accepts from this machine: the first source's that may come from here.

    Raises NodeError if sources are configured and none may.
    """
    if not settings.sources:
        return ANY_SENDER
    for source in settings.sources:
        if _may_come_from(source, local_host(settings)):
            return source.ae_title
    raise NodeError("no source of the settings may store from this machine: add its address to one, or give --calling")


def _may_come_from(source: Source, host: str) -> bool:
    if not source.addresses:
        return True
    try:
        here = ip_address(host)
    except ValueError:
        here = ip_address("127.0.0.1")  # a name of this machine
    return any(here in ip_network(address, strict=False) for address in source.addresses)


def address(settings: Settings, *, tls: bool | None = None, port: int | None = None) -> Address:
    """The receiver, with TLS if it takes nothing else, or if `tls` says so.

    The node shows its own certificate; its host name is not checked, as the connection does not leave the machine.
    """
    receiver = settings.receiver
    with_tls = not receiver.plain if tls is None else tls
    return with_files(
        Address(
            receiver.ae_title,
            local_host(settings),
            port or (receiver.tls_port if with_tls else receiver.port),
            tls=with_tls,
            tls_check_host=False,
        ),
        receiver.tls_authorities,
        receiver.tls_certificate,
        receiver.tls_key,
    )


def with_files(peer: Address, authorities: Path | None, certificate: Path | None, key: Path | None) -> Address:
    """The peer with TLS files. Raises NodeError if there is a certificate without its key, or the reverse."""
    if (certificate is None) != (key is None):
        raise NodeError("a TLS certificate and its key belong together: give both")
    return Address(peer.ae_title, peer.host, peer.port, peer.tls, authorities, certificate, key, peer.tls_check_host)
