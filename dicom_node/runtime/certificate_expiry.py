"""When the certificates that the configuration names expire."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from config.settings import Settings
from dicom_node.receiver.certificates import expires_at

log = structlog.get_logger()

DAY_S = 86400.0
SOON_DAYS = 30


@dataclass(frozen=True)
class Expiry:
    """One file. use: what it is for. days_left: until its first certificate expires; None if it cannot be read."""

    use: str
    file: str
    days_left: float | None

    @property
    def is_urgent(self) -> bool:
        """True if a person should look after it now."""
        return self.days_left is None or self.days_left < SOON_DAYS


def expiries(settings: Settings, now: float) -> list[Expiry]:
    """Every certificate file of the configuration. now: Unix seconds."""
    return [Expiry(use, str(file), _days_left(file, now)) for use, file in _files(settings)]


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    receiver = settings.receiver
    named = [("receiver", receiver.tls_certificate), ("receiver authorities", receiver.tls_authorities)]
    named.append(("pages", settings.web.tls_certificate))
    if settings.audit.syslog.host and settings.audit.syslog.tls:
        named.append(("audit messages", settings.audit.syslog.tls_certificate))
        named.append(("audit messages authorities", settings.audit.syslog.tls_authorities))
    for destination in settings.destinations:
        certificate, authorities = destination.certificate_files
        named.append((f"destination {destination.name}", certificate))
        named.append((f"destination {destination.name} authorities", authorities))
    yield from ((use, file) for use, file in named if file is not None)


def _days_left(file: Path, now: float) -> float | None:
    try:
        return round((expires_at(file) - now) / DAY_S, 1)
    except (OSError, ValueError):
        return None


def warn(settings: Settings) -> None:
    """Log what expires soon, has expired or cannot be read."""
    for found in expiries(settings, time.time()):
        if found.is_urgent:
            log.warning("certificate needs a person", use=found.use, file=found.file, days_left=found.days_left)
