"""What the node has left: free disk space, and what each sender may use of it in a minute."""

import threading
import time
from collections.abc import Callable

from dicom_node.receiver.errors import OutOfResources

CHECK_EVERY_S = 0.5
CHECK_EVERY_BYTES = 64 * 1024**2
WINDOW_S = 60.0
MAX_SENDERS = 1000
"""Senders that are counted; more than that are counted together."""


class Resources:
    """Says when no more should be taken in.

    free_bytes: of the file system. low_disk_bytes: below this nothing is taken.
    max_instances, max_bytes: of one sender (AE title and address) in a minute.
    monotonic: seconds.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        low_disk_bytes: int,
        max_instances: int,
        max_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._low_disk_bytes = low_disk_bytes
        self._max_instances = max_instances
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._written_since = 0
        self._is_low = False
        self._window_ends = float("-inf")
        self._used: dict[tuple[str, str], list[int]] = {}

    def is_low(self) -> bool:
        """True when the disk is below its mark. Looks at most every half second, or every 64 MiB written."""
        with self._lock:
            now = self._monotonic()
            if now - self._checked_at >= CHECK_EVERY_S or self._written_since >= CHECK_EVERY_BYTES:
                self._checked_at, self._written_since = now, 0
                self._is_low = self._free_bytes() < self._low_disk_bytes
            return self._is_low

    def admit_instance(self, ae_title: str, address: str) -> None:
        """Raises OutOfResources where this sender may not begin another instance now."""
        if self.is_low():
            raise OutOfResources("out of storage space")
        with self._lock:
            used = self._of(ae_title, address)
            used[0] += 1
            if used[0] > self._max_instances:
                raise OutOfResources("too many instances in a minute")

    def admit_bytes(self, ae_title: str, address: str, count: int) -> None:
        """Raises OutOfResources where `count` more bytes are too many."""
        with self._lock:
            self._written_since += count
            used = self._of(ae_title, address)
            used[1] += count
            if used[1] > self._max_bytes:
                raise OutOfResources("too many bytes in a minute")
            look = self._written_since >= CHECK_EVERY_BYTES
        if look and self.is_low():
            raise OutOfResources("out of storage space")

    def _of(self, ae_title: str, address: str) -> list[int]:
        now = self._monotonic()
        if now >= self._window_ends:
            self._used.clear()
            self._window_ends = now + WINDOW_S
        key = (ae_title, address) if len(self._used) < MAX_SENDERS or (ae_title, address) in self._used else ("", "")
        return self._used.setdefault(key, [0, 0])
