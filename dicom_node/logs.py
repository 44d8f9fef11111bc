"""Structured logs: one line an event, to standard error, without patient identifiers.

A series appears by its number in the index, which `dicom-node series show` takes. Other UIDs, and the AE titles of
strangers, appear as short keyed hashes: they can be followed through a log, and nobody can look them up.
The audit trail holds the truth.
"""

import hashlib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import MutableMapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TextIO, cast

import structlog

from config.settings import LoggingSettings

# A key of this machine's process tree: children inherit it, so that one UID has one hash in all their logs.
KEY_VARIABLE = "DICOM_NODE_LOG_KEY"


class _NeverInTheWay(io.TextIOBase):
    """A stream whose failures are not those of what logs: its disk is full, or nobody reads it any more."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


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
            _without_words,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=cast("TextIO", _NeverInTheWay(sys.stderr))),
    )
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda raised: _log_uncaught(raised.exc_type, raised.exc_value, raised.exc_traceback)
    # The libraries' own messages and warnings quote values of data sets, and addresses that ask for a patient: patient
    # data. Keep them out.
    for name in ("pynetdicom", "pydicom", "highdicom", "apscheduler", "alembic", "httpx", "httpcore"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.addHandler(logging.NullHandler())
        library.propagate = False
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom|highdicom)(\..*)?")


def _where(raised: BaseException) -> str:
    """Type and place of an exception, without its words, which may quote a data set."""
    frames = traceback.extract_tb(raised.__traceback__)[-6:]
    places = " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(raised).__name__} at {places}" if places else type(raised).__name__


def _without_words(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: what was logged with `exc_info` becomes its type and place."""
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    elif isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        event["exception"] = _where(raised)
    return event


def _log_uncaught(kind: type[BaseException], value: BaseException | None, at: TracebackType | None) -> None:
    """Instead of a traceback with the exception's words."""
    if kind is KeyboardInterrupt or kind is SystemExit:
        return
    structlog.get_logger().error("uncaught exception", exception=_where(value) if value else kind.__name__)
