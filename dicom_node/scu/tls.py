"""TLS as the node's clients speak it in every protocol: version 1.2 or later, the peer's certificate checked."""

import socket
import ssl
import time
from pathlib import Path

DICOM_CIPHERS = "ECDHE+AESGCM:DHE+AESGCM"
"""DICOM's BCP 195 profile (PS3.15 B.12)."""


def client_context(
    authorities: Path | None,
    certificate: Path | None = None,
    key: Path | None = None,
    *,
    check_host: bool = True,
    ciphers: str = "",
) -> ssl.SSLContext:
    """From the files as they are now: certificates are renewed while the node runs.

    authorities: that may have issued the peer's certificate; None: those of the operating system.
    certificate, key: that the node shows. check_host: the peer's certificate must name the host.
    ciphers: for TLS 1.2, as OpenSSL writes them; empty: OpenSSL's own choice.
    Raises OSError (ssl.SSLError is one) if the files cannot be read or do not fit.
    """
    context = ssl.create_default_context(cafile=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = check_host
    if ciphers:
        context.set_ciphers(ciphers)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def connect(host: str, port: int, context: ssl.SSLContext | None, seconds: float) -> socket.socket:
    """A connection, with TLS if there is a context. Handshake and all, it takes so many seconds at most.

    Only how long the system's resolver looks for the host's addresses is not in our hands.
    A peer that sends its part of the handshake byte by byte is no exception: Python counts the whole handshake.
    Its timeout is then `seconds` for each operation. Raises OSError.
    """
    until = time.monotonic() + seconds
    line = _reach(host, port, until)
    if context is None:
        line.settimeout(seconds)
        return line
    try:
        line.settimeout(max(0.001, until - time.monotonic()))
        encrypted = context.wrap_socket(line, server_hostname=host)
        encrypted.settimeout(seconds)
        return encrypted
    except BaseException:
        line.close()
        raise


def _reach(host: str, port: int, until: float) -> socket.socket:
    """The first of the host's addresses that answers. They share the time: a silent one leaves some to the next."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure = OSError(f"{host} has no address")
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        line = socket.socket(family, kind, protocol)
        try:
            line.settimeout(max(0.001, (until - time.monotonic()) / (len(addresses) - number)))
            line.connect(address)
            return line
        except OSError as error:
            failure = error
            line.close()
    raise failure
