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


ASSOCIATIONS, COMMANDS, INSTANCES, BYTES = range(4)


class Resources:
    """Says when no more should be taken in.

    free_bytes: of the file system. low_disk_bytes: below this nothing is taken.
    max_associations, max_instances, max_bytes: of one AE title, and of one address, in a minute.
    monotonic: seconds.
    """

    def __init__(
        self,
        free_bytes: Callable[[], int],
        low_disk_bytes: int,
        max_associations: int,
        max_instances: int,
        max_bytes: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_bytes = free_bytes
        self._low_disk_bytes = low_disk_bytes
        self._max_associations = max_associations
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

    def admit_association(self, ae_title: str, network: str) -> bool:
        """Count an association. False if this sender has had too many."""
        with self._lock:
            return self._count(ae_title, network, ASSOCIATIONS, 1) <= self._max_associations

    def admit_instance(self, ae_title: str, network: str) -> None:
        """Raises OutOfResources if this sender may not begin another instance now."""
        if self.is_low():
            raise OutOfResources("out of storage space")
        with self._lock:
            if self._count(ae_title, network, INSTANCES, 1) > self._max_instances:
                raise OutOfResources("too many instances in a minute")

    def admit_command(self, ae_title: str, network: str) -> None:
        """Raises OutOfResources if commands that store nothing exceed the limit for instances."""
        with self._lock:
            if self._count(ae_title, network, COMMANDS, 1) > self._max_instances:
                raise OutOfResources("too many commands in a minute")

    def admit_bytes(self, ae_title: str, network: str, count: int) -> None:
        """Raises OutOfResources if `count` more bytes are too many."""
        with self._lock:
            self._written_since += count
            if self._count(ae_title, network, BYTES, count) > self._max_bytes:
                raise OutOfResources("too many bytes in a minute")
            look = self._written_since >= CHECK_EVERY_BYTES
        if look and self.is_low():
            raise OutOfResources("out of storage space")

    def _count(self, ae_title: str, network: str, what: int, count: int) -> int:
        """Add to what this AE title and this address have used; the higher of the two."""
        now = self._monotonic()
        if now >= self._window_ends:
            self._used.clear()
            self._window_ends = now + WINDOW_S
        return max(self._add(("ae", ae_title), what, count), self._add(("address", network), what, count))

    def _add(self, key: tuple[str, str], what: int, count: int) -> int:
        used = self._used.get(key)
        if used is None:
            key = key if len(self._used) < MAX_SENDERS else ("others", "")
            used = self._used.setdefault(key, [0] * 4)
        used[what] += count
        return used[what]
