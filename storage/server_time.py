"""What time it is, by the clock of the database server, which all hosts share.

Every host measures how far that clock is from its own steady one, and measures again now and then. So a lease that one
host takes and another looks at has one clock, whatever the hosts' own clocks say.
"""

import threading
import time

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

AGAIN_AFTER_S = 15.0
SLOW_S = 1.0
"""An answer that takes longer says too little about when it was given."""
BOUND_S = 60.0
"""A host whose clock is further off does not start: what it says of its files, logs and hours would be wrong."""
NOW = text("SELECT extract(epoch FROM clock_timestamp())")


class ServerTime:
    """Unix seconds of the server. While it is away, time goes on as it was measured last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ahead_s: float | None = None  # of this machine's steady clock
        self._measured_at = 0.0
        self._measuring = threading.Lock()

    def now(self) -> float:
        """The server's time. Only the first call waits for the server; this machine's time if that cannot be asked."""
        if self._ahead_s is None:
            self._measure()
        elif time.monotonic() - self._measured_at > AGAIN_AFTER_S and not self._measuring.locked():
            self._measured_at = time.monotonic()
            threading.Thread(target=self._measure, name="server time", daemon=True).start()
        return time.time() if self._ahead_s is None else time.monotonic() + self._ahead_s

    def host_is_ahead_s(self) -> float:
        """How far this machine's clock is ahead of the server's, in seconds; negative if it is behind."""
        return time.time() - self.now()

    def _measure(self) -> None:
        with self._measuring:
            try:
                with self._engine.connect() as connection:
                    connection.execute(NOW)  # a new connection takes its time
                    before = time.monotonic()
                    there = float(connection.scalar(NOW))
                    after = time.monotonic()
            except SQLAlchemyError:
                return
            if self._ahead_s is None or after - before < SLOW_S:
                self._ahead_s = there - (before + after) / 2
                self._measured_at = after
