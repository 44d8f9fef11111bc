"""TLS for browsers. A certificate that was exchanged on disk is used from the next connection on."""

import ssl
from pathlib import Path

import structlog

from config.settings import Settings

log = structlog.get_logger()

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"


class Certificate:
    """Certificate and key of the pages, and the context that has them. Raises OSError if they do not fit."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_ciphers(CIPHERS)
        self.context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        self.context.load_cert_chain(*self._files)

    @classmethod
    def of(cls, settings: Settings) -> "Certificate | None":
        """That of the settings; None without one."""
        web = settings.web
        return cls(web.tls_certificate, web.tls_key) if web.tls_certificate and web.tls_key else None

    def look(self) -> None:
        """Read the files again if they have changed; if they do not fit, the former stay in use."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
            log.info("certificate of the pages read again")
        except OSError as error:
            log.error("certificate of the pages does not fit; the former stays in use", error=type(error).__name__)

    def _stamp(self) -> tuple[tuple[int, int] | None, ...]:
        return tuple(_stamp_of(file) for file in self._files)


def _stamp_of(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
