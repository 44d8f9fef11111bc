"""Keeping the lease of a job or a delivery while its holder works on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy import Connection

from storage.database import Database
from storage.errors import StorageError

log = structlog.get_logger()

BEATS = 4
"""Renewals during one lease: three of them may fail before it is over."""


@contextmanager
def kept(
    database: Database, renew: Callable[[Connection, float], bool], lease_s: float, **holder: object
) -> Iterator[None]:
    """Renew a lease while the body runs, from a thread of its own.

    renew: extends the lease as of a moment (Unix seconds); False if it is somebody else's.
    holder: names it in the log.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(lease_s / BEATS):
            try:
                with database.transaction() as tx:
                    if not renew(tx, database.now()):
                        return
            except StorageError as error:
                log.warning("lease not renewed", error=type(error).__name__, **holder)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
