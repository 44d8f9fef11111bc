"""Structured logs: one line an event, to standard error, without patient identifiers.

UIDs appear as keyed short hashes: equal UIDs can be followed through a log, but nobody can look them up in a PACS.
The audit database holds the truth.
"""

import hashlib
import logging
import os
import sys
import warnings

import structlog

from config.settings import LoggingSettings

# A key of this machine's process tree: children inherit it, so that one series has one hash in all their logs.
KEY_VARIABLE = "DICOM_NODE_LOG_KEY"


def short(uid: str) -> str:
    """Keyed hash of a UID for a log line: 10 hex digits."""
    return hashlib.blake2b(uid.encode(), key=log_key().encode()[:64], digest_size=5).hexdigest()


def log_key() -> str:
    """The key of this node's hashes; the supervisor hands it to its children."""
    return os.environ.setdefault(KEY_VARIABLE, os.urandom(16).hex())


def configure(settings: LoggingSettings) -> None:
    """Send this process's logs to standard error as lines, or JSON lines."""
    level = getattr(logging, settings.level.upper())
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.json_lines
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks if settings.json_lines else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    # The libraries' own messages and warnings quote values of data sets: patient data. Keep them out.
    for name in ("pynetdicom", "pydicom", "highdicom", "apscheduler", "alembic"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.addHandler(logging.NullHandler())
        library.propagate = False
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom|highdicom)(\..*)?")
