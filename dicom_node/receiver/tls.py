"""TLS for the receiver: DICOM's BCP 195 profile (PS3.15 B.12), with certificates on both sides.

TLS 1.2 at least, 1.3 preferred; ECDHE or DHE with AES-GCM; the sender must show a certificate of an authority that
the site trusts. Certificates that were exchanged on disk are used from the next connection on.
"""

import socket
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from dicom_node.receiver.certificates import names_in
from dicom_node.scu.tls import DICOM_CIPHERS

log = structlog.get_logger()


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: our certificate (with its chain), its key, and the authorities whose certificates senders may have."""

    certificate: Path
    key: Path
    authorities: Path


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """A context of the profile. Raises OSError (ssl.SSLError is one) if the files do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(DICOM_CIPHERS)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(files.certificate, files.key)
    context.load_verify_locations(files.authorities)
    return context


class TlsAcceptor:
    """Does the server's side of the handshake, with the files as they are now.

    Raises OSError when it is made if the files do not fit; afterwards the last that fitted stay in use.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._context = server_context(files)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """The socket for TLS, before its handshake."""
        return self._current().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def _current(self) -> ssl.SSLContext:
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                try:
                    self._context = server_context(self._files)
                    log.info("TLS files read again")
                except OSError as error:
                    log.error("TLS files do not fit; the former stay in use", error=type(error).__name__)
            return self._context

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        """What changes when a file does."""
        return tuple(_stamp_of(p) for p in (self._files.certificate, self._files.key, self._files.authorities))


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def peer_names(sock: ssl.SSLSocket) -> frozenset[str]:
    """What the peer's certificate can be bound to an AE title by; empty without one."""
    der = sock.getpeercert(binary_form=True)
    try:
        return names_in(der) if der else frozenset()
    except ValueError:
        return frozenset()


def failure(error: OSError) -> str:
    """What went wrong in a handshake, as one stable word; nothing that the peer can choose."""
    if isinstance(error, ssl.SSLCertVerificationError):
        # X509_V_ERR_CERT_HAS_EXPIRED, _NOT_YET_VALID; everything else is an untrusted chain.
        return {10: "certificate-expired", 9: "certificate-not-yet-valid"}.get(
            error.verify_code, "certificate-untrusted"
        )
    if isinstance(error, ssl.SSLError):
        return f"tls-{(error.reason or 'error').lower().replace('_', '-')}"
    return "tls-timeout" if isinstance(error, TimeoutError) else "tls-connection-lost"
