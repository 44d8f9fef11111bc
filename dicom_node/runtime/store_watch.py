"""A process of the node ends when its index or files folder is replaced under it.

The supervisor starts it again and again, with growing pauses; it stays up once index and files belong together. Only
the receiver lives on, to refuse what comes.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from storage.database import Database
from storage.errors import StoreReplaced

LOOK_EVERY_S = 1.0


@contextmanager
def watched(database: Database, stop: threading.Event, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """Set `stop` when index or files are no longer what was opened; StoreReplaced is raised at the end of the block."""
    found: list[StoreReplaced] = []
    ended = threading.Event()

    def look() -> None:
        while not found and not ended.wait(every_s):
            try:
                database.check()
            except StoreReplaced as error:
                found.append(error)
                stop.set()

    threading.Thread(target=look, name="store watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
    if found:
        raise found[0]
