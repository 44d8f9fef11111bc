"""Association events, to the log and to the audit trail.

A peer that knocks a thousand times a second must not fill the index. The first of several identical refusals is written
at once, and those of the following minute become one row with their number.
"""

import threading
import time
from collections.abc import Callable

import structlog

from dicom_node.receiver import meters
from dicom_node.receiver.tickets import Note

log = structlog.get_logger()

COALESCED = frozenset({"REFUSED", "REJECTED", "ABORTED", "CLOSED"})
WINDOW_S = 60.0
MAX_KINDS = 1000
"""Different events held back at once; more than that are counted together."""

Key = tuple[str, str | None, str | None, str, str]


class Journal:
    """Writes events down.

    write: takes the row, such as `Committer.note`. clock: Unix seconds.
    """

    def __init__(self, write: Callable[[Note], None], clock: Callable[[], float] = time.time) -> None:
        self._write = write
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[Key, tuple[float, int]] = {}

    def record(
        self,
        event: str,
        *,
        peer_ae: str | None = None,
        called_ae: str | None = None,
        label: str | None = None,
        address: str | None = None,
        outcome: str,
        **detail: object,
    ) -> None:
        """One event.

        peer_ae, called_ae: as the peer named them, for the audit trail only. label: what the log calls the peer.
        detail: JSON types, nothing that the peer chose.
        """
        now = self._clock()
        meters.EVENTS.labels(event, str(detail.get("reason", ""))).inc()
        self.flush(now)
        if outcome in COALESCED and self._hold(event, peer_ae, address, outcome, str(detail.get("reason", "")), now):
            return
        log.info(event, peer=label, address=address, outcome=outcome, **detail)
        self._write(Note(event, now, peer_ae, address, outcome, {"called_ae": called_ae, **detail}))

    def _hold(
        self, event: str, peer_ae: str | None, address: str | None, outcome: str, reason: str, now: float
    ) -> bool:
        """Count an event that was written down already in this window; False if it is the first."""
        key: Key = (event, peer_ae, address, outcome, reason)
        with self._lock:
            if key not in self._held and len(self._held) >= MAX_KINDS:
                key = (event, None, None, outcome, "various")
            known = self._held.get(key)
            self._held[key] = (known[0], known[1] + 1) if known else (now, 0)
            return known is not None

    def flush(self, now: float, window_s: float = WINDOW_S) -> None:
        """Write down what was counted in windows that are over."""
        with self._lock:
            over = {key: held for key, held in self._held.items() if not now - window_s < held[0] <= now}
            for key in over:
                del self._held[key]
        for (event, peer_ae, address, outcome, reason), (since, times) in over.items():
            if times:
                detail = {"reason": reason, "times": times, "since": since}
                log.info(event, address=address, outcome=outcome, **detail)
                self._write(Note(event, now, peer_ae, address, outcome, detail))
