"""When to accept nothing more: the disk, the index or the queue of analyses is over its mark.

A sender whose association is refused as transient keeps its images and comes back. Many senders take a failure status
within an association as final. So the node refuses early.
"""

import threading
from collections.abc import Callable

import structlog

from dicom_node.receiver.committer import Committer
from dicom_node.receiver.resources import Resources
from storage.errors import StorageError, StoreReplaced

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
SLOW_INDEX_S = 10.0
"""A commit that takes this long holds up every sender; more of them would only time out."""


class Pressure:
    """Looks at the queue every second, in a thread of its own so that no association waits for it.

    check: raises StoreReplaced if index or files are no longer what was opened. check_files: raises StoreUnavailable
    while the file store is known to be away. queued: how many series wait to be analysed. paused: AE titles of the
    sources that a person has paused.
    """

    def __init__(
        self,
        resources: Resources,
        committer: Committer,
        check: Callable[[], None],
        check_files: Callable[[], None],
        queued: Callable[[], int],
        max_queued_series: int,
        paused: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._resources = resources
        self._committer = committer
        self._check = check
        self._check_files = check_files
        self._queued = queued
        self._max_queued_series = max_queued_series
        self._paused = paused
        self._paused_now: frozenset[str] = frozenset()
        self._queue_is_over = False
        self._is_replaced = False
        self._store_is_away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pressure", daemon=True)

    def start(self) -> None:
        """Look once, and go on looking."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join(timeout=5)

    def reason(self, calling_ae: str = "") -> str | None:
        """Why no association of a sender should be accepted just now; None if nothing speaks against it."""
        if self._look_for_another():
            return "store-replaced"
        if self._store_is_away:
            return "store-away"
        if self._resources.is_low():
            return "low-disk"
        failure = self._committer.failure()
        if failure is not None:
            return failure
        if self._committer.busy_s() > SLOW_INDEX_S:
            return "slow-index"
        if self._queue_is_over:
            return "queue-full"
        return "source-paused" if calling_ae in self._paused_now else None

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            self._look()

    def _look_for_another(self) -> bool:
        """True while index or files are not what was opened; said once."""
        try:
            self._check()
        except StoreReplaced as error:
            if not self._is_replaced:
                log.error("nothing is received until the node is started again", reason=str(error))
            self._is_replaced = True
        else:
            self._is_replaced = False
        return self._is_replaced

    def _look(self) -> None:
        if self._look_for_another():
            return
        try:
            self._check_files()
            self._store_is_away = False
        except StorageError:
            self._store_is_away = True
        try:
            is_over = self._queued() > self._max_queued_series
            self._paused_now = self._paused()
        except StorageError as error:
            # The committer meets the same trouble, and answers for it.
            log.warning("queue could not be looked at", error=type(error).__name__)
            return
        if is_over != self._queue_is_over:
            log.warning(
                "queue of analyses is over its mark" if is_over else "queue of analyses is below its mark again"
            )
        self._queue_is_over = is_over
